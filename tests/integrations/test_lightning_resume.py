"""What callbacks and hooks of Lightning have begun goes on after a resume."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, cast

import pytest
import torch
import torchmetrics

pytest.importorskip("lightning", reason="needs the extra `lightning`")

from lightning.pytorch.callbacks import (
    BackboneFinetuning,
    Callback,
    EMAWeightAveraging,
    GradientAccumulationScheduler,
    ModelPruning,
    StochasticWeightAveraging,
    Timer,
    TQDMProgressBar,
)
from torch import Tensor, nn

from statemachine_trainer import Trainer
from statemachine_trainer.integrations import lightning
from statemachine_trainer.integrations.lightning.attributes import AttributeNotHeldWarning
from statemachine_trainer.testing import assert_resumable
from tests.integrations.lightning_kit import Classifier, data, quiet_lightning


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with quiet_lightning():
        yield


class WithBackbone(Classifier):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Linear(8, 8)

    def forward(self, inputs: Tensor) -> Any:
        return self.net(torch.tanh(self.backbone(inputs)))

    def configure_optimizers(self) -> Any:
        parameters = [p for p in self.parameters() if p.requires_grad]
        return torch.optim.Adam(parameters, lr=0.01)


class Collecting(Classifier):
    """Keeps what its hooks need in attributes, as modules of Lightning 2 do."""

    def __init__(self) -> None:
        super().__init__()
        self.losses: list[Tensor] = []
        self.recent: deque[float] = deque(maxlen=3)
        self.seen = 0

    def on_fit_start(self) -> None:
        epochs = cast(int, self.trainer.max_epochs)
        self.per_epoch = self.trainer.estimated_stepping_batches // epochs

    def on_train_start(self) -> None:
        self.direction = torch.randn(3)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = self.loss(batch)
        self.losses.append(loss.detach())
        self.recent.append(loss.item())
        self.seen += len(batch[0])
        scale: Tensor = sum(self.recent) / self.per_epoch + self.direction.norm() * 0.01
        return loss * scale

    def on_train_epoch_end(self) -> None:
        self.log("mean", torch.stack(self.losses).mean() * self.seen)
        self.losses.clear()


class CountingQuietly(Callback):
    """Has attributes and no state; steps less from its fifth batch on."""

    def __init__(self) -> None:
        self.batches = 0

    def on_train_batch_start(self, trainer: Any, module: Any, *_: Any) -> None:
        self.batches += 1
        for group in trainer.optimizers[0].param_groups:
            group["lr"] = 0.1 / self.batches


def make(
    kind: Callable[[], Any], callbacks: Callable[[], list[Any]], **settings: Any
) -> Callable[[], Trainer]:
    def made() -> Trainer:
        torch.manual_seed(3)
        model = lightning.module(kind(), callbacks=callbacks())
        one = Trainer(
            device="cpu", progress=False, sanity_batches=1, **{"max_epochs": 3, **settings}
        )
        torch.manual_seed(4)
        one.start(model, data(40), data(20, 20, shuffle=False))
        return one

    return made


CASES: dict[str, Callable[[], Trainer]] = {
    "an exponential average": make(Classifier, lambda: [EMAWeightAveraging(decay=0.9)]),
    "an average of the last epochs": make(
        Classifier, lambda: [StochasticWeightAveraging(0.05, swa_epoch_start=1, annealing_epochs=2)]
    ),
    "a schedule of accumulation": make(
        Classifier, lambda: [GradientAccumulationScheduler({0: 2, 1: 4})]
    ),
    "unfreezing": make(
        WithBackbone,
        lambda: [BackboneFinetuning(unfreeze_backbone_at_epoch=1, backbone_initial_lr=0.01)],
    ),
    "pruning": make(
        Classifier,
        lambda: [ModelPruning("l1_unstructured", amount=0.3, use_lottery_ticket_hypothesis=False)],
    ),
    "attributes of the module": make(Collecting, list),
    "attributes of a callback": make(Classifier, lambda: [CountingQuietly()]),
    "a progress bar": make(Classifier, lambda: [TQDMProgressBar()], max_epochs=2),
}


@pytest.mark.parametrize("case", CASES)
def test_it_goes_on_to_the_same_bits(case: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert_resumable(CASES[case], examples=3)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_it_goes_on_from_every_boundary(case: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert_resumable(CASES[case], exhaustive=True)


def fit_and_leave(model: Any, **settings: Any) -> Any:
    """Fit up to the middle of the second epoch, and return the state there."""
    one = Trainer(max_epochs=2, device="cpu", progress=False, **settings)
    one.start(model, data(40))
    while one.epoch < 1 or one.context.counts.batch_in_epoch != 2:
        one.step()
    return one.state_dict()


def go_on(model: Any, state: Any) -> Trainer:
    one = Trainer(max_epochs=2, device="cpu", progress=False)
    one.start(model, data(40))
    one.load_state_dict(state)
    return one


def test_a_timer_goes_on_counting_the_time_before() -> None:
    timer = Timer("00:01:00:00")
    state = fit_and_leave(lightning.module(Classifier(), callbacks=timer))
    before = timer.time_elapsed()
    later: Any = Timer("00:01:00:00")
    one = go_on(lightning.module(Classifier(), callbacks=later), state)
    assert later.start_time() is not None
    one.run()
    assert later.time_elapsed() > before - 0.5 * before
    assert later.time_remaining() < 3600 - 0.5 * before


def test_hooks_see_at_load_what_they_left_at_save() -> None:
    seen: list[dict[str, Any]] = []

    class Replacing(Classifier):
        def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
            checkpoint["mine"] = self.global_step
            checkpoint["state_dict"] = {"only": torch.ones(2)}
            checkpoint["lr_schedulers"].append({"more": 1})
            del checkpoint["loops"]

        def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
            seen.append(dict(checkpoint))

    model = lightning.module(Replacing(), callbacks=Timer("00:01:00:00"))
    state = fit_and_leave(model)
    weights = {name: one.clone() for name, one in model.state_dict().items()}
    again = lightning.module(Replacing(), callbacks=Timer("00:01:00:00"))
    go_on(again, state)
    (checkpoint,) = seen
    assert {key: checkpoint[key] for key in ("mine", "epoch", "global_step", "lr_schedulers")} == {
        "mine": 6, "epoch": 1, "global_step": 6, "lr_schedulers": [{"more": 1}],
    }  # fmt: skip
    assert torch.equal(checkpoint["state_dict"]["only"], torch.ones(2))
    assert "loops" not in checkpoint
    assert checkpoint["hyper_parameters"] == {"lr": 0.1}
    assert checkpoint["optimizer_states"][0]["param_groups"][0]["momentum"] == 0.9
    assert [*checkpoint["callbacks"]] == ["Timer"]
    for name, weight in again.state_dict().items():  # the run's own weights hold all the same
        assert torch.equal(weight, weights[name])


class HandsOverObjects(Classifier):
    """Puts its loss and its metrics into the checkpoint, and takes them from there, as darts does."""

    def __init__(self) -> None:
        super().__init__()
        self.criterion = nn.CrossEntropyLoss(weight=torch.ones(3))
        self.scores = torchmetrics.MetricCollection([torchmetrics.MeanMetric()])

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        found: Tensor = self.criterion(self(batch[0]), batch[1])
        self.scores.update(found)
        self.log_dict(self.scores, on_step=False, on_epoch=True)
        return found

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["loss_fn"] = self.criterion
        checkpoint["scores"] = self.scores
        checkpoint["scale"] = lambda value: 2 * value
        checkpoint["dtype"] = self.dtype

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        assert checkpoint["dtype"] == torch.float32
        assert checkpoint["scale"](2) == 4
        self.criterion = checkpoint["loss_fn"]
        self.scores = checkpoint["scores"]


def test_objects_that_a_hook_adds_to_a_checkpoint_are_there_again() -> None:
    assert_resumable(make(HandsOverObjects, list, max_epochs=2), examples=4)


def test_an_attribute_that_cannot_be_held_is_told_once() -> None:
    class Odd(Classifier):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            self.handle = (value for value in batch)
            return self.loss(batch)

    with pytest.warns(AttributeNotHeldWarning, match=r"Odd\.handle.*generator.*on_save_checkpoint"):
        fit_and_leave(lightning.module(Odd()))


def test_settings_of_the_script_hold_over_those_of_a_resumed_run() -> None:
    class Set(CountingQuietly):
        def __init__(self, every: int) -> None:
            super().__init__()
            self.every = every

    state = fit_and_leave(lightning.module(Classifier(), callbacks=Set(2)))
    later = Set(5)
    go_on(lightning.module(Classifier(), callbacks=later), state)
    assert (later.every, later.batches) == (5, 6)
