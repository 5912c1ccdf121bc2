"""Whose the folder of a run is: one run at a time writes there, for as long as it lives."""

from __future__ import annotations

import errno
import json
import logging
import os
import re
import secrets
import stat
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import RLock
from typing import Any, Final

from statemachine_trainer.control.processes import describe_process, rank_of_process
from statemachine_trainer.files import names_in, read_json
from statemachine_trainer.machine.errors import StateMachineError

try:
    import fcntl
except ImportError:  # Windows has other locks
    fcntl = None  # type: ignore[assignment]

_log = logging.getLogger(__name__)

_FLAGS: Final = (
    os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
) | getattr(os, "O_CLOEXEC", 0)
_HELD: Final = frozenset({errno.EWOULDBLOCK, errno.EAGAIN})
_LONGEST: Final = 4096
_ATTEMPTS: Final = 100
_CHECKPOINT: Final = re.compile(r"\d{6,15}-.+")


class FolderInUse(StateMachineError):
    """A fit was to begin, or to go on, in a folder that another run has."""


class FolderLost(FolderInUse):
    """A run went on after another one had got its folder. It writes nothing more there."""


class Ownership:
    """The right to write into the folder of a run.

    It is a lock of the operating system on a file in the folder. The system takes it back when the
    process is gone, however that came about, and a process that is forked, as the worker of a loader
    is, does not have it. It is held from the start of a fit to its end, also while the fit is paused
    or after it failed: it may go on. The file is there only as long.

    What holds the lock says in the file who it is, with a token. Each write of a checkpoint looks
    whether the token still stands there: on some network file systems a lock can be lost.

    Within a process a trainer takes the folder of one that is at rest. That one is told when it
    wants to go on.

    Args:
        folder: The folder; made if need be.
        at_rest: Whether the run that has it stands still just now.
    """

    def __init__(self, folder: Path, at_rest: Callable[[], bool]) -> None:
        rank = rank_of_process()
        self.folder = folder
        self.path = folder / ("run.lock" if rank == 0 else f"run-{rank}.lock")
        self._at_rest = at_rest
        self._guard = RLock()  # a thread may be writing a checkpoint
        self._descriptor: int | None = None
        self._place_of_folder: tuple[int, int] | None = None
        self._close: Callable[[], object] = _nothing
        self._token, self._text = "", b""
        self._lost = False
        self._lockable = True
        self._before: weakref.ref[Ownership] | None = None
        self._newest: tuple[int, str] | None = None  # checkpoint, as the folder was given back

    @property
    def held(self) -> bool:
        """Whether this process has the right, as far as it knows."""
        return self._descriptor is not None or not self._lockable

    def take(self, *, anew: bool = False) -> None:
        """Take the folder, if it is not held already.

        Args:
            anew: What is in the folder is read anew: whatever happened there meanwhile does not matter.

        Raises:
            FolderInUse: Another run has it.
            FolderLost: Another run has, or had, it since this one had.
        """
        with self._guard:
            if anew:
                self._lost, self._newest = False, None
            elif self._lost:
                raise FolderLost(
                    self._told_lost("another trainer of this process has gone on in it")
                )
            if self.held:
                return
            self._lock()
            newest, before = _newest_in(self.folder), self._newest
            if before is not None and newest > before:
                self.release()
                raise FolderLost(self._told_lost(f"another run has written {newest[1]} since"))
            self._newest = None  # what comes from here on is this run's own

    def release(self) -> None:
        """Give the folder back; nothing is done if it is not held."""
        with self._guard:
            if self._descriptor is None:
                return
            self._newest = _newest_in(self.folder)
            if self._stands_there():
                with suppress(OSError):
                    self.path.unlink()  # before it is let go: nobody has locked it meanwhile
            self._let_go()

    def give_back(self) -> None:
        """Let the trainer of this process have the folder again from which it was just taken, if there is one."""
        before, self._before = self._before, None
        self.release()
        previous = None if before is None else before()
        if previous is not None:
            with suppress(FolderInUse):  # somebody was faster: that one is told when it goes on
                previous.take(anew=True)

    def check(self) -> None:
        """See that nobody else has got the folder. One that is gone is made again, and the log says so.

        Raises:
            FolderLost: Somebody has.
        """
        with self._guard:
            if self._lost:
                raise FolderLost(
                    self._told_lost("another trainer of this process has gone on in it")
                )
            if not self._lockable:
                return
            if self._descriptor is None:
                raise FolderLost(self._told_lost("this process does not hold it"))
            if self._stands_there():
                return
            who = _who_in(self.path)
            if os.path.lexists(self.path):
                self._let_go()
                self._lost = True
                raise FolderLost(self._told_lost(f"{who} has it now"))
            gone = _place_of(self.folder) != self._place_of_folder
            self._let_go()  # somebody has removed the file: it is made again
            self.take()
            if gone:
                _log.warning(
                    "The folder %s of this run is gone: somebody has deleted or moved it. It is made again, and the "
                    "run goes on in it. Checkpoints that were written before are not there; if it was moved, bring the "
                    "old and the new ones together before the run is resumed. The black box is missing until then.",
                    self.folder,
                )

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Hold the folder while something is written: a run that has ended has given it back.

        Whoever takes the folder meanwhile waits: a thread may write for a run that is at rest.

        Raises:
            FolderInUse: Another run has it, or had it since this one had.
        """
        with self._guard:
            held = self.held
            self.take()
            try:
                yield
            finally:
                if not held:
                    self.release()

    # -- parts -----------------------------------------------------------------------------------

    def _lock(self) -> None:
        for _ in range(_ATTEMPTS):
            try:
                descriptor = self._open()
            except OSError as error:  # whoever writes there says so, too
                self._give_up(error)
                return
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                place = _place(descriptor)
                os.close(descriptor)
                if error.errno not in _HELD:
                    self._give_up(error)
                    return
                owner = _OWNERS.get(place)
                if owner is None:
                    raise FolderInUse(self._told_in_use()) from None
                owner._hand_over()
                self._before = weakref.ref(owner)
                continue
            if _place(descriptor) == _place_of(self.path):
                self._note(descriptor)
                return
            os.close(descriptor)  # whoever had it was just removing it
        raise FolderInUse(f"{str(self.folder)!r} goes from hand to hand. Try again.")

    def _open(self) -> int:
        if fcntl is None:
            raise OSError(errno.ENOSYS, "this system has no such locks")
        self.folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.path, _FLAGS, 0o644)
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise OSError(errno.EINVAL, "it is not a regular file", str(self.path))
        return descriptor

    def _note(self, descriptor: int) -> None:
        self._token = secrets.token_hex(8)
        self._text = text = json.dumps({"token": self._token, **describe_process()}).encode()
        with suppress(OSError):  # a full disk: then the place of the file alone tells
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, text, 0)
        self._descriptor = descriptor
        self._place_of_folder = _place_of(self.folder)
        self._close = weakref.finalize(self, _close, os.getpid(), descriptor)
        _OWNERS[_place(descriptor)] = self

    def _hand_over(self) -> None:
        """Let another trainer of this process have the folder.

        Raises:
            FolderInUse: The run goes on just now.
        """
        with self._guard:
            if not self._at_rest():
                raise FolderInUse(
                    f"Another trainer of this process is running in {str(self.folder)!r}, and a folder is "
                    "that of one run. Wait for its end, or choose another folder."
                )
            self._let_go()
            self._lost = True

    def _stands_there(self) -> bool:
        """Whether the file of the lock is there, with what was written into it."""
        assert self._descriptor is not None
        if _place(self._descriptor) != _place_of(self.path):
            return False
        with suppress(
            OSError
        ):  # each checkpoint asks several times: most often it is as it was written
            if os.pread(self._descriptor, _LONGEST, 0) == self._text:
                return True
        found = _facts_in(self.path)
        return not found or found.get("token") == self._token

    def _let_go(self) -> None:
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            _OWNERS.pop(_place(descriptor), None)
            self._close()

    def _give_up(self, error: OSError) -> None:
        self._lockable = False
        _log.warning(
            "%s cannot be locked (%s): a second run in this folder would not be noticed.",
            self.folder,
            error.strerror or error,
        )

    def _told_in_use(self) -> str:
        return (
            f"{_who_in(self.path)} is running in {str(self.folder)!r}, or stands still there, and a folder is "
            f"that of one run. Stop it (`smt post {self.folder} stop`), wait for its end, or choose another "
            "folder."
        )

    def _told_lost(self, why: str) -> str:
        return (
            f"This run has lost its folder {str(self.folder)!r}: {why}. It writes nothing more there. "
            "fit(..., resume='auto') goes on from what is there now."
        )


_OWNERS: weakref.WeakValueDictionary[tuple[int, int], Ownership] = weakref.WeakValueDictionary()
"""Those of this process that hold a folder, by the place of the file that they have locked."""


def _nothing() -> None:
    """Close nothing."""


def _close(pid: int, descriptor: int) -> None:
    if pid == os.getpid():
        os.close(descriptor)


def _place(descriptor: int) -> tuple[int, int]:
    found = os.fstat(descriptor)
    return found.st_dev, found.st_ino


def _place_of(path: Path) -> tuple[int, int] | None:
    try:
        found = path.lstat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _facts_in(path: Path) -> dict[str, Any]:
    try:
        found = read_json(path, _LONGEST)
    except (OSError, ValueError):  # whoever has it is just writing there
        return {}
    return found if isinstance(found, dict) else {}


def _who_in(path: Path) -> str:
    facts = _facts_in(path)
    if type(facts.get("pid")) is not int:
        return "Another process"
    here = facts.get("host") == describe_process()["host"]
    return f"Process {facts['pid']}" + ("" if here else f" on {facts.get('host')}")


def _newest_in(folder: Path) -> tuple[int, str]:
    """Return number and name of the newest checkpoint in a folder; (0, "") if there is none."""
    names = filter(_CHECKPOINT.fullmatch, names_in(folder))
    return max(((int(name.partition("-")[0]), name) for name in names), default=(0, ""))


def _forget_all() -> None:
    """Give up what the process has that this one was forked from: the lock is not handed on."""
    for one in [*_OWNERS.values()]:
        descriptor, one._descriptor = one._descriptor, None
        if descriptor is not None:
            os.close(descriptor)
    _OWNERS.clear()


if hasattr(os, "register_at_fork"):
    # The worker of a loader lives on for a while when the run was killed. If it kept the file open,
    # the folder would stay locked until it notices.
    os.register_at_fork(after_in_child=_forget_all)
