"""Stopping a set-up before the states of some name, and counting what was read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from statemachine_trainer.snapshot.rng import isolated_rng
from statemachine_trainer.testing import assert_resumable
from statemachine_trainer.testing.recording import Recording, seed_all
from statemachine_trainer.testing.resuming import Report, Trials
from statemachine_trainer.testing.specimens import Net
from statemachine_trainer.testing.watched_runs import Boundary, Run
from statemachine_trainer.trainer import Trainer

MakeTrainer = Callable[[], Trainer]


def boundaries(make_trainer: MakeTrainer) -> list[Boundary]:
    with isolated_rng():
        seed_all(0)
        run = Run(make_trainer)
        found = [*run.boundaries()]
        run.close()
        return found


def stop_before(make_trainer: MakeTrainer, *states: str, most: int = 6) -> Report:
    """Stop one run before each of the first few states of these names, and compare the end."""
    stops: list[int] = []
    for state in states:
        found = [
            number
            for number, one in enumerate(boundaries(make_trainer))
            if not one.transient and f".{one.path}".endswith(f".{state}")
        ]
        assert found, f"the run never comes to {state}"
        stops += found[:most]
    return assert_resumable(make_trainer, stops=stops)


def one_by_one(make_trainer: MakeTrainer, *states: str) -> None:
    """Stop a run of its own before each of the states of these names."""
    with isolated_rng():
        recording = Recording(make_trainer)
        trials = Trials(recording, fresh_process=False)
        for number in recording.stop_points:
            path = f".{recording.boundaries[number].path}"
            if any(path.endswith(f".{state}") for state in states):
                trials([number])
    assert trials.report.runs


class Counted(Dataset[Any]):
    """Samples that write down who was read, into a list that outlives the run."""

    def __init__(self, size: int, reads: list[int]) -> None:
        self.inputs = torch.randn(size, 4, generator=torch.Generator().manual_seed(0))
        self.reads = reads

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, index: int) -> Any:
        self.reads.append(index)
        return self.inputs[index] + torch.randn(4), self.inputs[index][:3].argmax()


def sgd(model: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.1)


def net(configure: Any = sgd) -> Net:
    return Net(norm=True, dropout=True, nan_at=None, configure=configure)


def started(
    trainer: Trainer,
    model: torch.nn.Module | None = None,
    train: Any = None,
    validation: Any = None,
) -> Trainer:
    """Start a fit of a small net on twelve random samples, unless something else is given."""
    data = train if train is not None else DataLoader(Counted(12, []), batch_size=4, shuffle=True)
    trainer.start(net() if model is None else model, data, validation)
    return trainer


def split_run(make_trainer: MakeTrainer, stop: int) -> tuple[Run, Run]:
    """Return a run that was stopped at a boundary, and the one that went on from there to its end."""
    with isolated_rng():
        seed_all(0)
        first = Run(make_trainer)
        first.go_to(stop)
        state = first.document().tree()
        seed_all(1)
        second = Run(make_trainer, state, stop)
        second.finish()
        return first, second


def names(signals: Sequence[str]) -> list[str]:
    """Return the last name of each state that was entered."""
    paths = [one.partition(":enter on")[0] for one in signals if ":enter on" in one]
    return [path.rpartition(".")[2] for path in paths]
