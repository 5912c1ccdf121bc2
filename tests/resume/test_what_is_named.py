"""What is kept in the process is named, and tried in another one; what is no state is not named."""

from __future__ import annotations

import itertools
import time
from typing import Any, ClassVar

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from statemachine_trainer.testing import HiddenState, NotResumable, assert_resumable
from statemachine_trainer.trainer import Trainer

BATCHES = 0
NAMES = ("alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta")
_made = itertools.count()


class Line(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1)

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        outputs: torch.Tensor = self.layer(batch[0])
        return outputs.square().mean()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Scaled(Line):
    """Scales each batch by what stands at its place in a set of names."""

    def __init__(self) -> None:
        super().__init__()
        self.names = {*NAMES}

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        place = [NAMES.index(name) for name in self.names][batch_idx]
        return super().training_step(batch, batch_idx) * (1 + place)


class Shared:
    """Counts in its class."""

    seen: ClassVar[list[int]] = []

    def on_batch_end(self, trainer: Trainer) -> None:
        Shared.seen.append(1)


def started(model: nn.Module, *receivers: Any, callbacks: Any = ()) -> Trainer:
    torch.manual_seed(0)
    trainer = Trainer(max_epochs=2, progress=False, device="cpu", callbacks=callbacks)
    for receiver in receivers:
        trainer.on("batch_end", receiver)
    trainer.start(model, DataLoader(TensorDataset(torch.arange(8.0)[:, None]), 2))
    return trainer


def count(trainer: Trainer) -> None:
    """A receiver that counts in a global, which does not change the run."""
    global BATCHES
    BATCHES += 1


def make_counting() -> Trainer:
    return started(Line(), count)


def make_with_names() -> Trainer:
    return started(Scaled())


def make_plain() -> Trainer:
    return started(Line())


def test_a_set_of_strings_is_tried_in_another_process_and_named() -> None:
    with pytest.raises(NotResumable, match=r"the set model\.names, whose order differs"):
        assert_resumable(make_with_names, examples=1, seed=0)


def test_a_global_that_changes_is_tried_in_another_process() -> None:
    report = assert_resumable(make_counting, examples=1, seed=0)
    assert report.processes == 1
    assert str(report).endswith("1 of them in fresh processes")


def test_without_such_things_no_process_is_started() -> None:
    assert assert_resumable(make_plain, examples=1, seed=0).processes == 0


def test_where_no_process_can_find_the_function_it_is_told() -> None:
    with pytest.warns(HiddenState, match=r"global 'BATCHES' of the module .*was not tried"):
        assert_resumable(lambda: started(Line(), count), examples=1, seed=0)


def test_a_class_attribute_that_changes_is_named() -> None:
    make = lambda: started(Line(), callbacks=[Shared()])  # noqa: E731
    with pytest.warns(HiddenState, match=r"attribute 'seen' of the class .*Shared changes"):
        assert_resumable(make, examples=1, seed=0)


def test_a_global_is_named_where_a_run_comes_out_differently() -> None:
    seen: dict[str, int] = {"batches": 0}

    def stop(trainer: Trainer) -> None:
        count(trainer)
        seen["batches"] += 1
        if seen["batches"] == 3:
            trainer.stop()

    def make() -> Trainer:
        seen["batches"] = 0
        return started(Line(), stop)

    with pytest.raises(NotResumable) as caught:
        assert_resumable(make, stops=[14])
    assert any("global 'BATCHES'" in one for one in caught.value.suspects)


def test_what_differs_between_undisturbed_runs_too_is_not_named_as_lost() -> None:
    class Decaying:
        def __init__(self) -> None:
            self.number = next(_made)
            self.made_at = time.time_ns()
            self.batches = 0

        def on_batch_end(self, trainer: Trainer) -> None:
            self.batches += 1
            for group in trainer.context.optimizers[0].param_groups:
                group["lr"] = 0.1 / self.batches

    with pytest.raises(NotResumable) as caught:
        assert_resumable(lambda: started(Line(), callbacks=[Decaying()]), stops=[14])
    named = [one for one in caught.value.suspects if "Decaying" in one]
    assert len(named) == 1
    assert "attribute 'batches' of the callback Decaying" in named[0]
