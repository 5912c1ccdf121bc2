"""Checkpoints of a model in parts: each rank writes its own, and a run that was stopped ends with the same bits."""

from __future__ import annotations

import os
import shutil
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from statemachine_trainer.cli.inspection import inspect
from statemachine_trainer.snapshot import DamagedCheckpointWarning, Store
from tests.ranks.launching import launch
from tests.ranks.test_training import (
    HARD,
    PROGRAM,
    assert_one_process_reads_it,
    assert_went_on,
)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.name != "posix", reason="processes and signals of Unix"),
]

IN_PARTS = (*HARD, "--shard")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    assert launch(PROGRAM, folder, *IN_PARTS) == 0
    return folder


@pytest.mark.parametrize("what", ["kill@5/0", "SIGTERM@4/1"])
def test_a_run_in_parts_goes_on_to_the_same_bits(
    what: str, tmp_path: Path, undisturbed: Path
) -> None:
    assert launch(PROGRAM, tmp_path, *IN_PARTS, "--what", what) != 0
    assert launch(PROGRAM, tmp_path, *IN_PARTS) == 0
    assert_went_on(tmp_path, undisturbed)


def test_a_run_in_parts_whose_folder_is_gone_goes_on_from_its_mirror(
    tmp_path: Path, undisturbed: Path
) -> None:
    mirrored = (*IN_PARTS, "--mirror", f"file://{tmp_path}/mirror")
    assert launch(PROGRAM, tmp_path, *mirrored, "--what", "SIGTERM@4/1") != 0
    shutil.rmtree(tmp_path / "run")
    assert launch(PROGRAM, tmp_path, *mirrored) == 0
    assert_went_on(tmp_path, undisturbed)
    there, here = Store(tmp_path / "mirror").list(), Store(tmp_path / "run").list()
    assert [one.path.name for one in there] == [one.path.name for one in here]


def test_one_process_checks_it_and_loads_its_weights(undisturbed: Path, tmp_path: Path) -> None:
    assert_one_process_reads_it(undisturbed, tmp_path)


def test_the_weights_of_all_parts_are_listed_as_whole_ones(undisturbed: Path) -> None:
    printed = StringIO()
    newest = Store(undisturbed / "run").list()[-1]
    inspect(newest.path, Console(file=printed, width=100))
    lines = [line.split() for line in printed.getvalue().splitlines()]
    assert ["ranks", "2"] in lines
    assert ["one.weight", "16", "x", "4", "float32", "256", "B"] in lines
    assert ["two.bias", "3", "float32", "12", "B"] in lines


def test_a_checkpoint_with_a_damaged_part_is_passed_over(undisturbed: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(undisturbed / "run", run)
    store = Store(run)
    before, newest = (info.path for info in store.list()[-2:])
    shard = newest / "shard-1.safetensors"
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    with pytest.warns(DamagedCheckpointWarning, match=r"shard-1\.safetensors"):
        loaded = store.newest()
    assert loaded is not None
    assert loaded.path == before
