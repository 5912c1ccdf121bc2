"""A run whose n-th call to the system goes wrong, and the process that goes on with it.

Python tells a hook of each call that opens, renames, removes, lists or locks a file, before it is made; the hook lets
one of them fail, or ends the process there. So each place is met in turn, and none by luck. (Writes and syncs of
checkpoints are swept in `tests/snapshot`.)
"""

from __future__ import annotations

import errno
import json
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from statemachine_trainer.callbacks import Checkpoints
from statemachine_trainer.machine.errors import StateMachineError
from statemachine_trainer.snapshot import Retention
from tests.observe.recorded import Net, batches, trainer

EVENTS = frozenset(
    (
        *("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.listdir", "os.scandir"),
        *("os.truncate", "os.chmod", "sqlite3.connect", "socket.bind", "fcntl.flock"),
        *("mmap.__new__",),
    )
)
KILLED = 9

Told = dict[str, Any]


def train(folder: Path) -> Told:
    """Fit for two epochs, going on from what there is; return what it came to."""
    keeping = Checkpoints(folder, every=2, retention=Retention(last=2))
    one = trainer(checkpoints=keeping, max_epochs=2)
    try:
        one.fit(Net(), batches(3), batches(1), resume="auto")
    except StateMachineError as error:
        return {"error": type(error).__name__, "text": str(error)}
    except BaseException as error:
        return {"raw": f"{type(error).__name__}: {error}"}
    weights = {name: value.tolist() for name, value in one.model.state_dict().items()}
    return {"steps": one.steps, "weights": weights}


def in_fork(act: Callable[[], Told]) -> Told | None:
    """Do something in a process forked from this one; return what it told, None if it was killed."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(reading)
            torch.set_num_threads(1)
            warnings.simplefilter("ignore")
            told = json.dumps(act()).encode()
            while told:
                told = told[os.write(writing, told) :]
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as file:
        text = file.read()
    _, status = os.waitpid(child, 0)
    return json.loads(text) if text and os.waitstatus_to_exitcode(status) == 0 else None


class Fault:
    """Lets one call go wrong.

    Args:
        folder: Calls that name something in it are counted, and those that name nothing.
        at: Number of the call, from 0; None for none.
        error: Number of the error that it fails with; None ends the process there.
    """

    def __init__(self, folder: Path, at: int | None, error: int | None) -> None:
        self.count = 0
        self.met: str | None = None
        self._folder = str(folder)
        self._at = at
        self._error = error
        sys.addaudithook(self._hear)

    def _hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event not in EVENTS or not (place := self._place(event, arguments)):
            return
        number, self.count = self.count, self.count + 1
        if number != self._at:
            return
        self.met = f"{event} {place}"
        if self._error is None:
            os._exit(KILLED)
        raise OSError(self._error, os.strerror(self._error), place)

    def _place(self, event: str, arguments: tuple[Any, ...]) -> str | None:
        if event in ("fcntl.flock", "mmap.__new__", "socket.bind"):
            return f"<{event}>"
        names = [os.fsdecode(one) for one in arguments[:2] if isinstance(one, str | bytes | Path)]
        return next((one for one in names if one.startswith(self._folder)), None)


def count_calls(folder: Path) -> int:
    """Return how many calls an undisturbed run makes."""

    def act() -> Told:
        fault = Fault(folder, None, None)
        return {**train(folder), "count": fault.count}

    told = in_fork(act)
    assert told is not None
    assert "weights" in told, told
    return int(told["count"])


def faulted(folder: Path, at: int, error: int | None) -> Told | None:
    """Run with a fault; return what came of it, and which call it was."""

    def act() -> Told:
        fault = Fault(folder, at, error)
        told = train(folder)
        return {**told, "met": fault.met}

    return in_fork(act)


ERRORS = (errno.ENOSPC, errno.EIO, errno.EACCES, errno.EMFILE)
