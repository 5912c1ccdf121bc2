"""Notes on errors that torch and Python raise in a step: what the batch was, and what is usually the reason."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any, Final

import torch
from torch import nn

from statemachine_trainer.loops.context import Context
from statemachine_trainer.loops.foreign_names import OF_MODEL
from statemachine_trainer.machine.errors import StateMachineError
from statemachine_trainer.machine.loop import SEPARATOR

_MOST: Final = 6
"""Parts of a batch that are described."""

_DEEPEST: Final = 3
_BEGINS: Final = "The batch"

_REASONS: Final = {
    "backward through the graph a second time": "Does the training step call backward() itself? The trainer does so: "
    "return the loss alone, or say automatic_optimization = False. If a tensor of an earlier batch is used again, "
    "detach() it.",
    "tensors to be on the same device": "What a step makes anew belongs on the device of the batch: torch.zeros(3, "
    "device=x.device). What the model keeps is a buffer: self.register_buffer('name', tensor).",
}
"""Parts of messages of torch, and the usual reason in a training."""

_NO_ATTRIBUTE: Final = re.compile(r"'(\w+)' object has no attribute '(\w+)'")


def explain(error: BaseException, context: Context, path: str | None) -> None:
    """Note on an error of user code what helps to understand it. Errors of this package say it themselves.

    Args:
        error: The error.
        context: The context of the run.
        path: Path of the state that raised.
    """
    if not isinstance(error, Exception) or isinstance(error, StateMachineError) or path is None:
        return
    # An error or a batch of the user may raise when it is looked at; what is to be seen then is the error itself.
    with suppress(Exception):
        notes = getattr(error, "__notes__", [])
        if any(one.startswith((_BEGINS, "Raised by")) for one in notes):
            return  # a receiver has raised; or it was explained within another run
        for note in _notes(error, context, path.rpartition(SEPARATOR)[2]):
            error.add_note(note)


def _notes(error: Exception, context: Context, state: str) -> Iterator[str]:
    if state.endswith("fetch"):
        yield f"{_BEGINS} was being made: by the data set, its sampler or the collate_fn of the loader."
        return
    text = str(error)
    yield from (reason for said, reason in _REASONS.items() if said in text)
    missing = _NO_ATTRIBUTE.search(text)
    if missing and missing[1] == type(context.model).__name__ and missing[2] in OF_MODEL:
        yield f"{missing[2]!r} is a name of Lightning's. {OF_MODEL[missing[2]]}."
    elif context.batch is not None:
        yield f"{_BEGINS} is {_described(context.batch)}{_of_parameters(context.model)}."
    elif state.endswith(("step", "forward")):
        yield f"{_BEGINS} is None: does the data set, or the collate_fn of the loader, return nothing?"


def _of_parameters(model: nn.Module) -> str:
    first = next(model.parameters(), None)
    if first is None:
        return ""
    return f"; the parameters of {type(model).__name__} are {_dtype(first)} on {first.device}"


def _described(batch: Any, depth: int = 0) -> str:
    """Describe a batch by the shapes, dtypes and devices of its tensors."""
    if isinstance(batch, torch.Tensor):
        return f"tensor{tuple(batch.shape)} {_dtype(batch)} on {batch.device}"
    if depth < _DEEPEST and isinstance(batch, Mapping):
        parts = [f"{key}: {_described(one, depth + 1)}" for key, one in [*batch.items()][:_MOST]]
        return f"{{{', '.join(parts)}{_more(batch)}}}"
    if depth < _DEEPEST and isinstance(batch, list | tuple):
        parts = [_described(one, depth + 1) for one in batch[:_MOST]]
        opening, closing = "[]" if isinstance(batch, list) else "()"
        return f"{opening}{', '.join(parts)}{_more(batch)}{closing}"
    kind = type(batch).__name__
    shape = getattr(batch, "shape", None)
    return f"{kind}{shape}" if isinstance(shape, tuple) else kind


def _more(parts: Any) -> str:
    return ", ..." if len(parts) > _MOST else ""


def _dtype(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
