"""Signals of the operating system that ask a run to stop."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import NoReturn

from statemachine_trainer.files import shown

WARNINGS = ("SIGTERM", "SIGUSR1", "SIGINT")
"""Signals that stop a run at its next boundary, with a checkpoint."""

_NOTICE = b"\nStopping at the next boundary, with a checkpoint. Ctrl-C once more stops at once.\n"


class Interrupted(SystemExit):
    """A signal of the operating system stopped the run; a checkpoint was written.

    Leaves the process with the exit code 128 + the number of the signal, as shells and schedulers
    expect. Caught, the trainer stands at the boundary that was written, and `run()` goes on.

    Attributes:
        signum: Number of the signal.
        checkpoint: The folder that was written.
    """

    def __init__(self, signum: int, checkpoint: Path | None) -> None:
        super().__init__(128 + signum)
        self.signum = signum
        self.checkpoint = checkpoint

    def __str__(self) -> str:
        name = signal.Signals(self.signum).name
        place = (
            "" if self.checkpoint is None else f" The run goes on from {shown(self.checkpoint)}."
        )
        return f"Stopped by {name}.{place}"


class Heed:
    """Notes signals of the operating system. Made by `heeding`.

    Attributes:
        signum: Number of the first one that came; None while none has.
    """

    def __init__(self, ask_to_stop: Callable[[], None]) -> None:
        self.signum: int | None = None
        self._ask_to_stop = ask_to_stop
        self._pressed = 0
        self._process = os.getpid()

    def handle(self, signum: int, _frame: FrameType | None) -> None:
        """Ask for a stop, once; the second Ctrl-C raises `KeyboardInterrupt` right here."""
        if os.getpid() != self._process:
            return  # a worker of a loader: the run still needs it on the way to its boundary
        self._pressed += signum == signal.SIGINT
        if self._pressed > 1:
            raise KeyboardInterrupt
        if self.signum is None:
            self.signum = signum
            self._ask_to_stop()
        if signum == signal.SIGINT:
            with suppress(OSError):  # `print` may be what was just interrupted
                os.write(2, _NOTICE)


@contextmanager
def heeding(ask_to_stop: Callable[[], None]) -> Iterator[Heed]:
    """Note the signals in `WARNINGS` while the block runs; afterwards the handlers are as before.

    Only in the main thread, which is the one that Python runs handlers in, and only those signals
    that nobody else handles: a handler of the user's own stays, and so does `nohup`.

    Args:
        ask_to_stop: Called once, from within the handler: it must do no more than set flags.
    """
    heed = Heed(ask_to_stop)
    if threading.current_thread() is not threading.main_thread():
        yield heed
        return
    before = {}
    try:
        for name in WARNINGS:
            number = getattr(signal, name, None)  # Windows has no SIGUSR1
            if number is not None and _is_free(handler := signal.getsignal(number)):
                before[number] = handler
                signal.signal(number, heed.handle)
        yield heed
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def raise_interruption(signum: int, checkpoint: Path | None) -> NoReturn:
    """End the run as the signal asks for.

    Raises:
        Interrupted: Always, but at a prompt.
        KeyboardInterrupt: After Ctrl-C at a prompt of Python, which `SystemExit` would close.
    """
    stopped = Interrupted(signum, checkpoint)
    if signum == signal.SIGINT and hasattr(sys, "ps1"):
        raise KeyboardInterrupt(f"{stopped} `run()` goes on right here.")
    raise stopped


def _is_free(handler: object) -> bool:
    """Whether a handler is Python's, or that of a run around this one."""
    ours = isinstance(getattr(handler, "__self__", None), Heed)
    return ours or handler in (signal.SIG_DFL, signal.default_int_handler)
