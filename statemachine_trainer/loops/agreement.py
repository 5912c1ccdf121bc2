"""Several ranks that train one model: what they have to agree on, so that none waits for ever.

Ranks of a run have to make the same transitions: one that stops a batch earlier than another leaves
it waiting for gradients that never come. What follows from counters is the same at all of them.
What comes from outside (a posted event, a signal of the system, the time) or was measured on a
part of the data is not, and is agreed on here.
"""

from __future__ import annotations

import hashlib
import os
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from functools import reduce
from typing import Any, Final, cast

from torch import nn

from statemachine_trainer.loops.base import TrainingLoop, training_loops
from statemachine_trainer.loops.context import Context
from statemachine_trainer.loops.loop_errors import SettingError
from statemachine_trainer.loops.metrics.numbers import Number
from statemachine_trainer.loops.metrics.table import Metrics
from statemachine_trainer.machine.driver import Driver
from statemachine_trainer.machine.errors import StateMachineError, UnknownSignal
from statemachine_trainer.machine.loop import SEPARATOR, Loop
from statemachine_trainer.machine.program import Program
from statemachine_trainer.machine.signals import Moment, Subscription
from statemachine_trainer.parallel.ranks import Json, Ranks
from statemachine_trainer.parallel.wrapped import Wrapped
from statemachine_trainer.parallel.wrappers import PlainNames
from statemachine_trainer.snapshot.ranked import digest


class RanksDiffer(StateMachineError):
    """Ranks of one run were given things that must be the same for all."""


class WeightsDiffer(UserWarning):
    """After a step each rank has weights of its own, and nothing brings them together."""


_ADVICE: Final = {
    "the loops": "Give all of them the same settings and loops.",
    "the parameters": "Build the same model at each.",
    "the numbers of training batches": "A DistributedSampler gives all of them the same number.",
    "the validation loaders": "Give each of them validation data, all or a part of them.",
    "the folders of checkpoints": (
        "Give all of them the same; rank 0 writes there, with the state of each."
    ),
}
"""What must be the same, and what to do about it."""


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
        self._subscriptions = [
            *(trainer.board.watch(path, self._meet) for path in _meeting_points(driver)),
            *self._first(f"{driver.name}*.validation_start", self._share_buffers),
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


# -- Checks before the first state --------------------------------------------------------------


def check_environment(ranks: Ranks | None, trainer: Any) -> None:
    """Refuse processes that would take each other's files for their own.

    Raises:
        SettingError: The environment says something else of ranks than the process group.
    """
    named = os.environ.get("RANK"), os.environ.get("WORLD_SIZE")
    if ranks is None:
        if named[1] not in (None, "", "1") and trainer.checkpoints is not None:
            raise SettingError(
                f"This is one of WORLD_SIZE={named[1]} processes, and no process group is up: each "
                "would write its own checkpoints into the same folder. Call "
                "torch.distributed.init_process_group() first."
            )
        return
    if named != (str(ranks.rank), str(ranks.size)):
        raise SettingError(
            f"This process is rank {ranks.rank} of {ranks.size} of its process group, and its "
            f"environment says RANK={named[0]}, WORLD_SIZE={named[1]}, by which the files of the "
            "run are told apart. Start it with torchrun, or set both as torchrun does."
        )


def check_alone(trainer: Any, context: Context) -> None:
    """Refuse what a rank would do without the others.

    Raises:
        SettingError: The model, or a loop, would.
    """
    _check_loops(trainer.loop)
    _check_model(context)


def check_same(ranks: Ranks, trainer: Any, context: Context) -> None:
    """Refuse ranks that were given different things. A collective.

    Raises:
        RanksDiffer: They were.
    """
    told = cast("list[dict[str, Json]]", ranks.from_all(_facts(trainer, context)))
    for rank, other in enumerate(told):
        for name, value in told[0].items():
            if other[name] != value:
                raise RanksDiffer(
                    f"The ranks of a run have to make the same transitions, and {name} differ: "
                    f"{_short(value)} at rank 0, {_short(other[name])} at rank {rank}. "
                    f"{_ADVICE[name]}"
                )


def compare_weights(ranks: Ranks, model: nn.Module) -> None:
    """Warn if ranks have different weights. A collective."""
    weights = {name: digest(one) or "" for name, one in model.named_parameters()}
    whole = hashlib.sha256(repr(weights).encode()).hexdigest()
    if len(set(cast("list[str]", ranks.from_all(whole)))) > 1:
        warnings.warn(
            "After the first step each rank has weights of its own: their gradients are not "
            "averaged. Give fit DistributedDataParallel(model), and let loops of your own call the "
            "training step by context.steps.training, which goes through it.",
            WeightsDiffer,
            stacklevel=2,
        )


def _facts(trainer: Any, context: Context) -> dict[str, Json]:
    checkpoints = trainer.checkpoints
    facts: tuple[Json, ...] = (
        sorted(trainer.driver.program.nodes),
        [name for name, _ in PlainNames(context.model).parameters()],
        None if context.train is None else context.train.length,
        [name for name, _ in context.validation],
        None if checkpoints is None else str(checkpoints.store.root),
    )
    return dict(zip(_ADVICE, facts, strict=True))


def _short(value: Json) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _check_loops(root: Loop) -> None:
    for path, loop in training_loops(root):
        why = loop.why_alone()
        if why is not None:
            raise SettingError(f"The loop {path!r} {why}")


def _check_model(context: Context) -> None:
    model = context.model
    if context.steps.foreign:
        raise SettingError(
            f"{type(model).__name__} is of another library, and such modules are not trained by "
            "several ranks here. Use that library's own trainer, or one process."
        )
    if any(type(one).__name__ == "DTensor" for one in model.parameters()):
        raise SettingError(
            f"The parameters of {type(model).__name__} are cut up among the ranks, which is not "
            "supported. Use DistributedDataParallel."
        )


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
