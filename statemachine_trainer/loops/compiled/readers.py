"""Who looks at gradients beside the optimizer: a step that is compiled whole has none to show."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from types import CodeType, FunctionType
from typing import Any, Final

from statemachine_trainer.loops.compiled.lookups import function_of

_WORDS: Final = {"grad", "clip_grad_norm_", "clip_grad_value_", "get_total_norm"}


def gradients_are_read(loops: Iterable[object], trainer: Any) -> bool:
    """Tell whether a receiver, a callback or one of these loops looks at gradients.

    It says so by an attribute `reads_gradients`, or its code names them.

    Args:
        loops: The loops around the one that steps the optimizers.
        trainer: Whose receivers are asked; None for none.
    """
    return any(map(_reads, (*loops, *_receivers(trainer))))


def _receivers(trainer: Any) -> Iterator[Any]:
    board = getattr(trainer, "board", None)
    for one in () if board is None else board.subscriptions:
        owner = getattr(one.receiver, "__self__", None)
        yield one.receiver
        # What a model computes is read where it is captured.
        if owner is not None and owner is not trainer.context.model:
            yield owner


def _reads(one: Any) -> bool:
    said = getattr(one, "reads_gradients", None)
    if isinstance(said, bool):
        return said
    while isinstance(one, functools.partial):
        one = one.func
    function = function_of(one)
    if function is not None:
        return _names_gradients(function)
    return any(
        _names_gradients(method)
        for kind in type(one).__mro__
        if not kind.__module__.startswith(_OURS)
        for value in vars(kind).values()
        for method in [function_of(value)]
        if method is not None
    )


_OURS: Final = f"{__name__.partition('.')[0]}."
_OTHERS: Final = (_OURS, "torch.")
"""Modules whose functions are not followed."""


def _names_gradients(function: FunctionType, met: set[CodeType] | None = None) -> bool:
    """Tell whether a function names gradients, or calls one by a global name that does."""
    met = set() if met is None else met
    codes = [function.__code__]
    for code in codes:  # which grows meanwhile
        if code in met:
            continue
        met.add(code)
        if not _WORDS.isdisjoint(code.co_names):
            return True
        codes += [one for one in code.co_consts if isinstance(one, CodeType)]
        for name in code.co_names:
            called = function.__globals__.get(name)
            if not isinstance(called, FunctionType) or _is_of_others(called):
                continue
            if _names_gradients(called, met):
                return True
    return False


def _is_of_others(function: FunctionType) -> bool:
    return str(function.__globals__.get("__name__", "")).startswith(_OTHERS)
