"""A replay changes settings where they were changed from outside, and so reproduces the run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from statemachine_trainer import Checkpoints, Trainer, every
from statemachine_trainer.cli.places import Place
from statemachine_trainer.cli.replaying import Replay
from statemachine_trainer.control.processes import asking

Batch = tuple[torch.Tensor, torch.Tensor]


def batches() -> list[Batch]:
    draw = torch.Generator().manual_seed(0)
    return [
        (torch.randn(4, 3, generator=draw), torch.randn(4, 1, generator=draw)) for _ in range(8)
    ]


def started(folder: Path | None = None, resume: Path | None = None) -> Trainer:
    torch.manual_seed(0)
    model = nn.Linear(3, 1)
    kept: dict[str, Any] = {}
    if folder is not None:
        checkpoints = Checkpoints(folder, every=every(6, "batch"))
        kept = {"checkpoints": checkpoints, "fingerprints": every(1, "step")}
    trainer = Trainer(max_epochs=2, seed=0, progress=False, **kept)
    fit: dict[str, Any] = {
        "loss": nn.functional.mse_loss,
        "optimizer": torch.optim.SGD(model.parameters(), lr=0.1),
    }
    trainer.start(model, batches(), resume=resume, **fit)
    return trainer


def changed_from_outside(folder: Path, state: str, who: str = "the page") -> None:
    """Record a run of which settings are changed twice, as if somebody had asked for it on the page."""
    trainer = started(folder)

    @trainer.on(state)
    def change() -> None:
        values = {3: {"lr": 0.03, "clip_norm": 0.5}, 9: {"lr": 0.2}}
        with asking(who):
            if (found := values.get(trainer.context.counts.batch)) is not None:
                trainer.post("set", **found)

    trainer.run()


@pytest.mark.parametrize("state", ["batch_start", "forward", "batch_end", "fetch"])
def test_it_reproduces_itself_wherever_in_a_batch_they_were_changed(
    tmp_path: Path, state: str
) -> None:
    changed_from_outside(tmp_path, state)
    replay = Replay(tmp_path, Place.of("5"))  # from the beginning
    replay.go(started())
    assert replay.verdict().startswith("It reproduces itself")


def test_so_it_does_from_a_checkpoint(tmp_path: Path) -> None:
    changed_from_outside(tmp_path, "forward")
    replay = Replay(tmp_path, Place.of("11"))
    assert replay.checkpoint is not None
    replay.go(started(resume=replay.checkpoint.path))
    assert replay.verdict().startswith("It reproduces itself")


def test_what_the_code_posts_is_left_to_the_code(tmp_path: Path) -> None:
    changed_from_outside(tmp_path, "forward", who="")
    replay = Replay(tmp_path, Place.of("5"))
    replay.go(started())
    assert replay.verdict().startswith(
        "It does not reproduce itself. It parts from the run at step 4"
    )
