"""The run that nobody interrupts, written down: what every resumed run is compared with."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch

from statemachine_trainer.snapshot import Unwritable
from statemachine_trainer.snapshot.written import Written
from statemachine_trainer.testing.hidden import changed, hash_ordered, hidden_in_process
from statemachine_trainer.testing.testing_errors import NotRepeatable
from statemachine_trainer.testing.trees import comparable, differences, digest
from statemachine_trainer.testing.watched_runs import Boundary, MakeTrainer, Run

_SEED = 20_240_229
_KEPT = 1 << 30  # bytes of documents kept in memory


class Recording:
    """An undisturbed run, and a second one whose state was written down at every boundary.

    Args:
        make_trainer: See `assert_resumable`.

    Attributes:
        boundaries: Every boundary, the beginning and the end among them.
        signals: Every signal, in order.
        end: The state at the end.
        outcome: How the fit ended.
        metrics: The metrics at the end.
        unwritable: Boundaries at which the batch in flight is of a class that no checkpoint holds.
        kept_in_process: Globals and class attributes that changed in the course of the run, in words.
        hash_ordered: What may have another order in another process, in words.

    Raises:
        NotRepeatable: The two runs differ.
        Unwritable: The state holds something that no checkpoint can hold.
    """

    def __init__(self, make_trainer: MakeTrainer) -> None:
        self.make_trainer = make_trainer
        run = self._begin()
        before = hidden_in_process(run.trainer)
        self.hash_ordered = hash_ordered(run.trainer)
        self.boundaries: list[Boundary] = list(run.boundaries())
        self.kept_in_process = changed(before, hidden_in_process(run.trainer))
        self.signals = run.signals
        self.end = run.state()
        self.outcome = run.trainer.driver.outcome
        self.metrics = dict(run.trainer.metrics)
        self.trainer = run.trainer
        run.close()
        self._writable: list[bool] = []
        self.unwritable: list[int] = []
        self._documents: dict[int, Written] = {}
        self._write_down()

    @property
    def stop_points(self) -> list[int]:
        """Numbers of the boundaries at which a run can be stopped and resumed."""
        return [number for number, writable in enumerate(self._writable) if writable]

    def digests(self) -> list[str | None]:
        """Make an undisturbed run once more; return digests of the state at each boundary.

        They are None at boundaries that cannot be written down.
        """
        found: list[str | None] = [None] * len(self.boundaries)
        run = self._begin()
        for number, _ in zip(range(len(found)), run.boundaries(), strict=False):
            if self._writable[number]:
                found[number] = digest(run.state())
        run.close()
        return found

    def document(self, number: int) -> Written:
        """Return the state at a boundary as a checkpoint holds it."""
        if number in self._documents:
            return self._documents[number]
        run = self.run_to(number)
        document = run.document()
        run.close()
        return document

    def run_to(self, number: int) -> Run:
        """Make an undisturbed run once more, up to a boundary."""
        run = self._begin()
        run.go_to(number)
        return run

    def _begin(self) -> Run:
        seed_all(_SEED)
        return Run(self.make_trainer)

    def _write_down(self) -> None:
        run, size = self._begin(), 0
        for number, boundary in enumerate(run.boundaries()):
            if self.boundaries[number : number + 1] != [boundary]:
                raise self._not_repeatable()
            self._writable.append(False)
            if boundary.transient:
                continue
            state = run.trainer.state_dict()
            try:
                document = Written.of(state)
            except Unwritable as error:
                if not error.where.startswith("context.in_flight"):
                    raise
                self.unwritable.append(number)
                continue
            self._writable[number] = True
            size += document.size
            if size < _KEPT:
                self._documents[number] = document
        same = len(self._writable) == len(self.boundaries) and digest(self.end) == digest(
            run.state()
        )
        run.close()
        if not same:
            raise self._not_repeatable()

    def _not_repeatable(self) -> NotRepeatable:
        """Make two runs more, to find out where they part."""
        known = [self._written(run) for run in self._begin().walk()]
        told, number = "in where they end", 0
        for number, run in enumerate(self._begin().walk()):
            if number >= len(known):
                break
            if found := differences(known[number], self._written(run)):
                told = found[0].replace("undisturbed", "in one").replace("resumed", "in the other")
                break
        return NotRepeatable(
            f"Two runs that nobody interrupted differ. First at boundary {number}: {told}. Let "
            "make_trainer build everything anew, and let nothing follow from the time, the order of "
            "sets or an unseeded generator. (python's, numpy's and torch's global generators are "
            "seeded here.)" + "".join(f" The {one}." for one in self.kept_in_process)
        )

    def _written(self, run: Run) -> dict[str, Any]:
        """The state as it is now; the path alone where it cannot be written down."""
        try:
            if not run.boundary.transient:
                return comparable(run.document().tree())
        except Unwritable:
            pass
        return {"path": run.boundary.path}


def seed_all(seed: int) -> None:
    """Seed the global generators of python, numpy and torch."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
