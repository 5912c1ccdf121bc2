"""What a script that resumes a run has set otherwise than the run had it, and which of the two holds.

A checkpoint fits a script if models, loops, optimizers and data are of the same kind. Their
settings may still differ. One warning lists each difference, with both values and which of the two
holds. How settings are read: `settings_of_run`.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from statemachine_trainer.audit.settings_of_run import (
    CHANGES,
    CODE,
    ITS_CLASS,
    NOTED,
    RECEIVERS,
    Settings,
)
from statemachine_trainer.loops.context import Context
from statemachine_trainer.loops.loop_errors import LikelyMistake
from statemachine_trainer.machine.errors import level_of_caller

_LIMITS: Final = {"max_epochs", "min_epochs", "max_steps", "min_steps", "max_batches", "max_time"}
_SETTLED: Final = {
    "KFoldLoop": ("folds", "stratify", "groups", "repeats", "shuffle", "seed"),
    "ActiveLearningLoop": ("first",),
}
"""Settings that are used once, when the run begins."""

_NOT_ALWAYS_WRITTEN: Final = {"folds", "query", "mc_samples", "retention", "tied", "tied buffers"}
"""Settings that earlier versions did not write."""

_ONE_OR_SEVERAL: Final = {"tied": "parameter", "tied buffers": "buffer"}
"""Settings that tell which of these stand under several names, and what these are."""

_MOST_LINES: Final = 30


class SettingsChanged(LikelyMistake):
    """A run continues with other settings than those of its checkpoint."""


@dataclass(frozen=True)
class Change:
    """A setting that differs between a checkpoint and the script that resumes it.

    Attributes:
        owner: What it belongs to, such as "fit.epoch.batch.optimizer (OptimizerLoop)".
        name: Its name.
        was: Its value in the checkpoint, as text; None if there was no such setting.
        now: Its value in the script; None if there is none.
        holds: Which of the two holds, and how to choose the other one.
        part: The part of the run that the owner belongs to, such as "loops".
    """

    owner: str
    name: str
    was: str | None
    now: str | None
    holds: str
    part: str = ""

    @property
    def is_limit(self) -> bool:
        """Whether it is a limit of the fit, which is changed on purpose."""
        return self.name in _LIMITS

    def __str__(self) -> str:
        was = "was not there" if self.was is None else f"was {self.was}"
        now = "is not there now" if self.now is None else f"is {self.now} now"
        return f"{self.owner}: {self.name} {was}, {now}. {self.holds}"


def well_formed(settings: object) -> dict[str, Settings]:
    """Return the settings that a checkpoint holds, without what a damaged file has in their place."""

    def named(thing: object) -> dict[str, Any]:
        return thing if isinstance(thing, dict) else {}

    return {
        part: {
            owner: {name: text for name, text in named(texts).items() if isinstance(text, str)}
            for owner, texts in named(owners).items()
        }
        for part, owners in named(settings).items()
    }


def changes(
    was: Mapping[str, Settings],
    given: Mapping[str, Settings],
    now: Mapping[str, Settings],
    loaded: Mapping[str, Settings],
    fresh: Sequence[str],
) -> Iterator[Change]:
    """Find the differences between the settings of a checkpoint and those of a script.

    The run itself may have changed settings since its start, as callbacks of Lightning do. That is no
    difference if the same holds after the checkpoint is loaded.

    Args:
        was: Those at the checkpoint.
        given: Those of the script when the run began, as far as they are others than at the checkpoint.
        now: Those of the script that resumes.
        loaded: Those once the checkpoint is loaded.
        fresh: Parts that are not loaded from the checkpoint.
    """
    for part, ours in now.items():
        theirs, begun, after = was.get(part, {}), given.get(part, {}), loaded.get(part, {})
        for owner in (one for one in ours if one in theirs):
            names = [*dict.fromkeys([*theirs[owner], *ours[owner]])]
            if part in NOTED and theirs[owner].get(ITS_CLASS) != ours[owner].get(ITS_CLASS):
                names = ["itself"]
            for name in names:
                before, here = theirs[owner].get(name), ours[owner].get(name)
                if name.endswith(CODE) and (before is None or here is None):
                    continue  # an earlier version wrote none, or its name has changed already
                if before is None and name in _NOT_ALWAYS_WRITTEN:
                    continue
                if part in NOTED and not _is_compared(part, before, here):
                    continue
                same_script = begun.get(owner, {}).get(name, before) == here
                if before == here or (same_script and after.get(owner, {}).get(name) == before):
                    continue
                holds = _holds(part, owner, name, fresh)
                yield Change(owner, name, before, here, holds, part)


def _is_compared(part: str, before: str | None, here: str | None) -> bool:
    """Whether it is told that what a script has made differs. Other versions of libraries have other attributes."""
    if CHANGES in (before, here):
        return False
    return part == "script" or (before is not None and here is not None)


def given_by_scripts(
    was: Mapping[str, Settings], given: Mapping[str, Settings], found: Iterable[Change]
) -> dict[str, Settings]:
    """Return what the scripts of a run have given: the first one, and what a later one changed.

    Args:
        was: The settings at the checkpoint.
        given: Those that had been given, as far as they are others.
        found: What the present script has changed.
    """
    all_given = {
        part: {
            owner: {**texts, **given.get(part, {}).get(owner, {})}
            for owner, texts in owners.items()
        }
        for part, owners in was.items()
    }
    for part, owners in given.items():
        for owner, texts in owners.items():
            all_given.setdefault(part, {}).setdefault(owner, dict(texts))
    for one in found:
        texts = all_given[one.part][one.owner]
        if one.now is None:
            texts.pop(one.name, None)
        else:
            texts[one.name] = one.now
    return all_given


def _holds(part: str, owner: str, name: str, fresh: Sequence[str]) -> str:
    if name.endswith(CODE):
        return "The script's holds; a function is in no checkpoint."
    if part == "optimizers":
        if owner.startswith(("the use of ", "the functions of ")):
            return "The script's holds; for the checkpoint's set it there."
        which = "optimizer" if owner.startswith("optimizer ") else "schedulers"
        if which in fresh:
            return f"The script's holds, by fresh={tuple(fresh)!r}."
        return f"The checkpoint's holds; for the script's say fit(..., fresh=({which!r},))."
    if part == "modes" and name in _ONE_OR_SEVERAL:
        what = _ONE_OR_SEVERAL[name]
        return (
            f"The script's holds; for the checkpoint's let these be one {what}, or several, there."
        )
    if part == "modes":
        return "The checkpoint's holds; for the script's set it after `start`, or load only the weights."
    if part == "code":
        return "The script's holds; code is in no checkpoint."
    if owner == RECEIVERS:
        return "The script's are called from here on; what was done up to here stays."
    if name == "the seed":
        return "The checkpoint's holds: generators go on where they stood. For the script's begin anew."
    if name == "seed" and part == "trainer":
        return "The random numbers of the checkpoint hold; a new run takes the script's."
    kind = owner.rpartition("(")[2].rstrip(")")
    if part == "loops" and name in _SETTLED.get(kind, ()):
        return (
            "The checkpoint's holds: the data are divided already. For the script's begin anew: "
            "fit(..., restart=True)."
        )
    if kind == "Phase":
        return "What the phase has begun with stays; the script's holds from the next time that it begins."
    if part in ("model", "layers", "data", "content"):
        return "The script's holds; for the checkpoint's write it there."
    return "The script's holds; for the checkpoint's set it there."


def keep_what_holds(context: Context, was: Mapping[str, Settings], fresh: Sequence[str]) -> None:
    """For later checkpoints, note the settings of the checkpoint that restored optimizers keep."""
    theirs = was.get("optimizers", {})
    for index, slot in enumerate(context.slots):
        kind = type(slot.optimizer).__name__
        if "optimizer" not in fresh:
            for place, group in enumerate(slot.configured):
                group.update(_as_read(theirs.get(f"optimizer {index} ({kind}), group {place}", {})))
        if "schedulers" not in fresh:
            for one in slot.schedulers:
                whose = f"{type(one.scheduler).__name__} of optimizer {index}"
                one.configured.update(_as_read(theirs.get(whose, {})))


class _Read(str):
    """A value read from a checkpoint, already text."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


