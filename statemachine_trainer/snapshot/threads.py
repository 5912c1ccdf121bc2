"""Writing while training goes on: a copy of the tensors, and a thread that writes it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from queue import SimpleQueue
from threading import Thread
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor

_log = logging.getLogger(__name__)


class Staging:
    """Copies of tensors in memory of the CPU that is used again by the next copy.

    Memory fresh from the system costs several times the copy itself, so the first copy is slow and
    the later ones are not. Memory for tensors of an accelerator is pinned.
    """

    def __init__(self) -> None:
        self._buffers: dict[str, Tensor] = {}

    def copy(self, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Copy all; the copies of the call before are overwritten."""
        self._buffers = {
            name: self._buffer(name, tensor).copy_(tensor) for name, tensor in tensors.items()
        }
        return self._buffers

    def _buffer(self, name: str, tensor: Tensor) -> Tensor:
        buffer = self._buffers.get(name)
        if buffer is None or buffer.shape != tensor.shape or buffer.dtype is not tensor.dtype:
            buffer = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
        return buffer

    def release(self) -> None:
        """Give the memory back."""
        self._buffers = {}


class Background:
    """One job at a time, in a thread; what it raises is raised again in whoever waits for it.

    The interpreter does not exit before the job has ended.
    """

    def __init__(self) -> None:
        self._thread: Thread | None = None
        self._error: BaseException | None = None

    def start(self, job: Callable[[], object]) -> None:
        """Begin a job; the one before must have been waited for."""
        assert self._thread is None
        self._thread = Thread(target=self._run, args=(job,), name="checkpoint-writer", daemon=False)
        self._thread.start()

    def _run(self, job: Callable[[], object]) -> None:
        try:
            job()
        except BaseException as error:  # whatever it is, another thread has to hear of it
            self._error = error
            # Nobody may come to wait: a run that ends here still has to say so.
            _log.error("A checkpoint could not be written: %s", error)

    def join(self) -> None:
        """Return when no job is under way, whatever became of it."""
        if self._thread is not None:
            self._thread.join()

    def wait(self) -> None:
        """Return when no job is under way; raise what the last one raised, once."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is not None:
            error, self._error = self._error, None
            raise error


# -- The writing thread ---------------------------------------------------------------------------

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
            thread = Thread(target=self._run, name=self._name, daemon=True)
            thread.start()
            self._thread = thread
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
