"""Where an epoch stands in the order that all ranks share, so that other ranks can go on with it.

`DistributedSampler` deals one order of an epoch out to the ranks in turns. After some batches the
ranks together have read a beginning of that order: what follows may be dealt to any number of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, repeat
from typing import Any

from torch.utils.data import BatchSampler, DataLoader, DistributedSampler, SequentialSampler

from statemachine_trainer.data.indices import Plan


@dataclass(frozen=True)
class Dealer:
    """A loader whose sampler deals out an order that it shares with those of other ranks.

    Attributes:
        sampler: Its sampler. One that reads all samples in their order is that of a single rank.
        batch_size: Samples in a batch of one rank.
        drop_last: Whether the loader leaves out a last batch that is not full.
        rank: Which of the ranks that share the order it deals to.
        ranks: How many they are.
    """

    sampler: DistributedSampler[Any] | SequentialSampler
    batch_size: int
    drop_last: bool
    rank: int
    ranks: int

    @classmethod
    def of(cls, loader: DataLoader[Any]) -> Dealer | None:
        """Return that of a loader; None if its order is not known to other ranks."""
        batches: Any = loader.batch_sampler
        if type(batches) is not BatchSampler:
            return None
        sampler: Any = batches.sampler
        size, drop_last = batches.batch_size, batches.drop_last
        if type(sampler) is DistributedSampler:
            return cls(sampler, size, drop_last, sampler.rank, sampler.num_replicas)
        if type(sampler) is SequentialSampler:
            return cls(sampler, size, drop_last, 0, 1)
        return None

    @property
    def items(self) -> int:
        """How many samples the order has."""
        sampler: Any = self.sampler
        return len(sampler.dataset) if hasattr(sampler, "dataset") else len(sampler)

    @property
    def order(self) -> list[Any]:
        """What the order of an epoch follows from: whether it is shuffled, and by which seed."""
        sampler = self.sampler
        if isinstance(sampler, DistributedSampler) and sampler.shuffle:
            return ["shuffled", sampler.seed]
        return ["as it is"]

    def whole(self) -> list[int]:
        """Return the order of the epoch that the sampler was told of, of which it deals out a part."""
        sampler = self.sampler
        if not isinstance(sampler, DistributedSampler):
            return [*sampler]
        alone: DistributedSampler[Any] = DistributedSampler(
            sampler.dataset, 1, 0, shuffle=sampler.shuffle, seed=sampler.seed
        )
        alone.set_epoch(sampler.epoch)
        return [*alone]

    def mine(self, rest: Sequence[int], whole: Sequence[int]) -> list[int]:
        """Return which samples of the rest of an order are for this rank: as many as for each other.

        As the sampler does, it leaves out what does not divide, or fills up with the first of the order.
        """
        if getattr(self.sampler, "drop_last", False):
            return [*rest[: len(rest) - len(rest) % self.ranks][self.rank :: self.ranks]]
        missing = -len(rest) % self.ranks
        again = [*whole] * -(-missing // max(1, len(whole)))
        return [*rest, *again[:missing]][self.rank :: self.ranks]


@dataclass(frozen=True)
class Deal:
    """The rest of an epoch, dealt out to other ranks than its beginning was.

    Attributes:
        samples: Samples of the order that were read before.
        batches: Batches in which each of the former ranks has read them.
    """

    samples: int
    batches: int

    def plan(self, loader: DataLoader[Any]) -> tuple[Plan, int]:
        """Return the batches of this rank, and how many there are with those read before.

        Each of those stands for one that other ranks have read, and is empty.
        """
        dealer = Dealer.of(loader)
        assert dealer is not None, "its order is not known"
        whole, size = dealer.whole(), dealer.batch_size
        mine = dealer.mine(whole[self.samples :], whole)
        stop = len(mine) - len(mine) % size if dealer.drop_last else len(mine)
        batches = [mine[first : first + size] for first in range(0, stop, size)]

        def arranged(_: Iterator[Any]) -> Iterator[Any]:
            return chain(repeat([], self.batches), iter(batches))

        return Plan(mine, arranged, repeats=False), self.batches + len(batches)


def cursor(loader: DataLoader[Any], deal: Deal | None) -> dict[str, Any] | None:
    """Return from what it follows which samples of an epoch all ranks together have read; None if that is not known.

    Args:
        loader: The loader of this rank.
        deal: How the rest of the epoch was dealt out, if its beginning was to others.
    """
    dealer = Dealer.of(loader)
    if dealer is None:
        return None
    return {
        "rank": dealer.rank,
        "ranks": dealer.ranks,
        "batch_size": dealer.batch_size,
        "items": dealer.items,
        "order": dealer.order,
        "before": [0, 0] if deal is None else [deal.samples, deal.batches],
    }


def deal_of(
    state: Mapping[str, Any] | None, loader: DataLoader[Any], position: int, *, anew: bool
) -> Deal | None:
    """Return how the rest of the epoch of a cursor is dealt out here; None if as it began.

    Args:
        state: What `cursor` returned when the state was taken.
        loader: The loader here.
        position: Batches of the epoch that each rank had read.
        anew: Whether the ranks are others than then. None is returned if they deal out another order.
    """
    dealer = Dealer.of(loader)
    if state is None or dealer is None or state["order"] != dealer.order:
        return None
    before = Deal(*state["before"])
    if not anew:
        return before if before.batches else None
    read = (position - before.batches) * state["batch_size"] * state["ranks"]
    return Deal(min(before.samples + read, state["items"]), position)
