"""The metrics of each epoch, kept as records and written as a table that grows with them."""

from __future__ import annotations

import html
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Final

from statemachine_trainer.machine.keywords import HasSettings

if TYPE_CHECKING:
    from statemachine_trainer.loops.context import Context

Column = tuple[str, str]
"""A column of metrics: the pass it comes from ("train" or "validation") and its name."""

_PASSES: Final = ("validation", "train")
"""In the order of the columns: where there is no room for all, validation stays."""

_GAP: Final = "  "
_NARROWEST: Final = 9
"""Least width of a column: that of `1.234e-05`, so that what a later epoch brings fits as well."""

_WIDTH_OF_TIME: Final = len("59 min 59 s")


@dataclass(frozen=True, slots=True)
class EpochRecord:
    """What is known of an epoch when it ends.

    Attributes:
        epoch: Epochs done with it: the first is 1.
        steps: Optimizer steps done so far.
        seconds: How long it took, validation included and pauses not.
        train: The metrics of training.
        validation: Those of the last validation in this epoch; empty if there was none.
    """

    epoch: int
    steps: int
    seconds: float
    train: Mapping[str, float] = field(default_factory=dict)
    validation: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, context: Context) -> EpochRecord:
        """Read the record of an epoch that is about to end. This waits for the device."""
        counts = context.counts
        context.read_clock()
        before = counts.batch - counts.batch_in_epoch
        validated = context.validated_at is not None and context.validated_at[0] > before
        return cls(
            counts.epoch + 1,
            counts.step,
            counts.seconds_in_epoch,
            context.train_metrics.compute(),
            context.validation_metrics.compute() if validated else {},
        )

    @classmethod
    def from_facts(cls, facts: Any) -> EpochRecord:
        """Return the record that was written as these facts.

        Raises:
            TypeError: They are something else.
        """
        found = cls(**facts)
        numbers = (found.seconds, *found.train.values(), *found.validation.values())
        if type(found.epoch) is not int or type(found.steps) is not int:
            raise TypeError("the counters of an epoch are no whole numbers")
        if not all(type(one) in (int, float) for one in numbers):
            raise TypeError("the metrics of an epoch are no numbers")
        return found

    @property
    def columns(self) -> list[Column]:
        """The metrics it has, those of validation first."""
        return [(part, name) for part in _PASSES for name in getattr(self, part)]

    def value(self, column: Column) -> float | None:
        """Return a metric; None if this epoch has no such one."""
        part, name = column
        found: float | None = getattr(self, part).get(name)
        return found


