"""Whether a program comes to what the step comes to without the compiler.

The program is run on copies, the real step is done without it, and what became of parameters,
buffers, gradients and state is compared. So a run that is compared goes on with the right values.

A difference by rounding is expected, and Adam makes much of it where gradients are nearly zero. It
is therefore measured against the change that the step makes, and only where the gradient is large
enough to have a sign.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from statemachine_trainer.loops.compiled.binding import Binding
from statemachine_trainer.loops.compiled.compiling import Compiled
from statemachine_trainer.snapshot.rng import devices_in_use, isolated_rng, rng_state

_NOISE: Final = 1e-4
"""Gradients below this part of the largest one count as zero."""

_FLOOR: Final = 64
"""So many units in the last place of a value are rounding, whatever the change was."""


@dataclass(frozen=True)
class Difference:
    """How far a program is from the step without the compiler.

    Attributes:
        largest: The largest difference, relative to the change that the step made (2-norms).
        name: Of which tensor.
        random: Whether other random numbers were drawn.
        allowed: The largest difference that may be rounding.
    """

    largest: float
    name: str
    random: bool
    allowed: float

    @property
    def is_wrong(self) -> bool:
        """Tell whether it is more than rounding."""
        return self.random or not self.largest <= self.allowed

    def __str__(self) -> str:
        if self.random:
            return "it draws other random numbers"
        return f"{self.name} differs by {self.largest:.1e} of its change in this step"


class Trial:
    """A program, run once on copies of all that it is called with.

    Args:
        program: The program.
        inputs: What it would be called with.
        binding: The optimizer as the program knows it.
        names: Of parameters and buffers, by identity.
        same_random: Whether the program draws the numbers of the step.
    """

    def __init__(
        self,
        program: Compiled,
        inputs: Sequence[Tensor],
        binding: Binding,
        names: dict[int, str],
        *,
        same_random: bool,
    ) -> None:
        arguments = program.arguments(inputs)
        copies = [_twin(one) for one in arguments]
        before = [one.detach().clone() for one in arguments]
        owned = {id(one) for one in arguments[: len(inputs)]} - {
            id(inputs[place]) for place in program.changing
        }
        state = {
            id(value): (parameter, f"{key!r} of {names.get(id(parameter), 'a parameter')}")
            for parameter, key, value in binding.state_items()
        }
        self._parameters = {id(one): one for one in binding.parameters}
        self._compared: list[tuple[str, Tensor, Tensor, Tensor, Tensor | None]] = []
        with isolated_rng(), torch.no_grad(), program.below_autograd():
            outputs = program.call_on([*copies])  # the compiler empties the list
            self._drawn = _generators() if same_random else None
        for real, copy, old in zip(arguments, copies, before, strict=True):
            if id(real) in state:
                parameter, name = state[id(real)]
                self._compared.append((name, real, copy, old, parameter))
            elif id(real) in owned and program.recipe.updates:
                name = names.get(id(real), "a tensor")
                self._compared.append((name, real, copy, old, self._parameters.get(id(real))))
        self._fresh = [
            (parameter, None if parameter.grad is None else parameter.grad.clone(), grad)
            for parameter, grad in program.gradients_in(outputs)
        ]
        self._names = names

    def difference(self) -> Difference:
        """Compare with what the tensors are now, after the step without the compiler.

        The gradients of the step have to be there yet.
        """
        random = self._drawn is not None and not _alike(self._drawn, _generators())
        given = ((key, one.grad) for key, one in self._parameters.items())
        grads = {key: _dense(grad) for key, grad in given if grad is not None}
        tops = [one.detach().abs().max() for one in grads.values() if one.numel()]
        top = float(torch.stack([one.double().cpu() for one in tops]).max()) if tops else 0.0
        found = []
        for name, real, copy, old, parameter in self._compared:
            grad = None if parameter is None else grads.get(id(parameter))
            counts = None if grad is None else grad.abs() > _NOISE * top
            found.append((_apart(real, copy, old, counts), name))
        for parameter, held, grad in self._fresh:
            if parameter.grad is None:
                found.append((float("inf"), self._named(parameter)))
            else:
                now, grad = _dense(parameter.grad), _dense(grad)
                old = torch.zeros_like(grad) if held is None else _dense(held)
                size = max(float(now.norm()), top * _NOISE)
                found.append(
                    (float((now - old - grad).norm()) / (size or 1.0), self._named(parameter))
                )
        largest, name = max(found, default=(0.0, "nothing"))
        return Difference(largest, name, random, self._allowed())

    def _named(self, parameter: Tensor) -> str:
        return f"the gradient of {self._names.get(id(parameter), 'a parameter')}"

    def _allowed(self) -> float:
        kinds = {one.dtype for one in self._parameters.values()}
        if torch.is_autocast_enabled() or kinds & {torch.float16, torch.bfloat16}:
            return 0.5
        return 1e-6 if kinds == {torch.float64} else 0.05


def _apart(real: Tensor, copy: Tensor, old: Tensor, counts: Tensor | None) -> float:
    """Return how far two results are apart, relative to what changed."""
    if not (real.is_floating_point() or real.is_complex()):
        return 0.0 if bool(torch.equal(real.detach(), copy)) else float("inf")
    now, other, before = real.detach(), copy, old
    if counts is not None and counts.shape == now.shape:
        now, other, before = now[counts], other[counts], before[counts]
    off = now - other
    both = torch.isnan(now) & torch.isnan(other) | (now == other)
    off = torch.where(both, torch.zeros_like(off), off)
    floor = _FLOOR * torch.finfo(real.dtype).eps * float(now.abs().nan_to_num().norm())
    gap = max(float(off.norm()) - floor, 0.0) if bool(torch.isfinite(off).all()) else float("inf")
    change = float((now - before).nan_to_num().norm())
    return gap / change if gap and change else (float("inf") if gap else 0.0)


def _dense(grad: Tensor) -> Tensor:
    return grad.detach() if grad.layout == torch.strided else grad.detach().to_dense()


def _twin(tensor: Tensor) -> Tensor:
    """Copy a tensor with its layout, be it expanded or full of gaps."""
    one = tensor.detach()
    reach = sum((n - 1) * step for n, step in zip(one.shape, one.stride(), strict=True))
    if not one.numel():
        return torch.empty_strided(one.shape, one.stride(), dtype=one.dtype, device=one.device)
    memory = one.as_strided((reach + 1,), (1,), one.storage_offset()).clone()
    return memory.as_strided(one.shape, one.stride(), 0)


def _generators() -> dict[str, Any]:
    return rng_state(devices_in_use())


def _alike(one: Any, other: Any) -> bool:
    if isinstance(one, dict):
        return all(_alike(value, other[key]) for key, value in one.items())
    if isinstance(one, tuple):
        return all(map(_alike, one, other))
    return bool(torch.equal(one, other)) if isinstance(one, Tensor) else bool(one == other)
