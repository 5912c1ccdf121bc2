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

from statemachine_trainer.snapshot.tensor_file import Sink, bytes_of, header_of, in_file_order

_log = logging.getLogger(__name__)

_SMALL = 64 << 10
_PIECE = 8 << 20


class Staged:
    """A place in memory of the CPU for tensors of certain names, types and shapes, laid out as in their file.

    Small ones, and the header before them, lie side by side: the thread that writes makes one call for
    all of them, and none for each.

    Args:
        tensors: The tensors that there is to be a place for.
        buffers: Large ones of an earlier place, by name: those that fit are used again.
    """

    def __init__(self, tensors: Mapping[str, Tensor], buffers: Mapping[str, Tensor]) -> None:
        self._kinds = _kinds(tensors)
        self.buffers: dict[str, Tensor] = {}
        names = in_file_order(tensors)
        header = header_of(tensors, names)
        small = [name for name in names if tensors[name].nbytes <= _SMALL]
        pinned = any(tensors[name].is_cuda for name in small)
        size = len(header) + sum(tensors[name].nbytes for name in small)
        arena = torch.empty(size, dtype=torch.uint8, pin_memory=pinned)
        memory = bytes_of(arena)
        memory[: len(header)] = header
        places: dict[str, Tensor] = {}
        self._segments: list[memoryview] = []
        begin, end = 0, len(header)
        for name in names:
            tensor = tensors[name]
            if tensor.nbytes <= _SMALL:
                # Wide items come first, so that each begins at a multiple of the size of its items.
                place = arena[end : end + tensor.nbytes].view(tensor.dtype)
                places[name] = place.view(tensor.shape)
                end += tensor.nbytes
                continue
            self._segments.append(memory[begin:end])
            begin = end
            places[name] = self.buffers[name] = _buffer(buffers.get(name), tensor)
            self._segments.append(bytes_of(places[name]))
        self._segments.append(memory[begin:end])
        self._places = [places[name] for name in tensors]

    def fits(self, tensors: Mapping[str, Tensor]) -> bool:
        """Return whether these tensors have the names, types and shapes that there is a place for."""
        return _kinds(tensors) == self._kinds

    def fill(self, tensors: Mapping[str, Tensor]) -> None:
        """Copy tensors that fit."""
        if self._places:
            torch._foreach_copy_(self._places, [*tensors.values()])

    def write(self, sink: Sink) -> None:
        """Write the file of the copies."""
        for segment in self._segments:
            for start in range(0, len(segment), _PIECE):
                sink(segment[start : start + _PIECE])


def _kinds(tensors: Mapping[str, Tensor]) -> list[tuple[str, torch.dtype, torch.Size, bool]]:
    return [(name, one.dtype, one.shape, one.is_cuda) for name, one in tensors.items()]


def _buffer(buffer: Tensor | None, tensor: Tensor) -> Tensor:
    if buffer is None or buffer.shape != tensor.shape or buffer.dtype is not tensor.dtype:
        buffer = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
    return buffer


class Staging:
    """Copies of tensors in memory of the CPU that is used again by the next copy.

    Memory fresh from the system costs several times the copy itself, so the first copy is slow and
    the later ones are not. Memory for tensors of an accelerator is pinned.
    """

    def __init__(self) -> None:
        self._staged: Staged | None = None

    def copy(self, tensors: Mapping[str, Tensor]) -> Staged:
        """Copy all; the copies of the call before are overwritten.

        Args:
            tensors: Contiguous tensors of dtypes that a file holds.
        """
        staged = self._staged
        if staged is None or not staged.fits(tensors):
            staged = Staged(tensors, {} if staged is None else staged.buffers)
            self._staged = staged
        staged.fill(tensors)
        return staged

    def release(self) -> None:
        """Give the memory back."""
        self._staged = None


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
