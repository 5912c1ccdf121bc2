"""Two threads of which one runs at a time, and changes of the one that runs at declared points only.

The order of a run is given by the points at which the thread that could have gone on was held up, so all orders with
up to so many of these can be gone through, each of them once, and each the same whenever it is tried again.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import pytest

from statemachine_trainer.control import ownership
from statemachine_trainer.snapshot import store, threads
from statemachine_trainer.snapshot.filesystem import LocalFileSystem, OutputFile

WRITER = "checkpoint-writer"
_LONG = 60.0


class Killed(BaseException):
    """The process ended at this point: nothing of what comes after reaches the disk."""


class _Task:
    def __init__(self) -> None:
        self.turn = threading.Semaphore(0)
        self.ready: Callable[[], bool] = lambda: True
        self.done = False


class Scheduler:
    """Runs the thread that makes it, and each writer of checkpoints, one at a time.

    Args:
        held_up: Numbers of the choices (points at which two threads could go on) at which the other one does.
        killed_at: Number of the point at which the process ends; None for none.

    Attributes:
        points: Points that were met.
        choices: Choices that were met.
    """

    def __init__(self, held_up: tuple[int, ...] = (), killed_at: int | None = None) -> None:
        self.points = 0
        self.choices = 0
        self.dead = False
        self._held_up = held_up
        self._killed_at = killed_at
        self._current = _Task()
        self._tasks = [self._current]

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Let the store and the lock of a folder have threads and locks of this scheduler."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(threads, "Thread", self._thread)
            patch.setattr(store, "Lock", lambda: _Lock(self, again=False))
            patch.setattr(ownership, "RLock", lambda: _Lock(self, again=True))
            try:
                yield
            finally:
                self._end_others()

    def point(self) -> None:
        """Let another thread go on here, if it is its turn.

        Raises:
            Killed: The process ended here, or before.
        """
        if not self.dead and self.points == self._killed_at:
            self.dead = True
        self.points += 1
        self._go_on()

    def wait_for(self, ready: Callable[[], bool]) -> None:
        """Let the others go on until something is so."""
        self._current.ready = ready
        self._go_on()
        self._current.ready = lambda: True

    @property
    def current(self) -> object:
        """The thread that runs."""
        return self._current

    def _go_on(self) -> None:
        here = self._current
        if not self.dead:
            able = [task for task in self._tasks if not task.done and task.ready()]
            assert able, "all threads wait for each other"
            chosen = able[0]
            if here in able:
                chosen = here
                if len(able) > 1:
                    number, self.choices = self.choices, self.choices + 1
                    if number in self._held_up:
                        chosen = next(task for task in able if task is not here)
            self._hand_to(chosen)
        if self.dead:
            raise Killed

    def _hand_to(self, task: _Task) -> None:
        here = self._current
        if task is here:
            return
        self._current = task
        task.turn.release()
        if not here.done:
            assert here.turn.acquire(timeout=_LONG)

    def _end_others(self) -> None:
        """Let those that are left run to their end, dead or not."""
        here = self._current
        for task in self._tasks:
            if task is not here and not task.done:
                here.ready = lambda task=task: task.done  # type: ignore[misc]
                self._hand_to(task)
                here.ready = lambda: True

    def _thread(self, *, target: Callable[..., Any], name: str, **options: Any) -> Any:
        if name != WRITER:  # a helper that its thread waits for changes no order
            return threading.Thread(target=target, name=name, **options)
        return _ScheduledThread(self, target, options.get("args", ()))

    def start(self, act: Callable[[], object]) -> Callable[[], None]:
        """Begin a thread; return what waits for its end."""
        task = _Task()

        def run() -> None:
            assert task.turn.acquire(timeout=_LONG)
            try:
                act()
            finally:
                task.done = True
                self._hand_to(
                    next(t for t in self._tasks if not t.done and (self.dead or t.ready()))
                )

        thread = threading.Thread(target=run)
        thread.start()
        self._tasks.append(task)
        self.point()

        def join() -> None:
            self.wait_for(lambda: task.done)
            thread.join(_LONG)

        return join


class _ScheduledThread:
    def __init__(self, scheduler: Scheduler, target: Callable[..., object], args: Any) -> None:
        self._scheduler = scheduler
        self._act = lambda: target(*args)
        self.join: Callable[[], None] = lambda: None

    def start(self) -> None:
        """Begin."""
        self.join = self._scheduler.start(self._act)


class _Lock:
    def __init__(self, scheduler: Scheduler, *, again: bool) -> None:
        self._scheduler = scheduler
        self._again = again
        self._owner: object = None
        self._depth = 0

    def __enter__(self) -> None:
        here = self._scheduler.current
        if not self._scheduler.dead:
            assert self._again or self._owner is not here, "a thread waits for itself"
            self._scheduler.wait_for(lambda: self._owner in (None, here))
        self._owner = here
        self._depth += 1

    def __exit__(self, *_: object) -> None:
        self._depth -= 1
        if self._depth == 0:
            self._owner = None


class SteppedFileSystem(LocalFileSystem):
    """A disk at each call to which another thread may go on, and one of whose calls may fail.

    Args:
        scheduler: Whose points the calls are.
        fail_at: Number of the call that fails; None for none.
        seen: Called after each call that changes what others see, with what was called and for which path.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        fail_at: int | None = None,
        seen: Callable[[str, Path], object] = lambda call, path: None,
    ) -> None:
        self.calls = 0
        self.failed: str | None = None
        self._scheduler = scheduler
        self._fail_at = fail_at
        self._seen = seen

    def at(self, call: str, path: Path) -> None:
        """Come to a call."""
        self._scheduler.point()
        number, self.calls = self.calls, self.calls + 1
        if number == self._fail_at:
            self.failed = f"{call} {path.name}"
            raise OSError(28, "No space left on device")

    def create(self, path: Path) -> OutputFile:
        self.at("create", path)
        return _SteppedFile(self, path, super().create(path))

    def open(self, path: Path) -> BinaryIO:
        self.at("open", path)
        return super().open(path)

    def make_folder(self, path: Path) -> None:
        self.at("make_folder", path)
        super().make_folder(path)

    def names(self, folder: Path) -> list[str]:
        self.at("names", folder)
        return super().names(folder)

    def rename(self, source: Path, target: Path) -> None:
        self.at("rename", target)
        super().rename(source, target)
        self._seen("rename", target)

    def remove(self, path: Path) -> None:
        self.at("remove", path)
        super().remove(path)
        self._seen("remove", path)

    def remove_folder(self, path: Path) -> None:
        self.at("remove_folder", path)
        super().remove_folder(path)
        self._seen("remove_folder", path)

    def sync_folder(self, path: Path) -> None:
        self.at("sync_folder", path)


class _SteppedFile:
    def __init__(self, files: SteppedFileSystem, path: Path, file: OutputFile) -> None:
        self._files = files
        self._path = path
        self._file = file

    def write(self, data: bytes | memoryview) -> None:
        self._files.at("write", self._path)
        self._file.write(data)

    def begin_sync(self) -> None:
        """Leave all to `sync`."""

    def sync(self) -> None:
        self._files.at("sync", self._path)  # and no disk is waited for

    def close(self) -> None:
        self._file.close()


def go_through(bound: int, run: Callable[[tuple[int, ...]], Scheduler]) -> int:
    """Run in each order in which a thread that could go on is held up at most `bound` times; return how many."""
    waiting: list[tuple[int, ...]] = [()]
    count = 0
    while waiting:
        held_up = waiting.pop()
        choices = run(held_up).choices
        count += 1
        if len(held_up) < bound:
            first = held_up[-1] + 1 if held_up else 0
            waiting += [(*held_up, number) for number in range(first, choices)]
    return count
