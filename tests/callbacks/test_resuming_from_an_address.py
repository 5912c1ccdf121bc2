"""`resume`, `load_weights` and `smt inspect` take an address, such as `s3://bucket/runs/mine`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch
from typer.testing import CliRunner

from statemachine_trainer import Best, Checkpoints, Mirror, Retention, Trainer, load_weights
from statemachine_trainer.callbacks.finding import NoCheckpoint
from statemachine_trainer.cli import app
from statemachine_trainer.snapshot import (
    BadMirror,
    Damaged,
    NotACheckpoint,
    SnapshotMismatch,
    Store,
)
from tests.callbacks.kit import Net, batches, same, trainer_with, weights_of

EPOCHS = 3


def trainer_of(folder: Path, mirror: Any = None, epochs: int = EPOCHS) -> Trainer:
    kept = Retention(last=2, best=Best("score", k=1))
    return trainer_with(
        Checkpoints(folder, every=3, retention=kept, mirror=mirror), max_epochs=epochs
    )


def train(trainer: Trainer, stop: int | None = None, **how: Any) -> dict[str, torch.Tensor]:
    if stop is not None:
        trainer.on("batch_end", trainer.pause, when=lambda one: one.steps == stop)
    trainer.fit(Net(values=(0.1, 0.9, 0.5)), batches(), batches(1), **how)
    if stop is not None:
        trainer.checkpoint()
    return weights_of(trainer)


@pytest.fixture(scope="module")
def undisturbed() -> dict[str, torch.Tensor]:
    return train(trainer_with(None, max_epochs=EPOCHS))


@pytest.fixture
def run(address: str, tmp_path: Path) -> str:
    """The address of a run that was stopped in its second epoch."""
    train(trainer_of(tmp_path / "first", address), stop=7)
    assert len(Mirror(address).whole()) > 1
    return address


@pytest.mark.parametrize("kind", ["memory", "file"])
def test_a_run_goes_on_from_an_address_to_the_same_bits(
    kind: str, address: str, tmp_path: Path, undisturbed: dict[str, torch.Tensor]
) -> None:
    there = address if kind == "memory" else f"file://{tmp_path}/there"
    train(trainer_of(tmp_path / "first", there), stop=7)
    trainer = trainer_of(tmp_path / "second")
    assert same(train(trainer, resume=there), undisturbed)
    assert trainer.checkpoints is not None
    assert trainer.checkpoints.store.list(), "the run goes on in the folder of its trainer"


def test_so_it_does_without_a_folder_of_its_own(
    run: str, undisturbed: dict[str, torch.Tensor]
) -> None:
    assert same(train(trainer_with(None, max_epochs=EPOCHS), resume=run), undisturbed)


def test_a_slash_at_the_end_changes_nothing(
    run: str, tmp_path: Path, undisturbed: dict[str, torch.Tensor]
) -> None:
    assert same(train(trainer_of(tmp_path / "second"), resume=f"{run}/"), undisturbed)


@pytest.mark.parametrize("folder", ["second", None])
def test_one_checkpoint_is_named(
    folder: str | None, run: str, tmp_path: Path, undisturbed: dict[str, torch.Tensor]
) -> None:
    oldest = min(Mirror(run).whole())
    done: dict[str, list[int]] = {oldest: [], "": []}
    for name, steps in done.items():
        whole = None if folder is None else trainer_of(tmp_path / (folder + name))
        trainer = whole or trainer_with(None, max_epochs=EPOCHS)
        trainer.on("batch_end", lambda one, steps=steps: steps.append(one.steps))
        assert same(train(trainer, resume=f"{run}/{name}"), undisturbed)
    assert len(done[oldest]) > len(done[""])


def test_the_same_command_goes_on_each_time_with_what_is_newest(
    address: str, tmp_path: Path, undisturbed: dict[str, torch.Tensor]
) -> None:
    train(trainer_of(tmp_path / "first", address), stop=4)
    train(trainer_of(tmp_path / "second", address), stop=8, resume=address)
    before = Store(tmp_path / "second").newest()
    assert before is not None
    assert Mirror(address).whole() == {one.path.name for one in Store(tmp_path / "second").list()}
    trainer = trainer_of(tmp_path / "second", address)
    steps: list[int] = []
    trainer.on("batch_start", lambda one: steps.append(one.steps))
    assert same(train(trainer, resume=address), undisturbed)
    assert steps[0] == 8
    other = f"{address}-elsewhere"
    assert same(train(trainer_of(tmp_path / "third", other), resume=address), undisturbed)
    assert Mirror(other).whole() == set(), "the run had ended: nothing was written"


def test_a_folder_or_mirror_with_another_run_is_refused(run: str, tmp_path: Path) -> None:
    train(trainer_of(tmp_path / "other", f"file://{tmp_path}/mirror"), stop=2)
    # Lock and journal of a trainer are there until it is collected.
    kept = sorted((tmp_path / "other").glob("0*/*"))
    with pytest.raises(SnapshotMismatch, match="different"):
        train(trainer_of(tmp_path / "other"), resume=run)
    assert sorted((tmp_path / "other").glob("0*/*")) == kept
    with pytest.raises(SnapshotMismatch, match=r"has checkpoints already.*resume=\"auto\""):
        train(trainer_of(tmp_path / "new", f"file://{tmp_path}/mirror"), resume=run)
    train(trainer_of(tmp_path / "other"), stop=8, resume="auto")  # which it still can


def test_weights_are_loaded_from_an_address(run: str, tmp_path: Path) -> None:
    here, there = Net(), Net()
    load_weights(here, tmp_path / "first")
    load_weights(there, run)
    assert same(here.state_dict(), there.state_dict())
    one = min(Mirror(run).whole())
    load_weights(here, tmp_path / "first" / one)
    load_weights(there, f"{run}/{one}")
    assert same(here.state_dict(), there.state_dict())
    trainer_with(None).validate(Net(), batches(1), checkpoint=run)


def test_the_best_weights_are_loaded_from_an_address(address: str, tmp_path: Path) -> None:
    train(trainer_of(tmp_path / "first", address))
    here, there = Net(), Net()
    load_weights(here, tmp_path / "first", best="score")
    load_weights(there, address, best="score")
    assert same(here.state_dict(), there.state_dict())


def test_what_is_not_there_is_told(address: str, tmp_path: Path) -> None:
    name = "000001-step-1"
    for place in (address, f"{address}/{name}", f"file://{tmp_path}/none"):
        with pytest.raises(NotACheckpoint, match=r"There is no .*checkpoint"):
            load_weights(Net(), place)
        for folder in (None, tmp_path / "run"):
            with pytest.raises(NoCheckpoint, match=r"There is no .*checkpoint"):
                train(trainer_with(folder, max_epochs=1), resume=place)
    with pytest.raises(BadMirror, match="cannot be opened"):
        load_weights(Net(), "nowhere://run")
    with pytest.raises(BadMirror, match="names no folder"):
        train(trainer_with(None, max_epochs=1), resume="memory://")


def test_a_damaged_one_is_passed_over_unless_it_is_named(
    address: str, tmp_path: Path, undisturbed: dict[str, torch.Tensor]
) -> None:
    train(trainer_of(tmp_path / "first", address), stop=7)
    newest = max(Mirror(address).whole())
    files, root = fsspec.url_to_fs(address)
    files.pipe_file(f"{root}/{newest}/tensors.safetensors", b"cut off")
    with pytest.raises(Damaged, match="tensors"):
        load_weights(Net(), f"{address}/{newest}")
    load_weights(Net(), address)
    assert same(train(trainer_of(tmp_path / "second"), resume=address), undisturbed)
    told = CliRunner().invoke(app, ["inspect", address])
    assert told.exit_code == 1
    assert f"Damaged: {newest}" in told.output


def test_inspect_shows_a_run_and_a_checkpoint_of_an_address(run: str) -> None:
    told = CliRunner().invoke(app, ["inspect", run, "--check"])
    assert told.exit_code == 0, told.output
    assert told.output.startswith(f"Run {run}\n")
    newest = max(Mirror(run).whole())
    assert f"The run goes on from {newest}" in told.output
    one = CliRunner().invoke(app, ["inspect", f"{run}/{newest}"])
    assert one.output.startswith(f"Checkpoint {run}/{newest}\n")
    none = CliRunner().invoke(app, ["inspect", f"{run}-none"])
    assert none.exit_code == 2
    assert "There is no whole checkpoint" in none.output
