"""Axes of training set-ups tried together: a small table in which every pair of values meets."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import Any, Final, get_args

from statemachine_trainer.testing.setups import Place, Setup

Row = dict[str, Any]
"""A value for each axis."""

AXES: Final[Mapping[str, tuple[Any, ...]]] = {
    "optimization": ("adam", "sgd", "two", "lbfgs", "manual"),
    "precision": ("32", "bf16", "fp16"),
    "data": ("map", "sampler", "list", "stream", "stateful stream"),
    "workers": ((0, None), (0, 2), (2, 0)),
    "accumulate": (None, 2, 3, "growing"),
    "limit": (None, 5),
    "compiled": (False, True),
    "swap": (None, "class", "instance", "twice", "nested", "nested twice"),
    "posts": (
        (),
        ("validate",),
        ("end_epoch",),
        ("stop",),
        ("stop", "validate"),
        ("validate", "end_epoch", "stop"),
    ),
    "own_generators": (None, *get_args(Place)),
    "sets": (None, "rate", "decay", "weights", "frozen"),
    "stateful_callback": (False, True),
    "elsewhere": (False, True),
    "changed": (None, "rate", "accumulate", "clip_norm", "patience", "checkpoint_every"),
}
"""`workers`: before the stop and after it. `accumulate`: 3 leaves a window open at the end of an epoch.
`limit`: of optimizer steps. `elsewhere`: the second start is in another working directory. `changed`:
a setting that is another one at the second start."""

TREES: Final[Mapping[str, tuple[Any, ...]]] = {
    "tree": ("kfold", "active", "phases"),
    "precision": ("32", "bf16", "fp16"),
    "workers": ((0, None), (0, 2), (2, 0)),
    "swap": (None, "class", "twice"),
    "posts": ((), ("validate",), ("end_epoch",), ("stop",)),
    "own_generators": (None, "data", "transform", "attribute", "loss", "callback", "receiver"),
    "stateful_callback": (False, True),
}
"""Axes that are crossed in recipes around a fit."""

CHANGES: Final[Mapping[str, tuple[Any, Any]]] = {
    "rate": (1.0, 0.1),
    "accumulate": (None, [(0, 2)]),
    "clip_norm": (None, 0.1),
    "patience": (1, 2),
    "checkpoint_every": ([2, "batch"], [3, "batch"]),
}
"""Settings of a `Setup` before the stop and after it."""


def is_possible(row: Mapping[str, Any]) -> bool:
    """Whether values go together; axes that are not in the row are left open."""

    def one(axis: str) -> Any:
        return row.get(axis, AXES[axis][0])

    if one("workers") != (0, None) and row.get("data", "map") not in ("map", "sampler"):
        return False
    if one("accumulate") and one("optimization") in ("lbfgs", "manual"):
        return False
    if one("precision") == "fp16" and one("optimization") in ("lbfgs", "manual"):
        return False  # no scaler: the loss is evaluated again and again, or by hand
    if one("workers") != (0, None) and one("limit"):
        return False  # ends amid a pass, of which workers have drawn more than they have given
    if one("own_generators") in _OF_DATA and row.get("data", "map") == "list":
        return False  # batches that are made already
    if one("own_generators") == "sampler" and row.get("data", "map") != "map":
        return False  # streams have no sampler, and "sampler" is one already
    if one("own_generators") == "collate" and one("workers") != (0, None):
        return (
            False  # it is made in the process that reads: the same draws, but another one's state
        )
    if one("own_generators") == "scheduler" and one("optimization") == "manual":
        return False  # steps its schedulers by hand
    if one("changed") in ("accumulate", "clip_norm") and one("optimization") == "manual":
        return False
    if one("changed") == "accumulate" and (one("accumulate") or one("optimization") == "lbfgs"):
        return False
    return not (
        one("compiled") and one("own_generators") in _IN_FORWARD
    )  # dynamo keeps what it drew


_OF_DATA: Final = ("data", "transform", "sampler", "collate")
_IN_FORWARD: Final = ("model", "attribute")


def pairs(axes: Mapping[str, tuple[Any, ...]] = AXES) -> Iterator[Row]:
    """Yield every pair of values of two axes that go together."""
    for (first, ours), (second, theirs) in itertools.combinations(axes.items(), 2):
        for one, other in itertools.product(ours, theirs):
            if is_possible({first: one, second: other}):
                yield {first: one, second: other}


def table(axes: Mapping[str, tuple[Any, ...]] = AXES) -> list[Row]:
    """Return rows in which all `pairs` occur; the same ones each time.

    Greedy: each row begins with a pair that is missing, and each further axis takes the value that
    meets most of the missing pairs.
    """
    missing = {_key(pair): pair for pair in pairs(axes)}
    rows = []
    while missing:
        row = dict(next(iter(missing.values())))
        for axis, values in axes.items():
            if axis in row:
                continue
            allowed = [one for one in values if is_possible({**row, axis: one})]
            row[axis] = max(allowed, key=lambda one: _gain({**row, axis: one}, axis, missing))
        rows.append({axis: row[axis] for axis in axes})
        for met in _pairs_in(row):
            missing.pop(met, None)
    return rows


def setup_of(row: Row) -> Setup:
    """Return the set-up that a row describes; axes that are not in the row have their first value."""
    row = {**{axis: values[0] for axis, values in AXES.items()}, **row}
    before, after = row["workers"]
    changed: dict[str, Any] = {} if after is None else {"workers": after}
    given: dict[str, Any] = {"accumulate": _WINDOWS[row["accumulate"]]}
    if (name := row["changed"]) is not None:
        was, changed[name] = CHANGES[name]
        given[name] = given.get(name) or was
    return Setup(
        optimization=row["optimization"],
        precision=row["precision"],
        data=row["data"],
        workers=before,
        later=changed or None,
        seed_samples=True if row["data"] in ("map", "sampler") else None,
        max_steps=row["limit"],
        tree=row.get("tree"),
        compiled=row["compiled"],
        swap=row["swap"],
        posts=[(1 if "tree" in row else 2, event) for event in row["posts"]] or None,
        own_generators=row["own_generators"],
        sets=None if row["sets"] is None else [(3, row["sets"])],
        stateful_callback=row["stateful_callback"],
        **given,
    )


_WINDOWS: Final[Mapping[Any, list[tuple[int, int]] | None]] = {
    None: None,
    2: [(0, 2)],
    3: [(0, 3)],
    "growing": [(0, 1), (1, 3)],
}


def _gain(row: Row, axis: str, missing: Mapping[Any, Row]) -> int:
    return sum(_key({axis: row[axis], other: row[other]}) in missing for other in row)


def _pairs_in(row: Row) -> Iterator[Any]:
    for first, second in itertools.combinations(row, 2):
        yield _key({first: row[first], second: row[second]})


def _key(pair: Row) -> Any:
    return frozenset(pair.items())
