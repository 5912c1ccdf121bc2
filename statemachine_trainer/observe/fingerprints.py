"""Fingerprints of a run: digests of its whole state at chosen batches, to be compared with those of another one."""

from __future__ import annotations

import hashlib
import logging
import platform
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Protocol, cast

import numpy as np
import torch
from torch import Tensor

from statemachine_trainer.intervals import Counts, Every, parse_interval
from statemachine_trainer.loops.context import Context
from statemachine_trainer.loops.loop_errors import SettingError
from statemachine_trainer.machine.driver import Driver
from statemachine_trainer.machine.edges import Work
from statemachine_trainer.observe.fingerprint_file import Kind, Leaves, Look, Place, Taken, root_of
from statemachine_trainer.observe.state_leaves import PLAIN, StateLeaves
from statemachine_trainer.snapshot.digests import VERSION, Digests

_log = logging.getLogger(__name__)

_MOST_WAITING: Final = 8
"""Looks whose digests may be on their way from a device."""

_BEFORE: Final[tuple[Kind, ...]] = ("batch", "generators", "weights", "buffers", "optimizer")
_AFTER: Final[tuple[Kind, ...]] = (*("generators", "buffers", "loss", "gradients", "weights"),)
_AT_CHECKPOINTS: Final[tuple[Kind, ...]] = ("generators", "weights", "buffers", "optimizer")


class Sink(Protocol):
    """Takes looks as their digests are known."""

    def add(self, taken: Taken) -> None:
        """Take a look."""


def interval_of_fingerprints(every: object) -> Every | None:
    """Return what `Trainer(fingerprints=...)` means; None for no fingerprints.

    Raises:
        SettingError: It goes by something that two runs do not share.
        IntervalError: It is no interval.
    """
    if every is None or every is False:
        return None
    if every is True:
        return Every(100, "step")
    found = parse_interval(every, "fingerprints")
    if found.unit in ("second", "sample") or found.is_fraction or found.at_end:
        raise SettingError(
            f"Trainer(fingerprints={every!r}): fingerprints of two runs are compared at the same places, so they are "
            "taken every so many steps, batches or epochs: every(100, 'step')."
        )
    return found


class Fingerprints:
    """Takes the fingerprints of a fit: before and after each batch that is due, and at checkpoints.

    Nothing waits for the device: digests are read when they are there, at a later batch. What is looked
    at is not changed, and no random number is drawn. A tree without the states `batch_start` and
    `batch_end` has fingerprints at its checkpoints alone.

    Args:
        driver: The driver of the fit.
        every: How often. The first batch after so many is looked at, and the first of all.
        sink: Takes the looks.
    """

    def __init__(self, driver: Driver, every: Every, sink: Sink) -> None:
        self.every = every
        self._driver = driver
        self._sink = sink
        self._state = StateLeaves(cast(Context, driver.context))
        self._parts: dict[str, _Part] = {}
        self._waiting: list[_Pending] = []
        self._looked = (-1, -1)  # batch and step before the batch that was last looked at

    def attach(self) -> Callable[[], None]:
        """Begin to look.

        Returns:
            A function that ends it.
        """
        states = {path.rpartition(".")[2] for path in self._driver.program.nodes}
        if not {"batch_start", "batch_end"} <= states:
            _log.warning(
                "The loops have no states `batch_start` and `batch_end`: fingerprints are taken at checkpoints alone."
            )
        return self._driver.instrument(self._probe)

    def at_checkpoint(self, name: str) -> None:
        """Look at a checkpoint that has been written at this boundary."""
        self._look("checkpoint", _AT_CHECKPOINTS, name)
        self.flush()

    def flush(self) -> None:
        """Hand over all looks, the digests of which may have to be waited for."""
        while self._waiting:
            self._sink.add(self._waiting[0].finish())
            del self._waiting[0]

    # -- parts -----------------------------------------------------------------------------------

    def _probe(self, path: str, work: Work) -> Work:
        name = path.rpartition(".")[2]
        look = {"batch_start": self._before, "batch_end": self._after}.get(name)
        if look is None:
            return work

        def looking() -> object:
            look()
            return work()

        return looking

    def _before(self) -> None:
        counts = self._driver.context.counts
        if self._is_due(counts):
            self._looked = counts.batch, counts.step
            self._look("batch_start", _BEFORE)
        elif self._waiting:
            self._hand_over()

    def _after(self) -> None:
        if self._looked[0] == self._driver.context.counts.batch - 1:
            self._look("batch_end", _AFTER)

    def _is_due(self, counts: Counts) -> bool:
        """Whether the next batch is looked at. Counters alone tell, in a resumed run too."""
        every = self.every
        if every.unit == "epoch":
            return counts.batch_in_epoch == 0 and counts.epoch % every.n == 0
        done = getattr(counts, f"{every.unit}{'_in_epoch' if every.within == 'epoch' else ''}")
        if done % every.n:
            return False
        # With accumulation several batches begin after the same step.
        return every.unit == "batch" or counts.step != self._looked[1] or not counts.batch

    def _look(self, place: Place, kinds: tuple[Kind, ...], name: str = "") -> None:
        counts = self._driver.context.counts
        state = self._state
        state.begin()
        found: dict[str, tuple[_Part, Sequence[object]]] = {}
        for kind in kinds:
            names, leaves = state.of(kind)
            if not names:
                continue
            types = [*map(type, leaves)]
            part = self._parts.get(kind)
            if part is None or not part.is_of(names, types):
                part = self._parts[kind] = _Part(names, types)
            found[kind] = part, leaves
        state.end()
        head: dict[str, Any] = {
            "place": place,
            "path": self._driver.path or "",
            "epoch": counts.epoch,
            "batch": counts.batch,
            "step": counts.step,
            "at_work": 0 if place == "checkpoint" else self._looked[1] + 1,
            "name": name,
            "digests": VERSION,
        }
        self._waiting.append(_Pending(head, found))
        self._hand_over()

    def _hand_over(self) -> None:
        """Hand over the looks whose digests are here."""
        waiting = self._waiting
        while waiting and (waiting[0].ready or len(waiting) > _MOST_WAITING):
            self._sink.add(waiting[0].finish())
            del waiting[0]


