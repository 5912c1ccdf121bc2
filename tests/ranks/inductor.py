"""A short fit of two ranks whose step the default compiler compiles, beside the same one without. See `apart`."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.utils.data import TensorDataset

from tests.ranks.apart import Plain, compiled
from tests.ranks.together import INPUTS, play


def make() -> nn.Module:
    """In 64 bits, in which another order of additions leaves the first digits as they are."""
    model = Plain({})
    torch.manual_seed(3)
    model.net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    return model.double()


def windows_clipped_in_several_buckets() -> Any:
    inputs = INPUTS.double()
    settings: dict[str, Any] = {
        "data": TensorDataset(inputs, inputs.sum(1, keepdim=True)),
        "wrapper": {"bucket_cap_mb": 1e-5},
        "accumulate": 3,
        "clip_norm": 0.1,
    }
    return compiled("inductor", make, "inductor", **settings)


if __name__ == "__main__":
    play([windows_clipped_in_several_buckets])
