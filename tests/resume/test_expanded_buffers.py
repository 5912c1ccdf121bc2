"""Buffers whose elements share memory, into which torch itself loads nothing, go on."""

from __future__ import annotations

import torch
from torch import nn

from statemachine_trainer.snapshot.modules import load_module_state, module_state


class Expanded(nn.Module):
    scale: torch.Tensor

    def __init__(self, value: float) -> None:
        super().__init__()
        self.register_buffer("scale", torch.tensor([value]).expand(3))


def test_an_expanded_buffer_is_loaded() -> None:
    module = Expanded(0.0)
    load_module_state(module, module_state(Expanded(2.0), grads=False))
    assert module.scale.tolist() == [2.0] * 3
