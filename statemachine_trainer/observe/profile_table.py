"""A profile as a table: in the terminal, in a notebook, as text."""

from __future__ import annotations

import io
from collections.abc import Iterator
from html import escape
from typing import TYPE_CHECKING, NamedTuple

from statemachine_trainer.machine.loop import SEPARATOR
from statemachine_trainer.observe.durations import Durations

if TYPE_CHECKING:  # loaded by the functions that need it: few runs show a profile
    from rich.table import Table

    from statemachine_trainer.observe.profile import Profile

_HEADINGS = ("", "count", "total", "mean", "p95", "share")
_WIDTH = 120


class Row(NamedTuple):
    """A line of the table.

    Attributes:
        group: "states", "between states" or "subscribers".
        name: What was measured.
        durations: How long it took.
        share: Of all time that was measured.
    """

    group: str
    name: str
    durations: Durations
    share: float

    def cells(self) -> tuple[str, ...]:
        """Return the figures as text."""
        d = self.durations
        times = (d.total, d.mean, d.quantile(0.95))
        return (str(d.count), *map(in_words, times), f"{self.share:.1%}")


def rows_of(profile: Profile) -> list[Row]:
    """Return the lines of a profile: states, transitions, subscribers; the longest first in each."""
    found = [*_named(profile)]
    whole = sum(one.total for _, _, one in found) or 1.0
    return [Row(group, name, one, one.total / whole) for group, name, one in found]


def as_table(profile: Profile) -> Table:
    """Return a profile as a table of `rich`."""
    from rich.table import Table
    from rich.text import Text

    table = Table()
    table.add_column(_HEADINGS[0], overflow="fold")
    for heading in _HEADINGS[1:]:
        table.add_column(heading, justify="right", no_wrap=True)
    group = ""
    for row in rows_of(profile):
        if row.group != group:
            if group:
                table.add_section()
            group = row.group
            table.add_row(f"[bold]{group}[/bold]")
        table.add_row(Text(f"  {row.name}"), *row.cells())
    return table


def as_text(profile: Profile) -> str:
    """Return a profile as a table of plain characters."""
    from rich.console import Console

    console = Console(file=io.StringIO(), width=_WIDTH, color_system=None)
    console.print(profile.table())
    assert isinstance(console.file, io.StringIO)
    return "\n".join(line.rstrip() for line in console.file.getvalue().splitlines())


def as_html(profile: Profile) -> str:
    """Return a profile as a table for a notebook."""
    lines = ["<table>", f"<tr>{''.join(f'<th>{heading}</th>' for heading in _HEADINGS)}</tr>"]
    group = ""
    for row in rows_of(profile):
        if row.group != group:
            group = row.group
            lines.append(
                f'<tr><th colspan="{len(_HEADINGS)}" style="text-align:left">{group}</th></tr>'
            )
        cells = "".join(f"<td>{escape(cell)}</td>" for cell in row.cells())
        lines.append(f'<tr><td style="text-align:left">{escape(row.name)}</td>{cells}</tr>')
    return "\n".join([*lines, "</table>"])


def in_words(seconds: float) -> str:
    """Write a duration with three digits and the unit that suits it.

    >>> in_words(12.0), in_words(0.00345), in_words(0.0000042)
    ('12 s', '3.45 ms', '4.2 µs')
    """
    units = {"s": 1.0, "ms": 1e-3, "µs": 1e-6}
    unit = next((name for name, size in units.items() if seconds >= size), "µs")
    value = seconds / units[unit]
    return f"{value:.0f} {unit}" if value >= 1000 else f"{value:.3g} {unit}"


def _named(profile: Profile) -> Iterator[tuple[str, str, Durations]]:
    states = [(path, one) for path, one in [*profile.states.items()] if one.count]
    for path, one in _longest_first(states):
        yield "states", f"{path} (wait for data)" if _waits_for_data(path) else path, one
    if profile.transitions.count:
        yield "between states", "transitions and boundaries", profile.transitions
    heard = [
        (f"{key.receiver} on {key.signal}", one)
        for key, one in [*profile.subscribers.items()]
        if one.count
    ]
    for name, one in _longest_first(heard):
        yield "subscribers", name, one


def _longest_first(found: list[tuple[str, Durations]]) -> list[tuple[str, Durations]]:
    return sorted(found, key=lambda pair: -pair[1].total)


def _waits_for_data(path: str) -> bool:
    """Whether a state reads the next batch: its time is the wait for the loader."""
    name = path.rpartition(SEPARATOR)[2]
    return name == "fetch" or name.endswith("_fetch")
