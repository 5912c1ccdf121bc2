"""The checkpoints in the folder of a run as their manifests tell of them. Needs no torch."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from statemachine_trainer.files import read_json

Mode = Literal["min", "max"]

_MANIFEST: Final = "manifest.json"
_LONGEST: Final = 16 << 20


@dataclass(frozen=True, slots=True)
class KeptCheckpoint:
    """A checkpoint that is there.

    Attributes:
        path: Its folder.
        step: Optimizer steps done when it was written.
        metrics: What was measured at that moment.
        of_other_weights: Those of the metrics that other weights were measured with than the model's.
        of_average: Those of them that an average in the checkpoint was measured with.
        rules: What the run keeps the best by: names of metrics, each with its mode.
    """

    path: Path
    step: int
    metrics: Mapping[str, float]
    rules: Mapping[str, Mode]
    of_other_weights: Collection[str] = ()
    of_average: Collection[str] = ()


def kept_checkpoints(folder: Path) -> list[KeptCheckpoint]:
    """Return the checkpoints of a run, the oldest first. One whose manifest cannot be read is left out."""
    found = []
    for path in sorted(folder.glob(f"[0-9]*/{_MANIFEST}")):
        try:
            said = read_json(path, _LONGEST)["metadata"]
            numbers = _numbers(said.get("metrics"))
            rules = {n: m for n, m in dict(said.get("best") or {}).items() if m in ("min", "max")}
            others = [*said.get("of_other_weights", [])], [*said.get("of_average", [])]
            step = int(said.get("step", 0))
            found.append(KeptCheckpoint(path.parent, step, numbers, rules, *others))
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            continue
    return found


def best_of(kept: list[KeptCheckpoint], metric: str, mode: Mode) -> KeptCheckpoint | None:
    """Return the best checkpoint by a metric; of two that are equal the earlier. None if none has it."""
    having = [one for one in kept if metric in one.metrics]
    choose = min if mode == "min" else max
    return choose(having, key=lambda one: one.metrics[metric], default=None)


def mode_of(kept: list[KeptCheckpoint], metric: str) -> Mode:
    """Return which way a metric is better, as the run itself was told; "min" where it was not."""
    return next((one.rules[metric] for one in reversed(kept) if metric in one.rules), "min")


def _numbers(metrics: Any) -> dict[str, float]:
    found = {}
    for name, value in dict(metrics or {}).items():
        if isinstance(value, int | float) and not math.isnan(value):
            found[str(name)] = float(value)
    return found
