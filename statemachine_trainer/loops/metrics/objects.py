"""Metrics that keep their own state: how to recognise them, and to write down what they keep."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeGuard, cast

import torch
from torch import Tensor, nn

from statemachine_trainer.loops.loop_errors import UnknownMetric, UnsavableMetric
from statemachine_trainer.loops.metrics.numbers import Shown, as_number, item
from statemachine_trainer.machine.errors import suggest
from statemachine_trainer.parallel.containers import leaves_with_paths, map_leaves
from statemachine_trainer.parallel.wrappers import PlainNames


class MetricObject(Protocol):
    """What is recognised as a metric that keeps its own state: torchmetrics, or one's own class."""

    @property
    def update(self) -> object:
        """Takes in a batch; called by the user."""

    def compute(self) -> object:
        """The value over all that was taken in: one number, or a dict of such."""

    def reset(self) -> object:
        """Forgets all that was taken in."""


class Held:
    """One metric that reduces by itself."""

    __slots__ = ("metric", "prefix", "shown")

    def __init__(self, metric: MetricObject, prefix: str, shown: Shown) -> None:
        self.metric = metric
        self.prefix = prefix  # Of the keys, when a dict is computed.
        self.shown = shown

    def read(self, name: str) -> dict[str, float]:
        value = self.metric.compute()
        if isinstance(value, Mapping):
            named = {f"{self.prefix}{key}": part for key, part in value.items()}
        else:
            named = {name: value}
        return {key: _computed(key, part) for key, part in named.items()}

    def newest_value(self, name: str) -> float:
        newest = getattr(self.metric, "_forward_cache", None)
        return _computed(name, self.metric.compute() if newest is None else newest)

    def state(self, name: str, owner: nn.Module | None) -> dict[str, object]:
        return {
            "kind": "object",
            "shown": self.shown.state_dict(),
            "prefix": self.prefix,
            "path": next((p for p, m in metrics_of(owner) if m is self.metric), None),
            "state": metric_state(self.metric, name),
        }


@dataclass(slots=True)
class Pending:
    """A saved metric object whose object has not been seen yet."""

    shown: Shown
    prefix: str
    path: str | None
    saved: dict[str, object]

    @classmethod
    def restored(cls, saved: dict[str, object]) -> Pending:
        shown = Shown(**cast("dict[str, bool]", saved["shown"]))
        path = cast("str | None", saved["path"])
        return cls(shown, cast(str, saved["prefix"]), path, saved)

    def state(self, name: str, owner: nn.Module | None) -> dict[str, object]:
        return self.saved


def is_metric(value: object) -> TypeGuard[MetricObject]:
    """Whether `value` has the three methods of a metric object."""
    return all(callable(getattr(value, name, None)) for name in ("update", "compute", "reset"))


def metric_state(metric: object, name: str = "metric") -> dict[str, object]:
    """What a metric object keeps, as a plain tree of copies.

    Of torchmetrics objects, also inside wrappers and collections: the states and counters of each.
    Of others: their `state_dict`, or their attributes if all of those are plain data.

    Raises:
        UnsavableMetric: It has no `state_dict`, and attributes that are not plain data.
    """
    inside = torchmetrics_state(metric) if isinstance(metric, nn.Module) else {}
    if inside:
        return {"torchmetrics": inside}
    state_dict = getattr(metric, "state_dict", None)
    own = _copied(dict(state_dict())) if callable(state_dict) else None
    if own is not None and not isinstance(metric, nn.Module):
        return {"own": own}
    kept = _plain_attributes(metric)
    left_out = set(getattr(metric, "__dict__", {})) - set(kept) - _MODULE_INTERNALS
    if left_out or not hasattr(metric, "__dict__"):
        raise UnsavableMetric(
            f"The state of the metric object {name!r} cannot be saved: {type(metric).__name__} has "
            f"no state_dict, and plain data is not all it keeps ({', '.join(sorted(left_out))}). "
            "Give it state_dict() and load_state_dict(state)."
        )
    return {"own": own, "attributes": kept}


def load_metric_state(metric: object, state: Mapping[str, object]) -> None:
    """Gives a metric object back what `metric_state` wrote down."""
    if "torchmetrics" in state:
        saved = cast("dict[str, dict[str, object]]", state["torchmetrics"])
        load_torchmetrics_state(cast(nn.Module, metric), saved)
        return
    if state["own"] is not None:
        cast(nn.Module, metric).load_state_dict(cast("dict[str, object]", _copied(state["own"])))
    _set_attributes(metric, cast("dict[str, object]", state.get("attributes", {})))


def torchmetrics_state(module: nn.Module | PlainNames) -> dict[str, dict[str, object]]:
    """The states of all torchmetrics objects inside a module, by their path in it.

    Those are no part of the module's own `state_dict`, yet a run stopped in the middle of a pass
    has to go on from them: whether or not they are ever passed to `log`.

    Args:
        module: The module, or its names, if they are known already.
    """
    return {path: _plain_attributes(metric) for path, metric in _torchmetrics_in(module)}


