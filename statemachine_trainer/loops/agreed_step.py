"""A training step that may leave batches out, where no rank can take part in an exchange without a loss.

That is so where networks inside of the model exchange gradients, and where parameters are cut up.
"""

from __future__ import annotations

import dis
import inspect
import logging
from collections.abc import Callable, Mapping
from typing import Any, Final

from torch import Tensor

from statemachine_trainer.parallel.gradient_sync import GradientSync

_log = logging.getLogger("statemachine_trainer.recovery")


_HANDED_ON: Final = ("RETURN", "STORE", "BUILD", "JUMP")
"""What comes after a None that is no argument of a call."""


def may_return_none(step: Callable[..., Any]) -> bool:
    """Return whether the code of a step has a None that it may return."""
    code = getattr(inspect.unwrap(getattr(step, "__func__", step)), "__code__", None)
    if code is None:
        return False
    made = [(one.opname, one.argval) for one in dis.get_instructions(code)]
    pairs = zip(made, [*made[1:], ("", None)], strict=True)
    return any(
        name == "RETURN_CONST" or following.startswith(_HANDED_ON)
        for (name, value), (following, _) in pairs
        if value is None and name in ("RETURN_CONST", "LOAD_CONST")
    )


def agreed(step: Callable[..., Any], sync: GradientSync) -> Callable[..., Any]:
    """Return a step that returns None at all ranks where it does at one of them. Each call is a collective."""

    def call(batch: Any, batch_idx: int) -> Any:
        output = step(batch, batch_idx)
        has_loss = not _has_none(output)
        rank = sync.objector(has_loss)
        if rank is None:
            return output
        if has_loss:  # the other ranks know it of themselves
            text = "left out batch %d of the epoch, as all ranks do: rank %d has no loss for it."
            _log.warning(text, batch_idx + 1, rank)
        return None

    return call


def _has_none(output: Any) -> bool:
    """Return whether the output of a step has None in place of a loss."""
    if output is None or isinstance(output, Tensor):
        return output is None
    if isinstance(output, Mapping):
        return "loss" in output and output["loss"] is None
    if isinstance(output, tuple):
        return len(output) == 2 and output[0] is None
    return getattr(output, "loss", output) is None
