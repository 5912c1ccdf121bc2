"""What `smt replay` does: from the nearest checkpoint to a place, compared with what the run was there."""

from __future__ import annotations

import contextlib
import os
import re
import runpy
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

import torch

from statemachine_trainer.cli.targets import trainer_of_target
from statemachine_trainer.intervals import Every
from statemachine_trainer.machine.errors import StateMachineError, UnknownSignal
from statemachine_trainer.machine.signals import Moment
from statemachine_trainer.observe.difference import Compared, NoFingerprints, compare_looks
from statemachine_trainer.observe.fingerprint_file import (
    BadFingerprints,
    FingerprintFile,
    Look,
    Taken,
    read_fingerprints,
)
from statemachine_trainer.observe.fingerprints import Fingerprints
from statemachine_trainer.observe.run import Run
from statemachine_trainer.run_record import CannotResume, resume_command
from statemachine_trainer.running.replaying import Replaying, ReplayOver, replaying
from statemachine_trainer.snapshot import Info, Store

if TYPE_CHECKING:
    from statemachine_trainer.trainer import Trainer

NONFINITE: Final = "nonfinite"
_STEP = re.compile(r"(?:step[ =])?(\d+)")
_EPOCH = re.compile(r"epoch[ =](\d+)")


class CannotReplay(StateMachineError):
    """A run that cannot be gone through again, or not up to the place that was asked for."""


