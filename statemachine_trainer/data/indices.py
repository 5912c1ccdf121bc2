"""The batches of indices of one pass: given out, counted, and given again from any position.

Torch's samplers draw all that they draw from the global generator at one known moment: when their
first index is asked for. Taking all indices at that moment changes nothing, and a pass is found
again by beginning it anew with the generators as they were at that moment, and skipping. A sampler
that nobody knows may draw whenever it likes, between draws of the model: if it has a length, all of
its indices are taken when the first is asked for, so that from then on nothing else matters.
"""

from __future__ import annotations

import zlib
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any

from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

from statemachine_trainer.data.data_errors import DataChanged, PassBroken
from statemachine_trainer.data.seeding import Order, plain_index


@dataclass(frozen=True)
class Plan:
    """How the batches of a pass are taken from a sampler.

    ``source`` is what is iterated; ``arrange`` makes the pass's batches of that iterator, when the
    first is asked for; ``repeats`` says whether an index may come twice in a pass; ``unknown`` whether the
    sampler is of a class that may follow from anything.
    """

    source: Iterable[Any]
    arrange: Callable[[Iterator[Any]], Iterator[Any]]
    repeats: bool
    unknown: bool = False


def plan_for(loader: DataLoader[Any]) -> Plan:
    """The plan that gives the very indices that a plain loop over the loader would read."""
    if loader.batch_sampler is None:
        if _draws_at_once(loader.sampler):
            return Plan(loader.sampler, lambda it: iter([*it]), _may_repeat(loader.sampler))
        return _plan_for_unknown(loader.sampler)
    batches: Any = loader.batch_sampler
    if type(batches) is not BatchSampler:
        return _plan_for_unknown(batches)
    sampler, size, drop_last = batches.sampler, batches.batch_size, batches.drop_last
    if type(sampler) is SequentialSampler:
        sampler = range(len(sampler))
    if isinstance(sampler, range):
        return Plan(sampler, lambda _: _slices(sampler, size, drop_last), repeats=False)
    if _draws_at_once(sampler):
        return Plan(sampler, lambda it: _slices([*it], size, drop_last), _may_repeat(sampler))
    if type(sampler) is RandomSampler and not _draws_in_rounds(sampler):
        return Plan(batches, iter, repeats=False)
    return _plan_for_unknown(batches)