def hardware_of(device: torch.device) -> dict[str, str]:
    """Return what the bits of a run may depend on beside its code: the machine, and how torch uses it."""
    found = {
        "device": device.type,
        "machine": platform.machine(),
        "instructions": str(torch.backends.cpu.get_cpu_capability()),
        "threads": str(torch.get_num_threads()),
        "deterministic algorithms": str(torch.are_deterministic_algorithms_enabled()),
    }
    if device.type == "cuda":
        found["device"] = torch.cuda.get_device_name(device)
        found["CUDA"] = str(torch.version.cuda)
        found["cuDNN"] = str(torch.backends.cudnn.version())
        found["matmul precision"] = torch.get_float32_matmul_precision()
    return found


class _Part:
    """What is known of the leaves of one kind since the last look: which are tensors, and the digests of the others.

    Args:
        names: Names of the leaves.
        types: Their types.
    """

    def __init__(self, names: Sequence[str], types: list[type]) -> None:
        self.names = names
        self.types = types
        self.is_tensor = [issubclass(one, Tensor) for one in types]
        self.others = [at for at, one in enumerate(self.is_tensor) if not one]
        self.tensors = [at for at, one in enumerate(self.is_tensor) if one]
        self._last: list[object] = [_UNKNOWN] * len(types)
        self._digests: list[int | None] = [None] * len(types)
        self._described: tuple[str, ...] = ()
        self._layout: Leaves = ()

    def is_of(self, names: Sequence[str], types: list[type]) -> bool:
        """Whether the leaves have these names and types."""
        return types == self.types and (names is self.names or names == self.names)

    def digests_of_others(self, leaves: Sequence[object]) -> list[int | None]:
        """Return the digests of leaves that are no tensors, each in its place."""
        last, found = self._last, self._digests
        for at in self.others:
            leaf = leaves[at]
            if leaf is last[at] or (type(leaf) is bytes and leaf == last[at]):
                continue
            # Only what never changes is known to be the same if it is the same object.
            last[at] = leaf if type(leaf) in PLAIN else _UNKNOWN
            found[at] = _digest_of(leaf)
        return [found[at] for at in self.others]

    def layout(self, of_tensors: list[str], others: list[int | None]) -> Leaves:
        """Return the names of the leaves, each with what it is."""
        described = of_tensors
        if others:
            described = [""] * len(self.types)
            for at, text in zip(self.tensors, of_tensors, strict=True):
                described[at] = text
            for at, digest in zip(self.others, others, strict=True):
                described[at] = "?" if digest is None else ""
        now = tuple(described)
        if now != self._described or not self._layout:
            self._described, self._layout = now, tuple(zip(self.names, now, strict=True))
        return self._layout


class _Pending:
    """A look whose digests may still be on their way."""

    def __init__(
        self, head: Mapping[str, Any], found: Mapping[str, tuple[_Part, Sequence[object]]]
    ) -> None:
        self._head = head
        tensors: list[Tensor] = []
        for part, leaves in found.values():
            tensors += [leaves[at] for at in part.tensors] if part.others else leaves  # type: ignore[misc, arg-type]
        self._digests = digests = Digests(tensors)
        self._kinds: dict[str, tuple[_Part, int, list[int | None], Leaves]] = {}
        begin = 0
        for kind, (part, leaves) in found.items():
            others = part.digests_of_others(leaves) if part.others else []
            end = begin + len(part.tensors)
            self._kinds[kind] = (
                part, begin, others, part.layout(digests.described[begin:end], others)
            )  # fmt: skip
            begin = end

    @property
    def ready(self) -> bool:
        return self._digests.ready

    def finish(self) -> Taken:
        read = self._digests.read().astype("<u8", copy=False)
        leaves, layouts, roots = {}, {}, {}
        for kind, (part, begin, others, layout) in self._kinds.items():
            values = read[begin : begin + len(part.tensors)]
            if others:
                of_tensors, values = values, np.empty(len(layout), dtype="<u8")
                values[part.tensors] = of_tensors
                values[part.others] = [one or 0 for one in others]
            layouts[kind] = layout
            leaves[kind] = values.tobytes()
            roots[kind] = root_of(layout, leaves[kind])
        return Taken(Look(**self._head, roots=roots), layouts, leaves)


_UNKNOWN: Final = object()


def _digest_of(leaf: object) -> int | None:
    """Return the digest of something that is no tensor; None if it is nothing plain."""
    if isinstance(leaf, np.ndarray) and not leaf.dtype.hasobject:
        content = repr((leaf.dtype.str, leaf.shape)).encode() + np.ascontiguousarray(leaf).tobytes()
    elif isinstance(leaf, bytes):
        content = leaf
    elif isinstance(leaf, PLAIN):
        content = repr(leaf).encode()
    elif isinstance(leaf, tuple | list) and all(isinstance(one, PLAIN) for one in leaf):
        content = repr([*leaf]).encode()
    else:
        return None
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little")