@dataclass(frozen=True)
class Place:
    """Where a replay ends.

    Attributes:
        step: After so many optimizer steps.
        epoch: Before this epoch, counted from 1.
        name: At this state or signal, or "nonfinite".
    """

    step: int | None = None
    epoch: int | None = None
    name: str = ""

    @classmethod
    def of(cls, text: str) -> Place:
        """Read a place: "1200" or "step 1200", "epoch 3", "nonfinite", or the name of a state or signal."""
        text = text.strip()
        if not text or text.startswith("-"):
            raise CannotReplay(
                f"{text!r} is no place: say 1200 (steps done), 'epoch 3', a state such as validation, or nonfinite."
            )
        if step := _STEP.fullmatch(text):
            return cls(step=int(step[1]))
        if epoch := _EPOCH.fullmatch(text):
            return cls(epoch=max(1, int(epoch[1])))
        return cls(name=text)

    def __str__(self) -> str:
        if self.step is not None:
            return f"step {self.step}"
        return self.name if self.epoch is None else f"the start of epoch {self.epoch}"

    def reached(self, trainer: Trainer) -> bool:
        """Whether the fit stands there, as far as its counters tell."""
        if self.step is not None:
            return trainer.steps >= self.step
        return self.epoch is not None and trainer.epoch >= self.epoch - 1


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

    Attributes:
        checkpoint: Where it begins; None for the beginning of the run.
        compared: How far it has reproduced the run; None if nothing was to be compared, and `why` says why.
        stands: Whether the place was reached.

    Raises:
        NoRun: Nothing of a run is in the folder.
        BadFingerprints, BadJournal: A file in it cannot be read.
    """

    def __init__(self, root: Path, place: Place) -> None:
        self.run = Run(root)
        self.place = place
        self._file = read_fingerprints(self.run.path)
        self.checkpoint = _nearest(self.run, place)
        self.compared: Compared | None = None
        self.why = ""
        self.stands = False

    def go(self, trainer: Trainer) -> None:
        """Run a trainer that stands at the checkpoint to the place, and compare it with the run on the way."""
        looks, every = Looks(), self._every()
        prints = None if every is None else Fingerprints(trainer.driver, every, looks)
        remove = _nothing if prints is None else prints.attach()
        try:
            self._run(trainer)
        finally:
            remove()
            if prints is not None:
                prints.flush()
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
        if self.compared.parting is None:
            many = self.compared.places
            return f"It reproduces itself: its fingerprints are equal at {many} place{'s' * (many > 1)}."
        return f"It does not reproduce itself. It parts from the run at {self.compared.parting}"

    def told(self) -> str:
        """Say from where to where it went."""
        return f"Replayed {self.run.path} from {self._from()} to {self.place}. Nothing is written."

    # -- parts -----------------------------------------------------------------------------------

    def _from(self) -> str:
        return (
            "its beginning"
            if self.checkpoint is None
            else f"checkpoint {self.checkpoint.path.name}"
        )

    def _run(self, trainer: Trainer) -> None:
        place = self.place
        if place.name == NONFINITE:
            self._run_to_nonfinite(trainer)
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

    def _run_to_nonfinite(self, trainer: Trainer) -> None:
        """Run up to the first loss that is not finite, and go back to before its batch."""
        remembers = True
        try:
            trainer.remember(last=1, at="batch_start")
        except UnknownSignal:
            remembers = False
        trainer.run(lambda trainer, moment: _of_fit(moment) and _is_nonfinite(trainer))
        self.stands = trainer.path is not None and _is_nonfinite(trainer)
        if self.stands and remembers:
            trainer.rewind(1)

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
        except NoFingerprints:
            self.why = "the run was not looked at on the way."


def _of_fit(moment: Moment) -> bool:
    return moment.path.partition(".")[0] == "fit"


def _is_nonfinite(trainer: Trainer) -> bool:
    loss = trainer.context.loss
    return loss is not None and not bool(torch.isfinite(loss).all())


def _nothing() -> None:
    """Do nothing."""


# -- where to begin --------------------------------------------------------------------------------


def _nearest(run: Run, place: Place) -> Info | None:
    """Return the newest whole checkpoint from which the place is still to come; None for the beginning."""
    nonfinite = place.name == NONFINITE
    before = _first_nonfinite(run) if nonfinite else None
    infos = [one for one in Store(run.path).list() if one.damage is None]
    for one in reversed(infos):
        said = one.metadata
        step, epoch = said.get("step"), said.get("epoch")
        if type(step) is not int or type(epoch) is not int or said.get("state") is None:
            continue  # of the end of the fit, or of something else
        within = epoch + (".epoch." in f"{said.get('state')}")  # epochs begun
        late = (
            (place.step is not None and step > place.step)
            or (place.epoch is not None and within > place.epoch - 1)
            or (before is not None and step >= before)
            or (nonfinite and not _is_finite(one))
        )
        if not late:
            return one
    return None


def _first_nonfinite(run: Run) -> int | None:
    """Return the step of the first value that was recorded as NaN or infinite; None if there is none."""
    parts = (run.metrics(part="step"), run.metrics(part="train"))
    points = [point for part in parts for many in part.values() for point in many]
    bad = [one.step for one in points if not abs(one.value) < float("inf")]
    return min(bad, default=None)


def _is_finite(info: Info) -> bool:
    """Whether the weights of a checkpoint are finite."""
    tree = Store(info.path.parent).load(info.path).tree
    stack: list[object] = [tree["context"]["model"] if isinstance(tree, dict) else None]
    while stack:
        one = stack.pop()
        if isinstance(one, torch.Tensor):
            if one.is_floating_point() and not bool(torch.isfinite(one).all()):
                return False
        elif isinstance(one, dict):
            stack += one.values()
        elif isinstance(one, list | tuple):
            stack += one
    return True


# -- the code of the run ---------------------------------------------------------------------------


def replay_by(target: str | None, replay: Replay, then: Callable[[Trainer], object]) -> None:
    """Let the code of a run make its trainer, go through the replay, and do something at its end.

    Args:
        target: `FILE:FUNCTION`, which starts a trainer and returns it; None for the run's own command.
        replay: The replay.
        then: Called with the trainer where the replay has ended.

    Raises:
        CannotReplay: The code does not start the run.
        CannotResume: It is not recorded how the run was started.
        BadTarget: There is no such function.
    """

    def take_over(trainer: Trainer) -> None:
        replay.go(trainer)
        then(trainer)

    path = None if replay.checkpoint is None else replay.checkpoint.path
    one = Replaying(replay.run.path, path, take_over)
    with replaying(one):
        if target is None:
            with contextlib.suppress(ReplayOver):
                _run_command(replay.run.path)
                raise CannotReplay(
                    f"The command of {replay.run.path} has ended without starting a fit in this folder. Name a "
                    "function that does: --from FILE:FUNCTION."
                )
            return
        with contextlib.suppress(ReplayOver):
            trainer = trainer_of_target(target)
            if trainer is not one.trainer:
                raise CannotReplay(
                    f"{target} starts a trainer with another folder than {replay.run.path}."
                )
            take_over(trainer)


def _run_command(root: Path) -> None:
    """Run the command of a run in this process.

    Raises:
        CannotResume: It is not known, or is none of a script or module.
    """
    try:
        command, folder = resume_command(root)
    except CannotResume as error:
        raise CannotReplay(
            f"{error} Or name a function that starts its trainer: --from FILE:FUNCTION."
        ) from error
    os.chdir(folder)
    arguments = [*_without_options(command[1:])]
    if len(arguments) > 1 and arguments[0] == "-m":
        with _arguments(arguments[1:]):
            sys.path.insert(0, str(folder))
            runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    elif arguments and not arguments[0].startswith("-") and Path(arguments[0]).is_file():
        with _arguments(arguments):
            sys.path.insert(0, str(Path(arguments[0]).resolve().parent))
            runpy.run_path(arguments[0], run_name="__main__")
    else:
        raise CannotResume(
            f"The run {root} was started by `{' '.join(command)}`, which is neither a script nor a module. Name a "
            "function that starts its trainer: --from FILE:FUNCTION."
        )


def _without_options(arguments: Sequence[str]) -> Iterator[str]:
    """Yield the arguments of a Python from its script, or from `-m`, on."""
    rest = [*arguments]
    while rest and rest[0].startswith("-") and rest[0] not in ("-m", "-c"):
        del rest[: 2 if rest[0] in ("-X", "-W") else 1]
    yield from rest


@contextlib.contextmanager
def _arguments(arguments: Sequence[str]) -> Iterator[None]:
    before, path = sys.argv, [*sys.path]
    sys.argv = [*arguments]
    try:
        yield
    finally:
        sys.argv, sys.path[:] = before, path