class MetricsTable(HasSettings):
    """The metrics of each epoch as a table, and as data.

    A callback: `Trainer(callbacks=[MetricsTable(print)])` prints a row at the end of each epoch.
    The records are part of a snapshot, so that the table of a resumed run is whole.

    Args:
        echo: Called with each line as the table grows; None to keep the records only.
        width: Characters a line may have; columns that do not fit are left out, and counted in the
            last one. None for no limit.

    Attributes:
        records: One for each epoch.
    """

    def __init__(
        self, echo: Callable[[str], object] | None = None, *, width: int | None = None
    ) -> None:
        # Here, because it imports torch, which `smt runs` does without.
        from statemachine_trainer.loops.settings_checks import function, whole_number

        function(self, "echo", echo, "that is called with each line, such as print.")
        if width is not None:
            whole_number(self, "width", width, 1)
        self.records: list[EpochRecord] = []
        self.width = width
        self._echo = echo
        self._written: list[Column] = []

    def on_epoch_end(self, trainer: Any) -> None:
        """Add the row of the epoch."""
        self.add(EpochRecord.of(trainer.context))

    def add(self, record: EpochRecord) -> None:
        """Add a row."""
        self.records.append(record)
        if self._echo is not None:
            for line in self.new_lines():
                self._echo(line)

    def new_lines(self) -> list[str]:
        """Return the row of the newest record, after a head if it needs another one."""
        record = self.records[-1]
        columns = list(dict.fromkeys([*self._written, *record.columns]))
        columns.sort(key=lambda column: _PASSES.index(column[0]))
        head = [] if columns == self._written and len(self.records) > 1 else self._head(columns)
        self._written = columns
        return [*head, self._row(record, columns)]

    def lines(self) -> list[str]:
        """Return the whole table: two lines of head, then a line for each epoch."""
        columns = self._columns()
        return [*self._head(columns), *(self._row(record, columns) for record in self.records)]

    def state_dict(self) -> dict[str, Any]:
        """Return the records as plain data."""
        return {"records": [asdict(record) for record in self.records]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` returned."""
        self.records = [EpochRecord(**record) for record in state["records"]]
        self._written = []

    def __str__(self) -> str:
        return "\n".join(self.lines())

    def _repr_html_(self) -> str:
        columns = self._columns()
        spans = [(part, sum(c[0] == part for c in columns)) for part in _PASSES]
        groups = "".join(f'<th colspan="{n}">{part}</th>' for part, n in spans if n)
        names = "".join(f"<th>{html.escape(text)}</th>" for text in _names(columns))
        rows = "".join(
            "<tr>" + "".join(f"<td>{text}</td>" for text in _texts(record, columns)) + "</tr>"
            for record in self.records
        )
        head = f"<tr><th></th>{groups}<th></th></tr><tr>{names}</tr>"
        return f"<table><thead>{head}</thead><tbody>{rows}</tbody></table>"

    def _columns(self) -> list[Column]:
        found = dict.fromkeys(c for record in self.records for c in record.columns)
        return sorted(found, key=lambda column: _PASSES.index(column[0]))

    def _head(self, columns: Sequence[Column]) -> list[str]:
        kept, left_out = self._fitting(columns)
        spans = []
        for part in _PASSES:
            widths = [_width(column[1]) for column in kept if column[0] == part]
            if widths:
                spans.append(f" {part} ".center(sum(widths) + len(_GAP) * (len(widths) - 1), "─"))
        groups = _GAP.join([" " * _width_of_epoch(), *spans])
        names = self._joined(_names(kept), kept)
        return [groups.rstrip(), f"{names}{_GAP}(+{left_out} more)" if left_out else names]

    def _row(self, record: EpochRecord, columns: Sequence[Column]) -> str:
        kept, _ = self._fitting(columns)
        return self._joined(_texts(record, kept), kept)

    def _joined(self, texts: Iterable[str], columns: Sequence[Column]) -> str:
        widths = [_width_of_epoch(), *(_width(name) for _, name in columns), _WIDTH_OF_TIME]
        return _GAP.join(t.rjust(width) for t, width in zip(texts, widths, strict=True))

    def _fitting(self, columns: Sequence[Column]) -> tuple[list[Column], int]:
        """Return the columns that fit into a line, and the number of those that do not."""
        if self.width is None:
            return list(columns), 0
        always = _width_of_epoch() + len(_GAP) + _WIDTH_OF_TIME
        for count in range(len(columns), 0, -1):
            note = 0 if count == len(columns) else len(f"{_GAP}(+{len(columns) - count} more)")
            needed = sum(len(_GAP) + _width(name) for _, name in columns[:count])
            if always + needed + note <= self.width:
                return list(columns[:count]), len(columns) - count
        return [], len(columns)


def format_number(value: float | None) -> str:
    """Return a metric in four significant digits; nothing for None."""
    if value is None:
        return ""
    whole = 1e4 <= abs(value) < 1e9 and value % 1 == 0
    return f"{value:.0f}" if whole else f"{value:#.4g}".rstrip(".")


def format_seconds(seconds: float) -> str:
    """Return a length of time as measured: `0.8 s`, `1 min 40 s`, `2 h 3 min`."""
    return f"{seconds:.1f} s" if seconds < 99.95 else format_duration(seconds)


def format_duration(seconds: float) -> str:
    """Return a length of time with its units, so that nobody takes it for a time of day.

    To the second below an hour, to the minute below two days: `7 s`, `1 min 5 s`, `2 h 3 min`, `3 d 11 h`.
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    minutes = round(seconds / 60)
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60} min"
    hours = round(seconds / 3600)
    return f"{hours // 24} d {hours % 24} h"


def _names(columns: Sequence[Column]) -> list[str]:
    return ["epoch", *(name for _, name in columns), "time"]


def _texts(record: EpochRecord, columns: Sequence[Column]) -> list[str]:
    numbers = [format_number(record.value(column)) for column in columns]
    return [str(record.epoch), *numbers, format_seconds(record.seconds)]


def _width(name: str) -> int:
    return max(len(name), _NARROWEST)


def _width_of_epoch() -> int:
    return len("epoch")
