"""Reads everything that is not a `DataLoader` over a map-style data set."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from copy import deepcopy
from itertools import chain, islice
from typing import Any, Literal

import torch
from torch.utils.data import DataLoader

from statemachine_trainer.data.data_errors import (
    DataChanged,
    OneShotExhausted,
    PassBroken,
    ReplayWarning,
)
from statemachine_trainer.data.own_generators import (
    bring_back,
    has_state,
    parts_of,
    record,
    restore,
    set_epoch,
)
from statemachine_trainer.data.reader import DrawsIn, Phase, Reader
from statemachine_trainer.machine.errors import level_of_caller
from statemachine_trainer.snapshot.held import own_states

Keeper = Literal["loader", "dataset", "iterator"]
_NOTHING = object()


class SequenceReader(Reader):
    """Reads a list of batches, or what is like one: any batch can be had by its number."""

    kind = "sequence"

    def __init__(self, batches: Sequence[Any], *, name: str) -> None:
        self.batches = batches
        self.name = name
        # A list of batches draws nothing; what gives them by number may.
        self._parts = {} if isinstance(batches, (list, tuple)) else parts_of(batches)

    def count(self) -> int | None:
        return len(self.batches)

    def facts(self) -> dict[str, int | str | None]:
        return {"items": len(self.batches)}

    def begin(self, epoch: int) -> None:
        set_epoch([self.batches], epoch)

    def open(self, position: int) -> Iterator[Any]:
        if isinstance(self.batches, (list, tuple)):
            return islice(self.batches, position, None)
        return map(self.batches.__getitem__, range(position, len(self.batches)))

    def is_over(self, position: int) -> bool:
        return position >= len(self.batches)

    def failed(self, position: int) -> None:
        """Open anew at the batch's number: nothing to prepare."""

    def close(self) -> None:
        """Nothing is held open."""

    def state_dict(self, *, position: int, phase: Phase) -> dict[str, Any]:
        return {"own": own_states(self._parts)}

    def load_state_dict(
        self, state: dict[str, Any], *, epoch: int, position: int, phase: Phase
    ) -> None:
        self.begin(epoch)
        bring_back(self._parts, state.get("own", {}), self.name)


