"""Whose line a warning is about."""

from __future__ import annotations

import sys


def level_of_caller() -> int:
    """Return the `stacklevel` of the first frame outside of this package, seen by whoever asks."""
    level, frame = 1, sys._getframe(1)
    package = __name__.partition(".")[0]
    while frame.f_back and frame.f_globals.get("__name__", "").partition(".")[0] == package:
        level, frame = level + 1, frame.f_back
    return level
