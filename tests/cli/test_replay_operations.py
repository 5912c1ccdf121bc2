"""`smt replay --operations`: a batch of a run is done again, operation by operation."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.replays import left_alone, replay, train

TRAIN = """
import torch
from torch import nn

from statemachine_trainer import Trainer, every


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def training_step(self, batch, batch_idx):
        return self.penalty(self.layer(batch))

    def penalty(self, outputs):
        return (outputs * 1.0).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def batches():
    draw = torch.Generator().manual_seed(1)
    return [torch.randn(6, 3, generator=draw) for _ in range(6)]


if __name__ == "__main__":
    trainer = Trainer(
        max_epochs=1, seed=1, progress=False, run="run", device="cpu", fingerprints=every(1, "step")
    )
    torch.manual_seed(0)
    trainer.fit(Net(), batches())
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two projects, each with a run of the same name; in the second one a factor has changed."""
    place = tmp_path_factory.mktemp("projects")
    for name, factor in (("a", "1.0"), ("b", "1.5")):
        (place / name).mkdir()
        (place / name / "train.py").write_text(TRAIN.replace("* 1.0", f"* {factor}"))
        train(place / name)
    return place


@pytest.fixture(autouse=True)
def _there(folder: Path) -> Iterator[None]:
    with left_alone(folder, watched=".", but_for="__pycache__"):
        yield


def test_a_batch_of_a_run_is_done_twice() -> None:
    said = replay("a/run", "--to", "3", "--operations")
    assert said.exit_code == 0, said.output
    assert "It reproduces itself" in said.output
    assert "step 4 (batch 4, epoch 1), done twice: its " in said.output
    assert "operations give the same, to the bit." in said.output


@pytest.mark.slow
def test_two_runs_are_laid_side_by_side_each_with_its_own_code() -> None:
    said = replay("a/run", "--to", "0", "--operations", "--against", "b/run")
    assert said.exit_code == 1, said.output
    assert "step 1 (batch 1, epoch 1), of a/run and of b/run differs at operation" in said.output
    assert "aten.mul.Tensor (forward, train.py:" in said.output
    assert "in penalty) reads something else: other (1.0 | 1.5)." in said.output


@pytest.mark.parametrize(
    "options, word",
    [
        (["--against", "b/run"], "--against RUN_B goes with --operations"),
        (["--from-b", "train.py:make"], "add --against RUN_B"),
        (["--operations", "--bisect", "a", "b"], "with neither of the two"),
        (["--bisect", "a/train.py", "missing.py"], "are not both files"),
    ],
)
def test_options_that_do_not_go_together_are_refused(options: list[str], word: str) -> None:
    said = replay("a/run", "--to", "3", *options)
    assert said.exit_code == 2
    assert word in said.output
