"""Reads a `DataLoader` over a map-style data set: a pass is an order of indices, known exactly."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    IterableDataset,
    MapDataPipe,
)

from statemachine_trainer.data.data_errors import DataChanged, NotExact, OrderKept
from statemachine_trainer.data.indices import IndexStream, plan_for
from statemachine_trainer.data.own_generators import (
    bring_back,
    has_state,
    parts_of,
    record,
    restore,
    set_epoch,
)
from statemachine_trainer.data.reader import DrawsIn, Phase, Reader
from statemachine_trainer.data.seeding import SeededFetch, as_it_is, sample_seed
from statemachine_trainer.data.workers import WorkerStart, end_at_exit
from statemachine_trainer.machine.errors import level_of_caller
from statemachine_trainer.snapshot.found import Place
from statemachine_trainer.snapshot.held import own_states
from statemachine_trainer.snapshot.rng import isolated_rng
from statemachine_trainer.snapshot.search import Search

if TYPE_CHECKING:
    from statemachine_trainer.data.dealing import Deal


class MapReader(Reader):
    """Drives the loader's own samplers, data set and collate function through a loader of its own.

    That loader has the settings of the user's, so that order and draws are those of a plain loop;
    but its sampler can begin anywhere in a pass. With ``seeded`` it reads by `SeededFetch`.
    """

    kind = "map"

    def __init__(
        self, loader: DataLoader[Any], *, seed: int, seed_samples: bool | None, name: str
    ) -> None:
        self.loader = loader
        self.name = name
        self.seed = seed
        self._seeded = loader.num_workers > 0 if seed_samples is None else seed_samples
        self._seed_samples = seed_samples
        self._same_for_all_workers = seed_samples is True
        self._parts = parts_of(loader)
        self._epoch = 0
        if loader.num_workers:
            end_at_exit(self)
        self._stream: IndexStream | None = None
        self._deal: Deal | None = None  # of the rest of this pass, where other ranks have begun it
        self._places: dict[str, Place] | None = None  # of generators, as this pass began
        self._slot = _Slot()
        self._reading: DataLoader[Any] | None = None  # with persistent workers, for all passes
        self._iterator: Any = None
        self._has_drawn_base_seed = False  # persistent workers draw one in the first pass only
        if not getattr(loader, "in_order", True):
            warnings.warn(
                "The loader has in_order=False; its batches are read in order all the same, "
                "because a position in a pass means nothing otherwise. Remove in_order=False.",
                OrderKept,
                stacklevel=level_of_caller(),
            )

    @property
    def draws_in(self) -> DrawsIn:
        if self._seeded:
            return "seeded"
        return "workers" if self.loader.num_workers else "this process"

    def count(self) -> int | None:
        batches = self.loader.batch_sampler
        return _length(self.loader.sampler if batches is None else batches)

    def facts(self) -> dict[str, int | str | None]:
        return {
            "items": _length(self.loader.dataset),
            "batches": self.count(),
            "batch_size": self.loader.batch_size,
            "sampler": sampler_name(self.loader),
        }

    def begin(self, epoch: int) -> None:
        self._epoch = epoch
        self._stream = self._deal = self._places = None
        self.batches_of_pass = None
        set_epoch(self._parts.values(), epoch)

    def open(self, position: int) -> Iterator[Any]:
        again = self._stream is not None
        if self._stream is None:
            self._stream = self._new_stream()
        self._slot.stream = self._stream
        fresh = self._reading is None
        if self._reading is None:
            self._reading = self._new_loader()
        persistent = self.loader.persistent_workers
        if again or (fresh and persistent and self._has_drawn_base_seed):
            # What an uninterrupted run drew before, or not at all, must not be drawn here.
            self._reading.generator = torch.Generator()
            where = sample_seed(self.seed, self._epoch, ("reopened", position))
            self._reading.generator.manual_seed(int.from_bytes(where[:7], "little"))
        elif persistent and not fresh and self._same_for_all_workers:
            torch.empty((), dtype=torch.int64).random_(generator=self.loader.generator)
        with _no_second_warning():
            self._iterator = iter(self._reading)
        self._has_drawn_base_seed = persistent
        if not persistent:
            self._reading = None
        iterator: Iterator[Any] = self._iterator
        return iterator

    def is_over(self, position: int) -> bool:
        return self._stream is None or self._stream.is_over(position)

    def failed(self, position: int) -> None:
        self.shutdown()  # a data set that was mended reaches new workers only
        self._places = None
        if self._stream is not None:
            self._stream.go_back(position)

    def close(self) -> None:
        if not self.loader.persistent_workers:
            _end_workers(self._iterator)
        self._iterator = None

    def shutdown(self) -> None:
        _end_workers(self._iterator)
        _end_workers(getattr(self._reading, "_iterator", None))
        self._iterator = self._reading = None

    def state_dict(self, *, position: int, phase: Phase) -> dict[str, Any]:
        stream = self._stream
        state: dict[str, Any] = {
            "own": own_states(self._parts),
            "samplers": self._sampler_states(),
            "seed": self.seed,
            "seeded": self._seeded,
            "has_drawn_base_seed": self._has_drawn_base_seed,
            "cursor": None if phase == "idle" else self._cursor(),
            "pass": None,
        }
        if stream is not None and stream.drawn and (phase == "running" or state["samplers"]):
            state["pass"] = stream.state_dict()
        if self._dataset_has_state():
            state["dataset"] = self._parts["dataset"].state_dict()
        return state

    def load_state_dict(
        self, state: dict[str, Any], *, epoch: int, position: int, phase: Phase
    ) -> None:
        self.shutdown()
        self.begin(epoch)
        self._adopt_seeding(state)
        self._has_drawn_base_seed = state["has_drawn_base_seed"]
        if state.get("of_other_ranks"):
            if phase == "running":
                self._go_on_with_pass_of_others(state, position)
        elif state["pass"] is not None:
            self._deal = self._deal_of(state, position)
            self._stream = self._new_stream()
            with isolated_rng(()):
                self._stream.resume(state["pass"], position)
        self._load_samplers(state["samplers"])
        bring_back(self._parts, state["own"], self.name)
        if "dataset" in state and self._dataset_has_state():
            self._parts["dataset"].load_state_dict(state["dataset"])

    def _cursor(self) -> dict[str, Any] | None:
        from statemachine_trainer.data.dealing import cursor

        return cursor(self.loader, self._deal)

    def _deal_of(self, state: dict[str, Any], position: int) -> Deal | None:
        """Return how the rest of a pass that is loaded is dealt out, if its beginning was to other ranks."""
        from statemachine_trainer.data.dealing import deal_of

        anew = state.get("of_other_ranks", False)
        return deal_of(state.get("cursor"), self.loader, position, anew=anew)

    def _go_on_with_pass_of_others(self, state: dict[str, Any], position: int) -> None:
        self._deal = self._deal_of(state, position)
        if self._deal is None:
            raise DataChanged(
                f"The checkpoint is of other ranks, which have read a part of this epoch of {self.name!r} in the order "
                f"of {' '.join(map(str, state['cursor']['order']))}. The {sampler_name(self.loader)} here gives "
                "another one. Give each rank the same by torch's DistributedSampler(dataset, num_replicas, rank), also "
                "where there is one rank only; or go on from a checkpoint at the end of an epoch."
            )
        self._stream = self._new_stream()
        self._stream.stand_after(position)

    def _adopt_seeding(self, state: dict[str, Any]) -> None:
        self.seed = state["seed"]
        if self._seed_samples is None:
            self._seeded = self._seeded or state["seeded"]
        if self._seeded != state["seeded"]:
            was, now = ("" if on else "not " for on in (state["seeded"], self._seeded))
            warnings.warn(
                f"Samples were {was}seeded one by one when the state was taken and are {now}so "
                "now: random augmentation differs from that of an uninterrupted run. Use "
                "seed_samples=True from the start if the number of workers is to change.",
                NotExact,
                stacklevel=level_of_caller(),
            )

    def _new_stream(self) -> IndexStream:
        loader = self.loader
        if self._deal is None:
            plan = plan_for(loader)
        else:
            plan, self.batches_of_pass = self._deal.plan(loader)
        return IndexStream(
            plan,
            ahead=loader.num_workers * (loader.prefetch_factor or 0),
            batched=loader.batch_sampler is not None,
            epoch=self._epoch if self._seeded else None,
            once=self._same_for_all_workers,
            record=self._record,
            restore=self._restore,
        )

    def _record(self) -> dict[str, Any]:
        # A pass records two or three times before its first index, and in between a known sampler runs no
        # code that could make a generator: one walk through the data will do.
        if self._places is None or self._stream is None or self._stream.plan.unknown:
            self._places = Search(self._parts).places
        return record(self._parts, self._places) | {"samplers": self._sampler_states()}

    def _restore(self, recorded: dict[str, Any]) -> None:
        self._load_samplers(recorded["samplers"])
        restore(self._parts, recorded)

    def _stateful_samplers(self) -> dict[str, Any]:
        # A distributed sampler's order follows from the epoch; torchdata's writes down a position
        # that is right inside a pass only.
        return {
            name: part
            for name, part in self._parts.items()
            if "sampler" in name and has_state(part) and not isinstance(part, DistributedSampler)
        }

    def _sampler_states(self) -> dict[str, Any]:
        return {name: part.state_dict() for name, part in self._stateful_samplers().items()}

    def _load_samplers(self, states: dict[str, Any]) -> None:
        for name, sampler in self._stateful_samplers().items():
            # A state that is a position, and was reached by going through the indices, stays.
            if name in states and not _same(sampler.state_dict(), states[name]):
                sampler.load_state_dict(states[name])

    def _dataset_has_state(self) -> bool:
        return self.loader.num_workers == 0 and has_state(self._parts.get("dataset"))

    def _new_loader(self) -> DataLoader[Any]:
        loader, batched = self.loader, self.loader.batch_sampler is not None
        settings: dict[str, Any] = {
            "num_workers": loader.num_workers,
            "pin_memory": loader.pin_memory,
            "timeout": loader.timeout,
            "multiprocessing_context": loader.multiprocessing_context,
            "generator": loader.generator,
            "prefetch_factor": loader.prefetch_factor,
            "persistent_workers": loader.persistent_workers,
            "dataset": loader.dataset,
            "collate_fn": loader.collate_fn,
            "worker_init_fn": WorkerStart(loader),
            "batch_size": 1 if batched else None,
            "batch_sampler" if batched else "sampler": self._slot,
        }
        if device := getattr(loader, "pin_memory_device", ""):
            settings["pin_memory_device"] = device
        if self._seeded:
            fetch = SeededFetch(loader.dataset, loader.collate_fn, batched=batched, seed=self.seed)
            settings.pop("batch_sampler", None)
            settings |= {
                "dataset": fetch,
                "collate_fn": as_it_is,
                "batch_size": None,
                "sampler": self._slot,
            }
        with _no_second_warning():
            return DataLoader(**settings)


class _Slot:
    """A sampler whose order is that of the pass at hand: persistent workers outlive a pass."""

    stream: IndexStream

    def __iter__(self) -> Iterator[Any]:
        return iter(self.stream)


def is_map_loader(loader: Any) -> bool:
    """Whether the loader reads a map-style data set the way a `DataLoader` does."""
    if not isinstance(loader, DataLoader):
        return False
    if isinstance(loader.dataset, (IterableDataset, MapDataPipe)):
        return False
    if type(loader).__module__.startswith("torchdata."):
        # The same order and draws; what its workers write down is needed for a data set with state.
        return loader.num_workers == 0 or not has_state(loader.dataset)
    reading = ("__iter__", "_get_iterator", "_index_sampler", "_auto_collation")
    return all(getattr(type(loader), name) is getattr(DataLoader, name) for name in reading)


def sampler_name(loader: DataLoader[Any]) -> str:
    """Return the class of what gives a loader its order."""
    batches: Any = loader.batch_sampler
    if batches is None:
        batches = loader.sampler
    elif type(batches) is BatchSampler:
        batches = batches.sampler
    return type(batches).__name__


def _length(sized: Any) -> int | None:
    try:
        return len(sized)
    except (TypeError, NotImplementedError):
        return None


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, dict):
        return (
            isinstance(other, dict)
            and one.keys() == other.keys()
            and all(_same(one[key], other[key]) for key in one)
        )
    if isinstance(one, (list, tuple)):
        return (
            isinstance(other, (list, tuple))
            and len(one) == len(other)
            and all(map(_same, one, other))
        )
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and torch.equal(one, other)
    return bool(one == other)


def _end_workers(iterator: Any) -> None:
    # An iterator ends its workers when it is collected, which a traceback may put off for long.
    if shutdown := getattr(iterator, "_shutdown_workers", None):
        shutdown()


@contextmanager
def _no_second_warning() -> Iterator[None]:
    # The user's own loader has warned of too many workers already.
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="This DataLoader will create")
        yield
