"""Ranks that are held together: at one boundary, for as long as somebody likes, and let go together."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from statemachine_trainer import Trainer
from statemachine_trainer.callbacks import Checkpoints
from statemachine_trainer.control.control_errors import NotNow, PageError
from statemachine_trainer.control.requests import endpoints_in
from statemachine_trainer.observe.remote import Remote
from statemachine_trainer.observe.run import NoRun, Run
from tests.processes import wait_until
from tests.ranks.forked import in_ranks

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(300),
    pytest.mark.skipif(os.name != "posix", reason="sockets and signals of Unix"),
]


def train(folder: Path, rank: int) -> list[int]:
    """Train as one of two ranks until somebody ends it; return how far."""
    torch.manual_seed(0)
    inputs = torch.randn(48, 8)
    data = TensorDataset(inputs, inputs[:, :3].argmax(1))
    model = DistributedDataParallel(nn.Linear(8, 3))
    trainer = Trainer(
        max_epochs=10**6,
        device="cpu",
        progress=False,
        checkpoints=Checkpoints(folder, every="1 hour", at_end=False),
    )
    trainer.fit(
        model,
        DataLoader(data, 3, sampler=DistributedSampler(data)),
        loss=nn.CrossEntropyLoss(),
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
    )
    return [trainer.steps, trainer.context.counts.batch]


class Asking:
    """Asks both ranks, as `smt post` does."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def wait(self, true: Callable[[dict[int, Any]], bool]) -> dict[int, Any]:
        """Wait until both answer, and what they say is true; return it."""
        found: dict[int, Any] = {}

        def is_true() -> bool:
            found.clear()
            with suppress(PageError, NoRun):
                found.update(self.remote.looks())
            return len(found) == 2 and true(found)

        wait_until(is_true)
        return found

    @property
    def remote(self) -> Remote:
        return Remote(Run(self._folder), rank=None, patience=30.0)

    def begin(self) -> None:
        """Wait until both train."""
        self.wait(lambda looks: all(one["running"] for one in looks.values()))

    def pause(self) -> set[str]:
        """Hold the ranks; return where they stand."""
        assert [*self.remote.press("pause").values()] == [
            "All ranks are held where they meet next."
        ]
        looks = self.wait(lambda looks: all(one["held"] for one in looks.values()))
        return {one["state"] for one in looks.values()}

    def steps(self) -> list[tuple[int, int]]:
        """Transitions and steps that each rank has made, as its black box tells."""
        newest = [ring.entries()[-1] for ring in Run(self._folder).rings()]
        return [(one.number, one.step) for one in newest]


def test_ranks_are_held_at_one_boundary_and_go_on_together(tmp_path: Path) -> None:
    run = tmp_path / "run"
    asking = Asking(run)

    def ask() -> None:
        asking.begin()
        for _ in range(2):
            (state,) = asking.pause()
            assert state.startswith("fit.epoch.")
            one, other = asking.steps()
            assert one == other
            with pytest.raises(NotNow, match="The run is held already"):
                asking.remote.press("pause")
            for alone in ("step", "break fit.epoch.fetch", "until fit.epoch.epoch_end"):
                with pytest.raises(NotNow, match="Several ranks are held where they meet"):
                    asking.remote.press(alone)
            asking.remote.press("continue")
            asking.wait(lambda looks: not any(one["held"] for one in looks.values()))
        asking.remote.press("stop")

    one, other = in_ranks(2, tmp_path, lambda rank: train(run, rank), meanwhile=ask)
    assert one == other


def test_a_signal_to_a_rank_that_is_held_stops_all_with_a_checkpoint(tmp_path: Path) -> None:
    run = tmp_path / "run"
    asking = Asking(run)

    def ask() -> None:
        asking.begin()
        asking.pause()
        os.kill(endpoints_in(run)[1].process["pid"], signal.SIGTERM)

    for ended in in_ranks(2, tmp_path, lambda rank: train(run, rank), meanwhile=ask):
        assert ended.startswith("Interrupted: ")
    assert len([*run.glob("000001-*")]) == 1


def test_an_event_that_is_posted_to_ranks_that_are_held_is_taken_when_they_go_on(
    tmp_path: Path,
) -> None:
    run = tmp_path / "run"
    asking = Asking(run)

    def ask() -> None:
        asking.begin()
        asking.pause()
        asking.remote.press("stop")
        asking.remote.press("continue")

    one, other = in_ranks(2, tmp_path, lambda rank: train(run, rank), meanwhile=ask)
    assert one == other