def _as_read(texts: Mapping[str, str]) -> dict[str, Any]:
    return {name: _Read(text) for name, text in texts.items()}


def tell_changes(found: Sequence[Change], source: object, *, ended: bool) -> None:
    """Warn of changed settings, once for all of them. Changed limits alone are not warned of.

    Args:
        found: The differences.
        source: The checkpoint, for the message.
        ended: Whether the run had ended and does not continue.

    Warns:
        SettingsChanged: There are differences.
    """
    if all(one.is_limit for one in found) and not (found and ended):
        return
    lines = "".join(f"\n  - {one}" for one in _each_once(found))
    note = "\nThe run had ended and stays so: none of this lets it go on." if ended else ""
    warnings.warn(
        f"The run goes on from {source} with other settings:{lines}{note}",
        SettingsChanged,
        stacklevel=level_of_caller(),
    )


def _each_once(found: Sequence[Change]) -> list[str]:
    """Return a line for each change; what was found by several paths has one, and of very many not all have."""
    by_change: dict[object, list[Change]] = {}
    for one in found:
        same = (one.name, one.was, one.now) if one.part in NOTED else (one.owner, one.name)
        by_change.setdefault(same, []).append(one)
    lines = [
        f"{one}{f' (Also at {also[0].owner}.)' if also else ''}"
        for one, *also in by_change.values()
    ]
    return (
        lines
        if len(lines) <= _MOST_LINES
        else [*lines[:_MOST_LINES], f"and {len(lines) - _MOST_LINES} more"]
    )
