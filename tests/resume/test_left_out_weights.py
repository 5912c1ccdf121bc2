"""Weights that a `state_dict` of the user's own leaves out are saved if they are trained."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from statemachine_trainer.snapshot.modules import load_module_state, module_state


class HalfSaved(nn.Module):
    """Writes one of its three layers; one of the others is frozen."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.saved, self.trained, self.frozen = (nn.Linear(1, 1, bias=False) for _ in range(3))
        self.frozen.requires_grad_(False)
        with torch.no_grad():
            for one in self.parameters():
                one.fill_(value)

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        whole = super().state_dict(*args, **kwargs)
        return {name: one for name, one in whole.items() if name.startswith("saved")}

    def load_state_dict(self, state: Any, strict: bool = True, assign: bool = False) -> Any:
        return super().load_state_dict(state, strict=False, assign=assign)


class Renaming(nn.Module):
    """Writes its weights under other names."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([value]))

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        return {f"old.{name}": one for name, one in super().state_dict(*args, **kwargs).items()}

    def load_state_dict(self, state: Any, strict: bool = True, assign: bool = False) -> Any:
        plain = {name.removeprefix("old."): one for name, one in state.items()}
        return super().load_state_dict(plain, strict=strict, assign=assign)


def test_those_that_are_trained_go_on_and_frozen_ones_are_the_script_s() -> None:
    module = HalfSaved(0.0)
    load_module_state(module, module_state(HalfSaved(2.0), grads=False))
    assert [one.item() for one in module.parameters()] == [2.0, 2.0, 0.0]


def test_weights_under_other_names_are_saved_once() -> None:
    state = module_state(Renaming(2.0), grads=False)
    assert "left_out" not in state
    module = Renaming(0.0)
    load_module_state(module, state)
    assert module.weight.item() == 2.0
