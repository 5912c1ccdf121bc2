"""Numbers of one metric from several ranks, made one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from typing import Any, Final

from statemachine_trainer.loops.metrics.numbers import Number


def plain(name: str, number: Number) -> dict[str, Any]:
    """Return the state of a number as JSON, with the values on devices added."""
    state: dict[str, Any] = number.state(name, None)
    totals = [state["total"], *(float(one) for one in state["totals_on"].values())]
    newest = state["newests_on"].get(state["newest_on"], state["newest"])
    folded = {"total": _FOLDS[number.reduce](totals), "newest": float(newest)}
    return {**state, **folded, "newest_on": None, "totals_on": {}, "newests_on": {}}


def joined(states: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Join the plain states of a metric, rank by rank. For "last" the value of the first one counts."""
    return reduce(_joined, states)


def _joined(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    fold = _FOLDS[one["reduce"]]
    total = fold([one["total"], other["total"]])
    return {**one, "total": total, "weight": one["weight"] + other["weight"]}


def _extreme(choose: Any) -> Any:
    def fold(values: list[float]) -> float:
        return next((value for value in values if value != value), choose(values))

    return fold


_FOLDS: Final[Mapping[str, Callable[[list[float]], float]]] = {
    "mean": sum,
    "sum": sum,
    "min": _extreme(min),
    "max": _extreme(max),
    "last": lambda values: values[0],
}