class IndexStream:
    """What a `DataLoader` takes for its sampler during one pass, and what knows where it stands.

    Args:
        ahead: how many batches may be under way in workers
        batched: whether an item is a batch of indices, or one index
        epoch: the epoch to write on each `Order`; ``None`` gives bare indices
        once: take the sampler's iterator once a pass; torch takes it twice where there are workers
        record: writes down every generator that the sampler may draw from
        restore: puts those generators back
    """

    def __init__(
        self,
        plan: Plan,
        *,
        ahead: int,
        batched: bool,
        epoch: int | None,
        once: bool,
        record: Callable[[], dict[str, Any]],
        restore: Callable[[dict[str, Any]], None],
    ) -> None:
        self.plan = plan
        self.drawn = 0  # batches taken from the sampler, prefetched ones included
        self.exhausted = False
        self.start: dict[str, Any] = {}
        self._ahead = ahead
        self._batched = batched
        self._epoch = epoch
        self._once = once
        self._record = record
        self._restore = restore
        self._sampler: Iterator[Any] | None = None
        self._live: Iterator[Any] | None = None
        self._again: deque[Any] = deque()  # drawn before, to be given once more
        self._last: deque[Any] = deque(maxlen=ahead + 1)
        self._newest: Any = None
        self._checksum = 0  # of all indices drawn from a sampler that is not known
        self._seen: Counter[Any] = Counter()
        self._error: BaseException | None = None

    def __iter__(self) -> Iterator[Any]:
        if self._live is None and (self._sampler is None or not self._once):
            self.start["iterated"] = self._record()
            self._sampler = iter(self.plan.source)
        return self._give()

    def is_over(self, position: int) -> bool:
        """Whether all batches have been given and the sampler has no more."""
        return self.exhausted and position == self.drawn

    def go_back(self, position: int) -> None:
        """Give again the batches from ``position`` on: those that were drawn, but never arrived."""
        self._again = deque([*self._last][len(self._last) - (self.drawn - position) :])

    def state_dict(self) -> dict[str, Any]:
        return {
            "start": dict(self.start),
            "drawn": self.drawn,
            "exhausted": self.exhausted,
            "mark": self._mark(),
            "checksum": self._checksum if self.plan.unknown else None,
        }

    def resume(self, state: dict[str, Any], position: int) -> None:
        """Stand where the pass of ``state`` stood after ``position`` batches.

        Moves the generators; the caller puts them where they belong.
        """
        self.start = dict(state["start"])
        self._restore(self.start["iterated"])
        sampler = iter(self.plan.source)
        self._restore(self.start["drawn"])
        self._live = self.plan.arrange(sampler)
        self._last = deque(maxlen=max(self._ahead, state["drawn"] - position) + 1)
        for indices in islice(self._live, state["drawn"]):
            self._draw(indices)
        over = next(self._live, None) is None if state["exhausted"] else False
        same = self.drawn == state["drawn"] and over == state["exhausted"]
        checksum = state.get("checksum")  # earlier versions wrote none
        all_same = checksum is None or not self.plan.unknown or checksum == self._checksum
        if not same or not all_same or not self._is_marked(state["mark"]):
            raise DataChanged(
                "The sampler gives other indices than it gave when the state was taken: "
                f"{_innermost(self.plan.source)} keeps state that is not in a generator, or follows from what "
                "training changes, such as the weights. Give it state_dict and load_state_dict, or let it follow "
                "from set_epoch(epoch)."
            )
        self.exhausted = over
        self.go_back(position)

    def stand_after(self, position: int) -> None:
        """Stand after so many batches, of which others have drawn the indices."""
        self.start = {"iterated": self._record(), "drawn": self._record()}
        self._live = self.plan.arrange(iter(self.plan.source))
        for indices in islice(self._live, position):
            self._draw(indices)

    def _give(self) -> Iterator[Any]:
        while self._again:
            yield self._again.popleft()
        if self.exhausted:
            return
        try:
            for indices in self._begun():
                self._error = None
                yield self._draw(indices)
        except GeneratorExit:
            raise
        except BaseException as error:
            self._error = error
            raise
        if self._error is not None:
            raise PassBroken(
                f"The sampler raised {self._error!r} and can not go on. Begin the pass anew."
            ) from self._error
        self.exhausted = True

    def _begun(self) -> Iterator[Any]:
        if self._live is None:
            assert self._sampler is not None
            self.start["drawn"] = self._record()
            self._live = self.plan.arrange(self._sampler)
        return self._live

    def _draw(self, indices: Any) -> Any:
        given = indices if self._epoch is None else self._order(self._epoch, indices)
        self.drawn += 1
        self._last.append(given)
        self._newest = indices
        if self.plan.unknown:
            self._checksum = zlib.crc32(repr(indices).encode(), self._checksum)
        return given

    def _order(self, epoch: int, indices: Any) -> Order:
        each = indices if self._batched else [indices]
        if not self.plan.repeats:
            return Order(epoch, indices, [0] * len(each))
        return Order(epoch, indices, [self._times_seen(index) for index in each])

    def _times_seen(self, index: Any) -> int:
        key = plain_index(index)
        times = self._seen[key]
        self._seen[key] += 1
        return times

    def _mark(self) -> int:
        """A checksum of the last indices drawn: another permutation is noticed."""
        return zlib.crc32(repr(self._newest).encode()) if self._last else 0

    def _is_marked(self, mark: int) -> bool:
        """Whether a checksum is of the last indices; earlier versions took that of the `Order`."""
        if not self._last:
            return mark == self._mark()
        return mark in (self._mark(), zlib.crc32(repr(self._last[-1]).encode()))


def _innermost(sampler: Any) -> str:
    return type(getattr(sampler, "sampler", sampler)).__name__


def _draws_at_once(sampler: Any) -> bool:
    """Whether taking all indices at once draws what taking them one by one draws."""
    if type(sampler) is RandomSampler:
        return sampler.generator is None  # it makes a generator of its own from one draw
    known = (SequentialSampler, SubsetRandomSampler, WeightedRandomSampler, DistributedSampler)
    return type(sampler) in (*known, list, tuple, range)


def _draws_in_rounds(sampler: RandomSampler) -> bool:
    return sampler.replacement or sampler.num_samples > len(sampler.data_source)


def _may_repeat(sampler: Any) -> bool:
    if type(sampler) is RandomSampler:
        return _draws_in_rounds(sampler)
    return type(sampler) not in (SequentialSampler, DistributedSampler, range)


def _plan_for_unknown(source: Iterable[Any]) -> Plan:
    try:
        count = len(source)  # type: ignore[arg-type]
    except (TypeError, NotImplementedError):
        count = 0  # perhaps endless
    return Plan(source, lambda it: _taken_ahead(_copies(it), count), repeats=True, unknown=True)


def _taken_ahead(indices: Iterator[Any], count: int) -> Iterator[Any]:
    return chain([*islice(indices, count)], indices)


def _copies(indices: Iterator[Any]) -> Iterator[Any]:
    # A sampler may fill one list over and over, while workers still wait for it.
    return ([*item] if isinstance(item, list) else item for item in indices)


def _slices(order: Sequence[Any], size: int, drop_last: bool) -> Iterator[list[Any]]:
    stop = len(order) - len(order) % size if drop_last else len(order)
    return (list(order[first : first + size]) for first in range(0, stop, size))
