"""Where progress is shown: the last lines of a terminal, a cell of a notebook, or lines of a log."""

from __future__ import annotations

import html
import importlib
import importlib.util
import logging
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol, TextIO

from statemachine_trainer.observe.epoch_table import MetricsTable, format_number, format_seconds
from statemachine_trainer.observe.readings import named_apart
from statemachine_trainer.snapshot.rng import isolated_rng

if TYPE_CHECKING:  # loaded by the functions that need it: most runs in a cluster show nothing
    from rich.console import Console, RenderableType
    from rich.live import Live

_log = logging.getLogger("statemachine_trainer.progress")

_ROOM: Final = 4
"""Columns left free beside a bar: a terminal writes `^C` there, and must not begin a new line."""


@dataclass(frozen=True, slots=True)
class Bar:
    """One line of progress.

    Attributes:
        label: What is under way, such as "epoch 2/10".
        done: Batches done.
        total: Batches there are; None if nobody knows.
        notes: Speed, time and metrics.
    """

    label: str
    done: int
    total: int | None
    notes: str = ""

    @property
    def count(self) -> str:
        """How far it is, in digits."""
        return f"{self.done}" if self.total is None else f"{self.done}/{self.total}"


class Screen(Protocol):
    """Something that shows bars, and a table that grows above them.

    Attributes:
        pause: Seconds that bars stay as they are, at the least; 0.0 to leave that to whoever draws.
    """

    pause: float

    def open(self, trainer: Any = None) -> None:
        """Begin to show, of a trainer if it is known."""

    def draw(self, bars: Sequence[Bar]) -> None:
        """Show these bars in place of those before."""

    def grow(self, table: MetricsTable) -> None:
        """Show the newest row of a table."""

    def say(self, text: str) -> None:
        """Show a line of text above the bars."""

    def close(self) -> None:
        """Take the bars away and leave everything as it was; what the table shows stays."""


class TerminalScreen:
    """Bars in the last lines of a terminal, the table scrolling above them.

    Drawn by whoever calls, never by a thread: workers of data loaders are forked at any time, and
    would inherit a lock that a drawing thread holds.

    Args:
        console: Writes to the terminal.
    """

    pause = 0.0

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live: Live | None = None

    def open(self, trainer: Any = None) -> None:
        from rich.live import Live

        self._live = Live(console=self._console, auto_refresh=False, transient=True)
        self._live.start()

    def draw(self, bars: Sequence[Bar]) -> None:
        if self._live is not None:
            self._live.update(_as_rich(bars, self._console.width - _ROOM), refresh=True)

    def grow(self, table: MetricsTable) -> None:
        from rich.text import Text

        table.width = self._console.width
        *head, row = table.new_lines()
        for line in head:
            self._console.print(Text(line, style="bold"), soft_wrap=True)
        self._console.print(Text(row), soft_wrap=True)

    def say(self, text: str) -> None:
        from rich.text import Text

        self._console.print(Text(text), soft_wrap=True)

    def close(self) -> None:
        live, self._live = self._live, None
        if live is not None:
            live.stop()


class NotebookScreen:
    """Table, curves, bars and the loop in the output of a notebook's cell, as HTML that is replaced in place.

    Asks for nothing but IPython, which every notebook has; for the picture of the loop, folded below the bars, also
    for pygraphviz. The picture is shown once, and the running state is lit by a rule of style, so nothing flickers.
    """

    pause = 0.0

    def __init__(self) -> None:
        self._ipython: Any = None
        self._handle: Any = None
        self._table = ""
        self._bars = ""
        self._lit: Callable[[], str] | None = None

    def open(self, trainer: Any = None) -> None:
        # Imported by name: it is installed where there is a notebook, and only there.
        self._ipython = importlib.import_module("IPython.display")
        self._table = self._bars = ""
        self._handle = self._ipython.display(self._ipython.HTML(""), display_id=True)
        if trainer is not None and trainer.context.train is not None:
            self._show_loop(trainer)

    def _show_loop(self, trainer: Any) -> None:
        from statemachine_trainer.observe.loop_picture import folded_picture, light

        picture = folded_picture(trainer.driver.machine, self._handle.display_id)
        if picture:
            self._ipython.display(self._ipython.HTML(picture))
            self._lit = lambda: light(trainer.path, self._handle.display_id)

    def draw(self, bars: Sequence[Bar]) -> None:
        self._bars = "".join(_as_html(bar) for bar in bars)
        self._update()

    def grow(self, table: MetricsTable) -> None:
        from statemachine_trainer.observe.epoch_curves import curves_as_html

        self._table = table._repr_html_() + curves_as_html(table.records)
        self._update()

    def say(self, text: str) -> None:
        self._table += f"<div>{html.escape(text)}</div>"
        self._update()

    def close(self) -> None:
        self._bars, self._lit = "", None
        self._update()
        self._handle = None

    def _update(self) -> None:
        if self._handle is not None:
            lit = "" if self._lit is None else self._lit()
            self._handle.update(self._ipython.HTML(self._table + self._bars + lit))


