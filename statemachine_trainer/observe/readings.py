"""What is measured in a run, and when it is read: for a journal, a live page and trackers.

- "step": every n batches, or now and then, as `batch_end` begins: what was logged with `on_step`, else the loss.
- "train": as `epoch_end` begins its work, after whatever its receivers logged.
- "validation" and "test": when `validation_end` and `test_end` have done their work.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar

from statemachine_trainer.machine.edges import Work
from statemachine_trainer.observe.epoch_table import EpochRecord

if TYPE_CHECKING:
    from statemachine_trainer.loops.context import Context
    from statemachine_trainer.machine.driver import Driver

T = TypeVar("T")
Part = Literal["train", "validation", "test", "step"]
PARTS: Final[tuple[Part, ...]] = ("train", "validation", "test", "step")


@dataclass(frozen=True, slots=True)
class Reading:
    """Metrics of one moment.

    Attributes:
        part: What they are of.
        epoch: Epochs done.
        step: Optimizer steps done.
        values: The metrics; a loss that nobody has looked at yet is a tensor.
        facts: Of an epoch that ends: the whole `EpochRecord`.
    """

    part: Part
    epoch: int
    step: int
    values: Mapping[str, Any]
    facts: Mapping[str, Any] = field(default_factory=dict)

    def metrics(self) -> dict[str, float]:
        """Return the metrics as floats. This may wait for the device."""
        return {name: float(value) for name, value in self.values.items()}


class Readings:
    """Hands readings on as they are taken.

    Around the states of a driver, not on their signals: it costs nothing elsewhere, and survives any
    swap of loops. A tree without one of the states has no readings of it.

    Args:
        take: Called with each reading.
        every: Batches from one reading of steps to the next; 0 for none.
        seconds: Least time from one reading of steps to the next.
    """

    def __init__(
        self, take: Callable[[Reading], None], *, every: int, seconds: float = 0.0
    ) -> None:
        self._take = take
        self._every = every
        self._seconds = seconds
        self._due = 0.0

    def attach(self, driver: Driver, counting: Driver | None = None) -> Callable[[], None]:
        """Read what the states of a driver measure.

        Args:
            driver: The driver.
            counting: The one that counts epochs and steps; itself unless given.

        Returns:
            A function that ends it.
        """

        def probe(path: str, work: Work) -> Work:
            read = self._readers(driver, counting or driver).get(path.rpartition(".")[2])
            return work if read is None else read(work)

        return driver.instrument(probe)

    def _readers(self, driver: Driver, counting: Driver) -> dict[str, Callable[[Work], Work]]:
        readers: dict[str, Callable[[Work], Work]] = {
            "test_end": lambda work: self._after_evaluation(work, driver, counting, "test"),
        }
        if driver is counting:
            readers["validation_end"] = lambda work: self._after_evaluation(
                work, driver, counting, "validation"
            )
            readers["epoch_end"] = lambda work: self._around_epoch_end(work, driver)
            if self._every:
                readers["batch_end"] = lambda work: self._before_batch_end(work, driver)
        return readers

    def _before_batch_end(self, work: Work, driver: Driver) -> Work:
        every, take, clock = self._every, self._take, time.monotonic

        def reading() -> object:
            context = driver.context
            if context.counts.batch % every == 0 and clock() >= self._due:
                values = values_of_step(context)
                if values:
                    self._due = clock() + self._seconds
                    take(Reading("step", context.counts.epoch, context.counts.step, values))
            return work()

        return reading

    def _around_epoch_end(self, work: Work, driver: Driver) -> Work:
        def reading() -> object:
            record = EpochRecord.of(driver.context)
            event = work()  # first: a state that raises works again
            facts = asdict(record)
            self._take(Reading("train", record.epoch, record.steps, record.train, facts))
            return event

        return reading

    def _after_evaluation(self, work: Work, driver: Driver, counting: Driver, part: Part) -> Work:
        def reading() -> object:
            event = work()
            values = driver.context.validation_metrics.compute()
            if values:
                counts = (counting.context or driver.context).counts
                self._take(Reading(part, counts.epoch, counts.step, values))
            return event

        return reading


def values_of_step(context: Context) -> Mapping[str, Any]:
    """Return what was logged with `on_step`, else the loss, not read yet; nothing if there is none."""
    logged = context.train_metrics.newest("on_step")
    if logged or context.loss is None:
        return logged
    return {"loss": context.loss.detach()}


def named_apart(parts: Mapping[str, Mapping[str, T]]) -> dict[str, T]:
    """Put what is known by name for several parts of a run into one.

    A name that more than one part has means that of the first; of another it is `part/name`.
    """
    found: dict[str, T] = {}
    for part, named in parts.items():
        for name, one in named.items():
            found[name if name not in found else f"{part}/{name}"] = one
    return found
