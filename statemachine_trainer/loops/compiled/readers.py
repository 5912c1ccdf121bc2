"""Who looks at gradients beside the optimizer: a step that is compiled whole has none to show."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from types import CodeType
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
        return _names_gradients(function.__code__)
    return any(
        _names_gradients(method.__code__)
        for kind in type(one).__mro__
        if not kind.__module__.startswith(_OURS)
        for value in vars(kind).values()
        if (method := function_of(value)) is not None
    )


_OURS: Final = f"{__name__.partition('.')[0]}."


def _names_gradients(code: CodeType) -> bool:
    inner = (one for one in code.co_consts if isinstance(one, CodeType))
    return not _WORDS.isdisjoint(code.co_names) or any(map(_names_gradients, inner))
