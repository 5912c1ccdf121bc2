"""A warning points at the line of the user, whatever calls what in between."""

from __future__ import annotations

import ast
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

import statemachine_trainer
from statemachine_trainer import Trainer
from statemachine_trainer.data import NotExact

ROOT = Path(statemachine_trainer.__file__).parent
LEVELS = {"level_of_caller()", "_level_of_caller()"}


def warnings_of(path: Path) -> Iterator[ast.Call]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "warnings.warn":
            yield node


def test_every_warning_of_the_package_looks_for_the_line_of_the_user() -> None:
    found = [(path, call) for path in ROOT.rglob("*.py") for call in warnings_of(path)]
    assert len(found) > 30
    others = [
        f"{path.relative_to(ROOT)}:{call.lineno}"
        for path, call in found
        if not {ast.unparse(k.value) for k in call.keywords if k.arg == "stacklevel"} & LEVELS
    ]
    assert others == []


INSIDE = """
import contextlib, warnings
from statemachine_trainer.machine.errors import level_of_caller

def tell(*_):
    warnings.warn("told", stacklevel=level_of_caller())

@contextlib.contextmanager
def telling():
    tell()
    yield
"""


def test_torch_and_context_managers_that_stand_in_between_are_passed_over() -> None:
    inside: dict[str, Any] = {"__name__": f"{statemachine_trainer.__name__}.inside"}
    exec(INSIDE, inside)
    hooked = nn.Identity()
    hooked.register_forward_hook(inside["tell"])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        inside["tell"]()
        hooked(torch.ones(1))
        with inside["telling"]():
            pass
    assert [one.filename for one in caught] == [__file__] * 3


class Drawing(Dataset[torch.Tensor]):
    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.rand(1)


def test_a_changed_seeding_is_told_at_the_line_that_resumes(tmp_path: Path) -> None:
    def fit(**settings: Any) -> None:
        more = {"loss": lambda x, y: (x - y).square().mean(), "optimizer": _sgd}
        data = DataLoader(Pairs(), 2)
        trainer = Trainer(progress=False, device="cpu", checkpoints=tmp_path / "run", **settings)
        trainer.fit(nn.Linear(1, 1), data, resume="auto", **more)  # type: ignore[arg-type]

    fit(max_epochs=1)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(max_epochs=2, seed_samples=True)
    (told,) = [one for one in caught if issubclass(one.category, NotExact)]
    assert told.filename == __file__


class Pairs(Drawing):
    def __getitem__(self, index: int) -> Any:
        return torch.rand(1), torch.zeros(1)


def _sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.1)
