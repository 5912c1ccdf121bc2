"""The check that finds circles of imports."""

from __future__ import annotations

from pathlib import Path

from tools.check_imports import find_circles, imports_of


def write(root: Path, **modules: str) -> None:
    for name, text in {"__init__": "", **modules}.items():
        path = root / "house" / f"{name}.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)


def test_imports_for_types_and_within_functions_count(tmp_path: Path) -> None:
    write(
        tmp_path,
        a="def f():\n    from house import b",
        b="from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from house.a import f",
        c="import house.a",
    )
    (circle,) = find_circles(imports_of(tmp_path, "house"))
    assert circle[0] == circle[-1]
    assert set(circle) == {"house.a", "house.b"}


def test_a_house_whose_imports_go_down_alone_passes(tmp_path: Path) -> None:
    write(tmp_path, a="from house.b import x", b="from house import c", c="import os")
    assert find_circles(imports_of(tmp_path, "house")) == []
