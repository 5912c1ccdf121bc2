"""What fingerprints look at: the state of a run, by kind, as leaves with names.

A look is taken in the middle of a step. So names are put together once, and kept as long as the model and the
optimizers hold the same things under the same names. Only names are kept, and the `id` of each object, and never a
tensor: one that the run lets go of is freed.
"""

from __future__ import annotations

import random
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import chain, compress
from typing import Any, Final, cast

import numpy as np
import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from statemachine_trainer.loops.context import Context
from statemachine_trainer.observe.fingerprint_file import Kind
from statemachine_trainer.parallel.containers import leaves_with_paths
from statemachine_trainer.snapshot.known_members import KnownMembers
from statemachine_trainer.snapshot.rng import devices_in_use

Leaves = tuple[Sequence[str], Sequence[object]]
"""Names, and of each a tensor or something plain. Names that are the same object are the same."""

PLAIN: Final = str, bytes, int, float, complex, bool, type(None)
"""Types of values that have a digest of their own, and do not change."""

_NO_GRADIENT: Final = "none"
_LOSS: Final = ("loss",)
_NOTHING: Final[Leaves] = (), ()
_NO_STATE: Final[Mapping[str, object]] = {}
_NOT_LOOKED_AT: Final = "params", "param_names"


class StateLeaves:
    """Finds the leaves of the state of a run, again and again: tensors and plain values, each with a name.

    Call `begin`, `of` for each kind that is wanted, and `end`.

    Args:
        context: What the loops of the run share.
    """

    def __init__(self, context: Context) -> None:
        self._context = context
        self._members = KnownMembers()
        self._optimizers = _Optimizers()
        self._generators = _Generators()
        self._weights: Leaves = _NOTHING
        self._buffers: Leaves = _NOTHING

    def begin(self) -> None:
        """Begin a look: the model is that of this moment until `end`."""
        _, self._weights, self._buffers = self._members.of(self._context.model)

    def end(self) -> None:
        """End a look, and let go of what was found."""
        self._weights = self._buffers = _NOTHING

    def of(self, kind: Kind) -> Leaves:
        """Return the leaves of a kind."""
        context = self._context
        if kind == "weights":
            return _with_shapes(self._weights)
        if kind == "gradients":
            names, weights = self._weights
            gradients = [one.grad for one in weights]  # type: ignore[attr-defined]
            return names, [_NO_GRADIENT if one is None else one for one in gradients]
        if kind == "buffers":
            return self._buffers
        if kind == "batch":
            return _of_batch(context.batch)
        if kind == "loss":
            return _NOTHING if context.loss is None else (_LOSS, [context.loss])
        if kind == "optimizer":
            return self._optimizers.of(context, self._weights)
        return self._generators.now()


def _with_shapes(weights: Leaves) -> Leaves:
    names, tensors = weights
    lazy: list[bool] = [is_lazy(one) for one in cast(Sequence[Tensor], tensors)]
    if True not in lazy:
        return weights
    kept = [not one for one in lazy]
    return tuple(compress(names, kept)), [*compress(tensors, kept)]


# -- optimizers --------------------------------------------------------------------------------------


@dataclass
class _Optimizers:
    """Settings and state of the optimizers, found again without new names as long as they hold the same kinds.

    Attributes:
        marks: What they held, without its values.
        weights: Names of the parameters.
        names: Names of the leaves.
        taken: Which of the values are leaves.
    """

    marks: object = None
    weights: Sequence[str] = ()
    names: tuple[str, ...] = ()
    taken: list[bool] = field(default_factory=list)

    def of(self, context: Context, weights: Leaves) -> Leaves:
        """Return the leaves, of the optimizers in turn."""
        held: list[Mapping[str, object]] = []
        marks: list[object] = []
        for slot in context.slots:
            groups, state = slot.optimizer.param_groups, slot.optimizer.state
            parameters = [one for group in groups for one in group["params"]]
            held += groups
            held += [state.get(one, _NO_STATE) for one in parameters]
            marks += [len(groups), *map(id, parameters)]
        scaler = context.precision.scaler
        scale = None if scaler is None else scaler._scale
        if isinstance(scale, Tensor):
            held.append({"scale of the gradients": scale})
        values = [value for one in held for value in one.values()]
        now = marks, [*chain.from_iterable(held)], [*map(len, held)], [*map(type, values)]
        if now == self.marks and weights[0] is self.weights:
            return self.names, [*compress(values, self.taken)]
        self.marks = None
        found = [*_of_optimizers(context, weights)]
        names, leaves = tuple(name for name, _ in found), [one for _, one in found]
        taken = [
            name not in _NOT_LOOKED_AT or isinstance(value, Tensor)
            for one in held
            for name, value in one.items()
        ]
        kept = [*compress(values, taken)]
        # Containers among the values, such as those of LBFGS, have leaves of their own: they are walked each time.
        if len(kept) == len(leaves) and all(a is b for a, b in zip(kept, leaves, strict=True)):
            self.marks, self.weights, self.names, self.taken = now, weights[0], names, taken
        return names, leaves


