"""Fingerprints of a run: digests of its whole state at chosen batches, to be compared with those of another one."""

from __future__ import annotations

import hashlib
import logging
import platform
import random
import struct
from array import array
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from typing import Any, Final, Protocol, cast

import numpy as np
import torch
from torch import Tensor, nn

from statemachine_trainer.intervals import Counts, Every, parse_interval
from statemachine_trainer.loops.context import Context
from statemachine_trainer.loops.loop_errors import SettingError
from statemachine_trainer.machine.driver import Driver
from statemachine_trainer.machine.edges import Work
from statemachine_trainer.observe.fingerprint_file import Kind, Look, Place, Taken, root_of
from statemachine_trainer.parallel.containers import leaves_with_paths
from statemachine_trainer.snapshot.digests import VERSION, Digests
from statemachine_trainer.snapshot.rng import devices_in_use

_log = logging.getLogger(__name__)

_MOST_WAITING: Final = 8
"""Looks whose digests may be on their way from a device."""

_BEFORE: Final[tuple[Kind, ...]] = ("batch", "generators", "weights", "buffers", "optimizer")
_AFTER: Final[tuple[Kind, ...]] = (*("generators", "buffers", "loss", "gradients", "weights"),)
_AT_CHECKPOINTS: Final[tuple[Kind, ...]] = ("generators", "weights", "buffers", "optimizer")

_PLAIN: Final = (str, bytes, int, float, complex, bool, type(None))
_NO_GRADIENT: Final = "none"


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
        context = cast(Context, self._driver.context)
        state = _State(context)
        found: dict[str, list[_Leaf]] = {
            kind: leaves for kind in kinds if (leaves := [*state.of(kind)])
        }
        counts = context.counts
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


_Leaf = tuple[str, Any]
"""A name, and a tensor or something plain."""


class _Pending:
    """A look whose digests may still be on their way."""

    def __init__(self, head: Mapping[str, Any], found: Mapping[str, list[_Leaf]]) -> None:
        self._head = head
        self._layouts: dict[str, list[tuple[str, str]]] = {}
        self._values: dict[str, list[int]] = {}  # of what is no tensor; else which tensor it is
        tensors: list[Tensor] = []
        for kind, leaves in found.items():
            layout, values = self._layouts.setdefault(kind, []), self._values.setdefault(kind, [])
            for leaf_name, leaf in leaves:
                if isinstance(leaf, Tensor) and not leaf.is_nested:
                    layout.append((leaf_name, _described(leaf.dtype, leaf.shape)))
                    values.append(~len(tensors))
                    tensors.append(leaf)
                else:
                    digest = _digest_of(leaf)
                    layout.append((leaf_name, "?" if digest is None else ""))
                    values.append(digest or 0)
        self._digests = Digests(tensors)

    @property
    def ready(self) -> bool:
        return self._digests.ready

    def finish(self) -> Taken:
        read, seen = self._digests.read().tolist(), self._digests.seen
        leaves, layouts, roots = {}, {}, {}
        for kind, layout in self._layouts.items():
            values = [read[~one] if one < 0 else one for one in self._values[kind]]
            if not all(seen):
                layout = [
                    (name, "?" if one < 0 and not seen[~one] else described)
                    for (name, described), one in zip(layout, self._values[kind], strict=True)
                ]
            layouts[kind] = kept = tuple(layout)
            leaves[kind] = struct.pack(f"<{len(values)}Q", *values)
            roots[kind] = root_of(kept, leaves[kind])
        return Taken(Look(**self._head, roots=roots), layouts, leaves)


@lru_cache(maxsize=4096)
def _described(dtype: torch.dtype, shape: torch.Size) -> str:
    return f"{str(dtype)[6:]} {(*shape,)}"


# -- what is looked at -----------------------------------------------------------------------------


class _State:
    """The state of a run, by kind, as leaves with names."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._parameters = [*context.model.named_parameters()]

    def of(self, kind: Kind) -> Iterator[_Leaf]:
        context = self._context
        if kind == "weights":
            return (one for one in self._parameters if not _has_no_shape(one[1]))
        if kind == "gradients":
            return (
                (name, _NO_GRADIENT if one.grad is None else one.grad)
                for name, one in self._parameters
            )
        if kind == "buffers":
            return iter([*context.model.named_buffers()])
        if kind == "batch":
            return leaves_with_paths(context.batch, "batch")
        if kind == "loss":
            return iter([] if context.loss is None else [("loss", context.loss)])
        return self._optimizers() if kind == "optimizer" else _generators()

    def _optimizers(self) -> Iterator[_Leaf]:
        names = {id(one): name for name, one in self._parameters}
        slots = self._context.slots
        for index, slot in enumerate(slots):
            before = f"{index}: " if len(slots) > 1 else ""
            groups = slot.optimizer.param_groups
            for number, group in enumerate(groups):
                of = f" of group {number}" if len(groups) > 1 else ""
                for name, value in group.items():
                    if name not in ("params", "param_names"):
                        yield f"{before}{name}{of}", value
            for group in groups:
                for one in group["params"]:
                    of = f" of {names.get(id(one), '?')}"
                    for name, value in slot.optimizer.state.get(one, {}).items():
                        if isinstance(value, Tensor):
                            yield f"{before}{name}{of}", value
                        else:  # LBFGS has lists of them
                            for path, leaf in leaves_with_paths(value, name):
                                yield f"{before}{path}{of}", leaf
        scaler = self._context.precision.scaler
        if scaler is not None and isinstance(scaler._scale, Tensor):
            yield "scale of the gradients", scaler._scale


def _has_no_shape(one: nn.Parameter) -> bool:
    return isinstance(one, nn.parameter.UninitializedParameter)


def _generators() -> Iterator[_Leaf]:
    """Yield the states of the global generators."""
    version, words, gauss = random.getstate()
    yield "python", array("I", words).tobytes() + repr((version, gauss)).encode()
    state: Any = np.random.get_state(legacy=False)
    yield "numpy", repr((state["bit_generator"], state.get("has_gauss"), state.get("gauss"))).encode() + b"".join(
        value.tobytes() if isinstance(value, np.ndarray) else repr(value).encode()
        for value in state["state"].values()
    )  # fmt: skip
    yield "torch", torch.get_rng_state().numpy().tobytes()
    for device in devices_in_use():
        if device.type in ("cuda", "xpu"):  # their states lie on the CPU
            yield str(device), getattr(torch, device.type).get_rng_state(device).numpy().tobytes()


def _digest_of(leaf: object) -> int | None:
    """Return the digest of something that is no tensor; None if it is nothing plain."""
    if isinstance(leaf, np.ndarray) and not leaf.dtype.hasobject:
        content = repr((leaf.dtype.str, leaf.shape)).encode() + np.ascontiguousarray(leaf).tobytes()
    elif isinstance(leaf, bytes):
        content = leaf
    elif isinstance(leaf, _PLAIN):
        content = repr(leaf).encode()
    elif isinstance(leaf, tuple | list) and all(isinstance(one, _PLAIN) for one in leaf):
        content = repr([*leaf]).encode()
    else:
        return None
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little")
