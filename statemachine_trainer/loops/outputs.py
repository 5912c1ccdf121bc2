"""Reads the return value of a training step."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from typing import Any

import torch
from torch import nn

from statemachine_trainer.loops.context import Context
from statemachine_trainer.loops.loop_errors import StepOutputError
from statemachine_trainer.parallel.containers import detach


def read_output(
    output: Any, takes_hiddens: bool, model: nn.Module | None = None, *, verb: str = "returned"
) -> tuple[torch.Tensor | None, Any]:
    """Find the loss and the hiddens in the return value of a training step.

    Args:
        output: The loss (a tensor of one element with a gradient), a mapping with `loss` (and
            `hiddens`), a tuple `(loss, hiddens)` where the step takes hiddens, an object with an
            attribute `loss`. None, also in place of the loss, leaves the batch out.
        takes_hiddens: Whether the step has a parameter `hiddens`.
        model: The model of the step, for error messages.
        verb: How the step gave the output ("returned", "yielded"), for error messages.

    Returns:
        The loss, None to leave the batch out, and the hiddens, None if there are none.

    Raises:
        StepOutputError: The output has none of these forms.
    """
    if output is None:
        return None, None
    if isinstance(output, Mapping) and "loss" not in output:
        raise StepOutputError(
            f"The training step {verb} a {type(output).__name__} with the keys "
            f"{sorted(map(str, output))}; it needs 'loss'."
        )
    loss, hiddens = _parts(output, takes_hiddens)
    if loss is None and (isinstance(output, Mapping) or hiddens is not None):
        return None, hiddens
    _check_loss(output if loss is None else loss, model, verb)
    if takes_hiddens and hiddens is None:
        raise _no_hiddens()
    return loss, hiddens


def read_manual_output(output: Any, takes_hiddens: bool) -> tuple[torch.Tensor | None, Any]:
    """Find loss and hiddens in the return value of a training step that optimizes by hand.

    It may return anything, but a step that takes hiddens must return them.

    Raises:
        StepOutputError: There are no hiddens.
    """
    loss, hiddens = _parts(output, takes_hiddens)
    if takes_hiddens and hiddens is None:
        raise _no_hiddens()
    return loss if isinstance(loss, torch.Tensor) else None, hiddens


def gather(context: Context) -> None:
    """Keep the output of the last training step for the end of the epoch, without its graph."""
    if context.outputs is not None and context.output is not None:
        context.outputs.append(detach(context.output))


def _parts(output: Any, takes_hiddens: bool) -> tuple[Any, Any]:
    if isinstance(output, torch.Tensor):
        return output, None
    if isinstance(output, Mapping):
        return output.get("loss"), output.get("hiddens")
    if takes_hiddens and isinstance(output, tuple) and len(output) == 2:
        return output
    return getattr(output, "loss", None), getattr(output, "hiddens", None)


def _check_loss(loss: Any, model: nn.Module | None, verb: str) -> None:
    if isinstance(loss, Generator):
        raise StepOutputError(
            "The training step yields its losses, and this loop expects one to be returned. Let "
            "`YieldingLoop` take its place: trainer.loop.replace(optimizer=YieldingLoop())."
        )
    if not isinstance(loss, torch.Tensor):
        raise StepOutputError(
            f"The training step {verb} a {type(loss).__name__} where a loss was expected: it takes "
            "a tensor with one element, a dict with 'loss', or None to leave the batch out."
        )
    if loss.numel() != 1:
        raise StepOutputError(
            f"The training step {verb} a loss of shape {tuple(loss.shape)}; a loss has one "
            "element. Reduce it, as `loss.mean()` does."
        )
    if not loss.requires_grad:
        if model is not None and not any(one.requires_grad for one in model.parameters()):
            raise StepOutputError(
                f"The training step {verb} a loss without a gradient: every parameter of "
                f"{type(model).__name__} is frozen. Leave one out of the `freeze` of the phase, or "
                "of whatever called `requires_grad_(False)`."
            )
        raise StepOutputError(
            f"The training step {verb} a loss without a gradient. Is it detached, or computed "
            "under `torch.no_grad()`? With several optimizers the parameters of the others are "
            "frozen: does it depend on those of this one?"
        )


def _no_hiddens() -> StepOutputError:
    return StepOutputError(
        "The training step takes `hiddens` and returned none: return {'loss': loss, 'hiddens': "
        "hiddens} or (loss, hiddens)."
    )