def _of_optimizers(context: Context, weights: Leaves) -> Iterator[tuple[str, object]]:
    names = {id(one): name for name, one in zip(*weights, strict=True)}
    slots = context.slots
    for index, slot in enumerate(slots):
        before = f"{index}: " if len(slots) > 1 else ""
        groups = slot.optimizer.param_groups
        for number, group in enumerate(groups):
            of = f" of group {number}" if len(groups) > 1 else ""
            for name, value in group.items():
                if name not in _NOT_LOOKED_AT:
                    yield f"{before}{name}{of}", value
        for group in groups:
            for one in group["params"]:
                of = f" of {names.get(id(one), '?')}"
                for name, value in slot.optimizer.state.get(one, _NO_STATE).items():
                    if isinstance(value, Tensor):
                        yield f"{before}{name}{of}", value
                    else:  # LBFGS has lists of them
                        for path, leaf in leaves_with_paths(value, name):
                            yield f"{before}{path}{of}", leaf
    scaler = context.precision.scaler
    if scaler is not None and isinstance(scaler._scale, Tensor):
        yield "scale of the gradients", scaler._scale


# -- batches, and generators -------------------------------------------------------------------------


def _of_batch(batch: Any) -> Leaves:
    kind = type(batch)
    if kind is tuple or kind is list:
        if all(type(one) is Tensor for one in batch):
            return _names_of_batch(len(batch)), batch
    elif kind is dict and all(
        type(name) is str and type(one) is Tensor for name, one in batch.items()
    ):
        return _names_of_batch(tuple(batch)), [*batch.values()]
    found = [*leaves_with_paths(batch, "batch")]
    return tuple(name for name, _ in found), [one for _, one in found]


@lru_cache(maxsize=64)
def _names_of_batch(form: int | tuple[str, ...]) -> tuple[str, ...]:
    """Return the names of the leaves of a sequence of so many, or of a dict with such keys."""
    like: object = (None,) * form if isinstance(form, int) else dict.fromkeys(form)
    return tuple(name for name, _ in leaves_with_paths(like, "batch"))


@dataclass
class _Generators:
    """States of the global generators.

    Attributes:
        words: Of Python's generator, as they were last.
        python: The same as bytes.
        names: Names of the generators.
    """

    words: tuple[int, ...] = ()
    python: bytes = b""
    names: tuple[str, ...] = "python", "numpy", "torch"

    def now(self) -> Leaves:
        version, words, gauss = random.getstate()
        if words != self.words:  # to compare them is faster than to lay them out
            self.words, self.python = words, array("I", words).tobytes()
        state: Any = np.random.get_state(legacy=False)
        numpy = repr((state["bit_generator"], state.get("has_gauss"), state.get("gauss"))).encode() + b"".join(
            value.tobytes() if isinstance(value, np.ndarray) else repr(value).encode()
            for value in state["state"].values()
        )  # fmt: skip
        states = [
            self.python + repr((version, gauss)).encode(),
            numpy,
            torch.get_rng_state().numpy().tobytes(),
        ]
        names = self.names[:3]
        for device in devices_in_use():
            if device.type in ("cuda", "xpu"):  # their states lie on the CPU
                names += (str(device),)
                of_device = getattr(torch, device.type).get_rng_state(device)
                states.append(of_device.numpy().tobytes())
        if names != self.names:
            self.names = names
        return self.names, states
