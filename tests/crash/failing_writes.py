"""A run of which the n-th write beside its checkpoints fails: journal, black box, run.json, lock, requests, latest.

    LD_PRELOAD=SHIM python -m tests.crash.failing_writes FOLDER ERROR LASTING STRIDE

What stands between Python, or SQLite, and the C library is built of `failing_writes.c`. Each run is a fork of one
process, and one more fork goes on with it. It prints one line of JSON: how many calls there were, and what was wrong.
"""

from __future__ import annotations

import ctypes
import errno
import gc
import json
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.crash.faulted_calls import Told, in_fork, train
from tests.crash.processes import ENVIRONMENT
from tests.processes import ROOT

SOURCE = Path(__file__).with_suffix(".c")
KILL = 0
SHORT = -1
ERRORS = (errno.ENOSPC, errno.EIO, errno.EACCES, errno.EMFILE)
COMPILER = shutil.which("cc")


def build(folder: Path) -> Path:
    """Build the library that is loaded before the C library."""
    made = folder / "failing_writes.so"
    assert COMPILER is not None
    subprocess.run([COMPILER, "-shared", "-fPIC", "-o", made, SOURCE, "-ldl"], check=True)
    return made


def sweep(shim: Path, folder: Path, error: int, *, lasting: bool, stride: int) -> dict[str, Any]:
    """Let each write fail in turn, in a process of its own; return its report."""
    command = (sys.executable, "-m", "tests.crash.failing_writes")
    given = map(str, (folder, error, int(lasting), stride))
    environment = {**ENVIRONMENT, "LD_PRELOAD": str(shim)}
    done = subprocess.run(
        [*command, *given],
        env=environment,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=1500,
    )
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


class Logged(logging.Handler):
    """Keeps the warnings of a run, but for their numbers, in `texts`."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.texts: list[str] = []
        logging.getLogger().addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())


def failing(folder: Path, at: int, error: int, lasting: int) -> Told | None:
    """Run with a call that fails; return what came of it, which one it was, and how many there were."""

    def act() -> Told:
        logged = Logged()
        library = ctypes.CDLL(None)
        library.smt_met.restype = ctypes.c_char_p
        library.smt_arm(os.fsencode(folder), ctypes.c_long(at), error, lasting)
        told = train(folder)
        return {
            **told,
            "met": library.smt_met().decode(),
            "count": int(library.smt_count()),
            "logged": logged.texts,
        }

    return in_fork(act)


def whats_wrong(told: Told | None, whole: Told, folder: Path) -> list[Any]:
    """Say what differs from an undisturbed run, in this run and in the next start."""
    wrong: list[Any] = []
    if told is not None and told.get("weights") != whole["weights"]:
        wrong.append(told)
    if told is not None and len(told["logged"]) != len(set(told["logged"])):
        wrong.append({"met": told["met"], "told more than once": told["logged"]})
    checkpoints = sorted(path.name for path in folder.glob("0*"))
    again = in_fork(lambda: train(folder))
    if again is None or again.get("weights") != whole["weights"]:
        wrong.append({"met": told and told["met"], "again": again})
    if told is not None and checkpoints != whole["checkpoints"]:
        wrong.append({"met": told["met"], "checkpoints": checkpoints})
    return wrong


def main(folder: str, error: str, lasting: str, stride: str) -> None:
    """Sweep, and print the report."""
    root = Path(folder)
    train(root / "here")  # imports what each fork would else import for itself
    gc.freeze()  # else each fork copies what is imported, as it looks for garbage there
    whole = failing(root / "whole" / "run", -1, 0, 0)
    assert whole is not None
    whole["checkpoints"] = sorted(path.name for path in (root / "whole" / "run").glob("0*"))
    wrong: list[Any] = []
    for at in range(0, whole["count"], int(stride)):
        run = root / f"{at}" / "run"
        told = failing(run, at, int(error), int(lasting))
        wrong += whats_wrong(told, whole, run)
        shutil.rmtree(run.parent)
    print(json.dumps({"count": whole["count"], "wrong": wrong}))


if __name__ == "__main__":
    main(*sys.argv[1:])
