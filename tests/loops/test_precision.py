"""Mixed precision: autocast, and gradients scaled for fp16."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.amp import GradScaler
from torch.optim.lr_scheduler import StepLR

from statemachine_trainer.loops import log
from statemachine_trainer.trainer import Trainer
from tests.loops.inner_kit import (
    Batch,
    Pair,
    Regression,
    assert_same_weights,
    make_batches,
    make_net,
    make_trainer,
    mse,
    pair_loss,
)

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Gentle(Regression):
    """Its gradients are small enough for the scale with which fp16 begins."""

    def training_step(self, batch: Batch, batch_idx: int) -> Any:
        return gentle(self.net, batch)


def gentle(net: nn.Module, batch: Batch) -> torch.Tensor:
    return mse(net, batch) / 256


def plain_bf16(batches: list[Batch]) -> nn.Module:
    net = make_net()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for batch in batches:
        with torch.autocast("cpu", torch.bfloat16):
            loss = gentle(net, batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return net


def plain_fp16(batches: list[Batch], clip_norm: float | None = None, size: int = 1) -> nn.Module:
    net = make_net()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    scaler = GradScaler("cpu")
    for start in range(0, len(batches), size):
        optimizer.zero_grad()
        for batch in batches[start : start + size]:
            with torch.autocast("cpu", torch.float16):
                loss = gentle(net, batch)
            scaler.scale(loss / size if size > 1 else loss).backward()
        if clip_norm is not None:
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(net.parameters(), clip_norm)
        scaler.step(optimizer)
        scaler.update()
    return net


def test_bf16_is_that_of_a_plain_loop() -> None:
    batches = make_batches(5)
    model = Gentle()
    make_trainer(precision="bf16").fit(model, batches)
    assert_same_weights(model, plain_bf16(batches))


@pytest.mark.parametrize("clip_norm", [None, 0.05])
@pytest.mark.parametrize("size", [1, 2])
def test_fp16_is_that_of_a_plain_loop(clip_norm: float | None, size: int) -> None:
    batches = make_batches(6)
    model = Gentle()
    trainer = make_trainer(precision="fp16", clip_norm=clip_norm, accumulate=size)
    trainer.fit(model, batches)
    assert_same_weights(model, plain_fp16(batches, clip_norm, size))
    assert trainer.steps == 6 // size


def test_fp16_scales_the_last_incomplete_window_by_its_true_size() -> None:
    batches = make_batches(6)
    model = Gentle()
    make_trainer(precision="fp16", accumulate=4).fit(model, batches)
    scaler = GradScaler("cpu")
    net = make_net()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for window in (batches[:4], batches[4:]):
        optimizer.zero_grad()
        for batch in window:
            with torch.autocast("cpu", torch.float16):
                loss = gentle(net, batch)
            scaler.scale(loss / len(window)).backward()
        scaler.step(optimizer)
        scaler.update()
    for ours, plain in zip(model.parameters(), net.parameters(), strict=True):
        assert torch.allclose(ours, plain, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_training_and_evaluation_run_under_autocast_and_the_weights_stay_float32(
    precision: str,
) -> None:
    seen: list[tuple[str, Any]] = []

    class Model(Regression):
        def training_step(self, batch: Batch, batch_idx: int) -> Any:
            seen.append(("train", self.net(batch[0]).dtype))
            return super().training_step(batch, batch_idx)

        def validation_step(self, batch: Batch) -> None:
            seen.append(("validate", self.net(batch[0]).dtype))
            log("val_loss", mse(self.net, batch))

    model = Model()
    trainer = make_trainer(precision=precision, sanity_batches=0)
    trainer.fit(model, make_batches(1), make_batches(1))
    assert seen == [("train", DTYPES[precision]), ("validate", DTYPES[precision])]
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


class Overflowing(Gentle):
    """The gradients of batch 1 are infinite."""

    def training_step(self, batch: Batch, batch_idx: int) -> Any:
        loss = super().training_step(batch, batch_idx)
        return loss * float("inf") if batch_idx == 1 else loss


def scale_of(trainer: Trainer) -> float:
    scaler = trainer.context.precision.scaler
    assert scaler is not None
    return scaler.get_scale()


def test_a_step_that_overflows_is_left_out_and_not_counted() -> None:
    def configure(parameters: Any) -> Any:
        optimizer = torch.optim.SGD(parameters, lr=0.1)
        scheduler = {"scheduler": StepLR(optimizer, 1, gamma=0.5), "interval": "step"}
        return {"optimizer": optimizer, "lr_scheduler": scheduler}

    trainer = make_trainer(precision="fp16")
    scale = []
    trainer.on("batch_end", lambda: scale.append(scale_of(trainer)))
    trainer.fit(Overflowing(configure), make_batches(3))
    assert trainer.steps == 2
    assert scale == [2.0**16, 2.0**15, 2.0**15]
    assert trainer.context.optimizers[0].param_groups[0]["lr"] == 0.025


def test_max_steps_is_exact_where_a_step_overflows() -> None:
    trainer = make_trainer(precision="fp16", max_epochs=None, max_steps=3)
    trainer.fit(Overflowing(), make_batches(5))
    assert trainer.steps == 3
    assert trainer.context.counts.batch == 4


def test_a_scheduler_raises_no_warning_if_the_very_first_step_overflows() -> None:
    class Model(Gentle):
        def training_step(self, batch: Batch, batch_idx: int) -> Any:
            loss = super().training_step(batch, batch_idx)
            return loss * float("inf") if batch_idx == 0 else loss

    def configure(parameters: Any) -> Any:
        optimizer = torch.optim.SGD(parameters, lr=0.1)
        scheduler = {"scheduler": StepLR(optimizer, 1), "interval": "step"}
        return {"optimizer": optimizer, "lr_scheduler": scheduler}

    trainer = make_trainer(precision="fp16")
    trainer.fit(Model(configure), make_batches(2))
    assert trainer.steps == 1


def test_open_windows_of_others_follow_the_scale_when_it_changes() -> None:
    """The first optimizer overflows, and the scale is halved, while the second is in a window."""

    class Model(Pair):
        def training_step(self, batch: Batch, batch_idx: int, optimizer_idx: int) -> Any:
            loss = super().training_step(batch, batch_idx, optimizer_idx) / 256
            return loss * float("inf") if (batch_idx, optimizer_idx) == (1, 0) else loss

    def configure(one: Any, two: Any) -> Any:
        return [one, two]

    batches = make_batches(2)
    model, expected = Model(configure), Pair(configure)
    _, optimizer = expected.configure_optimizers()
    expected.one.requires_grad_(False)
    for batch in batches:
        with torch.autocast("cpu", torch.float16):
            loss = pair_loss(expected.one, expected.two, batch, 1) / 256
        (loss / 2).backward()
    optimizer.step()
    trainer = make_trainer(precision="fp16", accumulate=2)
    trainer.fit(model, batches)
    assert [slot.steps for slot in trainer.context.slots] == [0, 1]
    for ours, plain in zip(model.parameters(), expected.parameters(), strict=True):
        assert torch.allclose(ours, plain, rtol=1e-5, atol=1e-7)


class ByHand(Regression):
    automatic_optimization = False

    def training_step(self, batch: Batch, batch_idx: int, optimizers: Any, trainer: Any) -> Any:  # type: ignore[override]
        loss = gentle(self.net, batch)
        if batch_idx == self.overflows_at:
            loss = loss * float("inf")
        optimizers[0].zero_grad()
        trainer.backward(loss)
        optimizers[0].step()

    overflows_at: int | None = None


def test_manual_optimization_in_bf16_is_that_of_a_plain_loop() -> None:
    batches = make_batches(4)
    model = ByHand()
    make_trainer(precision="bf16").fit(model, batches)
    assert_same_weights(model, plain_bf16(batches))


def test_manual_optimization_in_fp16_steps_through_the_scaler() -> None:
    batches = make_batches(4)
    model = ByHand()
    trainer = make_trainer(precision="fp16")
    trainer.fit(model, batches)
    assert_same_weights(model, plain_fp16(batches))
    assert trainer.steps == 4


def test_a_manual_step_that_overflows_is_left_out_and_not_counted() -> None:
    model = ByHand()
    model.overflows_at = 1
    trainer = make_trainer(precision="fp16")
    trainer.fit(model, make_batches(3))
    assert trainer.steps == 2
    assert all(parameter.isfinite().all() for parameter in model.parameters())
