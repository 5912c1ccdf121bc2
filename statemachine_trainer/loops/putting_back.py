"""What a state of training changed before it raised, put back for the error edge that it takes."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from operator import attrgetter
from typing import Any, Final

import torch
from torch import Tensor, nn

from statemachine_trainer.loops.context import Context, saved_as
from statemachine_trainer.loops.loop_errors import ChangedForGood
from statemachine_trainer.loops.scheduler_state import load_scheduler_state, scheduler_state
from statemachine_trainer.machine.fields import SINGLE, copied
from statemachine_trainer.parallel.containers import leaves
from statemachine_trainer.snapshot.found import Place
from statemachine_trainer.snapshot.generators import identity_of
from statemachine_trainer.snapshot.held import keep, put_back
from statemachine_trainer.snapshot.known_members import KnownMembers
from statemachine_trainer.snapshot.rng import keep_rng
from statemachine_trainer.snapshot.search import Search

_FIELDS: Final = [name for name in (*saved_as("plain"), *saved_as("tensors")) if name != "outputs"]
_VALUES: Final = attrgetter(*_FIELDS)


class Kept:
    """The state of a run before one state of its machine works, as far as that state may change it.

    Made before each work of a state for whose errors there is an edge. Weights, batches and hiddens
    are not copied: if one of them has changed in place, the run cannot go on, and is told so.
    Buffers are copied, and the gradients of an accumulation window that is open.

    Args:
        context: The context of the run.
    """

    def __init__(self, context: Context) -> None:
        self._context = context
        model = context.model
        fields = zip(_FIELDS, _VALUES(context), strict=True)
        self._fields = {n: one if type(one) in SINGLE else copied(one) for n, one in fields}
        # Outputs are only ever appended, and there may be as many as batches in an epoch.
        self._outputs = context.outputs, len(context.outputs or ())
        known = _KNOWN.get(model)
        if known is None:
            known = _KNOWN[model] = _KnownGenerators()
        modules, (_, weights), _ = known.members.of(model)
        self._modes = [(module, module.training) for module in modules]
        self._counts = context.counts.state_dict()
        self._rng = keep_rng()
        self._searched = known.search_if_changed(model, modules)
        self._generators = keep(known.places)
        self._buffers = [
            (module, name, one, one.clone())
            for module in modules
            if module._buffers
            for name, one in module._buffers.items()
            if one is not None
        ]
        tables = (context.train_metrics, context.validation_metrics)
        self._tables = [(table, table.state_dict()) for table in tables]
        self._over, self._log_table = context.train_metrics.over, context.log_table
        in_flight = (context.batch, context.split, context.kept_hiddens)
        self._unchanged = _versions_of(
            [
                one
                for tree in in_flight
                if tree is not None
                for one in leaves(tree)
                if isinstance(one, Tensor)
            ]
        )
        self._weights = _versions_of(weights)
        self._trained = [(one, one.requires_grad) for one in weights]
        copies = bool(context.open_windows or context.manual or context.piece_start > 0)
        self._gradients = _KeptGradients(weights, copies)
        self._slots = [_KeptSlot(slot) for slot in context.slots]
        scaler = context.precision.scaler
        self._scaler: dict[str, Any] | None = None
        if scaler is not None:
            self._scaler = {**vars(scaler)}
            stages = {number: {**one} for number, one in scaler._per_optimizer_states.items()}
            self._scaler["_per_optimizer_states"] = stages
            self._scale = None if scaler._scale is None else scaler._scale.clone()

    def put_back(self) -> None:
        """Put everything back.

        Raises:
            ChangedForGood: Weights, the batch or hiddens have changed in place, or the model holds a
                generator whose state before is not known.
        """
        context = self._context
        self._check()
        for name, value in self._fields.items():
            setattr(context, name, value)
        context.outputs, length = self._outputs
        del (context.outputs or [])[length:]
        for module, mode in self._modes:
            module.training = mode
        for parameter, trained in self._trained:
            if parameter.requires_grad != trained:
                parameter.requires_grad_(trained)
        context.counts.load_state_dict(self._counts)
        for table, state in self._tables:
            table.load_state_dict(state)
        context.train_metrics.over, context.log_table = self._over, self._log_table
        for module, name, one, before in self._buffers:
            with torch.no_grad():
                one.copy_(before)
            module._buffers[name] = one
        self._gradients.put_back()
        for slot in self._slots:
            slot.put_back()
        self._put_scaler()
        put_back(self._generators)
        self._rng()

    def _check(self) -> None:
        if _have_changed(self._weights):
            raise ChangedForGood(
                "Weights of the model have changed in place, and weights are not copied at each step. "
                "Declare the error edge for states that do not step an optimizer, or let the error "
                "surface and resume from a checkpoint."
            )
        now = {id(one) for one in self._context.model.parameters()}
        if any(id(one) not in now for one, _ in self._weights):
            raise ChangedForGood(
                "Parameters of the model were replaced by others. Copy values into those that it has, or let the "
                "error surface and resume from a checkpoint."
            )
        if _have_changed(self._unchanged):
            raise ChangedForGood(
                "The batch in flight, or hiddens, have changed in place. Let the step work on a copy: "
                "x = x + noise instead of x += noise."
            )

        self._check_generators()

    def _check_generators(self) -> None:
        """Refuse a generator that has come into the model, perhaps long ago, where no attribute tells."""
        if self._searched:
            return  # all were known before, so a new one is of the state that raised
        model = self._context.model
        known = {identity_of(generator) for generator, _ in self._generators}
        # So is one that a module itself holds: for an earlier one the model would have been searched.
        of_modules = {id(one) for module in model.modules() for one in vars(module).values()}
        for path, place in Search({"model": model}).places.items():
            generator = place.generator
            if identity_of(generator) not in known and id(generator) not in of_modules:
                raise ChangedForGood(
                    f"The model has a new generator of random numbers, {path}, within an object that is no "
                    "module. Its state before the error is not known. Make it when the model is made, or "
                    "keep it as an attribute of a module."
                )

    def _put_scaler(self) -> None:
        scaler = self._context.precision.scaler
        if scaler is None or self._scaler is None:
            return
        stages = scaler._per_optimizer_states
        vars(scaler).update(self._scaler)
        stages.clear()  # a defaultdict, which stays the same object
        stages.update(self._scaler["_per_optimizer_states"])
        scaler._per_optimizer_states = stages
        if self._scale is not None and scaler._scale is not None:
            scaler._scale.copy_(self._scale)


class _KnownGenerators:
    """The generators that a model holds. It is searched again when a module has other attributes.

    A search takes longer than all else that is kept. A generator that is missed is told after an error.

    Attributes:
        members: Finds the modules, parameters and buffers of the model.
        places: The generators by path.
    """

    def __init__(self) -> None:
        self.members = KnownMembers()
        self.places: dict[str, Place] = {}
        self._holders: list[tuple[object, ...]] = []
        self._attributes: list[tuple[int, ...]] | None = None

    def search_if_changed(self, model: nn.Module, modules: Sequence[nn.Module]) -> bool:
        """Search the model, unless its modules hold the same objects as at the last search.

        Returns:
            Whether it was searched.
        """
        attributes = [tuple(map(id, vars(module).values())) for module in modules]
        if attributes == self._attributes:
            return False
        self._attributes = attributes
        holders = _holders(modules)
        if holders == self._holders:
            return False
        self._holders = holders
        self.places = Search({"model": model}).places
        return True


_PLAIN: Final = (int, float, complex, str, bytes, type(None), Tensor)


def _holders(modules: Sequence[nn.Module]) -> list[tuple[object, ...]]:
    """Return which objects modules hold. Numbers and tensors change in each step, and hold no generator."""
    return [
        tuple(_PLAIN if isinstance(one, _PLAIN) else id(one) for one in vars(module).values())
        for module in modules
    ]


_KNOWN: weakref.WeakKeyDictionary[nn.Module, _KnownGenerators] = weakref.WeakKeyDictionary()


class _KeptSlot:
    """An optimizer with its schedulers and counters. Its tensors are those of before, not copies."""

    def __init__(self, slot: Any) -> None:
        self._slot, optimizer = slot, slot.optimizer
        self._numbers = slot.steps, slot.window, slot.size
        self._groups = [{**group} for group in optimizer.param_groups]
        self._state = {p: {**one} for p, one in optimizer.state.items()}
        tensors = (t for one in self._state.values() for t in one.values())
        self._versions = _versions_of([t for t in tensors if isinstance(t, Tensor)])
        self._schedulers = [(one, one.seen, scheduler_state(one, "")) for one in slot.schedulers]

    def put_back(self) -> None:
        slot, optimizer = self._slot, self._slot.optimizer
        if _have_changed(self._versions):
            raise ChangedForGood(
                f"The state of {type(optimizer).__name__} has changed in place, and is not copied at "
                "each step. Declare the error edge for states that do not step an optimizer, or let "
                "the error surface and resume from a checkpoint."
            )
        slot.steps, slot.window, slot.size = self._numbers
        optimizer.state.clear()
        optimizer.state.update(self._state)
        for one, seen, state in self._schedulers:
            load_scheduler_state(one, state)
            one.seen = seen
        for group, before in zip(optimizer.param_groups, self._groups, strict=False):
            group.clear()
            group.update(before)


def _version(one: Tensor) -> int:
    """Return how often a tensor was changed in place; 0 where torch does not count."""
    return 0 if one.is_inference() else one._version


def _versions_of(tensors: Sequence[Tensor]) -> list[tuple[Tensor, int]]:
    # `_version` in line, since each weight is asked in each step.
    return [(one, 0 if one.is_inference() else one._version) for one in tensors]


def _have_changed(versions: Sequence[tuple[Tensor, int]]) -> bool:
    return any(_version(one) != version for one, version in versions)


class _KeptGradients:
    """The gradients of parameters, copied if they will be used again.

    Else no window is open, and the next backward pass begins with none. Such a gradient is not kept
    alive: its memory may be what the step is short of.
    """

    __slots__ = ("_kept", "_parameters")

    def __init__(self, parameters: Sequence[Tensor], copies: bool) -> None:
        self._parameters = parameters
        # By the place of the parameter: the gradient, its version, and its copy. Most have none as a step begins.
        self._kept = {
            at: (weakref.ref(one), _version(one), one.clone() if copies else None)
            for at, one in enumerate([one.grad for one in parameters])
            if one is not None
        }

    def put_back(self) -> None:
        for at, parameter in enumerate(self._parameters):
            before, version, clone = self._kept.get(at, _NO_GRADIENT)
            now = parameter.grad
            if now is None or before is None or now is not before():
                parameter.grad = clone
            elif _version(now) != version:
                if clone is None:
                    parameter.grad = None
                else:
                    now.detach().copy_(clone)


_NO_GRADIENT: Final[tuple[Any, int, Tensor | None]] = None, 0, None
