"""`smt replay --operations`: the work of one batch again, operation by operation."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from statemachine_trainer.cli.batch_again import BatchAgain
from statemachine_trainer.cli.replay_child import Request, checked, replay_apart
from statemachine_trainer.debugging.operations import (
    Departure,
    Operation,
    compare_operations,
)

if TYPE_CHECKING:
    from statemachine_trainer.trainer import Trainer


@dataclass(frozen=True)
class Again:
    """What came of doing a batch twice. As text it says so."""

    what: str
    operations: int
    departure: Departure | None

    def __str__(self) -> str:
        if self.departure is None:
            return f"{self.what}: its {self.operations} operations give the same, to the bit."
        return f"{self.what} differs at {self.departure}."


def twice(trainer: Trainer) -> Again:
    """Do the next batch of a fit twice, and compare its operations."""
    again = BatchAgain(trainer)
    first, second = again.operations(), again.operations()
    departure = compare_operations(first, second)
    return Again(f"{again.where}, done twice", len(first), departure)


def against(run: Path, other: Path, to: str, targets: tuple[str | None, str | None]) -> Again:
    """Compare the operations of the same batch of two runs, each with its own code in a process of its own.

    Args:
        run: The folder of one run.
        other: That of the other.
        to: The place, as `Place.of` reads it.
        targets: For each `FILE:FUNCTION`, or None for the run's own command.

    Raises:
        CannotReplay: One of them does not come to the place.
    """
    found = []
    for one, target in zip((run, other), targets, strict=True):
        with tempfile.TemporaryDirectory() as folder:
            request = Request(one.resolve(), to, target, "operations")
            outcome = checked(replay_apart(request, Path(folder)), str(one))
        found.append(outcome.found)
    lists = [[Operation.from_dict(one) for one in each["operations"]] for each in found]
    batches = [each["batch"] for each in found]
    of = batches[0] if batches[0] == batches[1] else " and ".join(batches)
    return Again(f"{of}, of {run} and of {other}", len(lists[0]), compare_operations(*lists))
