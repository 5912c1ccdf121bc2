"""Agreement of the ranks that train one model, so that no rank waits for ever.

The ranks of a run must make the same transitions: if one stops a batch earlier, the others wait for
gradients that never come. Decisions based on counters are the same on all ranks. Events from
outside (a posted event, a signal of the operating system, the time) and metrics of a part of the
data differ, so the ranks agree on them here.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from functools import reduce
from typing import Any, Final, cast

from statemachine_trainer.loops.base import TrainingLoop, training_loops
from statemachine_trainer.loops.context import Context
from statemachine_trainer.loops.metrics.numbers import Number
from statemachine_trainer.loops.metrics.table import Metrics
from statemachine_trainer.loops.ranks_compared import (
    check_alone,
    check_environment,
    check_same,
    compare_weights,
    warn_of_restarts,
)
from statemachine_trainer.machine.driver import Driver
from statemachine_trainer.machine.errors import UnknownSignal
from statemachine_trainer.machine.loop import SEPARATOR
from statemachine_trainer.machine.program import Program
from statemachine_trainer.machine.signals import Moment, Subscription
from statemachine_trainer.parallel.gradient_sync import GradientSync
from statemachine_trainer.parallel.ranks import Json, Ranks

_FIRST: Final = 2**31
_LAST: Final = -_FIRST
_COMPARED: Final = -1


class Agreement:
    """Makes all ranks of a fit handle events from outside at the same boundary.

    They meet where events are taken: at the entry of each state that has an edge for a posted
    event, which is once a batch in the default tree. An event posted at one rank is posted at all.
    A checkpoint requested at one rank is written by all. A signal of the operating system that one
    rank receives stops all. From batch to batch this takes effect one meeting later, so that no
    rank waits for the answers. All ranks use the same clock, so limits and intervals in seconds are
    due at the same batch.

    Metrics that were logged as numbers are reduced over the ranks when a validation or an epoch ends.

    Args:
        ranks: The ranks.
        trainer: The trainer of this rank.
        context: The context of its fit, which was just assembled.
    """

    def __init__(self, ranks: Ranks, trainer: Any, context: Context) -> None:
        self._ranks = ranks
        self._trainer = trainer
        self._driver = driver = cast(Driver, trainer.driver)
        driver.post_to = self  # posted events go to all ranks
        self._wishes: set[str] = set()
        self._asked: tuple[list[str], Callable[[], list[float]]] | None = None
        self._on_the_way: list[str] = []
        self._path = ""
        self._seconds = self._ran = 0.0
        self._read_at = time.monotonic()
        self._entries = driver.entries
        self._steps_before: int | None = None
        self._sync = sync = context.steps.sync
        # At the first batch only, because it costs a look into the batch.
        self._compares = [*self._first(f"{driver.name}*.fetch:fetched", self._compare_batches)]
        self._subscriptions = [
            *(trainer.board.watch(path, self._meet) for path in _meeting_points(driver)),
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
        self._driver.post_to = None
        for one in self._subscriptions:
            one.cancel()

    def post(self, event: str) -> None:
        """Post an event to all ranks. After the end it does nothing.

        May be called from receivers, other threads and handlers of operating system signals.

        Raises:
            UnknownEvent: No loop takes it.
        """
        if event not in self._driver.program.postable:
            self._driver.post_here(event)  # raises an error that names the known events
        if self._driver.path is not None:
            self._wishes.add(event)

    def waiting(self) -> list[str]:
        """Return the events that were posted here and not agreed on yet."""
        return [*self._on_the_way, *self._wishes]

    def clock(self) -> float:
        """Return the seconds that the fit has run, as agreed at the last meeting."""
        return self._seconds

    # -- meeting ---------------------------------------------------------------------------------

    def _meet(self, _sender: Any, moment: Moment) -> None:
        """Exchange events with the other ranks, and handle those that were agreed on.

        If the fit returns to the state of the last meeting, as it does from batch to batch, the
        answers of that meeting are handled here, so that no rank waits.
        """
        again, self._path = moment.path == self._path, moment.path
        stops = self._take()
        self._ask()
        if not again or stops:
            self._take()
        self._compare_weights()

    def _ask(self) -> None:
        """Begin an exchange with the other ranks, and send the events of this rank."""
        checkpoints = self._trainer.checkpoints
        asked = (0, False) if checkpoints is None else checkpoints.asked()
        events = sorted(self._driver.program.postable)
        wishes = [event in self._wishes for event in events]
        self._on_the_way = [event for event, wished in zip(events, wishes, strict=True) if wished]
        for event, wished in zip(events, wishes, strict=True):
            if wished:  # remove only these: a thread may have just posted others
                self._wishes.discard(event)
        answer = self._ranks.begin_largest([self._read_clock(), *asked, *wishes])
        self._asked = events, answer

    def _take(self) -> bool:
        """Handle what was agreed on in the last exchange, if there was one; return whether the ranks stop."""
        if self._asked is None:
            return False
        (events, answer), self._asked = self._asked, None
        self._seconds, signum, written, *wishes = answer()
        for event, wished in zip(events, wishes, strict=True):
            if wished:
                self._wishes.discard(event)  # all ranks may wish it, some a bit later
                self._driver.post_here(event)
        self._on_the_way = []
        if self._trainer.checkpoints is not None:
            self._trainer.checkpoints.agreed(int(signum), bool(written))
        return bool(signum)

    def _read_clock(self) -> float:
        """Return the seconds that this rank has run; time between two runs does not count."""
        before, self._read_at = self._read_at, time.monotonic()
        ran, self._entries = self._entries == self._driver.entries, self._driver.entries
        self._ran += self._read_at - before if ran else 0.0
        return self._ran

    def _compare_weights(self) -> None:
        """Check once, after the first step, that gradients are averaged."""
        context: Context = self._driver.context
        if self._steps_before is None:
            self._steps_before = context.counts.step
        if 0 <= self._steps_before < context.counts.step:
            self._steps_before = _COMPARED
            compare_weights(self._ranks, context.model)

    def _compare_batches(self) -> None:
        """Check once, at the first batch, that each rank reads different data."""
        # Most runs have one process, and do without it.
        from statemachine_trainer.loops.data_compared import compare_batches

        for one in self._compares:
            one.cancel()
        compare_batches(self._ranks, self._driver.context)

    # -- evaluation ------------------------------------------------------------------------------

    def _share_buffers(self) -> None:
        """Give all ranks the buffers of rank 0, so that all evaluate the model that checkpoints hold."""
        self._sync.share_buffers()

    def _reduce_validation(self) -> None:
        self._reduce(self._driver.context.validation_metrics)

    def _reduce_training(self) -> None:
        self._reduce(self._driver.context.train_metrics)

    def _reduce(self, table: Metrics) -> None:
        """Reduce the numbers of a table over the ranks. Metric objects reduce themselves."""
        entries = table._entries
        mine = {n: _plain(n, one) for n, one in entries.items() if isinstance(one, Number)}
        told = cast("list[dict[str, Any]]", self._ranks.from_all(cast(Json, mine)))
        for name in dict.fromkeys(name for one in told for name in one):
            joined = reduce(_joined, [one[name] for one in told if name in one])
            entries[name] = Number.restored(joined)
        table._numbers = None
        table.compute()  # here, where all ranks are: some objects communicate in `compute`

    # -- parts -----------------------------------------------------------------------------------

    def _first(self, name: str, receiver: Any, priority: int = _FIRST) -> Iterator[Subscription]:
        """Subscribe before all other receivers, or after them, if the tree has such a state."""
        try:
            yield self._trainer.board.on(name, receiver, priority=priority)
        except UnknownSignal:
            return


def agree(trainer: Any, context: Context, before: Agreement | None) -> Agreement | None:
    """Make the agreement of a newly assembled fit; None without ranks.

    A collective.

    Args:
        trainer: The trainer of this rank.
        context: The context of the fit.
        before: The agreement of the previous fit, which ends.

    Raises:
        RanksDiffer: The ranks were given different things, so that one would wait for ever.
        SettingError: A setting would make one rank act alone.
    """
    ranks = Ranks.here()
    check_environment(ranks, trainer)
    if ranks is not None:
        warn_of_restarts(ranks.rank)
        check_alone(ranks, trainer, context)
        check_same(ranks, trainer, context)
        context.steps.sync.prepare()
    if before is not None:
        before.leave()
    if ranks is None:
        return None
    agreement = Agreement(ranks, trainer, context)
    context.clock = agreement.clock
    return agreement


def _meeting_points(driver: Driver) -> list[str]:
    """Return the states before which posted events may be taken; all states if there are none.

    States of evaluations are left out, because ranks may evaluate different numbers of batches.
    """
    evaluations = tuple(
        path + SEPARATOR
        for path, loop in training_loops(driver.root, driver.name)
        if loop.evaluates
    )
    nodes = driver.program.nodes
    paths = [path for path in nodes if not path.startswith(evaluations)]
    return [path for path in paths if nodes[path].posted] or paths


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
                    self._sync.average_open(slot.parameters)

    def _loop(self) -> TrainingLoop | None:
        """Return the only loop that steps the optimizers; None if there are several."""
        driver = self._driver
        if self._program is not driver.program:  # the first time, or loops were replaced
            loops = [loop for _, loop in training_loops(driver.root) if loop.steps_optimizers]
            self._program, self._found = driver.program, loops[0] if len(loops) == 1 else None
        return self._found


# -- Metrics -------------------------------------------------------------------------------------


def _plain(name: str, number: Number) -> dict[str, Any]:
    """Return the state of a number as JSON, with the values on devices added."""
    state: dict[str, Any] = number.state(name, None)
    totals = [state["total"], *(float(one) for one in state["totals_on"].values())]
    newest = state["newests_on"].get(state["newest_on"], state["newest"])
    folded = {"total": _FOLDS[number.reduce](totals), "newest": float(newest)}
    return {**state, **folded, "newest_on": None, "totals_on": {}, "newests_on": {}}


def _joined(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """Merge two accumulators of a metric. For "last" the value of the first rank counts."""
    fold = _FOLDS[one["reduce"]]
    total = fold([one["total"], other["total"]])
    return {**one, "total": total, "weight": one["weight"] + other["weight"]}


def _extreme(choose: Any) -> Any:
    def fold(values: list[float]) -> float:
        return next((value for value in values if value != value), choose(values))

    return fold


_FOLDS: Final[Mapping[str, Any]] = {
    "mean": sum,
    "sum": sum,
    "min": _extreme(min),
    "max": _extreme(max),
    "last": lambda values: values[0],
}