class StreamReader(Reader):
    """Reads any iterable: by its own state if it has one, else from the start again.

    The state is kept by the loader, by its data set (where that is in this process), or by the
    iterator: whichever has ``state_dict`` and ``load_state_dict``. With none of them, going on in
    the middle of a pass reads again what was read, which `ReplayWarning` says.
    """

    kind = "stream"

    def __init__(self, loader: Any, *, name: str) -> None:
        self.loader = loader
        self.name = name
        self._parts = parts_of(loader)
        self._iterator: Any = None
        self._start: dict[str, Any] | None = None
        self._complete = False  # the last pass was read to its end
        self._loaded: dict[str, Any] | None = None  # a state nothing was read since
        self._failed_at: int | None = None
        self._was_read = False
        self._workers_begun = False

    @property
    def draws_in(self) -> DrawsIn:
        if not getattr(self.loader, "num_workers", 0):
            return "this process"
        goes_on = getattr(self.loader, "persistent_workers", False) or has_state(self.loader)
        return "workers of a stream" if goes_on else "read again"

    def count(self) -> int | None:
        return None

    def facts(self) -> dict[str, int | str | None]:
        return {}

    def begin(self, epoch: int) -> None:
        if self._was_read and self._is_one_shot():
            raise OneShotExhausted(
                f"The loader {self.name!r} is a {type(self.loader).__name__}, which can be read "
                "only once, and a second pass over it was begun. Give a loader that can be "
                "iterated again: a DataLoader, a list, or an object with __iter__."
            )
        self._failed_at = None
        if self._loaded is not None and self._loaded["inside"]:
            self._loaded = None
        set_epoch(self._parts.values(), epoch)

    def open(self, position: int) -> Iterator[Any]:
        if self._failed_at is not None:
            iterator: Iterator[Any] = self._iterator
            return iterator
        loaded = self._loaded
        if loaded is not None and loaded["inside"]:
            opened = self._go_on(loaded, position)
        else:
            self._start = record(self._parts)
            after_the_end = loaded is not None and loaded["complete"] and loaded["kept"] is not None
            opened = self._open_after_the_end() if after_the_end else self._open_anew()
            loaded = None
        drained = loaded is not None and loaded["drained"]
        over = {"inside": False, "complete": True, "drained": False, "start": None}
        self._loaded = loaded | over if loaded and drained else None
        self._complete = False
        self._was_read = True
        return opened

    def is_over(self, position: int) -> bool:
        if self._failed_at == position:
            raise PassBroken(
                f"The loader {self.name!r} raised an error after batch {position} and its iterator "
                "is finished since then, so the pass can not go on. Begin the pass anew, or load "
                "the last state."
            )
        # A loader over an iterable data set knows whether that has ended; user code that raises
        # StopIteration while collating does not pass for it.
        fetcher = self._fetcher()
        if not getattr(fetcher, "auto_collation", False):
            self._complete = True
        elif hasattr(fetcher, "ended"):
            self._complete = bool(fetcher.ended)
        else:  # a wrapper that hands out the iterator of a loader over map-style data
            self._complete = next(self._iterator._sampler_iter, _NOTHING) is _NOTHING
        return self._complete

    def failed(self, position: int) -> None:
        if self._iterator is not None:
            self._failed_at = position

    def close(self) -> None:
        if not getattr(self.loader, "persistent_workers", False):
            self._end_workers()
        self._iterator = None

    def shutdown(self) -> None:
        self._end_workers()
        kept = getattr(self.loader, "_iterator", None)
        if kept is not None and getattr(self.loader, "persistent_workers", False):
            kept._shutdown_workers()
            self.loader._iterator = None
        self._iterator = None

    def state_dict(self, *, position: int, phase: Phase) -> dict[str, Any]:
        own, inside, keeper = own_states(self._parts), phase == "running", self._keeper()
        # A pass that was left after the state was loaded is none to go on with.
        if self._loaded is not None and (inside or not self._loaded["inside"]):
            return self._loaded | {"own": own}
        # Between passes a DataLoader's position means nothing, unless the last one was complete;
        # and torchdata's starts workers and draws if it is asked before a pass. A data set stands
        # where it stands: after a pass that was left, the next one goes on from there.
        known = (
            inside
            or self._complete
            or keeper == "dataset"
            or not isinstance(self.loader, DataLoader)
        )
        kept = deepcopy(self._kept_by(keeper).state_dict()) if keeper and known else None
        if inside and (_is_ambiguous(kept, position) or _is_read_again(kept)):
            keeper = kept = None
        return {
            "own": own,
            "workers_begun": self._workers_begun,
            "keeper": keeper,
            "kept": kept,
            "inside": inside,
            "complete": self._complete,
            "drained": inside and bool(getattr(self._fetcher(), "ended", False)),
            "start": self._start if inside else None,
        }

    def load_state_dict(
        self, state: dict[str, Any], *, epoch: int, position: int, phase: Phase
    ) -> None:
        self.shutdown()
        self._was_read = False
        self.begin(epoch)
        bring_back(self._parts, state["own"], self.name)
        self._workers_begun = state["workers_begun"]
        self._loaded, self._complete = state, state["complete"]
        if state["keeper"] in ("loader", "dataset") and state["kept"] is not None:
            self._kept_by(state["keeper"]).load_state_dict(deepcopy(state["kept"]))
        elif state["inside"] and state["keeper"] is None:
            warnings.warn(
                f"The loader {self.name!r} ({type(self.loader).__name__}) can not say where it "
                f"stands: {position} batches are read again and thrown away. They are the same "
                "ones only if their order follows from the generators at the start of the pass. "
                "Give it state_dict and load_state_dict, or use a map-style data set.",
                ReplayWarning,
                stacklevel=level_of_caller(),
            )

    def _open_anew(self) -> Iterator[Any]:
        # A Hugging Face data set goes on from a state that was loaded in every later pass of the
        # same epoch, not only in the one that was interrupted.
        dataset = self._parts.get("dataset", self.loader)
        if hasattr(dataset, "_starting_state_dict"):
            dataset._starting_state_dict = None
        return self._open()

    def _open(self) -> Iterator[Any]:
        # Persistent workers draw their seed when they begin, which a later pass must not repeat.
        begun = self._workers_begun and getattr(self.loader, "_iterator", None) is None
        before = record(self._parts) if begun else None
        self._iterator = iter(self.loader)
        if before is not None:
            restore(self._parts, before)
        self._workers_begun = getattr(self.loader, "persistent_workers", False) is True
        iterator: Iterator[Any] = self._iterator
        return iterator

    def _go_on(self, state: dict[str, Any], position: int) -> Iterator[Any]:
        """Open in the middle of a pass; what that draws was drawn before, and is undone."""
        before = record(self._parts)
        self._start = state["start"]
        try:
            if state["keeper"] is None:
                restore(self._parts, state["start"])
            iterator = self._open()
            if state["keeper"] == "iterator":
                self._iterator.load_state_dict(deepcopy(state["kept"]))
            if state["keeper"] is None:
                self._skip(position)
        finally:
            restore(self._parts, before)
        if state["drained"]:
            self._fetcher().ended = True
        return iterator

    def _skip(self, position: int) -> None:
        read = sum(1 for _ in islice(self._iterator, position))
        if read < position:
            raise DataChanged(
                f"The loader {self.name!r} had given {position} batches when the state was taken, "
                f"and now ends after {read}."
            )

    def _open_after_the_end(self) -> Iterator[Any]:
        """Open a pass after a state was loaded that was taken at the end of the one before.

        Some take such a state for the last moment of the old pass, and end at once: the loader may,
        and its data set once more. Others begin anew, having drawn for both passes.
        """
        before = record(self._parts)
        for open_pass in (self._open, self._open, self._open_anew):
            iterator = open_pass()
            if isinstance(self.loader, DataLoader):
                restore(self._parts, before)
                if not (self.loader.num_workers and self.loader.persistent_workers):
                    torch.empty((), dtype=torch.int64).random_(generator=self.loader.generator)
            first = next(iterator, _NOTHING)
            if first is not _NOTHING:
                return chain((first,), iterator)
            restore(self._parts, before)
        return iter(())

    def _keeper(self) -> Keeper | None:
        if has_state(self.loader):
            return "loader"
        dataset = self._parts.get("dataset")
        in_this_process = isinstance(self.loader, DataLoader) and not self.loader.num_workers
        if in_this_process and has_state(dataset):
            return "dataset"
        return "iterator" if has_state(self._iterator) else None

    def _kept_by(self, keeper: Keeper) -> Any:
        parts = {"loader": self.loader, "dataset": self._parts.get("dataset")}
        return parts.get(keeper, self._iterator)

    def _fetcher(self) -> Any:
        """What reads an iterable data set in this process; none with workers."""
        return getattr(self._iterator, "_dataset_fetcher", None)

    def _is_one_shot(self) -> bool:
        return isinstance(self.loader, Iterator) and not has_state(self.loader)

    def _end_workers(self) -> None:
        if shutdown := getattr(self._iterator, "_shutdown_workers", None):
            shutdown()


