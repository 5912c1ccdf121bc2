"""The ranks (processes) of one run, and how they communicate.

The communication of `DistributedDataParallel` is separate. A run has ranks if the process group is
initialized, as after `torch.distributed.init_process_group` in a script that `torchrun` starts.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any, ClassVar, TypeAlias, cast
from weakref import ref

import torch
import torch.distributed as dist

Json: TypeAlias = "bool | int | float | str | Sequence[Json] | dict[str, Json] | None"


class Ranks:
    """The ranks of a run, as one of them sees them. Made by `Ranks.here`.

    Each method is a collective: all ranks have to call it, in the same order, and each waits for
    the others. They talk through the CPU (gloo) in a group of their own, so that nothing here waits
    for an accelerator, and gradients under way are not overtaken. They wait as long as the user lets
    the default group wait.

    Attributes:
        rank: Number of this process, from 0.
        size: How many there are, at least 2.
        processes: The number ("pid") and machine ("host") of each.
    """

    _known: ClassVar[Ranks | None] = None
    _apart: ClassVar[bool] = False

    def __init__(self) -> None:
        self.rank = dist.get_rank()
        self.size = dist.get_world_size()
        # Weak: a group that outlives `destroy_process_group` aborts the interpreter as it exits.
        self._world = ref(dist.group.WORLD)
        self._own_group = ref(dist.new_group(backend="gloo", timeout=_timeout()))
        self._beside: Ranks | None = None
        mine: Json = {"pid": os.getpid(), "host": socket.gethostname()}
        self.processes = cast("list[dict[str, Any]]", self.from_all(mine))
        # Keys in the store outlive the group: those of another one are not to be read.
        self._name = self.from_first(secrets.token_hex(8))
        self._holds = 0
        self._free: dict[int, list[_Room]] = {}
        self._largest = dist.AllreduceOptions()
        self._largest.reduceOp = cast(Any, dist.ReduceOp.MAX)

    def of_threads(self) -> Ranks:
        """Return the same ranks with a group of their own, for a thread beside the one that trains.

        The first call is a collective.
        """
        if self._beside is None:
            self._beside = Ranks()
        return self._beside

    @classmethod
    def here(cls) -> Ranks | None:
        """Return the ranks that this process belongs to; None if it is alone.

        The first call after the process group came up has to be made by all ranks.
        """
        if not cls.are_up():
            return None
        if cls._known is None or cls._known._world() is not dist.group.WORLD:
            cls._known = cls()
        return cls._known

    @classmethod
    def is_first(cls) -> bool:
        """Return whether this process is alone, or the first of several. The first call is as that of `here`."""
        ranks = cls.here()
        return ranks is None or ranks.rank == 0

    @staticmethod
    def are_up() -> bool:
        """Return whether a process group of more than one process is initialised. No collective."""
        if Ranks._apart:
            return False
        return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1

    @staticmethod
    @contextmanager
    def apart() -> Iterator[None]:
        """Within the block this process trains as if it were alone, and waits for no other rank."""
        before, Ranks._apart = Ranks._apart, True
        try:
            yield
        finally:
            Ranks._apart = before

    @classmethod
    def known(cls) -> Ranks | None:
        """Return the ranks that `here` has returned last. No collective, also where the group is broken."""
        return cls._known

    @classmethod
    def forget(cls) -> None:
        """Let the next call of `here` make a new group: in this one some ranks wait for others that have gone on."""
        cls._known = None

    def largest(self, values: Sequence[float]) -> list[float]:
        """Return the largest of each value over all ranks, which all pass the same number of values."""
        return self.begin_largest(values)()

    def begin_largest(self, values: Sequence[float]) -> Callable[[], list[float]]:
        """Begin `largest`, and return a function that waits for the result."""
        # Once a batch. So memory is used again, and the group is called directly: torch.tensor and
        # dist.all_reduce take twice as long.
        size = len(values)
        free = self._free.setdefault(size, [])
        room = free.pop() if free else _Room(size)
        room.numbers[:] = array("d", values)
        work = self._group.allreduce(room.tensors, self._largest)

        def answer() -> list[float]:
            work.wait()
            found = room.numbers.tolist()
            free.append(room)  # not where the wait has failed: somebody may still write to it
            return found

        return answer

    def objector(self, fine: bool) -> int | None:
        """Return the first rank that says no; None if all say yes."""
        (found,) = self.largest([0 if fine else self.size - self.rank])
        return self.size - int(found) if found else None

    def begin_hold(self) -> Callable[[bool], bool]:
        """Begin to stand still, as all ranks do, without waiting in a collective, which ends in time.

        Returns:
            A function that tells whether any rank has ended this; called with True it ends it for all. It may be called
            from other threads.
        """
        self._holds += 1
        store = _default_store()
        key = f"statemachine_trainer/{self._name}/let-go-{self._holds}"

        def ended(end: bool) -> bool:
            if end:
                store.set(key, "")
            return end or store.check([key])

        return ended

    def from_first(self, value: Json) -> Json:
        """Return the value of rank 0; the values of other ranks are ignored."""
        data = bytearray(json.dumps(value).encode() if self.rank == 0 else b"")
        (size, *_) = self._sizes(len(data))
        buffer = _tensor_of(data) if self.rank == 0 else torch.empty(size, dtype=torch.uint8)
        dist.broadcast(buffer, 0, group=self._group)
        return _read(buffer)

    def from_all(self, value: Json) -> list[Json]:
        """Return the value of each rank, in order."""
        data = bytearray(json.dumps(value).encode())
        sizes = self._sizes(len(data))
        padded = torch.zeros(max(sizes), dtype=torch.uint8)
        padded[: len(data)] = _tensor_of(data)
        buffers = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(buffers, padded, group=self._group)
        return [_read(buffer[:size]) for buffer, size in zip(buffers, sizes, strict=True)]

    def to_first(self, data: bytes | bytearray) -> list[bytearray]:
        """Send bytes to rank 0.

        Returns:
            At rank 0 those of each rank, in their order; else nothing.
        """
        sizes = self._sizes(len(data))
        if self.rank > 0:
            if data:
                dist.send(_tensor_of(bytearray(data)), 0, group=self._group)
            return []
        found = [bytearray(data)]
        for rank, size in enumerate(sizes[1:], 1):
            received = bytearray(size)
            if size:
                dist.recv(_tensor_of(received), rank, group=self._group)
            found.append(received)
        return found

    @property
    def group(self) -> dist.ProcessGroup:
        """The group of all ranks over the CPU, for collectives of torch; all wait in it alike."""
        return self._group

    @property
    def _group(self) -> dist.ProcessGroup:
        group: dist.ProcessGroup | None = self._own_group()
        assert group is not None, "the process group of this run was destroyed"
        return group

    def _sizes(self, size: int) -> list[int]:
        mine = torch.tensor([size])
        found = [torch.empty_like(mine) for _ in range(self.size)]
        dist.all_gather(found, mine, group=self._group)
        return [int(one) for one in found]


class _Room:
    """Memory for numbers that are exchanged.

    Args:
        size: How many there are.

    Attributes:
        numbers: To be sent, then those received.
        tensors: A tensor in the same memory, as a process group takes it.
    """

    def __init__(self, size: int) -> None:
        self.numbers = array("d", bytes(8 * size))
        self.tensors = [torch.frombuffer(self.numbers, dtype=torch.float64)]


def _default_store() -> Any:
    """Return the store by which the ranks have found each other."""
    return cast(Any, dist.distributed_c10d)._get_default_store()


def _timeout() -> timedelta | None:
    """Return how long the user lets a collective wait, which holds for ours too; None if unknown."""
    world = cast(Any, dist.group.WORLD)
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    for device in (torch.device("cpu"), accelerator):
        # A group for a GPU alone has no backend for the CPU.
        with suppress(RuntimeError, AttributeError, TypeError):
            found: timedelta = world._get_backend(device).options._timeout
            return found
    return None


def _tensor_of(data: bytearray) -> torch.Tensor:
    """A tensor that shares its memory with the bytes, of which there is at least one."""
    return torch.frombuffer(data, dtype=torch.uint8)


def _read(buffer: torch.Tensor) -> Json:
    value: Json = json.loads(buffer.numpy().tobytes())
    return value
