"""What was compiled is kept on disk: a process that comes later compiles nothing."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from statemachine_trainer.loops.compiled import kept

SCRIPT = """
import warnings
import torch
from torch import nn
from statemachine_trainer import CompiledStep, Trainer
from statemachine_trainer.loops.compiled import NotCompiled

warnings.simplefilter("error", NotCompiled)
torch.set_num_threads(1)
torch.manual_seed(0)

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(3, 4), nn.Dropout(), nn.Tanh(), nn.Dropout(), nn.Linear(4, 1))
    def training_step(self, batch, batch_idx):
        return self.layers(batch).square().mean()
    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=0.01)

trainer = Trainer(max_epochs=1, device="cpu", progress=False)
trainer.loop.replace(optimizer=CompiledStep)
model = Net()
trainer.fit(model, [torch.randn(4, 3) for _ in range(5)])
assert trainer.loop["optimizer"].graphs
print(sum(one.double().sum().item() for one in model.parameters()).hex())
"""


@pytest.mark.slow
@pytest.mark.skipif(
    not any(map(shutil.which, (os.environ.get("CXX", "g++"), "g++", "clang++"))),
    reason="needs a C++ compiler",
)
def test_a_later_process_needs_no_compiler_and_comes_to_the_same_bits(tmp_path: Path) -> None:
    def run(**environment: str) -> str:
        given = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(tmp_path), **environment}
        command = [sys.executable, "-c", SCRIPT]
        done = subprocess.run(command, env=given, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    first = run()
    assert [*(tmp_path / "statemachine_trainer").iterdir()]
    assert run(PATH="/nowhere") == first


def place(function: Callable[..., Any], *inputs: Tensor, **settings: Any) -> Path | None:
    return kept.place_of(make_fx(function)(*inputs), inputs, settings)


def half(one: Tensor) -> Tensor:
    return one * 0.5


def third(one: Tensor) -> Tensor:
    return one / 3


def test_all_that_the_compiler_looks_at_is_in_the_name(tmp_path: Path) -> None:
    one = torch.ones(2, 3)
    known = place(half, one)
    assert known is not None
    assert known == place(half, torch.zeros(2, 3))
    others = [
        place(third, one),
        place(half, torch.ones(3, 2)),
        place(half, torch.ones(3, 2).t()),
        place(half, one.double()),
        place(half, one, fallback_random=True),
    ]
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    others.append(place(half, one))
    torch.set_num_threads(threads)
    assert None not in others
    assert len({known, *others}) == 7


@torch.library.custom_op("test_kept::doubled", mutates_args=())
def doubled(one: torch.Tensor) -> torch.Tensor:
    return one * 2


@doubled.register_fake
def _(one: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(one)


def test_what_the_text_of_a_graph_does_not_say_is_not_kept() -> None:
    one, held = torch.ones(2), torch.ones(2)
    assert place(lambda x: doubled(x), one) is None  # whose code may change
    assert place(lambda x: x + held, one) is None  # a tensor of its own


def test_a_file_that_is_no_library_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "some.so"
    assert kept.load(path) is None
    path.write_bytes(b"nothing")
    assert kept.load(path) is None
