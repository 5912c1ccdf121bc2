"""Several ranks that train one model: what they have to agree on, so that none waits for ever.

Ranks of a run have to make the same transitions: one that stops a batch earlier than another leaves
it waiting for gradients that never come. What follows from counters is the same at all of them.
What comes from outside (a posted event, a signal of the system, the time) or was measured on a
part of the data is not, and is agreed on here.
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
    compare_batches,
    compare_weights,
)
from statemachine_trainer.machine.driver import Driver
from statemachine_trainer.machine.errors import UnknownSignal
from statemachine_trainer.machine.loop import SEPARATOR
from statemachine_trainer.machine.program import Program
from statemachine_trainer.machine.signals import Moment, Subscription
from statemachine_trainer.parallel.ranks import Json, Ranks
from statemachine_trainer.parallel.wrapped import Wrapped

_FIRST: Final = 2**31
_COMPARED: Final = -1


class Agreement:
    """Lets all ranks of a fit take what comes from outside at the same boundary.

    They meet where events are taken: at the entry of each state that has an edge for a posted
    event, so once a batch in the default tree. What was posted at any of them until then is posted
    at all; a checkpoint that one was asked for is written by all; a signal of the system that one
    received stops all. From batch to batch that happens one meeting later, when the answers have
    come in by themselves. The clock of the run is the same for all, so that limits and intervals
    in seconds are due at the same batch.

    Metrics that were logged as numbers are reduced over the ranks as a validation or an epoch ends.

    Args:
        ranks: The ranks.
        trainer: The trainer of this rank.
        context: The context of its fit, which was just assembled.
    """

    def __init__(self, ranks: Ranks, trainer: Any, context: Context) -> None:
        self._ranks = ranks
        self._trainer = trainer
        self._driver = driver = cast(Driver, trainer.driver)
        driver.post_to = self  # whoever posts, posts to all ranks
        self._wishes: set[str] = set()
        self._asked: tuple[list[str], Callable[[], list[float]]] | None = None
        self._on_the_way: list[str] = []
        self._path = ""
        self._seconds = self._ran = 0.0
        self._read_at = time.monotonic()
        self._entries = driver.entries
        self._steps_before: int | None = None
        self._wrapped = context.steps.wrapped
        # At the first batch alone: it costs a look into the batch.
        self._compares = [*self._first(f"{driver.name}*.fetch:fetched", self._compare_batches)]
        self._subscriptions = [
            *(trainer.board.watch(path, self._meet) for path in _meeting_points(driver)),
            *self._first(f"{driver.name}*.validation_start", self._share_buffers),
            *self._compares,
            *self._first(f"{driver.name}*.validation_end", self._reduce_validation),
            *self._first(f"{driver.name}*.epoch_end", self._reduce_training),
        ]
        if self._wrapped is not None:
            windows = Windows(driver, context, self._wrapped)
            flush = [*self._first(f"{driver.name}*.drain:flush", windows.average_open)]
            self._subscriptions += flush
            if flush:
                self._wrapped.averages = windows.closes

    def leave(self) -> None:
        """Agree on nothing any more: another fit is assembled."""
        self._driver.post_to = None
        for one in self._subscriptions:
            one.cancel()

    def post(self, event: str) -> None:
        """Post an event to all ranks. After the end it does nothing.

        May be called from receivers, other threads and handlers of system signals.

        Raises:
            UnknownEvent: No loop takes it.
        """
        if event not in self._driver.program.postable:
            self._driver.post_here(event)  # its error names those that there are
        if self._driver.path is not None:
            self._wishes.add(event)

    def waiting(self) -> list[str]:
        """Return the events that were posted here and that the others have not agreed on yet."""
        return [*self._on_the_way, *self._wishes]

    def clock(self) -> float:
        """Return the seconds that the fit has run, as agreed on at the last meeting."""
        return self._seconds

    # -- meeting ---------------------------------------------------------------------------------

    def _meet(self, _sender: Any, moment: Moment) -> None:
        """Ask the others, and take what they said.

        Where the fit comes back to the state in which the ranks met last, which is the case from
        batch to batch, what was asked there is taken here, so that nobody waits.
        """
        again, self._path = moment.path == self._path, moment.path
        stops = self._take()
        self._ask()
        if not again or stops:
            self._take()
        self._compare_weights()

    def _ask(self) -> None:
        """Begin to ask the others, and tell them what came in here."""
        checkpoints = self._trainer.checkpoints
        asked = (0, False) if checkpoints is None else checkpoints.asked()
        events = sorted(self._driver.program.postable)
        wishes = [event in self._wishes for event in events]
        self._on_the_way = [event for event, wished in zip(events, wishes, strict=True) if wished]
        for event, wished in zip(events, wishes, strict=True):
            if wished:  # others stay: a thread may have posted them just now
                self._wishes.discard(event)
        answer = self._ranks.begin_largest([self._read_clock(), *asked, *wishes])
        self._asked = events, answer

    def _take(self) -> bool:
        """Do what was agreed on, if anything was asked; tell whether the ranks stop."""
        if self._asked is None:
            return False
        (events, answer), self._asked = self._asked, None
        self._seconds, signum, written, *wishes = answer()
        for event, wished in zip(events, wishes, strict=True):
            if wished:
                self._wishes.discard(event)  # whoever asks for it asks all ranks, some a bit later
                self._driver.post_here(event)
        self._on_the_way = []
        if self._trainer.checkpoints is not None:
            self._trainer.checkpoints.agreed(int(signum), bool(written))
        return bool(signum)

    def _read_clock(self) -> float:
        """The seconds that this rank has run; the time between two runs does not count."""
        before, self._read_at = self._read_at, time.monotonic()
        ran, self._entries = self._entries == self._driver.entries, self._driver.entries
        self._ran += self._read_at - before if ran else 0.0
        return self._ran

    def _compare_weights(self) -> None:
        """Look once, after the first step, whether the gradients are averaged at all."""
        context: Context = self._driver.context
        if self._steps_before is None:
            self._steps_before = context.counts.step
        if 0 <= self._steps_before < context.counts.step:
            self._steps_before = _COMPARED
            compare_weights(self._ranks, context.model)

    def _compare_batches(self) -> None:
        """Look once, at the first batch, whether each rank has data of its own."""
        for one in self._compares:
            one.cancel()
        compare_batches(self._ranks, self._driver.context)

    # -- evaluation ------------------------------------------------------------------------------

    def _share_buffers(self) -> None:
        """Let all ranks evaluate the model that rank 0 writes into checkpoints."""
        if self._wrapped is not None:
            self._wrapped.share_buffers()

    def _reduce_validation(self) -> None:
        self._reduce(self._driver.context.validation_metrics)

    def _reduce_training(self) -> None:
        self._reduce(self._driver.context.train_metrics)

    def _reduce(self, table: Metrics) -> None:
        """Reduce the numbers of a table over the ranks. Metric objects do so themselves."""
        entries = table._entries
        mine = {n: _plain(n, one) for n, one in entries.items() if isinstance(one, Number)}
        told = cast("list[dict[str, Any]]", self._ranks.from_all(cast(Json, mine)))
        for name in dict.fromkeys(name for one in told for name in one):
            joined = reduce(_joined, [one[name] for one in told if name in one])
            entries[name] = Number.restored(joined)
        table._numbers = None
        table.compute()  # here, where all ranks are: some objects wait for the others meanwhile

    # -- parts -----------------------------------------------------------------------------------

    def _first(self, name: str, receiver: Any) -> Iterator[Subscription]:
        """Listen before all others, if the tree has such a state."""
        try:
            yield self._trainer.board.on(name, receiver, priority=_FIRST)
        except UnknownSignal:
            return


def agree(trainer: Any, context: Context, before: Agreement | None) -> Agreement | None:
    """Let the ranks agree about the fit that was just assembled; None where there are none.

    A collective.

    Args:
        trainer: The trainer of this rank.
        context: The context of the fit.
        before: The agreement about the fit before, which ends.

    Raises:
        RanksDiffer: What was given to them differs in a way that would let one wait for ever.
        SettingError: A setting by which a rank does something alone.
    """
    ranks = Ranks.here()
    check_environment(ranks, trainer)
    if ranks is not None:
        check_alone(trainer, context)
        check_same(ranks, trainer, context)
    if before is not None:
        before.leave()
    if ranks is None:
        return None
    agreement = Agreement(ranks, trainer, context)
    context.clock = agreement.clock
    return agreement


def _meeting_points(driver: Driver) -> list[str]:
    """The states before which posted events may be taken; all, if there are none.

    Those of evaluations are left out: ranks may evaluate different numbers of batches.
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
    """Tells which backward passes close a window, and averages what one holds that is left open.

    It does so where one loop alone steps the optimizers, and uses their gradients at its steps only.
    Other loops may use them after each backward pass, and so they are averaged each time.

    Args:
        driver: The driver of the fit.
        context: The context of the fit.
        wrapped: Its model.
    """

    def __init__(self, driver: Driver, context: Context, wrapped: Wrapped) -> None:
        self._driver = driver
        self._context = context
        self._wrapped = wrapped
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
        """Average the gradients of windows that the end of the data has left open. A collective."""
        loop = self._loop()
        if loop is not None and loop.window_size() is not None:
            for slot in self._context.slots:
                if slot.window:
                    self._wrapped.average_gradients(slot.parameters)

    def _loop(self) -> TrainingLoop | None:
        """The loop that steps the optimizers; None if there are others."""
        driver = self._driver
        if self._program is not driver.program:  # the first time, or loops were replaced
            loops = [loop for _, loop in training_loops(driver.root) if loop.steps_optimizers]
            self._program, self._found = driver.program, loops[0] if len(loops) == 1 else None
        return self._found


# -- Metrics -------------------------------------------------------------------------------------


def _plain(name: str, number: Number) -> dict[str, Any]:
    """The state of a number as JSON has it, what lies on devices folded in."""
    state: dict[str, Any] = number.state(name, None)
    totals = [state["total"], *(float(one) for one in state["totals_on"].values())]
    newest = state["newests_on"].get(state["newest_on"], state["newest"])
    folded = {"total": _FOLDS[number.reduce](totals), "newest": float(newest)}
    return {**state, **folded, "newest_on": None, "totals_on": {}, "newests_on": {}}


def _joined(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """Two accumulators of a metric as one. Of "last" the first rank's counts."""
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
