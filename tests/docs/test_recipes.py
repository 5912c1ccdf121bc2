"""Each recipe of the page trains, and goes on to the same bits after a resume at any boundary."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from statemachine_trainer.testing import assert_resumable

PAGE = (Path(__file__).parents[2] / "docs" / "recipes.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^## ([^\n]+)\n(.*?)(?=^## |\Z)", PAGE, flags=re.M | re.S))
(SHARED,) = re.findall(r"```python\n(.*?)```", PAGE.partition("\n## ")[0], flags=re.S)
NEEDS = {"Schedule-free optimizers": "schedulefree"}
RESUMED = [name for name in SECTIONS if name != "Exporting"]


def names_of(section: str) -> dict[str, Any]:
    """Run the code of a section, and return what it defines."""
    if section in NEEDS:
        pytest.importorskip(NEEDS[section])
    names: dict[str, Any] = {"__name__": "recipe"}
    for block in (SHARED, *re.findall(r"```python\n(.*?)```", SECTIONS[section], flags=re.S)):
        exec(block, names)
    return names


@pytest.mark.parametrize("section", RESUMED)
def test_it_resumes_anywhere(section: str) -> None:
    make: Callable[[], Any] = names_of(section)["make_trainer"]
    assert_resumable(make, examples=3, seed=0)


@pytest.mark.parametrize("section", RESUMED)
def test_it_learns_something(section: str) -> None:
    torch.manual_seed(0)
    trainer = names_of(section)["make_trainer"]()
    before = [one.detach().clone() for one in trainer.model.parameters()]
    trainer.run()
    after = [*trainer.model.parameters()]
    moved = [
        one.requires_grad
        for one, was in zip(after, before, strict=True)
        if not torch.equal(one, was)
    ]
    assert moved
    assert all(moved), "what is frozen stays"


@pytest.mark.slow
def test_what_is_exported_says_what_the_model_says(tmp_path: Path) -> None:
    program = names_of("Exporting")["export"](tmp_path)
    assert program.module()(torch.zeros(5, 4)).shape == (5, 3)
