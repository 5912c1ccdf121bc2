"""Profiles of the ranks of one run, side by side. Reading needs no torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from statemachine_trainer.files import read_json
from statemachine_trainer.machine.errors import StateMachineError

_LONGEST: Final = 64 << 20
"""Bytes of a file that are read."""


class BadProfile(StateMachineError):
    """A file that `Profile.save` has not written."""


def profiles_side_by_side(*paths: str | Path) -> str:
    """Return what the ranks of a run took for each state, as a table of plain characters.

    Each rank writes its own profile: `profile.save(f"profile-{profile.rank}.json")`. A figure is the mean of a
    visit. The last column is the slowest rank over the fastest; the state that all together take longest for
    comes first. Where ranks wait for each other, as in a backward pass, the fastest rank takes longest.

    Args:
        *paths: The files, one for each rank.

    Raises:
        BadProfile: One is something else, or there is none.
    """
    if not paths:
        raise BadProfile("profiles_side_by_side needs the profiles of some ranks: say which files.")
    profiles = sorted((_read(Path(path)) for path in paths), key=lambda one: one["rank"])
    states = {path for one in profiles for path in one["states"]}

    def whole(path: str) -> float:
        return sum(_of(one, path).get("total", 0.0) for one in profiles)

    rows = [["", *(f"rank {one['rank']}" for one in profiles), "most / least"]]
    for path in sorted(states, key=lambda path: (-whole(path), path)):
        means = [_of(one, path).get("mean") for one in profiles]
        rows.append([path, *map(_in_words, means), _spread(means)])
    return "\n".join(_lines(rows))


def _read(path: Path) -> dict[str, Any]:
    try:
        found = read_json(path, _LONGEST)
        if type(found["rank"]) is not int:
            raise TypeError("its rank is no number")
        for one in found["states"].values():
            if not all(isinstance(one[name], int | float) for name in ("total", "mean")):
                raise TypeError("its times are no numbers")
    except KeyError as error:
        raise BadProfile(
            f"{path} has no {error}: it is not the profile of a rank, as `Profile.save` writes it."
        ) from error
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise BadProfile(f"{path} is not a profile that can be read: {error}.") from error
    return dict(found)


def _of(profile: Mapping[str, Any], path: str) -> Mapping[str, float]:
    found: Mapping[str, float] = profile["states"].get(path, {})
    return found


def _in_words(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds * 1e3:.3g} ms"


def _spread(means: Sequence[float | None]) -> str:
    known = [one for one in means if one]
    return f"{max(known) / min(known):.2f}" if len(known) > 1 else ""


def _lines(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for first, *rest in rows:
        cells = [one.rjust(width) for one, width in zip(rest, widths[1:], strict=True)]
        yield "  ".join([first.ljust(widths[0]), *cells]).rstrip()
