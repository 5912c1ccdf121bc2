"""Runs side by side, as a table: what they were set to otherwise, and what came of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from rich.cells import cell_len

from statemachine_trainer.cli.common import printable
from statemachine_trainer.observe.epoch_table import format_number

_GAP: Final = "  "
_MISSING: Final = "-"


@dataclass(frozen=True)
class Compared:
    """What is told of one run.

    Attributes:
        name: Its name.
        facts: State, epochs and the like, by name.
        hyperparameters: What it was set to.
        metrics: The newest value of each.
    """

    name: str
    facts: Mapping[str, str] = field(default_factory=dict)
    hyperparameters: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)


def side_by_side(runs: Sequence[Compared], width: int) -> Iterator[str]:
    """Yield the lines of a table with a column for each run, and a row for each thing that is told.

    Hyperparameters that are the same in all runs are counted alone. Runs that do not fit into a line follow below, so
    that none is left out.

    Args:
        runs: The runs, in their order.
        width: Columns of the terminal.
    """
    settings = list(dict.fromkeys(name for one in runs for name in one.hyperparameters))
    other = [name for name in settings if _differs(name, runs)]
    facts = list(dict.fromkeys(name for one in runs for name in one.facts))
    metrics = list(dict.fromkeys(name for one in runs for name in one.metrics))
    rows = [
        ("run", [printable(one.name) for one in runs]),
        *((name, [one.facts.get(name, "") for one in runs]) for name in facts),
        *((name, [_setting(one.hyperparameters, name) for one in runs]) for name in other),
        *((name, [_metric(one.metrics, name) for one in runs]) for name in metrics),
    ]
    heads = [printable(name) for name, _ in rows]
    first = max(map(cell_len, heads))
    columns = [[cells[place] for _, cells in rows] for place in range(len(runs))]
    widths = [max(map(cell_len, column)) for column in columns]
    for number, block in enumerate(_blocks(widths, width - first, len(_GAP))):
        if number:
            yield ""
        for row, head in enumerate(heads):
            cells = [_padded(columns[place][row], widths[place]) for place in block]
            yield _GAP.join([head + " " * (first - cell_len(head)), *cells]).rstrip()
    same = len(settings) - len(other)
    if same:
        yield ""
        yield f"{same} hyperparameter{'s are' if same > 1 else ' is'} the same in all."


def _differs(name: str, runs: Sequence[Compared]) -> bool:
    missing = object()
    return len({repr(one.hyperparameters.get(name, missing)) for one in runs}) > 1


def _blocks(widths: Sequence[int], room: int, gap: int) -> Iterator[list[int]]:
    """Yield as many places at a time as fit, at least one."""
    block: list[int] = []
    taken = 0
    for place, width in enumerate(widths):
        if block and taken + gap + width > room:
            yield block
            block, taken = [], 0
        block.append(place)
        taken += gap + width
    yield block


def _setting(values: Mapping[str, Any], name: str) -> str:
    return printable(f"{values[name]}") if name in values else _MISSING  # to the last digit


def _metric(values: Mapping[str, float], name: str) -> str:
    return format_number(values[name]) if name in values else _MISSING


def _padded(text: str, width: int) -> str:
    return " " * (width - cell_len(text)) + text
