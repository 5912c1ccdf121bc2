"""The page on two runs that part says what the runs on it say."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from statemachine_trainer import compare_runs

PAGE = (Path(__file__).parents[2] / "docs" / "difference.md").read_text(encoding="utf-8")


def block(language: str, holding: str) -> str:
    found: list[str] = re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    return next(one for one in found if holding in one)


def test_the_two_runs_on_the_page_part_where_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(block("python", "class Refactored"), "difference.md", "exec"), {})
    said = str(compare_runs("runs/a", "runs/b")).replace(f"{tmp_path}/", ".../")
    assert said.split() == block("text", "they part at").split()
