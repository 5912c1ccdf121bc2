"""Whether the code of a training step has a None that it may return."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import pytest
import torch

from statemachine_trainer.loops.agreed_step import may_return_none


def always(batch: Any, scale: Any = None) -> Any:
    with torch.no_grad():
        print(batch, file=None)
    return batch[..., None] * (scale or 1)


def returns_at_once(batch: Any) -> Any:
    if not batch:
        return
    return batch


def returns_one_of_two(batch: Any) -> Any:
    return batch if batch else None


def returns_a_name(batch: Any) -> Any:
    loss = None
    if batch:
        loss = batch
    return loss


def returns_a_dict(batch: Any) -> Any:
    return {"loss": batch if batch else None}


def returns_a_larger_dict(batch: Any) -> Any:
    return batch if batch else {"loss": None, "seen": 0}


def puts_it_in_a_dict(batch: Any) -> Any:
    found = {"loss": batch}
    if not batch:
        found["loss"] = None
    return found


def returns_hiddens_beside(batch: Any) -> Any:
    return (batch, len(batch)) if batch else (None, len(batch))


def returns_hiddens_within_a_block(batch: Any) -> Any:
    with torch.no_grad():
        return None, len(batch)
    raise AssertionError


def falls_through(batch: Any) -> Any:
    if batch:
        return batch


def decorated(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
    @wraps(function)
    def inner(batch: Any) -> Any:
        return function(batch)

    return inner


@pytest.mark.parametrize(
    "step",
    [
        returns_at_once,
        returns_one_of_two,
        returns_a_name,
        returns_a_dict,
        returns_a_larger_dict,
        puts_it_in_a_dict,
        returns_hiddens_beside,
        returns_hiddens_within_a_block,
        falls_through,
    ],
)
def test_a_none_that_may_be_returned_is_seen(step: Callable[[Any], Any]) -> None:
    assert may_return_none(step)
    assert may_return_none(decorated(step))


def test_a_step_that_always_returns_a_loss_has_none() -> None:
    assert not may_return_none(always)
    assert not may_return_none(lambda batch: batch)


def test_what_has_no_code_of_python_is_not_looked_into() -> None:
    assert not may_return_none(len)
