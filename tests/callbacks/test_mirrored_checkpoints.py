"""Runs whose checkpoints are sent to another place: they go on from there when this machine is gone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch

from statemachine_trainer import Best, Checkpoints, Mirror, Retention, Trainer
from statemachine_trainer.callbacks.checkpoints import EarlierRun
from statemachine_trainer.run_record import read_record
from statemachine_trainer.snapshot import BadMirror, WriteFailed
from tests.callbacks.kit import Net, batches, same, trainer_with, weights_of


def trainer_of(folder: Path, mirror: Any, epochs: int = 2, **options: Any) -> Trainer:
    kept = Retention(last=1, best=Best("score", k=1))
    checkpoints = Checkpoints(folder, every=3, retention=kept, mirror=mirror, **options)
    return trainer_with(checkpoints, max_epochs=epochs)


def train(trainer: Trainer, stop: int | None = None, **how: Any) -> None:
    if stop is not None:
        trainer.on("batch_end", trainer.pause, when=lambda one: one.steps == stop)
    trainer.fit(Net(values=(0.1, 0.9, 0.5)), batches(), batches(1), **how)


@pytest.fixture(scope="module")
def undisturbed() -> dict[str, torch.Tensor]:
    trainer = trainer_with(None, max_epochs=2)
    train(trainer)
    return weights_of(trainer)


@pytest.mark.parametrize("background", [False, True])
def test_a_run_goes_on_on_another_machine_to_the_same_bits(
    background: bool, address: str, tmp_path: Path, undisturbed: dict[str, torch.Tensor]
) -> None:
    for machine, stop in enumerate((5, 11, None)):  # the same command each time
        trainer = trainer_of(tmp_path / str(machine), address, background=background)
        train(trainer, stop, resume="auto")
        if stop is not None:
            trainer.checkpoint()
        held = {one.path.name for one in Checkpoints(tmp_path / str(machine)).store.list()}
        assert Mirror(address).whole() == held
    assert same(weights_of(trainer), undisturbed)
    record = read_record(tmp_path / "2")
    assert record is not None
    assert [one["event"] for one in record.history] == ["started", "resumed", "resumed", "ended"]


def test_the_best_one_is_brought_back_too(address: str, tmp_path: Path) -> None:
    train(trainer_of(tmp_path / "first", address, epochs=1))
    trainer = trainer_of(tmp_path / "second", address)
    train(trainer, resume="auto", restore_best=True)
    whole = trainer_of(tmp_path / "whole", None)
    train(whole, restore_best=True)
    assert same(weights_of(trainer), weights_of(whole))


def test_the_folder_here_is_gone_on_from_first(
    address: str, tmp_path: Path, undisturbed: dict[str, torch.Tensor]
) -> None:
    first = trainer_of(tmp_path, address)
    train(first, 5)
    first.checkpoint()
    files, root = fsspec.url_to_fs(address)
    for path in files.find(root):
        if path.endswith("tensors.safetensors"):
            files.pipe_file(path, b"nobody reads this")
    second = trainer_of(tmp_path, address)
    train(second, resume="auto")
    assert same(weights_of(second), undisturbed)


def test_a_new_run_does_not_write_over_that_of_another(address: str, tmp_path: Path) -> None:
    train(trainer_of(tmp_path / "first", address, epochs=1))
    kept = Mirror(address).whole()
    with pytest.raises(EarlierRun, match=r"The mirror .*restart=True"):
        train(trainer_of(tmp_path / "second", address))
    assert Mirror(address).whole() == kept
    train(trainer_of(tmp_path / "second", address, epochs=1), restart=True)
    assert Mirror(f"{address}/earlier-1").whole() == kept
    train(trainer_of(tmp_path / "second", address, epochs=1), restart=True)
    assert Mirror(f"{address}/earlier-2").whole() == kept


def test_a_place_that_takes_nothing_is_told_before_the_first_batch(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    trainer = trainer_of(tmp_path / "run", f"file://{tmp_path}/file/run")
    with pytest.raises(WriteFailed, match="The mirror cannot be written"):
        train(trainer)
    assert trainer.driver.context is None


def test_a_place_that_goes_away_costs_nothing_but_an_error_at_the_end(
    tmp_path: Path, undisturbed: dict[str, torch.Tensor]
) -> None:
    there = tmp_path / "there"
    trainer = trainer_of(tmp_path / "here", f"file://{there}")

    def take_away() -> None:
        shutil.rmtree(there)
        there.touch()

    trainer.on("batch_end", take_away, when=lambda one: one.steps == 1)
    with pytest.raises(WriteFailed, match="could not all be sent to the mirror"):
        train(trainer)
    assert same(weights_of(trainer), undisturbed)
    assert (
        json.loads((tmp_path / "here" / "run.json").read_text())["history"][-1]["event"] == "ended"
    )
    there.unlink()
    train(trainer_of(tmp_path / "here", f"file://{there}"), resume="auto")
    assert Mirror(f"file://{there}").whole() == set()  # it had ended: nothing was written
    train(trainer_of(tmp_path / "here", f"file://{there}", epochs=3), resume="auto")
    held = {one.name for one in (tmp_path / "here").glob("0*")}
    assert Mirror(f"file://{there}").whole() == held


@pytest.mark.parametrize("mirror", [3, Path("there"), "there", b"s3://bucket"])
def test_what_is_no_mirror_is_refused_at_once(mirror: Any, tmp_path: Path) -> None:
    with pytest.raises(BadMirror, match=r"(no|an) address"):
        Checkpoints(tmp_path / "run", mirror=mirror)
    assert not (tmp_path / "run").exists()


def test_one_mirror_serves_one_folder_and_not_itself(address: str, tmp_path: Path) -> None:
    mirror = Mirror(address)
    Checkpoints(tmp_path / "one", mirror=mirror)
    Checkpoints(tmp_path / "one", mirror=mirror)
    with pytest.raises(BadMirror, match="and not of"):
        Checkpoints(tmp_path / "other", mirror=mirror)
    with pytest.raises(BadMirror, match="is the folder itself"):
        Checkpoints(tmp_path / "one", mirror=f"file://{tmp_path}/one")


def test_a_run_that_begins_anew_sends_all_of_it(address: str, tmp_path: Path) -> None:
    mirror = Mirror(address)
    train(trainer_of(tmp_path / "run", mirror, epochs=1))
    shutil.rmtree(tmp_path / "run")
    files, root = fsspec.url_to_fs(address)
    files.rm(root, recursive=True)
    train(trainer_of(tmp_path / "run", mirror, epochs=1))
    held = {one.path.name for one in Checkpoints(tmp_path / "run").store.list()}
    assert mirror.whole() == held
