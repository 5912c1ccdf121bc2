"""Damage is found wherever it is, named, and passed over for the checkpoint before."""

from __future__ import annotations

import random
import shutil
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from statemachine_trainer.snapshot import Damaged, DamagedCheckpointWarning, NotACheckpoint, Store
from tests.snapshot.faults import tear

NAMES = ["manifest.json", "state.json", "tensors.safetensors"]


def make(root: Path) -> Path:
    """A run of two checkpoints; the folder of the second."""
    store = Store(root)
    path = root
    for step in (1, 2):
        tree = {"step": step, "model": {"w": torch.randn(9), "b": torch.ones(2, dtype=torch.int8)}}
        path = store.save(tree, name=f"step-{step}", metadata={"step": step, "note": "é"})
    return path


def assert_passed_over(root: Path, file: Path) -> None:
    """Loading the second is an error that names the file; the newest is the first."""
    store = Store(root)
    with pytest.raises((Damaged, NotACheckpoint)) as caught:
        store.load("step-2")
    assert file.name in str(caught.value)
    with pytest.warns(DamagedCheckpointWarning, match=file.name):
        newest = store.newest()
    assert newest is not None
    assert newest.metadata["step"] == 1


@pytest.mark.parametrize("name", NAMES)
def test_a_flipped_bit_in_any_byte_is_found(tmp_path: Path, name: str) -> None:
    file = make(tmp_path) / name
    store = Store(tmp_path)
    content = file.read_bytes()
    chance = random.Random(0)
    for position in range(len(content)):
        flipped = bytearray(content)
        flipped[position] ^= 1 << chance.randrange(8)
        file.write_bytes(flipped)
        with pytest.raises(Damaged) as caught:
            store.load("step-2")
        assert caught.value.file == file
    assert_passed_over(tmp_path, file)


@given(st.data())
def test_any_change_of_any_stretch_of_bytes_is_found(data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = make(Path(folder)) / data.draw(st.sampled_from(NAMES))
        content = file.read_bytes()
        start = data.draw(st.integers(0, len(content) - 1))
        stretch = data.draw(st.binary(min_size=1, max_size=40))
        changed = content[:start] + stretch + content[start + len(stretch) :]
        if changed != content:
            file.write_bytes(changed)
            assert_passed_over(Path(folder), file)


@given(st.sampled_from(NAMES), st.randoms(use_true_random=False))
def test_a_torn_file_is_found(name: str, chance: random.Random) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = make(Path(folder)) / name
        content = file.read_bytes()
        torn = tear(content, chance)
        if torn != content:
            file.write_bytes(torn)
            assert_passed_over(Path(folder), file)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("damage", [Path.unlink, lambda file: file.write_bytes(b"")])
def test_a_file_that_is_missing_or_empty_is_found(
    tmp_path: Path, name: str, damage: Callable[[Path], object]
) -> None:
    file = make(tmp_path) / name
    damage(file)
    assert_passed_over(tmp_path, file)


def test_files_of_another_checkpoint_are_found(tmp_path: Path) -> None:
    second = make(tmp_path)
    shutil.copy(tmp_path / "000001-step-1" / "tensors.safetensors", second)
    assert_passed_over(tmp_path, second / "tensors.safetensors")


def test_the_list_names_the_damage_that_a_look_at_the_manifest_shows(tmp_path: Path) -> None:
    second = make(tmp_path)
    (second / "state.json").write_bytes(b"{}")
    first_info, second_info = Store(tmp_path).list()
    assert first_info.damage is None
    assert first_info.metadata == {"step": 1, "note": "é"}
    assert second_info.damage is not None
    assert "it has 2 bytes" in second_info.damage


def test_several_damaged_ones_are_each_named_on_the_way_to_a_whole_one(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for step in (1, 2, 3):
        store.save({"step": step}, name=f"step-{step}", metadata={"step": step})
    (store.list()[1].path / "state.json").unlink()
    (store.list()[2].path / "manifest.json").unlink()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        newest = store.newest()
    assert newest is not None
    assert newest.metadata["step"] == 1
    texts = [str(warning.message) for warning in caught]
    assert len(texts) == 2
    assert "000003-step-3 is no checkpoint: it has no manifest.json" in texts[0]
    assert "state.json: it is missing" in texts[1]


def test_a_run_of_which_nothing_is_whole_does_not_pass_for_an_empty_one(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.save({}, name="only")
    (store.list()[0].path / "state.json").unlink()
    with (
        pytest.warns(DamagedCheckpointWarning),
        pytest.raises(Damaged, match=r"no checkpoint in it is whole.*state\.json: it is missing"),
    ):
        store.newest()


def test_a_damaged_checkpoint_is_neither_counted_nor_deleted(tmp_path: Path) -> None:
    second = make(tmp_path)
    (second / "state.json").unlink()
    store = Store(tmp_path)
    for step in (3, 4, 5):
        store.save({}, name=f"step-{step}")
    assert [info.name for info in store.list()] == ["step-2", "step-3", "step-4", "step-5"]
