"""Runs that are watched: every signal, every boundary, and the state wherever it is asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

from statemachine_trainer.loops.context_state import handing_state
from statemachine_trainer.machine.signals import Moment
from statemachine_trainer.snapshot.written import Written
from statemachine_trainer.testing.testing_errors import NotReady
from statemachine_trainer.testing.trees import comparable
from statemachine_trainer.trainer import Trainer

MakeTrainer = Callable[[], Trainer]


@dataclass(frozen=True)
class Boundary:
    """One boundary of a run.

    Attributes:
        path: Path of the state about to run; None at the end.
        transient: Whether no snapshot can be taken here.
        heard: How many signals had been fired until then.
    """

    path: str | None
    transient: bool
    heard: int

    def __str__(self) -> str:
        return "at the end" if self.path is None else f"before {self.path}"


class Run:
    """A fit that is made, watched and driven boundary by boundary.

    Args:
        make_trainer: Builds everything anew and returns a trainer whose fit has been started.
        state: A state to go on from; None to begin.
        position: Number of the boundary at which it stands.

    Attributes:
        trainer: What was made.
        signals: The signals fired since, as text, in order.
        begun: Number of the boundary at which it stood at first.
        position: Number of the boundary at which it stands.

    Raises:
        NotReady: `make_trainer` returned something else.
    """

    def __init__(
        self, make_trainer: MakeTrainer, state: dict[str, Any] | None = None, position: int = 0
    ) -> None:
        with nullcontext() if state is None else handing_state(state):
            self.trainer = make_trainer()
        self.signals: list[str] = []
        self.begun = self.position = position
        _check_ready(self.trainer, resumed=state is not None)
        self.trainer.board.watch("*:*", self._hear)

    def step(self) -> None:
        """Go to the next boundary."""
        if self.trainer.step() is None and self.trainer.driver.resting:
            raise NotReady(
                f"The state {self.trainer.path!r} waits for something from outside, so the run never "
                "ends. Let make_trainer build one that runs by itself."
            )
        self.position += 1

    def go_to(self, position: int) -> None:
        """Go to a boundary further on."""
        while self.position < position and not self.ended:
            self.step()

    def finish(self) -> None:
        """Go to the end, in one go, as `fit` does."""
        while not self.ended:
            self.trainer.run()

    def boundaries(self) -> Iterator[Boundary]:
        """Go to the end, and yield each boundary as it is reached, beginning with this one."""
        for run in self.walk():
            yield run.boundary

    def walk(self) -> Iterator[Run]:
        """Go to the end, and stand still at each boundary, beginning with this one."""
        yield self
        while not self.ended:
            self.step()
            yield self

    def close(self) -> None:
        """End the workers of the loaders, which would otherwise live as long as the trainer."""
        context = self.trainer.context
        for feed in (context.train, *(feed for _, feed in context.validation)):
            if feed is not None:
                feed.shutdown()

    @property
    def ended(self) -> bool:
        """Whether the fit is over."""
        return self.trainer.path is None

    @property
    def boundary(self) -> Boundary:
        """The boundary at which the run stands."""
        driver = self.trainer.driver
        return Boundary(driver.path, driver.transient, len(self.signals))

    def state(self) -> dict[str, Any]:
        """Return the state of the run, as runs are compared."""
        return comparable(self.trainer.state_dict())

    def document(self) -> Written:
        """Write the state of the run down, as a checkpoint does."""
        return Written.of(self.trainer.state_dict())

    def _hear(self, moment: Moment) -> None:
        self.signals.append(f"{moment.signal} on {moment.event!r}")


def _check_ready(trainer: object, *, resumed: bool) -> None:
    if not isinstance(trainer, Trainer):
        raise NotReady(
            f"make_trainer returned a {type(trainer).__name__}. Let it build a model, data and a "
            "Trainer, call `trainer.start(model, data)`, and return the trainer."
        )
    if trainer.driver.context is None:
        raise NotReady(
            "make_trainer returned a trainer that was not started. Call `trainer.start(model, "
            "data)` with the arguments of `fit` before returning it."
        )
    if trainer.path is None and not resumed:
        raise NotReady(
            "make_trainer returned a trainer whose fit is over. Call `trainer.start(model, data)` "
            "in the place of `trainer.fit(model, data)`."
        )
