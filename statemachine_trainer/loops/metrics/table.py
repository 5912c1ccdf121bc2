"""The table of metrics that `log` fills, reduced over one pass and computed when it is read.

A number, or a tensor on the CPU, is added to a Python float (64 bits). A tensor elsewhere is added
to an accumulator on its own device, so that nothing waits for the device until the table is read.
Objects of torchmetrics, and all that look like them, keep their state and are asked at the end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal, Unpack, cast

from torch import Tensor, nn

from statemachine_trainer.loops.loop_errors import (
    BadMetricValue,
    LateMetric,
    MetricConflict,
    MetricError,
    UnknownMetric,
    UnsavableMetric,
)
from statemachine_trainer.loops.metrics.numbers import (
    LogSettings,
    Number,
    Reduce,
    Shown,
    as_number,
    check_new,
    check_weight,
    item,
    read_all,
)
from statemachine_trainer.loops.metrics.objects import (
    Held,
    MetricObject,
    Pending,
    is_metric,
    is_untouched,
    load_metric_state,
    load_torchmetrics_state,
    metric_at,
    metric_state,
    torchmetrics_state,
)
from statemachine_trainer.loops.metrics.sizes import (
    UnclearBatchSize,
    batch_size_of,
    tell_unclear,
    why_unclear,
)
from statemachine_trainer.machine.errors import suggest

__all__ = [
    "BadMetricValue",
    "LateMetric",
    "LogSettings",
    "MetricConflict",
    "MetricError",
    "MetricObject",
    "Metrics",
    "Reduce",
    "Shown",
    "UnclearBatchSize",
    "UnknownMetric",
    "UnsavableMetric",
    "batch_size_of",
    "is_metric",
    "load_metric_state",
    "load_torchmetrics_state",
    "metric_state",
    "torchmetrics_state",
]


class Metrics(Mapping[str, float]):
    """The metrics of one pass over data: of a training epoch, a validation, one of its loaders.

    Reading it as a mapping, or by `compute`, gives every metric reduced over what was logged since
    `begin`. All accumulators of a device are read in one go, and again only after the next `log`.

    Args:
        owner: The model. Metric objects that are attributes of it are found again by their place
            when a saved state is loaded.
        find: Finds a metric object that is none of these by the name that it is logged by.

    Attributes:
        over: Whether the pass has ended. What is logged then begins the next one, as receivers do at
            the start of an epoch. None where that is not known.
    """

    def __init__(
        self,
        owner: nn.Module | None = None,
        find: Callable[[str], MetricObject | None] | None = None,
    ) -> None:
        self._owner = owner
        self._find = find
        self._entries: dict[str, Number | Held | Pending] = {}
        self._numbers: dict[str, float] | None = None
        self.over: bool | None = False
        self._told_of_size = False

    def begin(self) -> None:
        """Clear the table for a new pass, and reset the metric objects logged in the last one."""
        self.over = False
        for entry in self._entries.values():
            if isinstance(entry, Held):
                entry.metric.reset()
        self._entries.clear()
        self._numbers = None

    def settle(self) -> None:
        """Compute the metric objects logged so far, keep their values, and reset the objects.

        Called between two loaders of one pass: later metrics have other names, and their objects
        must hold nothing of the previous loader.
        """
        settled: dict[str, Number | Held | Pending] = {}
        for name, entry in self._entries.items():
            if not isinstance(entry, Held):
                settled[name] = entry
                continue
            for key, value in entry.read(name).items():
                number = settled[key] = Number("last", entry.shown)
                number.add(value, 1)
        for metric in self.objects():
            metric.reset()
        self._entries, self._numbers = settled, None

    def objects(self) -> list[MetricObject]:
        """Return the metric objects that were logged in this pass, each once."""
        found = {
            id(one.metric): one.metric for one in self._entries.values() if isinstance(one, Held)
        }
        return list(found.values())

    def log(
        self,
        name: str,
        value: object,
        *,
        batch_size: float | None = None,
        reduce: Reduce = "mean",
        on_step: bool = False,
        on_epoch: bool = True,
        prog_bar: bool = False,
    ) -> None:
        """Add a value to a metric of this pass.

        Args:
            name: Of the metric. How it is reduced and where it is shown is settled by the first
                `log` of that name in a pass.
            value: A number, a tensor of one element on any device (cut off from the graph), or a
                metric object. NaN and infinities are numbers, and spread.
            batch_size: The weight of the value in a mean; 1 when None. A value of weight 0 does not
                enter the mean.
            reduce: How the values of a pass become one.
            on_step: Whether each newest value is of interest: `newest` lists it.
            on_epoch: Whether the reduced value is of interest: `compute` lists it.
            prog_bar: Whether a progress bar shows it.

        Raises:
            BadMetricValue: Not one number; or a weight that is negative or no Python number.
            MetricConflict: The name was logged before with another `reduce` or metric object.
        """
        if self.over:
            self.begin()
        number: float | None = None
        if isinstance(value, Tensor):
            if value.is_cpu:  # reading it waits for nothing, and is cheaper than adding to one
                number = item(name, value)
        elif isinstance(value, (float, int)):
            number = value
        elif is_metric(value):
            self._log_object(name, value, reduce, Shown(on_step, on_epoch, prog_bar))
            return
        else:
            number = as_number(name, value)
        entry = self._entries.get(name)
        if entry.__class__ is not Number or entry.reduce != reduce:
            entry = self._new_number(name, reduce, Shown(on_step, on_epoch, prog_bar))
        weight = 1 if batch_size is None else batch_size
        if weight.__class__ is not int or weight < 0:
            check_weight(name, weight)
        self._numbers = None
        if number is not None:
            entry.add(number, weight)
        else:
            entry.add_on_device(name, cast(Tensor, value), weight)

    def take(self, name: str, value: Any, batch: Any, batch_size: float | None) -> bool:
        """Add a value as `log` does, in less time, if it is of the usual kind.

        The usual kind is one more number, or tensor of one number, of a mean. Its weight is given, or that of a
        batch of tensors that all have the same number of samples.

        Args:
            name: Of the metric.
            value: What was logged.
            batch: The batch that the value is of.
            batch_size: The weight; None for that of the batch.

        Returns:
            Whether it was added. If not, nothing has changed: use `log` and `weight_of`.

        Raises:
            BadMetricValue: Not one number.
        """
        # One long function, since this is called in every batch. Between the steps of a model our code is
        # no longer in the caches of the processor, and each further call or object takes long.
        entry: Any = self._entries.get(name)
        if entry.__class__ is not Number or entry.reduce != "mean" or self.over:
            return False
        weight: Any = batch_size
        if weight is None:
            kind = batch.__class__
            if kind is dict:
                batch = batch.values()
            elif kind is Tensor:
                batch = (batch,)
            elif kind is not tuple and kind is not list:
                return False
            for one in batch:
                if one.__class__ is not Tensor:
                    return False
                try:
                    size = one.size(0)
                except IndexError:  # one number
                    return False
                if weight is None:
                    weight = size
                elif size != weight:
                    return False
        if weight.__class__ is not int or weight < 0:
            return False
        kind = value.__class__
        if kind is Tensor:
            if not value.is_cpu:
                self._numbers = None
                entry.add_on_device(name, value, weight)
                return True
            try:
                value = value.item()
            except RuntimeError:  # several numbers
                return False
            if value.__class__ is complex:
                return False
        elif kind is not float and kind is not int and not isinstance(value, (float, int)):
            if isinstance(value, Tensor) or is_metric(value):
                return False
            value = as_number(name, value)
        self._numbers = None
        entry.newest, entry.newest_on = value, None
        if weight:
            entry.total += value * weight
            entry.weight += weight
        return True

    def weight_of(self, batch: Any, name: str) -> int | None:
        """The number of samples in a batch, as the weight of a value in a mean; None if unknown.

        Args:
            batch: The batch that the value is of.
            name: Of the metric, for the warning.

        Warns:
            UnclearBatchSize: The batch does not say it clearly. Told once.
        """
        size = batch_size_of(batch)
        if not self._told_of_size and (why := why_unclear(batch, size)):
            self._told_of_size = True
            tell_unclear(name, size, why)
        return size

    def log_dict(
        self,
        values: Mapping[str, object] | MetricObject,
        **settings: Unpack[LogSettings],
    ) -> None:
        """Log several values at once.

        Args:
            values: A mapping of names to values, or one metric object that computes a dict, such as
                a torchmetrics `MetricCollection`: the keys of the dict are the names then. (Logged
                by `log(name, collection)`, they are `name/key`.)
            settings: As for `log`.
        """
        if is_metric(values):
            if self.over:
                self.begin()
            keys = values.keys() if hasattr(values, "keys") else [type(values).__name__]
            reduce = settings.pop("reduce", "mean")
            settings.pop("batch_size", None)
            shown = Shown(**cast("dict[str, bool]", settings))
            self._log_object(",".join(map(str, keys)), values, reduce, shown, prefix="")
            return
        for name, value in cast("Mapping[str, object]", values).items():
            self.log(name, value, **settings)

    def attach(self, name: str, metric: MetricObject) -> bool:
        """Load the state saved under `name` into a metric object, if there is one.

        Only for objects that are no attributes of the owner, before they are used again.
        """
        waiting = self._entries.get(name)
        if not isinstance(waiting, Pending):
            return False
        load_metric_state(metric, cast("dict[str, object]", waiting.saved["state"]))
        self._entries[name] = Held(metric, waiting.prefix, waiting.shown)
        return True

    def compute(self) -> dict[str, float]:
        """Return every metric of the pass, reduced to a float, in the order of their first `log`."""
        numbers = self._read_numbers()
        found: dict[str, float] = {}
        for name, entry in self._entries.items():
            if not entry.shown.on_epoch or isinstance(entry, Pending):
                continue
            if isinstance(entry, Held):
                found.update(entry.read(name))
            else:
                found[name] = numbers[name]
        return found

    def last(self, name: str) -> float:
        """The newest value logged under a name, not reduced.

        Of a metric object: its value for the newest batch if it has one, else for all so far.
        """
        entry = self._entries.get(name)
        if isinstance(entry, Number):
            return entry.newest_value()
        if isinstance(entry, Held):
            return entry.newest_value(name)
        raise self._unknown(name)

    def newest(self, shown: Literal["on_step", "prog_bar"] = "on_step") -> dict[str, float]:
        """The newest value of each metric that was logged with `on_step` (or `prog_bar`)."""
        return {
            name: self.last(name)
            for name, entry in self._entries.items()
            if getattr(entry.shown, shown) and not isinstance(entry, Pending)
        }

    def is_newest(self, name: str, value: float) -> bool:
        """Return whether this is the newest value of this pass under a name; waits for no device."""
        entry: Any = self._entries.get(name)
        on_host = entry.__class__ is Number and entry.newest_on is None
        return on_host and entry.newest == value and not self.over

    def shown(self, name: str) -> Shown:
        """Return where to show the metric."""
        if name not in self._entries:
            raise self._unknown(name)
        return self._entries[name].shown

    def __getitem__(self, name: str) -> float:
        found = self.compute()
        if name not in found:
            raise self._unknown(name)
        return found[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.compute())

    def __len__(self) -> int:
        return len(self.compute())

    def __bool__(self) -> bool:
        return bool(self._entries)  # Asked often, and not worth a wait for the device.

    def __repr__(self) -> str:
        return f"Metrics({', '.join(self._entries)})"

    def state_dict(self) -> dict[str, object]:
        """Return all accumulated values: floats of the host, copies of tensors on their devices.

        Raises:
            UnsavableMetric: A metric object keeps its state where it cannot be found.
        """
        return {name: entry.state(name, self._owner) for name, entry in self._entries.items()}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Restore a saved state, to the bit.

        The state of a metric object is given back to the attribute of the owner that it was, or
        to the object already logged by that name; else it waits for `attach` or the next `log`.
        """
        before, self._entries, self._numbers = self._entries, {}, None
        for name, saved in cast("Mapping[str, dict[str, object]]", state).items():
            if saved["kind"] == "number":
                self._entries[name] = Number.restored(saved)
                continue
            pending = Pending.restored(saved)
            self._entries[name] = pending
            known = before.get(name)
            metric = metric_at(self._owner, pending.path)
            if metric is None and isinstance(known, Held):
                metric = known.metric
            if metric is None and self._find is not None:
                metric = self._find(name)
            if metric is not None:
                self.attach(name, metric)

    def _read_numbers(self) -> dict[str, float]:
        if self._numbers is None:
            numbers = {n: e for n, e in self._entries.items() if isinstance(e, Number)}
            values = iter(read_all([t for entry in numbers.values() for t in entry.totals()]))
            self._numbers = {
                name: entry.reduced([next(values) for _ in entry.totals()])
                for name, entry in numbers.items()
            }
        return self._numbers

    def _new_number(self, name: str, reduce: Reduce, shown: Shown) -> Number:
        check_new(name, reduce)
        entry = self._entries.get(name)
        if isinstance(entry, Number):
            raise MetricConflict(
                f"{name!r} was logged with reduce={entry.reduce!r} in this pass, and now with "
                f"reduce={reduce!r}. Choose one of them, or two names."
            )
        if entry is not None:
            raise MetricConflict(
                f"{name!r} was logged as a metric object in this pass, and now as a number. "
                "Choose two names."
            )
        made = self._entries[name] = Number(reduce, shown)
        return made

    def _log_object(
        self,
        name: str,
        metric: MetricObject,
        reduce: Reduce,
        shown: Shown,
        prefix: str | None = None,
    ) -> None:
        check_new(name, reduce)
        if reduce != "mean":
            raise MetricConflict(
                f"{name!r} is a {type(metric).__name__}, which reduces by itself: leave out "
                f"reduce={reduce!r}."
            )
        entry = self._entries.get(name)
        if isinstance(entry, Pending):
            if not is_untouched(metric):
                raise LateMetric(
                    f"The {type(metric).__name__} logged as {name!r} had taken in data before its "
                    "saved state could be given back to it. Make it an attribute of the model, or "
                    f"call attach({name!r}, metric) after loading and before its first use."
                )
            self.attach(name, metric)
        elif entry is None:
            self._entries[name] = Held(metric, f"{name}/" if prefix is None else prefix, shown)
        elif not isinstance(entry, Held) or entry.metric is not metric:
            raise MetricConflict(
                f"{name!r} was logged in this pass as a number, or as another metric object. "
                "Choose two names."
            )

    def _unknown(self, name: str) -> UnknownMetric:
        return UnknownMetric(f"No metric {name!r} in this pass. {suggest(name, self._entries)}")
