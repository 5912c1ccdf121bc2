"""Several loaders at once, as Lightning combines them, with the place of each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch.utils._pytree import tree_unflatten
from torch.utils.data import DataLoader, Dataset

from statemachine_trainer.data import END, Feed, as_loader
from statemachine_trainer.loops.context import Context


class CombinedBatches:
    """Reads what Lightning's `CombinedLoader` reads, in the same order, and knows where each loader stands.

    It is no `SeveralLoaders`, whose order is our own and differs where random numbers are drawn: there a loader that
    begins anew has a pass of its own number, and is opened when it is first read. Lightning gives it the number of the
    epoch again, and opens all of them before it reads from one. Hooks read `iterables`, and iterate over the loader
    themselves, which `SeveralLoaders` refuses. With a choice for each of these, the common code is longer than both.

    Args:
        combined: A `CombinedLoader` of any mode.
        context: The context of the run, whose trainer reads loaders exactly.
    """

    def __init__(self, combined: Any, context: Context) -> None:
        self.combined = combined
        self._feeds: list[Feed] = [
            context.equipment.feed(as_loader(one, f"train/{index}"), f"train/{index}")
            for index, one in enumerate(combined.flattened)
        ]
        self._mode: str = combined._mode
        self._epoch = 0
        self._ended: list[bool] = []
        self._given = 0
        self._over = False
        self._goes_on = False

    @property
    def iterables(self) -> Any:
        """The loaders in the structure in which they were given."""
        return self.combined.iterables

    def __len__(self) -> int:
        length = self._length
        if length is None:
            raise TypeError("The length of one of the loaders is not known.")
        return length

    @property
    def _length(self) -> int | None:
        lengths = [feed.length for feed in self._feeds]
        known = [length for length in lengths if length is not None]
        if len(known) < len(lengths):
            return None
        if self._mode == "sequential":
            return sum(known)
        return min(known) if self._mode == "min_size" else max(known)

    def set_epoch(self, epoch: int) -> None:
        """Take the number of the pass that begins next; one that was loaded is over then."""
        self._epoch = epoch
        self._goes_on = False

    def __iter__(self) -> Iterator[Any]:
        if not self._goes_on:
            for feed in self._feeds:
                feed.begin(self._epoch)
            self._ended, self._given, self._over = [False] * len(self._feeds), 0, False
            if self._mode != "sequential":  # Lightning opens all before it reads from one
                for feed in self._feeds:
                    feed.open()
        self._goes_on = False
        return _Pass(self)

    def next_batch(self) -> Any:
        """Return the next batch of the pass.

        Raises:
            StopIteration: The pass is over.
        """
        # Where the length is known nothing is asked for after it: that may draw random numbers.
        over = self._over or self._given == self._length
        batch = END if over else getattr(self, f"_next_{self._mode}")()
        if batch is END:
            self._over = True
            for feed in self._feeds:
                feed.close()
            raise StopIteration
        self._given += 1
        return batch

    def state_dict(self) -> dict[str, Any]:
        """Return where each of the loaders stands."""
        return {
            "feeds": [feed.state_dict() for feed in self._feeds],
            "ended": list(self._ended),
            "given": self._given,
            "over": self._over,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Stand where a state was taken, and go on from there, unless `set_epoch` begins a pass first."""
        for feed, saved in zip(self._feeds, state["feeds"], strict=True):
            feed.load_state_dict(saved)
        self._ended, self._given = list(state["ended"]), state["given"]
        self._over = state.get("over", False)
        self._goes_on = bool(state["ended"])  # else no pass had begun

    # -- modes -----------------------------------------------------------------------------------

    def _next_max_size_cycle(self) -> Any:
        batches = []
        for index, feed in enumerate(self._feeds):
            batch = feed.next_batch()
            if batch is END:
                self._ended[index] = True
                if all(self._ended):
                    return END
                feed.begin(self._epoch)
                batch = feed.next_batch()
            batches.append(batch)
        return self._structured(batches)

    def _next_min_size(self) -> Any:
        batches = []
        for feed in self._feeds:
            batch = feed.next_batch()
            if batch is END:
                return END
            batches.append(batch)
        return self._structured(batches)

    def _next_max_size(self) -> Any:
        batches = []
        for index, feed in enumerate(self._feeds):
            batch = END if self._ended[index] else feed.next_batch()
            self._ended[index] = batch is END
            batches.append(None if batch is END else batch)
        return END if all(self._ended) else self._structured(batches)

    def _next_sequential(self) -> Any:
        for index, feed in enumerate(self._feeds):
            if not self._ended[index]:
                batch = feed.next_batch()
                if batch is not END:
                    return batch
                self._ended[index] = True
        return END

    def _structured(self, batches: list[Any]) -> Any:
        return tree_unflatten(batches, self.combined._spec)


