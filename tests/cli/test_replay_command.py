"""`smt replay`: the run's own code again, up to a place, compared with what it was and without a trace."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import Result

from statemachine_trainer.cli.places import Place
from tests.cli import replays
from tests.cli.replays import left_alone, train

TRAIN = """
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from statemachine_trainer import Checkpoints, Trainer, every


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.2), nn.Linear(4, 2))

    def training_step(self, batch, batch_idx):
        loss = nn.functional.cross_entropy(self.layer(batch[0]), batch[1])
        return loss * self.factor(batch)

    def factor(self, batch):
        return float("nan") if 77 in batch[2] else 1.0

    def validation_step(self, batch, batch_idx):
        self.layer(batch[0])

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.01)


def loader():
    numbers = torch.arange(80)
    inputs = torch.randn(80, 3, generator=torch.Generator().manual_seed(3))
    return DataLoader(TensorDataset(inputs, numbers % 2, numbers), batch_size=4)


def trainer(folder="runs/a"):
    torch.manual_seed(0)
    return Trainer(
        max_epochs=2,
        seed=1,
        device="cpu",
        progress=False,
        sanity_batches=0,
        checkpoints=Checkpoints(folder, every=every(7, "batch")),
        fingerprints=every(2, "step"),
    )


def make():
    made = trainer()
    made.start(Net(), loader(), loader())
    return made


def make_elsewhere():
    made = trainer("runs/b")
    made.start(Net(), loader(), loader())
    return made


if __name__ == "__main__":
    made = trainer()
    made.fit(Net(), loader(), loader(), resume="auto")
    print("after the fit")
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a script whose run has ended; its loss was NaN first in batch 20, the last of an epoch."""
    place = tmp_path_factory.mktemp("trained")
    (place / "train.py").write_text(TRAIN)
    train(place)
    return place


@pytest.fixture(autouse=True)
def _there(folder: Path) -> Iterator[None]:
    with left_alone(folder):
        yield


def replay(*arguments: str, line: str | None = None) -> Result:
    return replays.replay("runs/a", *arguments, line=line)


def test_a_step_is_reached_by_the_own_command_and_the_run_reproduces_itself() -> None:
    said = replay("--to", "9", "--print")
    assert said.exit_code == 0, said.output
    assert "from its beginning to step 9" in said.output
    assert "It reproduces itself: its fingerprints are equal at 9 places." in said.output
    assert "step 9" in said.output
    assert "after the fit" not in said.output


def test_it_begins_at_the_nearest_checkpoint() -> None:
    said = replay("--to", "step 39", "--print")
    assert "from checkpoint 000005-step-00000035 to step 39" in said.output
    assert "It reproduces itself" in said.output


def test_a_function_of_the_code_can_be_named() -> None:
    said = replay("--to", "9", "--from", "train.py:make", "--print")
    assert said.exit_code == 0, said.output
    assert "It reproduces itself" in said.output


def test_the_start_of_an_epoch_is_a_place() -> None:
    said = replay("--to", "epoch 2", "--print")
    assert "before fit.epoch.epoch_start" in said.output
    assert "1 epoch done, step 20" in said.output


def test_a_state_is_a_place() -> None:
    said = replay("--to", "validation", "--print")
    assert "before fit.epoch.validation.validation_start" in said.output


def test_the_batch_of_the_first_loss_that_is_not_finite_is_a_place() -> None:
    said = replay("--to", "nonfinite", "--print")
    assert "before fit.epoch.batch.batch_start" in said.output
    assert "batch 20 (batch_idx 19), step 19" in said.output


def test_the_prompt_of_the_debugger_stands_there() -> None:
    said = replay("--to", "9", line="print trainer.steps * 1000\nquit\n")
    assert "9000" in said.output


def test_a_changed_line_is_found(folder: Path) -> None:
    script = folder / "train.py"
    script.write_text(TRAIN.replace("return loss * self.f", "return loss * 1.000001 * self.f"))
    try:
        said = replay("--to", "9", "--print")
    finally:
        script.write_text(TRAIN)
    assert said.exit_code == 1
    assert "It does not reproduce itself. It parts from the run at step 1" in said.output
    assert "forward: loss" in said.output


def test_a_place_that_never_comes_is_told() -> None:
    said = replay("--to", "1000", "--print")
    assert said.exit_code == 2
    assert "did not come to step 1000" in said.output


def test_code_that_starts_another_run_is_refused() -> None:
    said = replay("--to", "9", "--from", "train.py:make_elsewhere", "--print")
    assert said.exit_code == 2
    assert "another folder" in said.output


@pytest.mark.parametrize("text", ["", " ", "-5"])
def test_what_is_no_place_is_refused(text: str) -> None:
    said = replay("--to", text, "--print")
    assert said.exit_code == 2
    assert "is no place" in said.output


def test_a_name_that_is_no_state_is_refused() -> None:
    said = replay("--to", "validaton", "--print")
    assert said.exit_code == 2
    assert "validation" in said.output


@pytest.mark.parametrize(
    "text, place",
    [
        ("1200", Place(step=1200)),
        ("step 1200", Place(step=1200)),
        ("step=1200", Place(step=1200)),
        (" epoch 3 ", Place(epoch=3)),
        ("epoch_end:exit", Place(name="epoch_end:exit")),
        ("nonfinite", Place(name="nonfinite")),
        ("spike", Place(name="spike")),
        ("spike 6.5", Place(name="spike", limit=6.5)),
        ("spike=20", Place(name="spike", limit=20.0)),
        ("spikes", Place(name="spikes")),
    ],
)
def test_places_are_written_as_one_says_them(text: str, place: Place) -> None:
    assert Place.of(text) == place
