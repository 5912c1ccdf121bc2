"""What compiled programs hold of an optimizer, and whether it still is so."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import chain
from operator import is_
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

_END: Final = (object(),)
"""Ends a series of values, so that no longer one is taken for it."""


class Binding:
    """An optimizer as programs are compiled for it.

    Programs write into the tensors of its state, and have the settings of its parameter groups in
    their code; the learning rates, which schedulers change all the time, are handed to them.

    Args:
        optimizer: The optimizer.
        model: The module that it trains.

    Attributes:
        optimizer: The optimizer.
        parameters: What it updates.
        buffers: The identities of the module's buffers.
        rates: The learning rate of each group as a tensor.
        settings: As text, all settings of the groups that are in the code of programs.
        layout: What programs of two bindings have to agree in, to be of use for both.
    """

    def __init__(self, optimizer: Optimizer, model: nn.Module) -> None:
        self.optimizer = optimizer
        self.parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self.buffers = {id(buffer) for buffer in model.buffers()}
        self.device = self.parameters[0].device if self.parameters else torch.device("cpu")
        _move_steps(optimizer, self.device)
        self.rates = [self._rate(group["lr"]) for group in optimizer.param_groups]
        self.settings = repr([_constants(group) for group in optimizer.param_groups])
        self.layout = self._outline()
        self._groups = self._copy_of_groups()
        self._state = list(self._state_values())

    def holds(self) -> bool:
        """Tell whether the optimizer is as it was; learning rates are brought up to date."""
        groups = self.optimizer.param_groups
        # Parameters are compared by identity first, so this costs little.
        if groups != self._groups and not self._only_rates_differ(groups):
            return False
        return all(map(is_, self._state_values(), self._state))

    def holds_for_gradients(self) -> bool:
        """Tell whether the optimizer has the same parameters, which is all that gradients ask."""
        lists = (group["params"] for group in self.optimizer.param_groups)
        here = chain(chain.from_iterable(lists), _END)
        return all(map(is_, here, chain(self.parameters, _END)))

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
        names = [(id(p), key, value.shape, value.dtype) for p, key, value in self.state_items()]
        kinds = [isinstance(group["lr"], Tensor) for group in self.optimizer.param_groups]
        return [self.settings, *names, [id(p) for p in self.parameters], kinds]

    def _state_values(self) -> Iterator[Any]:
        values = map(dict.values, self.optimizer.state.values())
        return chain(chain.from_iterable(values), _END)

    def _copy_of_groups(self) -> list[dict[str, Any]]:
        groups = self.optimizer.param_groups
        return [{**group, "params": [*group["params"]]} for group in groups]

    def _only_rates_differ(self, groups: list[dict[str, Any]]) -> bool:
        if len(groups) != len(self._groups):
            return False
        for group, known, rate in zip(groups, self._groups, self.rates, strict=True):
            new = group["lr"]
            if {**known, "lr": new} != group:
                return False
            if isinstance(new, Tensor):
                if new is not rate:
                    return False
            elif known["lr"] != new:
                rate.fill_(new)
                known["lr"] = new
        return True

    def _rate(self, rate: float | Tensor) -> Tensor:
        if isinstance(rate, Tensor):
            return rate
        # Of 64 bits, as the number is.
        kind = torch.float32 if self.device.type == "mps" else torch.float64
        return torch.tensor(rate, dtype=kind, device=self.device)


def _constants(group: Mapping[str, Any]) -> dict[str, Any]:
    constants = {key: value for key, value in group.items() if key not in ("params", "lr")}
    # Schedulers note here what the rate was in the beginning; no optimizer reads it.
    constants.pop("initial_lr", None)
    return constants


def _move_steps(optimizer: Optimizer, device: torch.device) -> None:
    """Put step counts where the parameters are: a CUDA graph can hold nothing of the CPU."""
    if device.type == "cpu":
        return
    for state in optimizer.state.values():
        step = state.get("step")
        if isinstance(step, Tensor) and step.device != device:
            state["step"] = step.to(device)