class LogScreen:
    """One plain line for each epoch, and one now and then within long ones, as messages of `logging`.

    They are messages of level INFO of the logger `statemachine_trainer.progress`. Where nobody has set up logging
    they go to standard output as they are.

    Args:
        pause: Seconds from one line to the next within an epoch, at the least.
    """

    def __init__(self, pause: float) -> None:
        self.pause = pause
        self._handler: logging.Handler | None = None
        self._sets_level = False

    def open(self, trainer: Any = None) -> None:
        if not _log.hasHandlers() and sys.stdout is not None:
            self._handler = _Output(sys.stdout)
            _log.addHandler(self._handler)
        self._sets_level = (
            _log.level == logging.NOTSET
        )  # the root's is WARNING unless somebody says so
        if self._sets_level:
            _log.setLevel(logging.INFO)

    def draw(self, bars: Sequence[Bar]) -> None:
        for bar in bars[-1:]:  # an evaluation within an epoch is what is under way
            _log.info("%s: batch %s  %s", bar.label, bar.count, bar.notes)

    def grow(self, table: MetricsTable) -> None:
        record = table.records[-1]
        named = named_apart({"train": record.train, "validation": record.validation})
        metrics, trained = [*named.items()], len(record.train)
        shown = [*metrics[trained:], *metrics[:trained]]  # as in the table, validation first
        values = "".join(f"  {name} {format_number(one)}" for name, one in shown)
        took = format_seconds(record.seconds)
        _log.info("epoch %d: step %d%s  %s", record.epoch, record.steps, values, took)

    def say(self, text: str) -> None:
        _log.info("%s", text)

    def close(self) -> None:
        handler, self._handler = self._handler, None
        if handler is not None:
            _log.removeHandler(handler)
        if self._sets_level:
            _log.setLevel(logging.NOTSET)
            self._sets_level = False


class _Output(logging.StreamHandler[TextIO]):
    """Writes messages as they are. An output that is gone ends no training, and is not told of each time."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  # its name there
        pass


def screen_for(console: Console | None = None) -> Screen | None:
    """Return what shows progress in a terminal or a notebook; None where there is neither.

    Args:
        console: One that was chosen on purpose; its word counts (`force_interactive`). Otherwise
            only a real terminal does: some build servers ask rich for colours in plain files.
    """
    with isolated_rng(()):  # rich draws from the generator of python where it is imported first
        from rich.console import Console

    if console is not None:
        return TerminalScreen(console) if console.is_interactive else None
    console = Console()
    if console.is_jupyter:
        return NotebookScreen() if importlib.util.find_spec("IPython") else None
    real = console.is_interactive and console.file.isatty()
    return TerminalScreen(console) if real else None


def _as_rich(bars: Sequence[Bar], width: int) -> RenderableType:
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.width = width
    for _ in range(3):
        grid.add_column(no_wrap=True)
    grid.add_column(no_wrap=True, overflow="ellipsis", ratio=1)
    for bar in bars:
        drawn = ProgressBar(total=bar.total, completed=bar.done, width=24)
        grid.add_row(Text(bar.label), drawn, Text(bar.count, style="bold"), Text(bar.notes))
    return grid


def _as_html(bar: Bar) -> str:
    at = f'value="{bar.done}" max="{bar.total}"' if bar.total else ""
    text = f"{bar.label} <progress {at}></progress> {bar.count} &nbsp; {html.escape(bar.notes)}"
    return f'<div style="font-family: monospace; white-space: nowrap">{text}</div>'
