"""What compiled programs hold of an optimizer, and whether it still is so."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from itertools import chain
from operator import attrgetter, is_, itemgetter
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from statemachine_trainer.loops.compiled.compiled_errors import NotCapturable
from statemachine_trainer.loops.compiled.hooked import hooks_on_nodes
from statemachine_trainer.loops.compiled.layout import overlapping
from statemachine_trainer.loops.compiled.stepping import SteppingCode

_END: Final = (object(),)
"""Ends a series of values, so that no longer one is taken for it."""

_params: Final = itemgetter("params")
_each_of: Final = chain.from_iterable
_pointer: Final = Tensor.data_ptr
_backward_hooks: Final = attrgetter("_backward_hooks")
_accumulate_hooks: Final = attrgetter("_post_accumulate_grad_hooks")


class Binding:
    """An optimizer as programs are compiled for it.

    Programs write into the tensors of its state, and have the settings of its parameter groups in
    their code; the learning rates, which schedulers change all the time, are handed to them.
    All is compared by identity: that of two tensors with the same values is what counts here.

    Args:
        optimizer: The optimizer.
        model: The module that it trains.
        before: What was known before; None for the first time.

    Attributes:
        optimizer: The optimizer.
        code: What its step does.
        parameters: What it updates.
        buffers: The identities of the module's buffers.
        rates: The learning rate of each group as a tensor.
        settings: As text, all settings of the groups that are in the code of programs.
        layout: What programs of two bindings have to agree in, to be of use for both.

    Raises:
        NotCapturable: There is a parameter whose gradients cannot be found by a program.
    """

    def __init__(
        self, optimizer: Optimizer, model: nn.Module, before: Binding | None = None
    ) -> None:
        self.optimizer = optimizer
        self.code: SteppingCode = SteppingCode(optimizer, None if before is None else before.code)
        self.parameters = [p for group in optimizer.param_groups for p in group["params"]]
        _check_parameters(self.parameters)
        self.find_nodes()
        self.buffers = {id(buffer) for buffer in model.buffers()}
        self.device = self.parameters[0].device if self.parameters else torch.device("cpu")
        _move_steps(optimizer, self.device)
        self.rates = [self._rate(group["lr"]) for group in optimizer.param_groups]
        self.settings = _text(optimizer) + self.code.surroundings
        values = chain.from_iterable(map(dict.values, map(_constants, optimizer.param_groups)))
        # A list may change and be the same list.
        self._text = None if all(map(_is_plain, values)) else _text(optimizer)
        self.layout = self._outline()
        self._members = (*self.parameters, *_END)
        self._tensors = [*self.parameters, *(value for _, _, value in self.state_items())]
        self._single = self._keys_of_singles()
        self._rated = any(isinstance(group["lr"], Tensor) for group in optimizer.param_groups)
        self._remember()

    def find_nodes(self) -> None:
        """Find where gradients are accumulated, to see hooks on it: again after each capture.

        Raises:
            NotCapturable: There is one.
        """
        self._nodes, self._node_hooks = hooks_on_nodes(self.parameters)
        if any(self._node_hooks):
            raise NotCapturable("a parameter has a hook where its gradient is accumulated")

    # What follows is called in each step: so few calls as there can be, and these in C.

    def holds(self) -> bool:
        """Tell whether the optimizer is as it was; learning rates are brought up to date."""
        optimizer, parameters = self.optimizer, self.parameters
        groups, states = optimizer.param_groups, optimizer.state.values()
        try:
            # Objects are compared by identity first, so this costs little.
            if not (groups == self._groups or self._only_rates_differ()):
                return False
            if [*states] != self._state:
                return False
        except RuntimeError:  # tensors of several elements are not the same ones
            return False
        # Parameters may lie elsewhere, and share memory. And equal tensors of one element are
        # equal for Python, too: these are told apart by where they lie.
        placed = _each_of(map(_params, groups))
        if self._single is not None:
            placed = chain(placed, self._single(states))
        return (
            [*map(_pointer, placed)] == self._pointers
            and not any(
                chain(
                    map(_backward_hooks, parameters),
                    map(_accumulate_hooks, parameters),
                    self._node_hooks,
                )
            )
            and (not self._rated or self._rates_are_the_same())
            and self.code.holds()
            and (self._text is None or _text(self.optimizer) == self._text)
        )

    def holds_for_gradients(self) -> bool:
        """Tell whether the parameters are the same, which is all that gradients ask."""
        lists = map(_params, self.optimizer.param_groups)
        return (
            all(map(is_, chain(chain.from_iterable(lists), _END), self._members))
            and not any(map(_backward_hooks, self.parameters))
            and not any(map(_accumulate_hooks, self.parameters))
            and not any(self._node_hooks)
        )

    def _remember(self) -> None:
        groups = self.optimizer.param_groups
        self._groups = [{**group, "params": [*group["params"]]} for group in groups]
        self._state = [dict(entries) for entries in self.optimizer.state.values()]
        singles = () if self._single is None else self._single(self.optimizer.state.values())
        self._pointers = [*map(_pointer, chain(self.parameters, singles))]

    def _keys_of_singles(self) -> Callable[[Iterable[Any]], Iterable[Tensor]] | None:
        """Return what finds the tensors of one element in the state; None if there are none."""
        entries = [*self.optimizer.state.values()]
        found = [{k for k, v in one.items() if _is_single(v)} for one in entries if one]
        keys = set().union(*found)
        if not keys:
            return None
        if len(keys) == 1 and all(found) and len(found) == len(entries):
            return functools.partial(map, itemgetter(*keys))
        return lambda entries: (v for one in entries for v in one.values() if _is_single(v))

    def _rates_are_the_same(self) -> bool:
        rates = (group["lr"] for group in self.optimizer.param_groups)
        return all(
            new is rate
            for new, rate in zip(rates, self.rates, strict=True)
            if isinstance(new, Tensor)
        )

    def shares_memory(self) -> bool:
        """Tell whether two of the tensors that a step writes to lie in the same place."""
        return bool(overlapping(self._tensors))

    def state_items(self) -> list[tuple[nn.Parameter, str, Tensor]]:
        """Return the tensors of the optimizer's state, with their parameter and name."""
        state = self.optimizer.state
        return [
            (parameter, key, value)
            for parameter in self.parameters
            for key, value in state.get(parameter, {}).items()
            if isinstance(value, Tensor)
        ]

    def _outline(self) -> list[Any]:
        state = [(id(p), key, _form(value)) for p, key, value in self.state_items()]
        parameters = [(id(p), _form(p), p.requires_grad) for p in self.parameters]
        groups = [len(group["params"]) for group in self.optimizer.param_groups]
        kinds = [isinstance(group["lr"], Tensor) for group in self.optimizer.param_groups]
        return [self.settings, state, parameters, groups, kinds]

    def _only_rates_differ(self) -> bool:
        """Tell whether the groups are as they were but for their learning rates."""
        groups = self.optimizer.param_groups
        if len(groups) != len(self._groups):
            return False
        for group, known, rate in zip(groups, self._groups, self.rates, strict=True):
            new = group["lr"]
            if {**known, "lr": new, "initial_lr": None} != {**group, "initial_lr": None}:
                return False
            if isinstance(new, Tensor):
                if new is not rate:
                    return False
            elif known["lr"] != new:
                rate.fill_(new)
            known.update(group, params=known["params"])
        return True

    def _rate(self, rate: float | Tensor) -> Tensor:
        if isinstance(rate, Tensor):
            return rate
        # Of 64 bits, as the number is.
        kind = torch.float32 if self.device.type == "mps" else torch.float64
        return torch.tensor(rate, dtype=kind, device=self.device)


