"""The places that a replay goes to, and the checkpoint from which each is reached soonest."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import torch

from statemachine_trainer.loops.spikes import why_spike, with_loss
from statemachine_trainer.machine.errors import StateMachineError
from statemachine_trainer.observe.run import Point, Run
from statemachine_trainer.snapshot import Info, Store

if TYPE_CHECKING:
    from statemachine_trainer.trainer import Trainer

NONFINITE: Final = "nonfinite"
SPIKE: Final = "spike"
_LIMIT: Final = 8.0
_STEP = re.compile(r"(?:step[ =])?(\d+)")
_EPOCH = re.compile(r"epoch[ =](\d+)")
_SPIKE = re.compile(r"spike[ =](\d+(?:\.\d*)?|\.\d+)")


class CannotReplay(StateMachineError):
    """A run that cannot be gone through again, or not up to the place that was asked for."""


@dataclass(frozen=True)
class Place:
    """Where a replay ends.

    Attributes:
        step: After so many optimizer steps.
        epoch: Before this epoch, counted from 1.
        name: At this state or signal, or "nonfinite", or "spike".
        limit: For a spike: how many robust standard deviations it is above the losses before it.
    """

    step: int | None = None
    epoch: int | None = None
    name: str = ""
    limit: float = _LIMIT

    @classmethod
    def of(cls, text: str) -> Place:
        """Read a place: "1200" or "step 1200", "epoch 3", "nonfinite", "spike" or "spike 6", or a state or signal."""
        text = text.strip()
        if not text or text.startswith("-"):
            raise CannotReplay(
                f"{text!r} is no place: say 1200 (steps done), 'epoch 3', a state such as validation, nonfinite, or "
                "spike."
            )
        if step := _STEP.fullmatch(text):
            return cls(step=int(step[1]))
        if epoch := _EPOCH.fullmatch(text):
            return cls(epoch=max(1, int(epoch[1])))
        if spike := _SPIKE.fullmatch(text):
            return cls(name=SPIKE, limit=float(spike[1]))
        return cls(name=text)

    def __str__(self) -> str:
        if self.step is not None:
            return f"step {self.step}"
        if self.name == SPIKE:
            return f"a spike of {self.limit:g} deviations"
        return self.name if self.epoch is None else f"the start of epoch {self.epoch}"

    @property
    def is_of_loss(self) -> bool:
        """Whether the loss of a batch tells the place: it is before that batch."""
        return self.name in (NONFINITE, SPIKE)

    def reached(self, trainer: Trainer) -> bool:
        """Whether the fit stands there, as far as its counters tell."""
        if self.step is not None:
            return trainer.steps >= self.step
        return self.epoch is not None and trainer.epoch >= self.epoch - 1


@dataclass(frozen=True)
class Spike:
    """A spike among the losses that were recorded.

    Attributes:
        name: Of the metric.
        point: Its value, and the steps done after its batch.
        why: What makes it a spike, in words.
    """

    name: str
    point: Point
    why: str


def recorded_spike(run: Run, limit: float) -> Spike | None:
    """Return the first spike among the losses that the journal has of single batches; None if it has none.

    Raises:
        BadJournal: The journal cannot be read.
    """
    series = run.metrics(part="step")
    names = [one for one in series if "loss" in one.lower()]
    name = "loss" if "loss" in series else next(iter(names), None)
    if name is None:
        return None
    before: Sequence[float] = []
    for point in series[name]:
        if point.round:  # steps began anew, so a step does not tell which batch it was
            return None
        why = why_spike(point.value, before, limit)
        if why:
            return Spike(name, point, why)
        if math.isfinite(point.value):
            before = with_loss(before, point.value)
    return None


# -- where to begin --------------------------------------------------------------------------------


def nearest_checkpoint(run: Run, place: Place, spike: Spike | None) -> Info | None:
    """Return the newest whole checkpoint from which the place is still to come; None for the beginning.

    Args:
        run: The run.
        place: The place.
        spike: The spike that it is, if that is known.
    """
    if place.name == SPIKE and spike is None:
        return None  # each loss is compared with those before it, so all are needed
    nonfinite = place.name == NONFINITE
    before = _first_nonfinite(run) if nonfinite else None if spike is None else spike.point.step
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
