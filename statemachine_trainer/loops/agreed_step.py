"""A training step that may leave batches out, where no rank can take part in an exchange without a loss.

That is so where networks inside of the model exchange gradients, and where parameters are cut up.
"""

from __future__ import annotations

import dis
import inspect
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from statemachine_trainer.parallel.gradient_sync import GradientSync

_log = logging.getLogger("statemachine_trainer.recovery")


def may_return_none(step: Callable[..., Any]) -> bool:
    """Return whether the code of a step has a None that it may return, alone or within a tuple or dict.

    A None that is an argument of a call does not count.
    """
    code = getattr(inspect.unwrap(getattr(step, "__func__", step)), "__code__", None)
    if code is None:
        return False
    found = [*dis.get_instructions(code)]
    return any(
        one.opname == "RETURN_CONST" or _is_handed_on(found[place:])
        for place, one in enumerate(found, 1)
        if one.opname in ("RETURN_CONST", "LOAD_CONST") and one.argval is None
    )


def _is_handed_on(following: Sequence[dis.Instruction]) -> bool:
    """Return whether a value on top of the stack is returned or stored; True as well where that is not clear."""
    above = 0  # values that lie on it
    for one in following:
        effect = dis.stack_effect(one.opcode, one.arg, jump=False)
        if one.opname.startswith("JUMP") or (one.opname == "SWAP" and above < (one.arg or 0)):
            return True
        if one.opname.startswith("BUILD") and above + effect <= 0:
            above = 0  # from here on: the tuple or dict that it is in
            continue
        above += effect
        if above < 0:
            return one.opname.startswith(("RETURN", "STORE"))
    return False


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
