"""Resuming in another interpreter, from a checkpoint on disk."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

from statemachine_trainer.testing import (
    FreshProcessFailed,
    NotImportable,
    NotResumable,
    assert_resumable,
)
from statemachine_trainer.testing.setups import Setup
from statemachine_trainer.testing.specimens import Net, Samples
from statemachine_trainer.trainer import Trainer

_batches_seen = [0]


def make_forgetful() -> Trainer:
    """A set-up that keeps state in a global of its module, which a fresh process does not have."""
    _batches_seen[0] = _batches_seen[0] if _batches_seen[0] > 100 else 0
    trainer = Trainer(max_epochs=2, progress=False)
    trainer.on("batch_end", _count)
    model = Net(norm=False, dropout=False, nan_at=None, configure=_sgd)
    trainer.start(model, DataLoader(Samples(15, augment=False, sequences=False), 5))
    return trainer


def make_broken_elsewhere(resumed: object = None) -> Trainer:
    trainer = make_forgetful()
    if trainer.context.counts.batch:
        raise RuntimeError("no such disk")
    return trainer


def _count(trainer: Trainer) -> None:
    _batches_seen[0] += 1
    if _batches_seen[0] == 4:
        trainer.stop()


def _sgd(model: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.1)


def test_a_run_goes_on_in_another_process_to_the_same_bits() -> None:
    setup = Setup(schedule="onecycle", accumulate=[(0, 2)], validate_every=[2, "batch"])
    report = assert_resumable(
        setup.make_trainer, examples=1, stops_per_run=2, seed=0, fresh_process=True
    )
    assert len(report.tried) == 2


def test_a_function_inside_a_function_cannot_be_found_by_another_process() -> None:
    def make_trainer() -> Trainer:
        raise AssertionError("not even called")

    with pytest.raises(NotImportable, match=r"it stands inside another function.*top of a module"):
        assert_resumable(make_trainer, fresh_process=True)


def test_arguments_that_are_not_plain_are_refused() -> None:
    with pytest.raises(NotImportable, match="not plain"):
        assert_resumable(
            functools.partial(make_broken_elsewhere, resumed=object()), fresh_process=True
        )


def test_state_in_a_global_of_a_module_is_caught() -> None:
    with pytest.raises(NotResumable, match=r"only this process has|signal"):
        assert_resumable(make_forgetful, stops=[20], fresh_process=True)


def test_an_error_of_the_other_process_is_shown() -> None:
    with pytest.raises(FreshProcessFailed, match=r"(?s)boundary 20 .*no such disk"):
        assert_resumable(make_broken_elsewhere, stops=[20], fresh_process=True)
