"""Several loaders read as one: together, in turns, or mixed; the place of each is known exactly."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Final, Literal, Protocol, get_args

from statemachine_trainer.data.data_errors import BadSetting, BadSource, DataChanged
from statemachine_trainer.data.makers import takes_epoch
from statemachine_trainer.data.reader import END, DrawsIn, Phase, Reader
from statemachine_trainer.machine.keywords import HasSettings

Until = Literal["shortest", "longest"]
_EXAMPLE: Final = "{'photos': loader, 'sketches': other_loader}"


class PartFeed(Protocol):
    """The feed of one of several loaders."""

    def count(self) -> int | None:
        """Batches in a pass, if that can be relied on."""

    def begin(self, epoch: int) -> None:
        """Begin a pass."""

    def next_batch(self) -> Any:
        """Return the next batch of the pass, or `END`."""

    def close(self) -> None:
        """End the pass."""

    def shutdown(self) -> None:
        """End the pass, and workers."""

    def state_dict(self) -> dict[str, Any]:
        """Return where it stands."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Stand where a state was taken."""


class SeveralLoaders(HasSettings, ABC):
    """Several loaders that a trainer reads as one.

    Nothing is read here: the trainer reads each of them as it reads a single one, so that each stands exactly where it
    stood when a run goes on. A loader that begins anew within an epoch has a pass of its own number: its samplers are
    told by `set_epoch`, and shuffle anew.

    Args:
        loaders: A dict or a list of what `fit` takes as training data: loaders, lists of batches, functions.

    Raises:
        BadSource: They are no dict or list, there are none, or one is a function that takes the epoch.
    """

    begins_anew: ClassVar[bool] = False
    """Whether a loader that has ended begins anew within the pass."""

    def __init__(self, loaders: Mapping[str, Any] | Sequence[Any]) -> None:
        if not isinstance(loaders, Mapping | list | tuple) or not loaders:
            raise BadSource(
                f"{type(self).__name__}({loaders!r:.80}): give a dict or a list of loaders, such as {_EXAMPLE}."
            )
        if takes_epoch(loaders):
            raise BadSource(
                f"{type(self).__name__}: one of the loaders is a function that takes the epoch. Give fit one "
                f"function that makes all of them: lambda epoch: {type(self).__name__}(...)."
            )
        self.loaders = loaders

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(self.names)})"

    @property
    def names(self) -> list[str]:
        """The names of the loaders: the keys of a dict, or the places in a list."""
        loaders = self.loaders
        return [
            str(one) for one in (loaders if isinstance(loaders, Mapping) else range(len(loaders)))
        ]

    @property
    def parts(self) -> list[Any]:
        """The loaders in their order."""
        return [*(self.loaders.values() if isinstance(self.loaders, Mapping) else self.loaders)]

    def __len__(self) -> int:
        """Batches in a pass.

        Raises:
            TypeError: The length of one of the loaders is not known.
        """
        lengths = [_length(one) for one in self.parts]
        found = self.length(lengths)
        if found is None:
            raise TypeError("The length of one of the loaders is not known.")
        return found

    def __iter__(self) -> Iterator[Any]:
        raise BadSetting(
            f"{type(self).__name__} is read by a trainer, which knows where each loader stands: fit(model, loader). To "
            "read the loaders yourself iterate over `loader.parts`."
        )

    @abstractmethod
    def length(self, lengths: Sequence[int | None]) -> int | None:
        """Return the batches in a pass.

        Args:
            lengths: Those of the loaders; None where it is not known.
        """

    @abstractmethod
    def wanted(self, place: Pass) -> list[int]:
        """Return the loaders of which the next batch is made; none if the pass is over.

        Args:
            place: Where the pass stands.
        """

    def batch(self, read: Mapping[int, Any]) -> Any:
        """Make a batch of what was read.

        Args:
            read: The batches by the places of their loaders, those that were wanted.
        """
        ((_, batch),) = read.items()
        return batch


class Together(SeveralLoaders):
    """One batch of each loader at every step: a dict (or list) of batches.

    `fit(model, {"photos": loader, "sketches": other})` means `Together({...})`.

    Args:
        loaders: As for `SeveralLoaders`.
        until: The pass ends with the "longest" loader, and the shorter ones begin anew; or with the "shortest", as
            `zip` does.

    Raises:
        BadSetting: `until` is something else.
    """

    def __init__(
        self, loaders: Mapping[str, Any] | Sequence[Any], *, until: Until = "longest"
    ) -> None:
        super().__init__(loaders)
        if until not in get_args(Until):
            raise BadSetting(f"Together(until={until!r}): say 'longest' or 'shortest'.")
        self.until = until

    @property
    def begins_anew(self) -> bool:  # type: ignore[override]  # it is a setting here
        """Whether the shorter loaders begin anew."""
        return self.until == "longest"

    def length(self, lengths: Sequence[int | None]) -> int | None:
        known = [one for one in lengths if one is not None]
        if len(known) < len(lengths):
            return None
        return max(known) if self.until == "longest" else min(known)

    def wanted(self, place: Pass) -> list[int]:
        over = all(place.ended) if self.until == "longest" else any(place.ended)
        return [] if over else [*range(len(place.ended))]

    def batch(self, read: Mapping[int, Any]) -> Any:
        if isinstance(self.loaders, Mapping):
            return {name: read[index] for index, name in enumerate(self.loaders)}
        return [read[index] for index in range(len(read))]


