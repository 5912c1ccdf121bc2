"""Runs side by side, as a table: what they were set to otherwise, and what came of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from rich.cells import cell_len

from statemachine_trainer.cli.common import printable
from statemachine_trainer.observe.comparison import Compared, comparison

_GAP: Final = "  "


def side_by_side(runs: Sequence[Compared], width: int) -> Iterator[str]:
    """Yield the lines of a table with a column for each run, and a row for each thing that is told.

    Hyperparameters that are the same in all runs are counted alone. Runs that do not fit into a line follow below, so
    that none is left out.

    Args:
        runs: The runs, in their order.
        width: Columns of the terminal.
    """
    told = comparison(runs)
    rows = [("run", [one.name for one in runs]), *((one.name, one.cells) for one in told.rows)]
    rows = [(printable(name), [*map(printable, cells)]) for name, cells in rows]
    heads = [name for name, _ in rows]
    first = max(map(cell_len, heads))
    columns = [[cells[place] for _, cells in rows] for place in range(len(runs))]
    widths = [max(map(cell_len, column)) for column in columns]
    for number, block in enumerate(_blocks(widths, width - first, len(_GAP))):
        if number:
            yield ""
        for row, head in enumerate(heads):
            cells = [_padded(columns[place][row], widths[place]) for place in block]
            yield _GAP.join([head + " " * (first - cell_len(head)), *cells]).rstrip()
    if told.same:
        yield ""
        yield f"{told.same_in_words}."


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


def _padded(text: str, width: int) -> str:
    return " " * (width - cell_len(text)) + text
