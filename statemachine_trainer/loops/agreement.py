"""Agreement of the ranks that train one model, so that no rank waits for ever.

The ranks of a run must make the same transitions: if one stops a batch earlier, the others wait for
gradients that never come. Decisions based on counters are the same on all ranks. Events from
outside (a posted event, a signal of the operating system, the time) and metrics of a part of the
data differ, so the ranks agree on them here.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any, Final, cast

import torch
import torch.distributed as dist

from statemachine_trainer.loops.base import TrainingLoop, training_loops
from statemachine_trainer.loops.context import Context
from statemachine_trainer.loops.left_out import LeftOut
from statemachine_trainer.loops.meetings import Meetings, meeting_points
from statemachine_trainer.loops.metrics.numbers import Number
from statemachine_trainer.loops.metrics.table import Metrics
from statemachine_trainer.loops.ranks_compared import (
    RanksDiffer,
    check_alone,
    check_same,
    compare_weights,
    warn_of_restarts,
)
from statemachine_trainer.machine.driver import Driver
from statemachine_trainer.machine.program import Program
from statemachine_trainer.machine.signals import Moment, Subscription
from statemachine_trainer.parallel.gradient_sync import GradientSync, first_of_each
from statemachine_trainer.parallel.ranks import Json, Ranks

_FIRST: Final = 2**31
_LAST: Final = -_FIRST
_COMPARED: Final = -1


class Agreement:
    """Makes all ranks of a fit handle events from outside at the same boundary.

    They meet where events are taken: at the entry of each state that has an edge for a posted
    event, which is once a batch in the default tree (see `meetings`). An event posted at one rank is
    posted at all. A checkpoint requested at one rank is written by all. A signal of the operating
    system that one rank receives stops all. All ranks use the same clock, so limits and intervals in
    seconds are due at the same batch.

    Metrics that were logged as numbers are reduced over the ranks when a validation or an epoch ends.

    Args:
        ranks: The ranks.
        trainer: The trainer of this rank.
        context: The context of its fit, which was just assembled.

    Attributes:
        clock: Returns the seconds that the fit has run, as agreed at the last meeting.
    """

    def __init__(self, ranks: Ranks, trainer: Any, context: Context) -> None:
        self._ranks = ranks
        self._board = trainer.board
        self._driver = driver = cast(Driver, trainer.driver)
        self._left_out = LeftOut(ranks, context)
        self._meetings = Meetings(ranks, driver, lambda: trainer.checkpoints, self._left_out)
        self.clock = self._meetings.clock
        self._steps_before: int | None = None
        self._met_at = ""
        self._sync = sync = context.steps.sync
        sync.objector = self._objector
        sync.largest = ranks.largest
        sync.mean = self._mean
        sync.check_left_out = self._left_out.check_all
        sync.batch = lambda: context.counts.batch + 1
        if sync.can_stand_in:
            sync.leave_out = self._left_out.leave_out
        # At the first batch only, because it costs a look into the batch.
        self._compares = [*self._first(f"{driver.name}*.fetch:fetched", self._compare_batches)]
        self._subscriptions = [
            *(self._board.watch(path, self._meet) for path in meeting_points(driver)),
            *self._first(f"{driver.name}*.validation_start", self._share_buffers),
            *self._compares,
            *self._first(f"{driver.name}*.validation_end", self._reduce_validation),
            *self._first(f"{driver.name}*.epoch_end", self._reduce_training),
        ]
        if sync.defers:
            windows = Windows(driver, context, sync)
            flush = [*self._first(f"{driver.name}*.drain:flush", windows.average_open)]
            self._subscriptions += flush
            if flush:
                sync.averages = windows.closes
        # After all other receivers, which may have called the model.
        self._subscriptions += self._first(f"{driver.name}*.optimizer_step", sync.settle, _LAST)

    def leave(self) -> None:
        """End the agreement: another fit is assembled."""
        self._meetings.leave()
        for name in ("objector", "largest", "mean", "leave_out", "check_left_out", "batch"):
            vars(self._sync).pop(name, None)
        for one in self._subscriptions:
            one.cancel()

    # -- meeting ---------------------------------------------------------------------------------

    def _meet(self, _sender: Any, moment: Moment) -> None:
        if moment.path != self._met_at:  # here they wait for each other
            self._met_at = moment.path
            self._sync.check_passes()
        self._meetings.meet(moment.path)
        self._compare_weights()

    def _compare_weights(self) -> None:
        """Check once, after the first step, that gradients are averaged."""
        context: Context = self._driver.context
        if self._steps_before is None:
            self._steps_before = context.counts.step
        if 0 <= self._steps_before < context.counts.step:
            self._steps_before = _COMPARED
            self._left_out.check_all()  # which would be another reason
            compare_weights(self._ranks, context.model, self._sync)

    def _compare_batches(self) -> None:
        """Check once, at the first batch, that each rank reads different data."""
        # Most runs have one process, and do without it.
        from statemachine_trainer.loops.data_compared import compare_batches

        for one in self._compares:
            one.cancel()
        compare_batches(self._ranks, self._driver.context)

    def _objector(self, fine: bool) -> int | None:
        found = self._ranks.objector(fine)
        if found is not None:
            self._sync.settle()  # there was a forward pass, and no backward pass follows it
        return found

    def _mean(self, loss: torch.Tensor) -> torch.Tensor:
        mean = loss.detach() / self._ranks.size
        dist.all_reduce(mean)
        return mean

    # -- evaluation ------------------------------------------------------------------------------

    def _share_buffers(self) -> None:
        """Give all ranks the buffers of rank 0, so that all evaluate the model that checkpoints hold."""
        self._left_out.check_all()
        self._sync.share_buffers()

    def _reduce_validation(self) -> None:
        table = self._driver.context.validation_metrics
        reduce_over_ranks(self._ranks, table, data_ranks=self._sync.data_ranks)

    def _reduce_training(self) -> None:
        self._left_out.check_all()
        table = self._driver.context.train_metrics
        reduce_over_ranks(self._ranks, table, data_ranks=self._sync.data_ranks)

    # -- parts -----------------------------------------------------------------------------------

    def _first(self, name: str, receiver: Any, priority: int = _FIRST) -> Iterator[Subscription]:
        """Subscribe before all other receivers, or after them, if the tree has such a state."""
        if self._board.has(name):
            yield self._board.on(name, receiver, priority=priority)


def agree(ranks: Ranks, trainer: Any, context: Context) -> Agreement:
    """Make the agreement of a newly assembled fit.

    A collective.

    Args:
        ranks: The ranks.
        trainer: The trainer of this rank.
        context: The context of the fit.

    Raises:
        RanksDiffer: The ranks were given different things, so that one would wait for ever.
        SettingError: A setting would make one rank act alone.
    """
    warn_of_restarts(ranks.rank)
    check_same(ranks, trainer, context)  # first: the next one may raise at one rank alone
    check_alone(ranks, trainer, context)
    context.steps.sync.prepare()
    agreement = Agreement(ranks, trainer, context)
    context.clock = agreement.clock
    return agreement


# -- Accumulation ---------------------------------------------------------------------------------


class Windows:
    """Decides which backward passes average gradients: only the last of each accumulation window.

    This holds if a single loop steps the optimizers, and uses gradients only at its steps. Other
    loops may use gradients after each backward pass, so they are averaged each time.

    Args:
        driver: The driver of the fit.
        context: The context of the fit.
        sync: How the gradients of its model are averaged.
    """

    def __init__(self, driver: Driver, context: Context, sync: GradientSync) -> None:
        self._driver = driver
        self._context = context
        self._sync = sync
        self._program: Program | None = None
        self._found: TrainingLoop | None = None

    def closes(self) -> bool:
        """Whether the next backward pass is the last of its window."""
        loop = self._loop()
        size = None if loop is None else loop.window_size()
        slot = self._context.slots[self._context.optimizer_idx]
        open_size = slot.window and slot.size  # a window ends with the size that it began with
        return size is None or slot.window + 1 >= (open_size or size)

    def average_open(self) -> None:
        """Average the gradients of windows that are open at the end of the data. A collective."""
        loop = self._loop()
        if loop is not None and loop.window_size() is not None:
            for slot in self._context.slots:
                if slot.window:
                    self._sync.average(slot.parameters)

    def _loop(self) -> TrainingLoop | None:
        """Return the only loop that steps the optimizers; None if there are several."""
        driver = self._driver
        if self._program is not driver.program:  # the first time, or loops were replaced
            loops = [loop for _, loop in training_loops(driver.root) if loop.steps_optimizers]
            self._program, self._found = driver.program, loops[0] if len(loops) == 1 else None
        return self._found


# -- Metrics -------------------------------------------------------------------------------------


def reduce_over_ranks(
    ranks: Ranks,
    table: Metrics,
    only: Collection[str] | None = None,
    data_ranks: list[int] | None = None,
) -> None:
    """Reduce the numbers of a table over the ranks. Metric objects reduce themselves. A collective.

    Args:
        ranks: The ranks.
        table: The metrics of a pass.
        only: Names of the numbers; all of them unless given.
        data_ranks: Of the model, where some ranks read the same data: these count once.
    """
    from statemachine_trainer.loops.metrics.joining import joined, plain

    entries = table._entries
    mine = {
        name: plain(name, one)
        for name, one in entries.items()
        if isinstance(one, Number) and (only is None or name in only)
    }
    all_told = cast("list[dict[str, Any]]", ranks.from_all(cast(Json, mine)))
    told = first_of_each(data_ranks, all_told)
    for name in dict.fromkeys(name for one in told for name in one):
        ours = [one[name] for one in told if name in one]
        _check_alike(
            name, {rank: one[name]["reduce"] for rank, one in enumerate(all_told) if name in one}
        )
        entries[name] = Number.restored(joined(ours))
    table._numbers = None
    table.compute()  # here, where all ranks are: some objects communicate in `compute`


def _check_alike(name: str, reduces: dict[int, str]) -> None:
    """Check that all ranks reduce a metric alike."""
    first, *others = reduces.items()
    for rank, how in others:
        if how != first[1]:
            raise RanksDiffer(
                f"{name!r} is logged with reduce={first[1]!r} at rank {first[0]}, and with reduce={how!r} at rank "
                f"{rank}. Log it alike at each rank, or under another name."
            )
