"""Batches of one loader, pass after pass, and where the data stands: exactly, at any moment."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from typing import Any, NoReturn

from statemachine_trainer.data.data_errors import (
    BadSetting,
    DataChanged,
    EmptyLoader,
    NoPass,
    NotExact,
    StrayStopIteration,
)
from statemachine_trainer.data.mapstyle import MapReader, is_map_loader
from statemachine_trainer.data.own_generators import parts_of, set_epoch
from statemachine_trainer.data.reader import END, DrawsIn, End, Phase, Reader
from statemachine_trainer.data.several import SeveralLoaders, SeveralReader
from statemachine_trainer.data.sources import as_loader, length_of
from statemachine_trainer.data.streams import SequenceReader, StreamReader, is_sequence
from statemachine_trainer.machine.errors import level_of_caller

_VERSION = 1
_APART = 1_000_003
"""Between the seeds of two loaders that are read as one."""


class Feed:
    """Gives the batches of a loader one by one, in passes, and can go on anywhere in a pass.

    Order and draws are those of a plain ``for batch in loader``. The position counts the batches
    handed out, never those that workers have prefetched. A state that was loaded goes on with the
    batch after the last one handed out, without reading any data again (only indices are skipped)
    for map-style data and lists, and by their own state for iterables that have one.

    Args:
        loader: a `DataLoader`, a list of batches, or any iterable of batches; an iterator is good
            for one pass
        seed: of the samples' randomness, where samples are seeded
        seed_samples: seed python, numpy and torch anew for each sample of a map-style data set, so
            that its augmentation follows from (seed, epoch, index). ``None``: if there are workers;
            this differs from plain torch, which seeds a worker once, but is exact over a stop.
            ``True``: also without workers, so that their number may change between runs. ``False``:
            never; augmentation in workers then differs after a stop.
        name: for errors and warnings

    Example:
        >>> feed = Feed([10, 20, 30])
        >>> feed.begin(epoch=0)
        >>> feed.next_batch()
        10
        >>> state = feed.state_dict()
        >>> later = Feed([10, 20, 30])
        >>> later.load_state_dict(state)
        >>> later.next_batch(), later.next_batch(), later.next_batch()
        (20, 30, END)
    """

    moves = False
    """Whether the batches that it hands out are on the device already."""

    position: int
    """Batches handed out in this pass."""

    def __init__(
        self,
        loader: Iterable[Any],
        *,
        seed: int = 0,
        seed_samples: bool | None = None,
        name: str = "train",
    ) -> None:
        self.loader = loader
        self.name = name
        self.epoch = 0
        self.position = 0
        self._phase: Phase = "idle"
        self._reader = _reader_for(loader, seed=seed, seed_samples=seed_samples, name=name)
        self._advance: Callable[[], Any] = self._no_pass

    @property
    def length(self) -> int | None:
        """Batches in a pass, ``None`` if unknown. Asking creates nothing and draws nothing.

        An iterable data set may be wrong about its length: the end is where the data ends.
        """
        if self._reader.batches_of_pass is not None:
            return self._reader.batches_of_pass
        if isinstance(self.loader, SeveralLoaders):
            return self.loader.length([feed.length for feed in self.parts.values()])
        return length_of(self.loader)

    def count(self) -> int | None:
        """Batches in a pass, if that can be relied on."""
        return self._reader.count()

    @property
    def parts(self) -> dict[str, Feed]:
        """The feeds that this one reads, by name, where it reads several loaders as one; else itself."""
        feeds = getattr(self._reader, "feeds", None)
        return {self.name: self} if feeds is None else {one.name: one for one in feeds.values()}

    @property
    def draws_in(self) -> DrawsIn:
        """Where the data set and its collate function draw random numbers."""
        return self._reader.draws_in

    @property
    def phase(self) -> Phase:
        """``idle`` (no pass), ``begun``, ``running``, or ``ended`` (the end was met)."""
        return self._phase

    def begin(self, epoch: int) -> None:
        """Begin a pass. Nothing is read, and nothing drawn, before its first batch is asked for.

        Raises:
            EmptyLoader: if it is known to have no batch
            OneShotExhausted: for a second pass over an iterator
        """
        self.close()
        if self._reader.count() == 0:
            self._refuse_empty()
        self._reader.begin(epoch)
        self.epoch = epoch
        self.position = 0
        self._phase = "begun"
        self._advance = self._open

    def open(self) -> None:
        """Open the data of a pass that has begun, and read nothing yet: for several read in turns."""
        if self._phase == "begun":
            self._advance = self._reader.open(self.position).__next__
            self._phase = "running"

    def next_batch(self) -> Any:
        """The next batch of the pass, or `END` (again and again) when it is over.

        An error of the data surfaces as it is, with the position before the batch that failed; the
        next call tries that batch again.

        Raises:
            StrayStopIteration: if user code raised `StopIteration` where there is more data
            EmptyLoader: if the pass ends without a batch
        """
        advance = self._advance  # read first: CPython would search the class for a method
        try:
            batch = advance()
        except StopIteration as stop:
            return self._stopped(stop)
        except BaseException:
            self._failed()
            raise
        self.position += 1
        return batch

    def close(self) -> None:
        """End the pass, if one is under way; workers end unless they are persistent."""
        self._reader.close()
        self._phase = "idle"
        self._advance = self._no_pass

    def shutdown(self) -> None:
        """End the pass and persistent workers too."""
        self.close()
        self._reader.shutdown()

    def state_dict(self) -> dict[str, Any]:
        """Where the data stands, as a plain tree. Does not disturb it."""
        return {
            "version": _VERSION,
            "kind": self._reader.kind,
            "epoch": self.epoch,
            "position": self.position,
            "phase": self._phase,
            "facts": self._reader.facts(),
            "reader": self._reader.state_dict(position=self.position, phase=self._phase),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Stand where the state was taken. The global generators stay as they are.

        Raises:
            DataChanged: if the data is not what it was, naming what differs

        Warns:
            NotExact: a loader of another kind goes on at the end of a pass
        """
        self._check(state)
        self.close()
        self.epoch, self.position = state["epoch"], state["position"]
        if state["kind"] == self._reader.kind:
            self._reader.load_state_dict(
                state["reader"], epoch=self.epoch, position=self.position, phase=state["phase"]
            )
        else:
            self._begin_with_another_kind(str(state["kind"]))
        self._phase = state["phase"]
        entries: dict[Phase, Callable[[], Any]] = {
            "idle": self._no_pass,
            "ended": iter(()).__next__,
        }
        self._advance = entries.get(self._phase, self._open)

    def _begin_with_another_kind(self, was: str) -> None:
        """Begin anew between two passes: where a loader of another kind stood tells nothing of this one."""
        warnings.warn(
            f"The loader of {self.name!r} is of another kind than when the state was taken ({was}, and "
            f"{self._reader.kind} now). Its generators stand where the script has put them, so the order and the "
            "draws of the next passes differ from those of an uninterrupted run. Give a loader of the same kind to go "
            "on exactly.",
            NotExact,
            stacklevel=level_of_caller(),
        )
        self._reader.shutdown()
        self._reader.begin(self.epoch)

    def _open(self) -> Any:
        iterator = self._reader.open(self.position)
        self._phase = "running"
        self._advance = iterator.__next__
        return self._advance()

    def _stopped(self, stop: StopIteration) -> End:
        if self._phase == "ended":
            return END
        if not self._reader.is_over(self.position):
            self._failed()
            raise StrayStopIteration(
                f"StopIteration was raised while batch {self.position + 1} of {self.name!r} was "
                "read, though the data has not ended. It comes from the data set or its collate "
                "function: look for a next() without a default there, and raise another error."
            ) from stop
        if self.position == 0:
            self._phase, self._advance = "begun", self._open  # Data may be put in, and tried again.
            self._refuse_empty()
        self._phase = "ended"
        self._advance = iter(()).__next__
        return END

    def _failed(self) -> None:
        if self._phase == "running":
            self._reader.failed(self.position)
            self._advance = self._open

    def _no_pass(self) -> NoReturn:
        raise NoPass(f"No pass over {self.name!r} has begun. Call begin(epoch) first.")

    def _refuse_empty(self) -> NoReturn:
        if getattr(self.loader, "drop_last", False):
            way_out = (
                "drop_last=True leaves none if there are fewer samples than batch_size: lower it."
            )
        elif hasattr(getattr(self.loader, "dataset", self.loader), "load_state_dict"):
            way_out = (
                "Its data set keeps its place: a pass that is ended early, after the last sample, leaves "
                "nothing for the next one. Otherwise check the data set, or leave this loader out."
            )
        else:
            way_out = "Check the data set and its sampler, or leave this loader out."
        raise EmptyLoader(f"The loader {self.name!r} has no batch. {way_out}")

    def _check(self, state: dict[str, Any]) -> None:
        if state.get("ahead"):
            raise DataChanged(
                f"A batch of {self.name!r} was read ahead when the state was taken, which a run "
                "that does not read ahead would lose. Resume with Trainer(prefetch=True)."
            )
        inside = state["phase"] in ("running", "ended")
        same_pass = inside and not state["reader"].get("of_other_ranks")
        differences = []
        if inside and state["kind"] != self._reader.kind:
            differences.append(f"the kind of loader was {state['kind']}, is {self._reader.kind}")
        elif state["kind"] == self._reader.kind:
            # How many batches there are may depend on the epoch.
            set_epoch(parts_of(self.loader).values(), state["epoch"])
            now = self._reader.facts()
            differences = [
                f"{fact} was {was}, is {now.get(fact)}"
                for fact, was in state["facts"].items()
                if was != now.get(fact) and (same_pass or fact == "items")
            ]
            if same_pass:
                self._check_deal(state["reader"].get("cursor"))
        if differences:
            raise DataChanged(
                f"The data of {self.name!r} is not what it was when the state was taken: "
                f"{'; '.join(differences)}. Resume with the same data, or begin a new run."
            )

    def _check_deal(self, cursor: dict[str, Any] | None) -> None:
        """Refuse an epoch whose beginning as many processes have dealt out in another way."""
        if cursor is None:
            return
        from statemachine_trainer.data.dealing import Dealer

        loader: Any = self.loader  # a DataLoader: others have no cursor
        dealer = Dealer.of(loader)
        if dealer is not None and dealer.ranks != cursor["ranks"]:
            raise DataChanged(
                f"The epoch of {self.name!r} was dealt out with num_replicas={cursor['ranks']} when the state was "
                f"taken, and now with num_replicas={dealer.ranks}, by as many processes: their mesh or their sampler "
                "is another one. Start another number of processes, with which an epoch goes on; or go on as it "
                "began, or from a checkpoint at the end of an epoch."
            )


def _reader_for(loader: Any, *, seed: int, seed_samples: bool | None, name: str) -> Reader:
    if is_map_loader(loader):
        return MapReader(loader, seed=seed, seed_samples=seed_samples, name=name)
    if isinstance(loader, SeveralLoaders):
        # Samples of the same index in two loaders draw other numbers.
        feeds = {
            part: Feed(
                as_loader(one, f"{name}/{part}"),
                seed=seed + index * _APART,
                seed_samples=seed_samples,
                name=f"{name}/{part}",
            )
            for index, (part, one) in enumerate(zip(loader.names, loader.parts, strict=True))
        }
        return SeveralReader(loader, feeds, name=name)
    if seed_samples:
        raise BadSetting(
            f"seed_samples=True needs a DataLoader over a map-style data set, but {name!r} is a "
            f"{type(loader).__name__}. Leave seed_samples out, or seed inside the data."
        )
    if is_sequence(loader):
        return SequenceReader(loader, name=name)
    return StreamReader(loader, name=name)
