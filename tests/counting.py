"""Counts Python calls, which are the same on every machine, unlike times."""

from __future__ import annotations

import gc
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def counting_calls(seen: Counter[str]) -> Iterator[None]:
    """Within the block, count the calls of each Python function."""

    def profile(frame: Any, event: str, _argument: object) -> None:
        if event == "call":
            seen[f"{frame.f_globals.get('__name__')}.{frame.f_code.co_qualname}"] += 1

    # A collection may come at any moment, and there are libraries that hook into it.
    gc.disable()
    sys.setprofile(profile)
    try:
        yield
    finally:
        sys.setprofile(None)
        gc.enable()


def calls_in(run: Callable[[], object]) -> int:
    """Return how many Python functions are called while something runs."""
    seen: Counter[str] = Counter()
    with counting_calls(seen):
        run()
    return seen.total()
