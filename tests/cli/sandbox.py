"""Leaving the interpreter as it was after a command has imported a user's files."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def clean_imports() -> Iterator[None]:
    """Forget the small modules and search paths that the block adds."""
    paths, modules = list(sys.path), set(sys.modules)
    try:
        yield
    finally:
        sys.path[:] = paths
        for name in set(sys.modules) - modules:
            if name in ("train", "uses", "fails"):
                del sys.modules[name]
