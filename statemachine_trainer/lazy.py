"""Public names of a package that are imported when they are first used.

A package writes each name once, as an import that type checkers read and that does not run:

    if TYPE_CHECKING:
        from statemachine_trainer.trainer import Trainer as Trainer

    __getattr__, __dir__, __all__ = public_names(__name__)

So `import statemachine_trainer` costs next to nothing, and its parts work where torch is missing.
"""

from __future__ import annotations

import ast
import importlib
import pkgutil
import sys
from collections.abc import Callable, Iterator
from typing import Any


def public_names(package: str) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """Find the public names of a package in its source: what it imports under TYPE_CHECKING.

    Args:
        package: Its name.

    Returns:
        What it assigns to `__getattr__`, to `__dir__` and to `__all__`.

    Raises:
        ImportError: It was installed without its source.
    """
    homes = dict(_imports(ast.parse(_source(package))))
    names = sorted(homes)

    def load(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(homes[name]), name)
        setattr(sys.modules[package], name, value)  # the next time nobody asks here
        return value

    return load, lambda: list(names), names


def _source(package: str) -> bytes:
    """Return the source of a package, also of one in a zip file."""
    try:
        source = pkgutil.get_data(package, "__init__.py")
    except OSError:
        source = None
    if source is None:
        raise ImportError(
            f"{package} is installed without its source: there is no __init__.py. It reads its public names there, "
            "and loops are checked by their source. Install it with its .py files; a zip file may hold them.",
            name=package,
        )
    return source


def _imports(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """Yield each name that is imported for type checkers, and the module that it comes from."""
    for block in tree.body:
        if not (isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING"):
            continue
        for statement in block.body:
            if isinstance(statement, ast.ImportFrom) and statement.module is not None:
                for one in statement.names:
                    yield one.asname or one.name, statement.module
