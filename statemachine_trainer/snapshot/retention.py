"""Which checkpoints are kept."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import ClassVar, Final, Generic, Literal, Protocol, TypeVar, cast

import numpy as np

from statemachine_trainer.files import read_regular
from statemachine_trainer.intervals import Every, IntervalError, parse_interval
from statemachine_trainer.machine.keywords import HasSettings
from statemachine_trainer.snapshot import strictjson
from statemachine_trainer.snapshot.snapshot_errors import Damaged, SnapshotError

PINS: Final = "pins.json"
"""The file of a folder with the names of the checkpoints that are kept whatever the rules say."""

_LONGEST_PINS: Final = 16 << 20


class BadRetention(SnapshotError, ValueError):
    """A rule of what is kept that makes no sense, or something that is no such rule."""


class Kept(Protocol):
    """What a rule asks of a checkpoint."""

    @property
    def created(self) -> datetime: ...

    @property
    def metadata(self) -> dict[str, object]: ...


@dataclass(frozen=True)
class Best(HasSettings):
    """Keep the `k` best by ``metadata["metrics"][metric]``.

    Of two that are equal the earlier is the better one. A checkpoint without the metric, or with
    NaN, is not among the best.

    Args:
        metric: the name of the metric
        k: how many
        mode: whether less (``"min"``) or more (``"max"``) is better

    Raises:
        BadRetention: a value out of its range
    """

    other_names: ClassVar = {
        "monitor": "It is called metric, and comes first",
        **dict.fromkeys(("top_k", "save_top_k"), "It is called k"),
    }

    metric: str
    k: int = 1
    mode: Literal["min", "max"] = "min"

    def __post_init__(self) -> None:
        if not isinstance(self.metric, str) or not self.metric:
            raise BadRetention(f"Best({self.metric!r}): give the name of a metric, as it is logged")
        if not _is_whole(self.k):
            raise BadRetention(f"Best({self.metric!r}, k={self.k!r}): use a whole number from 1")
        if self.k < 1:
            raise BadRetention(f"Best({self.metric!r}, k={self.k}) keeps nothing; leave it out")
        if self.mode not in ("min", "max"):
            raise BadRetention(f"Best(mode={self.mode!r}): choose 'min' or 'max'")

    def choose(self, checkpoints: Sequence[Kept]) -> set[int]:
        """The places, in `checkpoints`, of those to keep; the oldest is at place 0."""
        ranked = []
        for place, checkpoint in enumerate(checkpoints):
            value = self._value(checkpoint)
            if value is not None:
                ranked.append((value if self.mode == "min" else -value, place))
        return {place for _, place in sorted(ranked)[: self.k]}

    def _value(self, checkpoint: Kept) -> float | None:
        metrics = checkpoint.metadata.get("metrics")
        value = metrics.get(self.metric) if isinstance(metrics, dict) else None
        number = _number(value)
        return None if number is None or math.isnan(number) else number


@dataclass(frozen=True)
class KeepEvery(HasSettings):
    """Keep for ever the first checkpoint at, or after, each multiple of `n` steps or epochs.

    Steps and epochs are ``metadata["step"]`` and ``metadata["epoch"]``; those that a resumed run
    counts again are no new multiples. Minutes are those of the clock: of each `n` minutes the first
    checkpoint is kept.

    Args:
        n: how many
        unit: of what

    Raises:
        BadRetention: a value out of its range
    """

    n: float
    unit: Literal["step", "epoch", "minute"]

    def __post_init__(self) -> None:
        number = _number(self.n)
        if number is None or not number > 0:
            raise BadRetention(f"KeepEvery({self.n!r}, {self.unit!r}): n must be above 0")
        if self.unit not in ("step", "epoch", "minute"):
            raise BadRetention(f"KeepEvery(unit={self.unit!r}): choose 'step', 'epoch' or 'minute'")

    @classmethod
    def of(cls, interval: object) -> KeepEvery:
        """Make the rule of any interval: `every(1000, "step")`, "2 epochs", "30min".

        Raises:
            BadRetention: It is none, or counts what a checkpoint does not tell.
        """
        try:
            every = parse_interval(interval, "every")
        except IntervalError as error:
            raise BadRetention(f"Retention: {error}") from None
        if every.unit == "second":
            return cls(every.n / 60, "minute")
        if every.unit not in ("step", "epoch") or every.is_fraction:
            raise BadRetention(
                f"Retention(every={interval!r}): what is kept for ever is counted in steps, epochs or "
                "seconds, such as every(1000, 'step'), '2 epochs' or '1h'."
            )
        return cls(every.n, every.unit)

    def choose(self, checkpoints: Sequence[Kept]) -> set[int]:
        """The places, in `checkpoints`, of those to keep; the oldest is at place 0."""
        first: dict[int, int] = {}
        for place, checkpoint in enumerate(checkpoints):
            position = self._position(checkpoint)
            multiple = math.inf if position is None else position / self.n
            if math.isfinite(multiple):  # a huge number by a small interval is not
                first.setdefault(math.floor(multiple), place)
        if self.unit != "minute":
            first.pop(0, None)  # what comes before the first multiple
        return set(first.values())

    def _position(self, checkpoint: Kept) -> float | None:
        if self.unit == "minute":
            return checkpoint.created.timestamp() / 60
        number = _number(checkpoint.metadata.get(self.unit))
        return number if number is not None and math.isfinite(number) else None


@dataclass(frozen=True)
class Retention(HasSettings):
    """Which checkpoints are kept: those that any of these rules asks for.

    The newest is always kept, and so are those that are pinned.

    Args:
        last: how many of the newest; None keeps all
        best: the best by one metric, or by each of several
        every: some for ever: an interval of steps, epochs or time, such as `every(1000, "step")`,
            "2 epochs" or "1h", a `KeepEvery`, or several of them

    Raises:
        BadRetention: a value out of its range, or something that is no such rule
    """

    last: int | None = 3
    best: Best | tuple[Best, ...] = ()
    every: (
        KeepEvery | Every | str | timedelta | tuple[KeepEvery | Every | str | timedelta, ...]
    ) = ()

    def __post_init__(self) -> None:
        given = self.every if isinstance(self.every, tuple) else (self.every,)
        rules = tuple(one if isinstance(one, KeepEvery) else KeepEvery.of(one) for one in given)
        object.__setattr__(self, "every", rules if isinstance(self.every, tuple) else rules[0])
        if self.last is not None and not _is_whole(self.last):
            raise BadRetention(
                f"Retention(last={self.last!r}): use a whole number from 1, or None for all"
            )
        if self.last is not None and self.last < 1:
            raise BadRetention(f"Retention(last={self.last}): the newest is always kept; use 1")
        _check_rules("best", self.best, Best)

    def choose(self, checkpoints: Sequence[Kept]) -> set[int]:
        """The places, in `checkpoints`, of those to keep; the oldest is at place 0."""
        count = len(checkpoints)
        newest = count if self.last is None else min(self.last, count)
        kept = set(range(count - newest, count))
        every = cast("KeepEvery | tuple[KeepEvery, ...]", self.every)
        for rule in (*_several(self.best), *_several(every)):
            kept |= rule.choose(checkpoints)
        return kept


def _check_rules(name: str, given: object, kind: type[Best]) -> None:
    """Refuse what is no rule of this kind."""
    for one in given if isinstance(given, tuple) else (given,):
        if not isinstance(one, kind):
            rule = kind.__name__
            raise BadRetention(
                f"Retention({name}={one!r}): that is no rule of what is kept. Give {rule}(...), or "
                f"a tuple of several, with `from statemachine_trainer.snapshot import {rule}`"
            )


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _several(
    rules: Best | KeepEvery | tuple[Best, ...] | tuple[KeepEvery, ...],
) -> tuple[Best | KeepEvery, ...]:
    return rules if isinstance(rules, tuple) else (rules,)


def _number(value: object) -> float | None:
    """A number of Python or numpy; a bool is none."""
    if isinstance(value, bool) or not isinstance(value, (int, float, np.number)):
        return None
    try:
        return float(value)
    except (OverflowError, TypeError):
        return None


# -- What of a folder is kept ----------------------------------------------------------------------


class Listed(Kept, Protocol):
    """A checkpoint in a folder, as `Info` of the store."""

    @property
    def name(self) -> str: ...

    @property
    def path(self) -> Path: ...

    @property
    def damage(self) -> str | None: ...


T = TypeVar("T", bound=Listed)
Entry = tuple[int, str, Path]
"""Number, name and folder of a checkpoint."""

Print = tuple[tuple[str, int, int, int], ...]
"""Of each file in a folder its name, size, time of the last change, and number."""

_TOO_NEW: Final = 20_000_000
"""Nanoseconds within which a file may change twice and show one time: clocks of file systems are coarse."""


@dataclass(frozen=True)
class Written(Generic[T]):
    """A checkpoint that this process has written.

    Args:
        info: What is known of it.
        manifest: Where its manifest is, and the text of that.
        sizes: Of each file its size.
    """

    info: T
    manifest: tuple[Path, bytes]
    sizes: Mapping[str, int]

    def is_there(self, found: Print | None) -> bool:
        """Return whether a folder that looks so still has the files, and the manifest, that were written."""
        if found is None or {name: size for name, size, _, _ in found} != self.sizes:
            return False
        path, text = self.manifest
        try:
            return read_regular(path, len(text)) == text
        except OSError:
            return False


class Known(Generic[T]):
    """What was read of the checkpoints of a folder, for as long as their files stay as they are."""

    def __init__(self) -> None:
        self._known: dict[Path, tuple[Print, T]] = {}
        self._written: Written[T] | None = None

    def of(
        self,
        entries: Iterable[Entry],
        read: Callable[[int, str, Path], T],
        written: Written[T],
    ) -> list[T]:
        """Return what is known of some checkpoints; read the others.

        Args:
            entries: The checkpoints that are there.
            read: Reads one.
            written: The one that was written just now.
        """
        known, self._known = self._known, {}
        # The files of the one before were too new to be known by their times.
        last, self._written = self._written, written
        new = written.info
        found = []
        for number, name, path in entries:
            if path == new.path:
                found.append(new)
                continue
            now, before = _print(path), known.get(path)
            if before is not None and before[0] == now:
                info = before[1]
            elif last is not None and path == last.info.path and last.is_there(now):
                info = last.info
            else:
                info = read(number, name, path)
            if now is not None and info.damage is None:
                self._known[path] = now, info
            found.append(info)
        return found


def _print(folder: Path) -> Print | None:
    """Return what tells whether a file in a folder has changed; None where that cannot be told."""
    try:
        with os.scandir(folder) as inside:
            found = [(one.name, one.stat(follow_symlinks=False)) for one in inside]
    except OSError:
        return None
    now = time.time_ns()
    for _, one in found:
        if abs(now - one.st_mtime_ns) < _TOO_NEW:
            return None
    return tuple(sorted((name, one.st_size, one.st_mtime_ns, one.st_ino) for name, one in found))


def pins_of(folder: Path) -> set[str]:
    """Return the names of the checkpoints of a folder that are pinned.

    Raises:
        Damaged: The file that lists them cannot be read, or is no such list.
    """
    try:
        names = strictjson.loads(read_regular(folder / PINS, _LONGEST_PINS))
    except FileNotFoundError:
        return set()
    except (strictjson.BadJson, OSError) as error:
        raise Damaged(folder / PINS, str(error)) from None
    if not isinstance(names, list):
        raise Damaged(folder / PINS, "it is not a list of names")
    return {name for name in names if isinstance(name, str)}


def no_longer_kept(
    retention: Retention, infos: Sequence[Listed], pins: Collection[str]
) -> list[Path]:
    """Return the folders that no rule keeps; what is damaged is left for a person to look at.

    Args:
        retention: The rules.
        infos: All checkpoints of a folder, the oldest first.
        pins: Names of those that are kept in any case.
    """
    whole = [info for info in infos if info.damage is None]
    newest_of_name = {info.name: info for info in whole}
    current = [info for info in whole if newest_of_name[info.name] is info]
    kept = retention.choose(current)
    kept_paths = {
        info.path for place, info in enumerate(current) if place in kept or info.name in pins
    }
    return [info.path for info in whole if info.path not in kept_paths]
