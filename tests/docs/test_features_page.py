"""Our own column of the table of features is true: its pages are there, and its names exist."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import statemachine_trainer

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "features.md"
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in PAGE.read_text(encoding="utf-8").splitlines()
    if line.startswith("|") and line.count("|") == 11 and not line.startswith(("| |", "|---"))
]
OURS = {row[0]: row[1] for row in ROWS}
OBJECT = re.compile(r"^\.\. auto(\w+):: ([\w.]+)", re.MULTILINE)


def documented_modules() -> list[ModuleType]:
    """The package, and each module that the reference takes something from."""
    names = {"statemachine_trainer"}
    for page in sorted((ROOT / "docs" / "reference").glob("*.md")):
        for kind, name in OBJECT.findall(page.read_text(encoding="utf-8")):
            if kind in ("module", "class", "function"):
                names.add(name if kind == "module" else name.rpartition(".")[0])
    return [importlib.import_module(name) for name in sorted(names)]


def found(name: str, modules: list[ModuleType]) -> bool:
    first, *attributes = name.split(".")
    for module in modules:
        value = getattr(module, first, None)
        for attribute in attributes:
            value = getattr(value, attribute, None)
        if value is not None:
            return True
    return False


def test_each_feature_stands_once_and_each_cell_is_one_of_four_words() -> None:
    assert len(OURS) == len(ROWS) > 40
    for row in ROWS:
        assert set(row[2:]) <= {"yes", "part", "no", "?"}, row[0]
        assert re.match(r"\[(yes|part|no)\]\(|no$", row[1]), row[0]


@pytest.mark.parametrize("feature", OURS)
def test_what_we_have_leads_to_a_section(feature: str) -> None:
    assert OURS[feature] == "no" or re.match(r"\[\w+\]\([\w/]+\.md#[\w-]+\)", OURS[feature])


def test_the_sections_exist() -> None:
    check = [sys.executable, str(ROOT / "tools" / "check_docs.py"), str(PAGE)]
    done = subprocess.run(check, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_each_name_in_our_column_is_public() -> None:
    names = {name for cell in OURS.values() for name in re.findall(r"`([^`]+)`", cell)}
    modules = [statemachine_trainer, *documented_modules()]
    assert names
    assert sorted(name for name in names if not found(name, modules)) == []
