"""What commands import: forgotten afterwards, or told by a process of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from tests.processes import ROOT

TELLING = """
import sys
from statemachine_trainer.cli import main
try: main()
finally: print('torch' in sys.modules, 'numpy' in sys.modules, file=sys.stderr)
"""


def smt_that_tells_imports(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run `smt` in a fresh process; the last line of its errors says if torch and numpy were imported."""
    return subprocess.run(
        [sys.executable, "-c", TELLING, *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ},
        capture_output=True,
        text=True,
        timeout=110,
    )


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
