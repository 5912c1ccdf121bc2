"""The position of a fit, for people to read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from statemachine_trainer.intervals import epoch_in_words
from statemachine_trainer.machine.plan import END

if TYPE_CHECKING:
    from statemachine_trainer.debugging.breakpoints import Breakpoint
    from statemachine_trainer.loops.context import Context
    from statemachine_trainer.machine.driver import Driver


@dataclass(frozen=True)
class Where:
    """The position of a machine, and what may happen next. `str` gives a short report.

    Numbers are from 0, as in code. The report counts epochs, batches and splits from 1.

    Attributes:
        path: Path of the state about to run; None before the start and after the end.
        outcome: The event that ended the machine; None while it has not.
        transient: Whether no snapshot can be taken at this boundary.
        epoch: Number of the epoch.
        step: Optimizer steps done.
        batch: Number of the batch within its pass over the data; None between batches.
        split: Number of the split at work, and how many the batch was cut into.
        optimizer: Number of the optimizer at work.
        loss: The loss in flight; None if there is none. Reading it waited for the device.
        next: The state that follows, by the event that the one about to run may answer with.
        posted: Posted events that no edge has taken yet.
        accepts: Events that would be taken here if they were posted.
        stopped_at: The breakpoint at which the machine stands.
    """

    path: str | None
    outcome: str | None
    transient: bool
    epoch: int
    step: int
    batch: int | None
    split: tuple[int, int] | None
    optimizer: int
    loss: float | None
    next: dict[str, str]
    posted: tuple[str, ...]
    accepts: tuple[str, ...]
    stopped_at: Breakpoint | None

    @classmethod
    def of(
        cls, driver: Driver, context: Context | None, stopped_at: Breakpoint | None = None
    ) -> Where:
        """Look at a machine.

        Args:
            driver: The machine.
            context: What its loops share; None before the start.
            stopped_at: The breakpoint at which it stands.
        """
        node = None if driver.path is None else driver.program.nodes[driver.path]
        edges = {} if node is None else node.edges
        loss = None if context is None or context.loss is None else float(context.loss.detach())
        counts = None if context is None else context.counts
        batch = None if context is None or context.batch is None else context.batch_idx
        splits = 0 if context is None else len(context.splits)
        return cls(
            path=driver.path,
            outcome=driver.outcome,
            transient=driver.transient,
            epoch=0 if counts is None else counts.epoch,
            step=0 if counts is None else counts.step,
            batch=batch,
            split=(context.split_idx, splits) if context is not None and splits else None,
            optimizer=0 if context is None else context.optimizer_idx,
            loss=loss,
            next={event: edge.moment.target for event, edge in edges.items()},
            posted=tuple(driver.posted),
            accepts=tuple(
                event
                for event in sorted(driver.program.postable)
                if event not in edges and driver.accepts(event)
            ),
            stopped_at=stopped_at,
        )

    def __str__(self) -> str:
        lines = [self._first_line(), f"  {self._counters()}"]
        if self.stopped_at is not None:
            lines.append(f"  stopped at breakpoint {self.stopped_at.number}: {self.stopped_at}")
        lines += [
            f"  on {event} -> {'the end' if target == END else target}"
            for event, target in self.next.items()
        ]
        if self.posted:
            lines.append(f"  posted: {', '.join(self.posted)}")
        if self.accepts:
            lines.append(f"  may be posted here: {', '.join(self.accepts)}")
        return "\n".join(lines)

    def _first_line(self) -> str:
        if self.path is None:
            return "not started" if self.outcome is None else f"ended with {self.outcome}"
        note = " (cannot be written down here)" if self.transient else ""
        return f"before {self.path}{note}"

    def _counters(self) -> str:
        parts = [epoch_in_words(self.path, self.epoch)]
        if self.batch is not None:
            parts.append(f"batch {self.batch + 1} (batch_idx {self.batch})")
        if self.split is not None and self.split[1] > 1:
            parts.append(f"split {self.split[0] + 1} of {self.split[1]}")
        parts += [f"optimizer_idx {self.optimizer}"] if self.optimizer else []
        parts.append(f"step {self.step}")
        parts += [f"loss {self.loss:.6g}"] if self.loss is not None else []
        return ", ".join(parts)