class _Pass:
    """Goes through a pass that was begun; asked for an iterator it is that itself, as iterators are."""

    def __init__(self, batches: CombinedBatches) -> None:
        self._batches = batches

    def __iter__(self) -> _Pass:
        return self

    def __next__(self) -> Any:
        return self._batches.next_batch()


class TrainingSource:
    """The training data of a LightningModule, which a hook may ask for before the fit takes them.

    Args:
        source: As it was given to `fit`, or a method that makes loaders.
        context: The context of the fit.
        combined_loader: Lightning's class.
    """

    def __init__(self, source: Any, context: Context, combined_loader: Any) -> None:
        self._source = source
        self._context = context
        self._combined_loader = combined_loader
        self._made: Any = None

    def __call__(self) -> Any:
        """Return the loader: that which was asked for before, later a new one."""
        made, self._made = self._made, None
        loader = self._make() if made is None else made
        if self._context.counts.epoch:
            _open_once(loader)
        return loader

    def loader(self) -> Any:
        """Return the loader that the fit is going to take."""
        if self._made is None:
            self._made = self._make()
        return self._made

    def _make(self) -> Any:
        source = self._source
        if is_maker(source):
            source = source()
        if is_several(source):
            source = self._combined_loader(source, "max_size_cycle")
        if isinstance(source, self._combined_loader):
            return CombinedBatches(source, self._context)
        return as_loader(source)


def _open_once(loader: Any) -> None:
    """Draw what opening a pass draws: Lightning opens loaders that it reloads once more than it reads them."""
    loaders = loader.combined.flattened if isinstance(loader, CombinedBatches) else [loader]
    for one in loaders:
        if isinstance(one, DataLoader):
            torch.empty((), dtype=torch.int64).random_(generator=one.generator)


def is_several(source: Any) -> bool:
    """Whether training data are several loaders, in a dict or a list, to be read at once."""
    if isinstance(source, Mapping):
        return True
    return (
        isinstance(source, list | tuple)
        and bool(source)
        and all(
            isinstance(one, DataLoader | Dataset | Mapping) or is_several(one) for one in source
        )
    )


def evaluation_source(source: Any, context: Context, combined_loader: Any) -> Any:
    """Return evaluation data as the trainer takes them: loaders one after the other, or one combined one.

    Args:
        source: As given, or a method that makes loaders.
        context: The context of the run.
        combined_loader: Lightning's class.
    """

    def settle(given: Any) -> Any:
        if given is None or is_nothing(given):
            return {}  # no loaders by name: none
        if isinstance(given, combined_loader):
            if given._mode == "sequential":
                return list(given.flattened)
            return CombinedBatches(given, context)
        return given

    if is_maker(source):
        return lambda: settle(source())
    return settle(source)


def is_maker(source: Any) -> bool:
    """Whether something makes loaders, and is none itself."""
    is_data = isinstance(source, DataLoader | Dataset) or any(
        hasattr(source, name) for name in ("__iter__", "__getitem__")
    )
    return callable(source) and not is_data


def is_nothing(source: Any) -> bool:
    """Whether an empty list of loaders was given, which in Lightning is none."""
    return isinstance(source, list | tuple | dict) and not source