class InTurns(SeveralLoaders):
    """A batch of each loader in turn, until all have ended; those that end earlier are left out from then on.

    Args:
        loaders: As for `SeveralLoaders`.
        named: Give pairs of the loader's name and the batch.
    """

    def __init__(self, loaders: Mapping[str, Any] | Sequence[Any], *, named: bool = False) -> None:
        super().__init__(loaders)
        self.named = _flag(self, named)

    def length(self, lengths: Sequence[int | None]) -> int | None:
        known = [one for one in lengths if one is not None]
        return sum(known) if len(known) == len(lengths) else None

    def wanted(self, place: Pass) -> list[int]:
        count = len(place.ended)
        turns = ((place.last + step) % count for step in range(1, count + 1))
        return [next(one for one in turns if not place.ended[one])] if not all(place.ended) else []

    def batch(self, read: Mapping[int, Any]) -> Any:
        return _named(self, read) if self.named else super().batch(read)


class Mixture(SeveralLoaders):
    """A batch of a loader that is drawn at each step; a loader that ends begins anew.

    What is drawn follows from the seed, the epoch and the number of the batch alone: it is the same on all ranks and
    after every resume, and no other generator is touched.

    Args:
        loaders: As for `SeveralLoaders`.
        weights: How often each of them is drawn, in their order or by name; equally often unless given. They need not
            sum to 1.
        batches: In a pass; as many as all loaders have unless given.
        seed: Of the draws.
        named: Give pairs of the loader's name and the batch.

    Raises:
        BadSetting: Weights that do not fit the loaders, or a number of batches that is none.
    """

    begins_anew = True

    def __init__(
        self,
        loaders: Mapping[str, Any] | Sequence[Any],
        weights: Mapping[str, float] | Sequence[float] | None = None,
        *,
        batches: int | None = None,
        seed: int = 0,
        named: bool = False,
    ) -> None:
        super().__init__(loaders)
        self.weights = _weights(self.names, weights)
        if batches is not None and (type(batches) is not int or batches < 1):
            raise BadSetting(f"Mixture(batches={batches!r}): use a whole number from 1.")
        if type(seed) is not int or seed < 0:
            raise BadSetting(f"Mixture(seed={seed!r}): use a whole number from 0.")
        self.batches = batches
        self.seed = seed
        self.named = _flag(self, named)

    def length(self, lengths: Sequence[int | None]) -> int | None:
        if self.batches is not None:
            return self.batches
        known = [one for one in lengths if one is not None]
        return sum(known) if len(known) == len(lengths) else None

    def wanted(self, place: Pass) -> list[int]:
        if place.count is None:
            raise BadSetting(
                "Mixture needs to know how long a pass is, and one of its loaders has no length: Mixture(..., "
                "batches=1000)."
            )
        draw = random.Random(f"{self.seed} {place.epoch} {place.given}")
        return draw.choices(range(len(self.weights)), self.weights)

    def batch(self, read: Mapping[int, Any]) -> Any:
        return _named(self, read) if self.named else super().batch(read)


class Pass:
    """Where a pass over several loaders stands.

    Attributes:
        epoch: Its number.
        given: Batches given so far.
        count: Batches that there are; None if it is not known.
        ended: Of each loader, whether it has ended in this pass, maybe to begin anew.
        last: The loader read last; -1 before the first.
    """

    def __init__(self, epoch: int, loaders: int, count: int | None) -> None:
        self.epoch = epoch
        self.given = 0
        self.count = count
        self.ended = [False] * loaders
        self.last = -1


