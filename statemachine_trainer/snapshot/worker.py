"""A thread beside the one that writes."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from threading import Thread
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class Worker:
    """Does what it is given, one thing after the other, in a thread that starts with the first.

    An executor of `concurrent.futures` refuses work once the interpreter is about to exit, and a
    checkpoint may be half written in the background at that moment. This one does not.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._tasks: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._thread: Thread | None = None

    def submit(self, act: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Begin as soon as all given before is done."""
        future: Future[T] = Future()

        def task() -> None:
            try:
                future.set_result(act(*args, **kwargs))
            except BaseException as error:  # it belongs to whoever asks for the result
                future.set_exception(error)

        if self._thread is None:
            # A daemon: whoever submits also waits, and a forgotten worker must not hang the exit.
            self._thread = Thread(target=self._run, name=self._name, daemon=True)
            self._thread.start()
        self._tasks.put(task)
        return future

    def _run(self) -> None:
        while (task := self._tasks.get()) is not None:
            task()

    def close(self) -> None:
        """Return when all that was given is done."""
        if self._thread is not None:
            self._tasks.put(None)
            self._thread.join()
            self._thread = None
