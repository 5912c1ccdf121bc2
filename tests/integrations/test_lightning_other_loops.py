"""A LightningModule in loops that take the place of the optimizer loop: what works, what is told."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

pytest.importorskip("lightning")

from lightning.pytorch.callbacks import Callback
from torch import Tensor

from statemachine_trainer import ClosureLoop, SAMLoop, Trainer, YieldingLoop
from statemachine_trainer.integrations import lightning
from statemachine_trainer.loops import ManualLoop, OptimizerLoop
from statemachine_trainer.machine.loop import Loop
from statemachine_trainer.testing import assert_resumable
from tests.integrations.lightning_kit import Classifier, data, quiet_lightning

Warned = lightning.HooksNotCalledWarning


def trainer(loop: type[Loop] | Loop | None = None, **settings: Any) -> Trainer:
    made = Trainer(**{"max_epochs": 2, "device": "cpu", "progress": False, **settings})
    if loop is not None:
        made.loop.replace(optimizer=loop)
    return made


def fitted(module: Any, loop: type[Loop] | Loop | None = None, callbacks: Any = ()) -> Trainer:
    one = trainer(loop)
    torch.manual_seed(2)
    with quiet_lightning():
        one.fit(lightning.module(module, callbacks=callbacks), data(), data())
    return one


def seeded(kind: type[Any]) -> Any:
    torch.manual_seed(1)
    return kind()


class Yielding(Classifier):
    """The step of `Classifier` as a generator, which logs before and after its yield."""

    def training_step(self, batch: Any, batch_idx: int) -> Iterator[Tensor]:  # type: ignore[override]
        loss = self.loss(batch)
        self.log("loss", loss, on_step=True, on_epoch=True)
        done: Any = yield loss
        self.log("after", done.loss)


class Listening(Classifier):
    def on_before_optimizer_step(self, optimizer: Any) -> None:
        """Look at gradients, say."""


class Stepping(Classifier):
    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)


class Hearing(Callback):
    def on_after_backward(self, trainer: Any, pl_module: Any) -> None:
        """Look at gradients, say."""

    def on_train_batch_start(self, *args: Any) -> None:
        """Start a clock, say."""


# -- steps that yield ------------------------------------------------------------------------------


def test_a_step_that_yields_logs_and_trains_like_one_that_returns() -> None:
    plain, yielding = seeded(Classifier), seeded(Yielding)
    theirs, ours = fitted(plain), fitted(yielding, YieldingLoop)
    for one, other in zip(plain.parameters(), yielding.parameters(), strict=True):
        assert torch.equal(one, other)
    assert ours.metrics["after"] == ours.metrics["loss_step"]
    assert {
        name: value for name, value in ours.metrics.items() if name != "after"
    } == theirs.metrics


def test_an_error_in_the_middle_of_such_a_step_surfaces_and_leaves_nothing_behind() -> None:
    class Failing(Yielding):
        def training_step(self, batch: Any, batch_idx: int) -> Iterator[Tensor]:  # type: ignore[override]
            yield self.loss(batch)
            raise ValueError("no such luck")

    module = Failing()
    with pytest.raises(ValueError, match="no such luck"):
        fitted(module, YieldingLoop)
    assert module._current_fx_name is None


def test_a_fit_of_a_module_that_yields_can_be_resumed() -> None:
    def make() -> Trainer:
        one = trainer(YieldingLoop, seed=0, max_epochs=1)
        one.start(lightning.module(Yielding()), data())
        return one

    with quiet_lightning():
        assert_resumable(make)


# -- hooks that are not called ---------------------------------------------------------------------


@pytest.mark.parametrize("loop", [SAMLoop, ClosureLoop, type("Mine", (OptimizerLoop,), {})])
def test_hooks_that_another_loop_does_not_call_are_named_when_the_fit_starts(
    loop: type[Loop],
) -> None:
    one = trainer(loop() if loop is not SAMLoop else SAMLoop(rho=0.05))
    model = lightning.module(Listening(), callbacks=[Hearing()])
    with pytest.warns(Warned) as told:
        one.start(model, data())
    assert len(told) == 1
    for part in (
        f"The {loop.__name__} at 'fit.epoch.batch.optimizer'",
        "Listening.on_before_optimizer_step",
        "Hearing.on_after_backward",
        "Hearing.on_train_batch_start",
        "OptimizerLoop there",
    ):
        assert part in str(told[0].message)
    with quiet_lightning():
        one.run()


def test_a_module_with_its_own_way_of_stepping_is_refused() -> None:
    with pytest.raises(
        lightning.NotSupported, match=r"Stepping has its own optimizer_step.*SAMLoop at 'fit\."
    ):
        trainer(SAMLoop(rho=0.05)).start(lightning.module(Stepping()), data())


def test_by_hand_only_the_start_of_a_batch_is_not_heard() -> None:
    class ByHand(Listening):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False

    model = lightning.module(ByHand(), callbacks=[Hearing()])
    with pytest.warns(Warned, match=r"not called: Hearing\.on_train_batch_start\. "):
        trainer(ManualLoop).start(model, data())


def test_nothing_is_told_where_no_such_hook_is_missed() -> None:
    one = trainer(SAMLoop(rho=0.05))
    with quiet_lightning():
        one.fit(lightning.module(Classifier()), data())
        plain = trainer()
        for _ in range(2):  # the second time the loop that calls the hooks stands there already
            plain.fit(lightning.module(Stepping(), callbacks=[Hearing()]), data(), restart=True)
