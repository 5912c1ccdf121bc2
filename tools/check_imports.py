"""Check that no modules of the package import each other in a circle.

All imports count, also those under `TYPE_CHECKING` and within functions: whoever reads a module has to know what
it names. The face of a package (its `__init__.py`) is left out: it only hands on what lies inside, and the layers
in `pyproject.toml` hold it.

Usage: python tools/check_imports.py
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "statemachine_trainer"

ALLOWED = {
    # A loop has a place for swapping its parts, whose signature names loops.
    frozenset({f"{PACKAGE}.machine.loop", f"{PACKAGE}.machine.swap"})
}
"""Pairs of modules that may name each other."""


def imports_of(root: Path, package: str) -> dict[str, set[str]]:
    """Return, for each module of a package that is no face, the modules of it that it imports."""
    paths = {_name(root, path): path for path in (root / package).rglob("*.py")}
    faces = {name for name, path in paths.items() if path.name == "__init__.py"}
    return {
        name: {one for one in _imported(path, paths) if one != name and one not in faces}
        for name, path in paths.items()
        if name not in faces
    }


def find_circles(imports: Mapping[str, set[str]]) -> list[list[str]]:
    """Return circles that have to be broken, each as the modules on the way and the first one again.

    A circle is left out of what is looked for next, so that each is told once.
    """
    left = {name: set(targets) for name, targets in imports.items()}
    for pair in ALLOWED:
        for name in pair & left.keys():
            left[name] -= pair
    circles = []
    while True:
        try:
            TopologicalSorter(left).prepare()
        except CycleError as error:
            circle = error.args[1][::-1]  # from whoever imports to what is imported
            circles.append(circle)
            left[circle[0]].discard(circle[1])
        else:
            return circles


def _name(root: Path, path: Path) -> str:
    return ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")


def _imported(path: Path, known: Mapping[str, Path]) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            inside = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (one if one in known else node.module for one in inside)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)


def _known(imports: dict[str, set[str]]) -> dict[str, set[str]]:
    return {name: targets & imports.keys() for name, targets in imports.items()}


def main() -> int:
    """Print the circles; return the exit status."""
    circles = find_circles(_known(imports_of(ROOT, PACKAGE)))
    for circle in circles:
        print("A circle of imports:", " -> ".join(circle))
    return 1 if circles else 0


if __name__ == "__main__":
    sys.exit(main())
