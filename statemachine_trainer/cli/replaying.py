"""What `smt replay` does: from the nearest checkpoint to a place, compared with what the run was there."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

import torch

from statemachine_trainer.cli.places import (
    NONFINITE,
    SPIKE,
    CannotReplay,
    Place,
    nearest_checkpoint,
    recorded_spike,
)
from statemachine_trainer.cli.set_again import set_again
from statemachine_trainer.intervals import Every
from statemachine_trainer.loops.spikes import why_spike, with_loss
from statemachine_trainer.machine.errors import StateMachineError, UnknownSignal
from statemachine_trainer.machine.signals import Moment
from statemachine_trainer.observe.difference import (
    Compared,
    NoFingerprints,
    OtherDigests,
    compare_looks,
    left_out_in_words,
)
from statemachine_trainer.observe.fingerprint_file import (
    BadFingerprints,
    FingerprintFile,
    Look,
    Taken,
    read_fingerprints,
)
from statemachine_trainer.observe.fingerprints import Fingerprints, Sink
from statemachine_trainer.observe.readings import values_of_step
from statemachine_trainer.observe.run import Run

if TYPE_CHECKING:
    from statemachine_trainer.trainer import Trainer

EACH_BATCH: Final = Every(1, "batch")


@dataclass
class Looks:
    """Fingerprints in memory."""

    looks: list[Look] = field(default_factory=list)
    _taken: list[Taken] = field(default_factory=list)

    def add(self, taken: Taken) -> None:
        """Take a look."""
        self.looks.append(taken.look)
        self._taken.append(taken)

    def taken(self, look: Look) -> Taken:
        """Return the leaves of a look."""
        return next(one for one in self._taken if one.look is look)


@dataclass
class _Recorded:
    """What the run looked at after a checkpoint."""

    file: FingerprintFile
    looks: list[Look]

    def taken(self, look: Look) -> Taken:
        return self.file.taken(look)


class Replay:
    """A replay of a run, from its nearest checkpoint.

    Args:
        root: The folder of the run.
        place: Where it ends.
        sink: Takes fingerprints at each batch, beside those that the run itself took; None for none.

    Attributes:
        checkpoint: Where it begins; None for the beginning of the run.
        compared: How far it has reproduced the run; None if nothing was to be compared, and `why` says why.
        stands: Whether the place was reached.

    Raises:
        NoRun: Nothing of a run is in the folder.
        BadFingerprints, BadJournal: A file in it cannot be read.
    """

    def __init__(self, root: Path, place: Place, sink: Sink | None = None) -> None:
        self.run = Run(root)
        self.place = place
        self._sink = sink
        self._file = read_fingerprints(self.run.path)
        self.spike = recorded_spike(self.run, place.limit) if place.name == SPIKE else None
        self.checkpoint = nearest_checkpoint(self.run, place, self.spike)
        self.compared: Compared | None = None
        self.why = ""
        self.stands = False
        self._why_there = "" if self.spike is None else f"{self.spike.why}, as they were recorded"

    def go(self, trainer: Trainer) -> None:
        """Run a trainer that stands at the checkpoint to the place, and compare it with the run on the way."""
        looks, every = Looks(), self._every()
        prints = [] if every is None else [Fingerprints(trainer.driver, every, looks)]
        if self._sink is not None:
            prints.append(Fingerprints(trainer.driver, EACH_BATCH, self._sink))
        removers = [one.attach() for one in prints]
        try:
            removers += set_again(trainer, self.run)
            self._run(trainer)
        finally:
            for remove in removers:
                remove()
            for one in prints:
                one.flush()
            self._compare(looks)
        if not self.stands:
            ended = "" if trainer.path is None else f" It stands at {trainer.path}."
            raise CannotReplay(
                f"The run did not come to {self.place}, from {self._from()} on.{ended} {self.verdict()}"
            )

    def verdict(self) -> str:
        """Say whether the run has reproduced itself."""
        if self.compared is None:
            return f"Whether it reproduces itself is not known: {self.why}"
        left_out = left_out_in_words(self.compared)
        if self.compared.parting is None:
            many = self.compared.places
            return f"It reproduces itself: its fingerprints are equal at {many} place{'s' * (many > 1)}.{left_out}"
        return f"It does not reproduce itself. It parts from the run at {self.compared.parting}{left_out}"

    def told(self) -> str:
        """Say from where to where it went."""
        why = f": {self._why_there}" if self._why_there else ""
        return f"Replayed {self.run.path} from {self._from()} to {self.place}{why}. Nothing is written."

    # -- parts -----------------------------------------------------------------------------------

    def _from(self) -> str:
        return (
            "its beginning"
            if self.checkpoint is None
            else f"checkpoint {self.checkpoint.path.name}"
        )

    def _run(self, trainer: Trainer) -> None:
        place = self.place
        if place.is_of_loss:
            self._run_to_batch(
                trainer, _is_nonfinite if place.name == NONFINITE else self._spikes(place.limit)
            )
        elif place.name:
            trainer.run(place.name)
            self.stands = trainer.path is not None
        else:
            if not place.reached(trainer):
                trainer.run(lambda trainer, moment: place.reached(trainer) and _of_fit(moment))
            if place.epoch is not None and trainer.path is not None:
                with contextlib.suppress(UnknownSignal):
                    if not trainer.path.endswith(".epoch_start"):
                        trainer.run("epoch_start")
            self.stands = place.reached(trainer) and trainer.path is not None

    def _run_to_batch(self, trainer: Trainer, is_there: Callable[[Trainer, Moment], bool]) -> None:
        """Run up to the first loss of which this is so, and go back to before its batch."""
        remembers, found = True, False
        try:
            trainer.remember(last=1, at="batch_start")
        except UnknownSignal:
            remembers = False

        def ends(trainer: Trainer, moment: Moment) -> bool:
            nonlocal found
            found = _of_fit(moment) and is_there(trainer, moment)
            return found

        trainer.run(ends)
        self.stands = trainer.path is not None and found
        if self.stands and remembers:
            trainer.rewind(1)

    def _spikes(self, limit: float) -> Callable[[Trainer, Moment], bool]:
        """Return what tells, at the end of each batch, whether its loss is the spike."""
        losses: list[float] = []

        def is_recorded(trainer: Trainer, moment: Moment) -> bool:
            step = trainer.steps
            if self.spike is None or moment.state != "batch_end" or step < self.spike.point.step:
                return False
            # With accumulation several batches end after the same step.
            value = float(values_of_step(trainer.context).get(self.spike.name, math.nan))
            recorded = self.spike.point.value
            same = value == recorded or (math.isnan(value) and math.isnan(recorded))
            return same or step > self.spike.point.step

        def is_one(trainer: Trainer, moment: Moment) -> bool:
            loss = trainer.context.loss
            if moment.state != "batch_end" or loss is None:
                return False
            value = float(loss.detach())
            self._why_there = why_spike(value, losses, limit)
            if not self._why_there and math.isfinite(value):
                losses[:] = with_loss(losses, value)
            return bool(self._why_there)

        return is_one if self.spike is None else is_recorded

    def _every(self) -> Every | None:
        """Return how often the run was looked at; None if it was not."""
        if self._file is None:
            self.why = (
                "the run has no fingerprints. Trainer(fingerprints=every(100, 'step')) keeps them."
            )
            return None
        try:
            return Every(**self._file.facts["every"])
        except (KeyError, TypeError, StateMachineError) as error:
            raise BadFingerprints(
                f"{self._file.path} does not say how often the run was looked at."
            ) from error

    def _compare(self, looks: Looks) -> None:
        if self._file is None:
            return
        recorded = self._file.looks
        if self.checkpoint is not None:
            at = [n for n, one in enumerate(recorded) if one.name == self.checkpoint.path.name]
            recorded = recorded[at[-1] + 1 :] if at else []
        try:
            self.compared = compare_looks(_Recorded(self._file, recorded), looks)
        except OtherDigests as error:
            self.why = str(error)
        except NoFingerprints:
            self.why = "the run was not looked at on the way."


def _of_fit(moment: Moment) -> bool:
    return moment.path.partition(".")[0] == "fit"


def _is_nonfinite(trainer: Trainer, moment: Moment) -> bool:
    loss = trainer.context.loss
    return loss is not None and not bool(torch.isfinite(loss).all())