def _is_ambiguous(kept: Any, position: int) -> bool:
    """Whether a state of torchdata's workers would repeat or lose data.

    The state of a worker that has given nothing yet may be that of the pass before; that of one at
    its end may be back at the start, and the worker is made to ask its data set once more.
    """
    try:
        workers = kept["_snapshot"]["_worker_snapshots"].values()
        ended = any((worker["fetcher_state"] or {}).get("fetcher_ended") for worker in workers)
    except (TypeError, KeyError, AttributeError):
        return False  # not torchdata's, or without workers
    return ended or position < len(workers)


def _is_read_again(kept: Any) -> bool:
    """Whether torchdata, without workers, has no state of a stream, and counts what it reads again twice."""
    try:
        inside, reading = kept["dataset_state"], kept["fetcher_state"]["dataset_iter_state"]
    except (TypeError, KeyError):
        return False  # not torchdata's, or not a stream
    return inside is None and reading is None


def is_sequence(loader: Any) -> bool:
    """Whether batches can be had by number in the order in which iterating gives them."""
    kind = type(loader)
    if not (hasattr(kind, "__getitem__") and hasattr(kind, "__len__")) or hasattr(kind, "keys"):
        return False
    own_order = getattr(kind, "__iter__", None)
    return isinstance(loader, (list, tuple, range)) or own_order in (None, Sequence.__iter__)