def _check_parameters(parameters: list[nn.Parameter]) -> None:
    if len({id(one) for one in parameters}) < len(parameters):
        raise NotCapturable("the optimizer has a parameter twice")
    for parameter in parameters:
        if type(parameter) not in (nn.Parameter, Tensor):
            raise NotCapturable(f"a parameter is a {type(parameter).__name__}")
        if not parameter.is_leaf:
            raise NotCapturable("a parameter was computed from others")
        if _backward_hooks(parameter) or _accumulate_hooks(parameter):
            raise NotCapturable("a parameter has a hook on its gradient")


def _form(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.shape, tensor.stride(), tensor.dtype, tensor.device


def _constants(group: Mapping[str, Any]) -> dict[str, Any]:
    constants = {key: value for key, value in group.items() if key not in ("params", "lr")}
    # Schedulers note here what the rate was in the beginning; no optimizer reads it.
    constants.pop("initial_lr", None)
    return constants


def _is_single(value: Any) -> bool:
    return isinstance(value, Tensor) and value.numel() == 1


def _text(optimizer: Optimizer) -> str:
    return repr([_constants(group) for group in optimizer.param_groups])


def _is_plain(value: Any) -> bool:
    if isinstance(value, tuple):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, int | float | complex | str)


def _move_steps(optimizer: Optimizer, device: torch.device) -> None:
    """Put step counts where the parameters are: a CUDA graph can hold nothing of the CPU."""
    if device.type == "cpu":
        return
    for state in optimizer.state.values():
        step = state.get("step") if isinstance(state, dict) else None
        if isinstance(step, Tensor) and step.device != device:
            state["step"] = step.to(device)