class SeveralReader(Reader):
    """Reads several loaders as one.

    Args:
        loaders: Says which of them comes next.
        feeds: Those of the loaders, by name.
        name: Of all of them, for errors.
    """

    kind = "several"

    def __init__(
        self, loaders: SeveralLoaders, feeds: Mapping[str, PartFeed], *, name: str
    ) -> None:
        self.loaders = loaders
        self.name = name
        self.feeds = feeds
        self._feeds = [*feeds.values()]
        self._passes = [0] * len(feeds)  # the number of the next pass of each
        self._place = Pass(0, len(feeds), None)
        self._read: dict[int, Any] = {}  # of the batch that is being put together

    @property
    def draws_in(self) -> DrawsIn:
        return "this process"  # each feed tells for itself

    def count(self) -> int | None:
        return self.loaders.length([feed.count() for feed in self._feeds])

    def facts(self) -> dict[str, int | str | None]:
        return {"loaders": len(self._feeds)}  # each feed tells the rest

    def begin(self, epoch: int) -> None:
        self._passes = [max(one, epoch) for one in self._passes]
        for index in range(len(self._feeds)):
            self._begin_one(index)
        self._place = Pass(epoch, len(self._feeds), self.count())  # it may depend on the epoch
        self._read = {}

    def open(self, position: int) -> Iterator[Any]:
        return _Batches(self._next)

    def is_over(self, position: int) -> bool:
        return True  # the feeds tell a stray StopIteration from the end

    def failed(self, position: int) -> None:
        """Nothing to prepare: what was read for the batch is kept, and its other parts are read again."""

    def close(self) -> None:
        self._each(lambda feed: feed.close())

    def shutdown(self) -> None:
        self._each(lambda feed: feed.shutdown())

    def state_dict(self, *, position: int, phase: Phase) -> dict[str, Any]:
        return {
            "feeds": {name: feed.state_dict() for name, feed in self.feeds.items()},
            "passes": list(self._passes),
            "ended": list(self._place.ended),
            "last": self._place.last,
            "read": [[index, batch] for index, batch in self._read.items()],
        }

    def load_state_dict(
        self, state: dict[str, Any], *, epoch: int, position: int, phase: Phase
    ) -> None:
        for feed, saved in zip(self._feeds, _in_order(state["feeds"], [*self.feeds]), strict=True):
            feed.load_state_dict(saved)
        self._passes = list(state["passes"])
        self._place = place = Pass(epoch, len(self._feeds), self.count())
        place.given, place.ended, place.last = position, list(state["ended"]), state["last"]
        self._read = dict(state["read"])

    # -- parts -----------------------------------------------------------------------------------

    def _next(self) -> Any:
        """Return the next batch, or `END`.

        Where it is known how many there are nothing is asked for after the last: that may draw random numbers.
        """
        place = self._place
        while place.given != place.count:
            wanted = self.loaders.wanted(place)
            if not wanted:
                break
            if all(self._has_read(index) for index in wanted):
                batch = self.loaders.batch(self._read)
                self._read = {}
                place.given += 1
                place.last = wanted[-1]
                return batch
            self._read = {index: one for index, one in self._read.items() if index in wanted}
        return END

    def _has_read(self, index: int) -> bool:
        """Read a batch of a loader, unless it was read; tell whether there was one."""
        if index in self._read:
            return True
        batch = self._feeds[index].next_batch()
        if batch is END:
            self._place.ended[index] = True
            if not self.loaders.begins_anew or not self.loaders.wanted(self._place):
                return False
            self._begin_one(index)
            batch = self._feeds[index].next_batch()
        self._read[index] = batch
        return True

    def _begin_one(self, index: int) -> None:
        self._feeds[index].begin(self._passes[index])
        self._passes[index] += 1

    def _each(self, do: Callable[[PartFeed], None]) -> None:
        for feed in self._feeds:
            do(feed)


class _Batches:
    """An iterator that may be asked again after an error."""

    def __init__(self, following: Callable[[], Any]) -> None:
        self._following = following

    def __iter__(self) -> _Batches:
        return self

    def __next__(self) -> Any:
        batch = self._following()
        if batch is END:
            raise StopIteration
        return batch


# -- parts -----------------------------------------------------------------------------------------


def _in_order(saved: Mapping[str, Any], names: list[str]) -> list[Any]:
    from_checkpoint = [*saved]
    if from_checkpoint != names:
        raise DataChanged(
            f"The checkpoint has the loaders {from_checkpoint}, and now there are {names}. Give the same, in the same "
            "order."
        )
    return [*saved.values()]


def _length(loader: Any) -> int | None:
    try:
        return len(loader)
    except (TypeError, NotImplementedError):
        return None


def _named(loaders: SeveralLoaders, read: Mapping[int, Any]) -> tuple[str, Any]:
    ((index, batch),) = read.items()
    return loaders.names[index], batch


def _flag(owner: object, named: object) -> bool:
    if not isinstance(named, bool):
        raise BadSetting(f"{type(owner).__name__}(named={named!r}): use True or False.")
    return named


def _weights(names: list[str], weights: Any) -> list[float]:
    if weights is None:
        return [1.0] * len(names)
    if isinstance(weights, Mapping):
        if {str(one) for one in weights} != {*names}:
            raise BadSetting(
                f"Mixture(weights={dict(weights)!r}): name each loader once: {', '.join(names)}."
            )
        weights = [weights[name] for name in names]
    if not isinstance(weights, Sequence) or isinstance(weights, str):
        weights = [weights]
    numbers = [one for one in weights if isinstance(one, int | float) and 0 <= one < float("inf")]
    if len(numbers) != len(weights) or len(weights) != len(names) or not sum(numbers):
        raise BadSetting(
            f"Mixture(weights={weights!r}): give a number from 0 for each of the {len(names)} loaders, "
            "and not 0 for all."
        )
    return [float(one) for one in numbers]
