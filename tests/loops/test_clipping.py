"""Clipping gradients by norm and by value."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from tests.loops.inner_kit import (
    Batch,
    Pair,
    Regression,
    assert_same_weights,
    make_batches,
    make_net,
    make_trainer,
    mse,
)

CLIPS: dict[str, tuple[dict[str, float], Callable[[Any], None]]] = {
    "norm": ({"clip_norm": 0.05}, lambda net: norm(net, 0.05)),
    "value": ({"clip_value": 0.01}, lambda net: value(net, 0.01)),
    "norm, then value": (
        {"clip_norm": 0.05, "clip_value": 0.01},
        lambda net: both(net, 0.05, 0.01),
    ),
}


def norm(net: nn.Module, most: float) -> None:
    nn.utils.clip_grad_norm_(net.parameters(), most)


def value(net: nn.Module, most: float) -> None:
    nn.utils.clip_grad_value_(net.parameters(), most)


def both(net: nn.Module, most: float, each: float) -> None:
    norm(net, most)
    value(net, each)


def plain(batches: list[Batch], clip: Callable[[nn.Module], None]) -> nn.Module:
    net = make_net()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for batch in batches:
        loss = mse(net, batch)
        optimizer.zero_grad()
        loss.backward()
        clip(net)
        optimizer.step()
    return net


@pytest.mark.parametrize("name", CLIPS)
def test_the_weights_are_those_of_a_plain_loop(name: str) -> None:
    settings, clip = CLIPS[name]
    batches = make_batches(5)
    model = Regression()
    make_trainer(**settings).fit(model, batches)
    assert_same_weights(model, plain(batches, clip))


def test_a_limit_above_all_gradients_changes_nothing() -> None:
    batches = make_batches(5)
    model = Regression()
    make_trainer(clip_value=1e9).fit(model, batches)
    assert_same_weights(model, plain(batches, lambda _: None))


def test_the_gradients_of_each_optimizer_are_clipped_by_themselves() -> None:
    norms: list[float] = []

    def configure(one: Any, two: Any) -> Any:
        for optimizer in (one, two):
            optimizer.register_step_pre_hook(note)
        return [one, two]

    def note(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        parameters = optimizer.param_groups[0]["params"]
        norms.append(nn.utils.get_total_norm([p.grad for p in parameters]).item())

    make_trainer(clip_norm=0.01).fit(Pair(configure), make_batches(3))
    assert norms == pytest.approx([0.01] * 6, rel=1e-4)


def test_clipping_can_be_changed_between_batches() -> None:
    batches = make_batches(4)
    model = Regression()
    trainer = make_trainer()

    @trainer.on("batch_start", when=lambda trainer: trainer.context.batch_idx == 2)
    def clip() -> None:
        trainer.loop["optimizer"].clip_norm = 0.01

    trainer.fit(model, batches)
    net = make_net()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for number, batch in enumerate(batches):
        optimizer.zero_grad()
        mse(net, batch).backward()
        if number >= 2:
            norm(net, 0.01)
        optimizer.step()
    assert_same_weights(model, net)