def load_torchmetrics_state(module: nn.Module, state: Mapping[str, dict[str, object]]) -> None:
    """Gives the torchmetrics objects inside a module back what `torchmetrics_state` wrote down."""
    metrics = dict(_torchmetrics_in(module))
    for path, saved in state.items():
        if path not in metrics:
            raise UnknownMetric(
                f"A metric object was saved at {path!r}, where {type(module).__name__} has none. "
                f"{suggest(path, metrics)}"
            )
        _set_attributes(metrics[path], saved)


def _torchmetrics_in(module: nn.Module | PlainNames) -> Iterator[tuple[str, nn.Module]]:
    names = module if isinstance(module, PlainNames) else PlainNames(module)
    for path, inside in names.modules(wrappers=False):
        if hasattr(type(inside), "compute_groups"):
            # A collection updates one metric of a group of equals; asked so, it links the others.
            cast("Any", inside).values(copy_state=False)
        if isinstance(getattr(inside, "_defaults", None), dict) and is_metric(inside):
            yield path, cast(nn.Module, inside)


def metrics_of(owner: nn.Module | None) -> Iterator[tuple[str, object]]:
    """The metric objects that are attributes of a module or of one inside it, with their paths."""
    if owner is None:
        return
    for path, module in PlainNames(owner).modules(wrappers=False):
        if is_metric(module):
            yield path, module
        for name, value in vars(module).items():
            if is_metric(value):
                yield f"{path}.{name}" if path else name, value


def metric_at(owner: nn.Module | None, path: str | None) -> MetricObject | None:
    """The metric object at a path of `metrics_of`, if there is one."""
    found = next((metric for place, metric in metrics_of(owner) if place == path), None)
    return cast("MetricObject | None", found)


# Configuration and caches of torchmetrics: not state, or made anew.
_NO_STATE = frozenset({"_defaults", "_persistent", "_reductions", "_computed", "_cache"})
_MODULE_INTERNALS = frozenset(vars(nn.Module()))


def _plain_attributes(metric: object) -> dict[str, object]:
    """Copies of those attributes that are plain data."""
    kept: dict[str, object] = {}
    for name, value in getattr(metric, "__dict__", {}).items():
        if name not in _NO_STATE and name not in _MODULE_INTERNALS:
            try:
                kept[name] = _copied(value)
            except _NotPlain:
                continue
    return kept


def _set_attributes(metric: object, saved: Mapping[str, object]) -> None:
    """Sets attributes to copies of saved ones, each tensor on the device where the metric is."""
    attributes = cast("dict[str, object]", getattr(metric, "__dict__", {}))
    home = getattr(metric, "device", None)
    for name, value in saved.items():
        now = attributes.get(name)
        device = now.device if isinstance(now, Tensor) else home

        def placed(leaf: object, device: object = device) -> object:
            if isinstance(leaf, Tensor):
                to = device if isinstance(device, torch.device) else leaf.device
                return leaf.detach().to(to, copy=True)
            return _copied(leaf)

        attributes[name] = map_leaves(placed, value)
    if "_computed" in attributes:
        attributes["_computed"] = None


class _NotPlain(Exception):
    """A value that a snapshot could not write down."""


def _copied(value: object) -> object:
    """A copy of plain data."""
    if value is None or type(value) in (bool, int, float, str, bytes):
        return value
    if isinstance(value, Tensor):
        return value.detach().clone()
    if type(value) is list:
        return [_copied(part) for part in value]
    if type(value) is tuple:
        return tuple(_copied(part) for part in value)
    if isinstance(value, dict) and all(type(key) is str for key in value):
        return {key: _copied(part) for key, part in value.items()}
    if type(value).__module__ == "numpy" and hasattr(value, "ndim"):
        return value.copy() if value.ndim else value.item()  # type: ignore[attr-defined]
    raise _NotPlain(type(value).__name__)


def is_untouched(metric: MetricObject) -> bool:
    """Whether the object is as `reset` would leave it. It is not changed by the question."""
    before = metric_state(metric)
    metric.reset()
    fresh = dict(leaves_with_paths(metric_state(metric)))
    load_metric_state(metric, before)
    now = dict(leaves_with_paths(before))
    return now.keys() == fresh.keys() and all(_is_same(now[path], fresh[path]) for path in now)


def _is_same(one: object, other: object) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        if one.dtype != other.dtype or one.shape != other.shape:
            return False
        return bool(((one == other) | ((one != one) & (other != other))).all())
    if type(one).__module__ == "numpy" and type(other).__module__ == "numpy":
        return _is_same(torch.as_tensor(one), torch.as_tensor(other))
    return one == other or (one != one and other != other)


def _computed(name: str, value: object) -> float:
    """The number that a metric object computed."""
    if isinstance(value, Tensor):
        return item(name, value)
    return float(value) if isinstance(value, (int, float)) else as_number(name, value)
