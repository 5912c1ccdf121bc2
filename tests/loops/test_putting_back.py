"""A state of training that raises and takes an error edge leaves nothing behind: to the bit."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import nn

from statemachine_trainer.loops import (
    BatchLoop,
    EpochLoop,
    FitLoop,
    OptimizerLoop,
    ValidationLoop,
    log,
)
from statemachine_trainer.machine.errors import NotUndone
from statemachine_trainer.trainer import Trainer


class Flaky(Exception):
    """Raised by the model at some calls."""


class RetryingStep(OptimizerLoop):
    """Tries a state again that raised `Flaky`; from the forward pass, if it was the backward pass."""

    errors = [
        [Flaky, ["forward", "optimizer_step"], None],
        [Flaky, "backward", "forward"],
    ]


class Net(nn.Module):
    """Draws from every generator, keeps buffers, logs, and raises in the middle of it."""

    def __init__(self, raising: set[int], where: str) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5))
        self.head = nn.Linear(8, 1)
        self.generator = torch.Generator().manual_seed(3)
        self.raising, self.where, self.calls = raising, where, 0

    def fails(self, where: str) -> bool:
        if where != self.where:
            return False
        self.calls += 1
        return self.calls in self.raising

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        noise = random.random() + np.random.rand() + torch.rand((), generator=self.generator)
        hidden = self.net(batch + noise)
        log("noise", noise)
        hidden.register_hook(self._backward)
        loss: torch.Tensor = self.head(hidden).pow(2).mean()
        if self.fails("forward"):
            raise Flaky
        return loss

    def _backward(self, gradient: torch.Tensor) -> None:
        torch.rand(3)
        if self.fails("backward"):
            raise Flaky

    def validation_step(self, batch: torch.Tensor, batch_idx: int) -> None:
        log("val", self.net(batch).mean() + torch.rand(()))
        if self.fails("validation"):
            raise Flaky

    def configure_optimizers(self) -> Any:
        optimizer = Counted(self.parameters(), lr=0.05, momentum=0.9)
        optimizer.owner = self
        return [optimizer], [
            {"scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 2), "interval": "step"}
        ]


class Counted(torch.optim.SGD):
    owner: Net

    def step(self, closure: Callable[[], float] | None = None) -> Any:
        if self.owner.fails("before"):
            raise Flaky
        super().step(closure)
        if self.owner.fails("after"):
            raise Flaky
        return None


class RetryingEvaluation(ValidationLoop):
    errors = [[Flaky, "*", None]]


def seed() -> None:
    """Seed the generators of python and numpy, of which the first fit of a process draws on its way."""
    random.seed(0)
    np.random.seed(0)


def trained(
    raising: set[int], where: str, step: Callable[[], OptimizerLoop], **options: Any
) -> tuple[dict[str, torch.Tensor], dict[str, float], Trainer]:
    torch.manual_seed(0)
    data = [torch.randn(6, 4) for _ in range(7)]
    model = Net(raising, where)
    epoch = EpochLoop(batch=BatchLoop(optimizer=step()), validation=RetryingEvaluation())
    trainer = Trainer(loop=FitLoop(max_epochs=2, epoch=epoch), **options)
    trainer.on("fit_start", seed)
    trainer.fit(model, data, data[:3])
    state = {name: one.clone() for name, one in model.state_dict().items()}
    state |= {"torch": torch.get_rng_state(), "own": model.generator.get_state()}
    state |= {"python": torch.tensor(random.random()), "numpy": torch.tensor(np.random.rand())}
    return state, trainer.metrics, trainer


@pytest.mark.parametrize("where", ["forward", "backward", "before", "validation"])
@pytest.mark.parametrize("settings", [{}, {"accumulate": 3}, {"clip_norm": 0.1}])
def test_a_run_whose_steps_are_tried_again_is_that_of_steps_that_never_raised(
    where: str, settings: dict[str, Any]
) -> None:
    def step() -> OptimizerLoop:
        return RetryingStep(**settings)

    clean, metrics, _ = trained(set(), where, step)
    again, metrics_again, trainer = trained({3, 4, 6, 9}, where, step)
    assert trainer.driver.failure is not None
    assert {n for n in clean if not torch.equal(clean[n], again[n])} == set()
    assert metrics_again == metrics


def test_so_it_is_with_the_scaler_of_fp16() -> None:
    options = {"precision": "fp16"}
    clean, *_ = trained(set(), "backward", RetryingStep, **options)
    again, *_ = trained({2, 3}, "backward", RetryingStep, **options)
    assert all(torch.equal(clean[name], again[name]) for name in clean)


class Box:
    """An object that is no module, and holds generators."""

    def __init__(self) -> None:
        self.generators: list[torch.Generator] = []


class Late(Net):
    """Makes a generator in its third step, and draws from it from then on."""

    late: torch.Generator | None = None
    noted: Box | None = None

    def __init__(self, raising: set[int], inside: bool, noting: int | None) -> None:
        super().__init__(raising, "forward")
        self.box, self.inside, self.noting, self.begun = Box(), inside, noting, 0

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        if batch_idx == self.noting:
            self.noted = Box()
        if batch_idx == 2 and self.late is None and not self.box.generators:
            made = torch.Generator().manual_seed(5)
            if self.inside:
                self.box.generators.append(made)
            else:
                self.late = made
        generator = self.box.generators[0] if self.box.generators else self.late
        if generator is not None:
            batch = batch + torch.rand((), generator=generator)
        return super().training_step(batch, batch_idx)


def late(raising: set[int], *, inside: bool, noting: int | None = None) -> list[torch.Tensor]:
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)
    model, data = Late(raising, inside, noting), [torch.randn(6, 4) for _ in range(7)]
    epoch = EpochLoop(batch=BatchLoop(optimizer=RetryingStep()))
    trainer = Trainer(loop=FitLoop(max_epochs=1, epoch=epoch))
    trainer.on("fit_start", seed)
    trainer.fit(model, data)
    return [*model.state_dict().values()]


def test_a_generator_that_a_module_was_given_on_the_way_is_put_back() -> None:
    clean, again = late(set(), inside=False), late({5, 6}, inside=False)
    assert all(map(torch.equal, clean, again))


def test_one_that_came_into_another_object_on_the_way_is_told() -> None:
    late({2}, inside=True)  # it is not there yet
    with pytest.raises(NotUndone, match=r"new generator of random numbers.*box"):
        late({5}, inside=True)


def test_it_is_told_too_where_the_model_gets_another_attribute_before_the_error() -> None:
    with pytest.raises(NotUndone, match=r"new generator of random numbers.*box"):
        late({5}, inside=True, noting=4)


def test_an_error_after_the_weights_were_changed_surfaces_and_says_why() -> None:
    with pytest.raises(NotUndone, match="Weights of the model have changed in place"):
        trained({2}, "after", RetryingStep)


def test_parameters_that_the_step_had_frozen_are_trained_again() -> None:
    class Toggling(Net):
        def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
            self.head.requires_grad_(False)
            loss = super().training_step(batch, batch_idx)
            self.head.requires_grad_(True)
            return loss

    model = Toggling({4}, "forward")
    fit_leaving_out(model)
    assert all(one.requires_grad for one in model.parameters())


def test_a_parameter_that_the_step_had_replaced_is_told() -> None:
    class Replacing(Net):
        def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
            self.head.bias = nn.Parameter(torch.ones(1))
            return super().training_step(batch, batch_idx)

    with pytest.raises(NotUndone, match="Parameters of the model were replaced"):
        fit_leaving_out(Replacing({3}, "forward"))


def fit_leaving_out(model: Net) -> None:
    """Fit a model, and leave out the batches at which it raises."""

    class Leaving(BatchLoop):
        errors = [[Flaky, "optimizer", "batch_split"]]

    seed()
    trainer = Trainer(FitLoop(max_epochs=1, epoch=EpochLoop(batch=Leaving())))
    trainer.fit(model, [torch.randn(4, 4) for _ in range(4)])


def test_a_batch_that_the_step_had_changed_is_told() -> None:
    class InPlace(Net):
        def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
            batch += 1
            raise Flaky

    model = InPlace(set(), "")
    loop = FitLoop(max_epochs=1, epoch=EpochLoop(batch=BatchLoop(optimizer=RetryingStep())))
    with pytest.raises(NotUndone, match="x = x \\+ noise"):
        Trainer(loop=loop).fit(model, [torch.zeros(2, 4)])


def test_an_edge_may_leave_out_the_batch_that_raised() -> None:
    class Leaving(BatchLoop):
        """Leaves out a batch whose step raises."""

        transitions = (*BatchLoop.transitions, ["left", "leave", "batch_end"])  # type: ignore[assignment]
        errors = [[Flaky, "optimizer", "leave"]]

        def leave(self) -> Literal["left"]:
            self.context.counts.batch += 1
            self.context.counts.batch_in_epoch += 1
            return "left"

    def weights(raising: set[int], rows: list[int]) -> torch.Tensor:
        torch.manual_seed(0)
        data = [torch.randn(6, 4) for _ in range(7)]
        model = Net(raising, "forward")
        model.net[2].p = 0.0  # type: ignore[assignment]
        loop = FitLoop(max_epochs=1, epoch=EpochLoop(batch=Leaving(optimizer=OptimizerLoop())))
        trainer = Trainer(loop=loop)
        trainer.on("fit_start", seed)
        trainer.fit(model, [data[row] for row in rows])
        return model.head.weight

    assert torch.equal(weights({2, 5}, [*range(7)]), weights(set(), [0, 2, 3, 5, 6]))


def test_a_loader_that_raises_is_tried_again_where_it_stood() -> None:
    class Data:
        calls = 0

        def __len__(self) -> int:
            return 6

        def __getitem__(self, index: int) -> torch.Tensor:
            if index >= 6:
                raise IndexError
            Data.calls += 1
            drawn = torch.rand(4)
            if Data.calls == 4:
                raise Flaky
            return drawn + index

    class Fetching(EpochLoop):
        errors = [[Flaky, "fetch", None]]

    seen: list[list[torch.Tensor]] = []
    for failing in (False, True):
        torch.manual_seed(0)
        Data.calls = 0 if failing else 100
        seen.append([])
        trainer = Trainer(loop=FitLoop(max_epochs=1, epoch=Fetching()))
        trainer.on("batch", lambda t: seen[-1].append(t.context.batch.clone()))
        model = Net(set(), "")
        trainer.fit(model, torch.utils.data.DataLoader(Data(), batch_size=2))  # type: ignore[arg-type]
    assert len(seen[1]) == 3
    assert all(torch.equal(a, b) for a, b in zip(*seen, strict=True))


def test_a_validation_that_an_error_edge_leaves_is_undone() -> None:
    class Going(EpochLoop):
        """Goes on with the data after a validation that raises."""

        errors = [[Flaky, "validation", "fetch"]]

    def weights(where: str, data: Any) -> tuple[dict[str, torch.Tensor], Trainer, Net]:
        torch.manual_seed(0)
        model = Net({1}, where)
        fit = FitLoop(max_epochs=1, sanity_batches=0, epoch=Going(validate_every=2))
        trainer = Trainer(loop=fit)
        trainer.on("fit_start", seed)
        trainer.fit(model, *data)
        return model.state_dict(), trainer, model

    torch.manual_seed(1)
    data = [torch.randn(6, 4) for _ in range(4)]
    clean, _, _ = weights("never", [data])
    left, trainer, model = weights("validation", [data, data[:2]])
    assert trainer.driver.failure is not None
    assert model.training
    assert trainer.context.aside == []
    assert "noise" in trainer.metrics
    assert clean.keys() == left.keys()
