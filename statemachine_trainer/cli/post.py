"""`smt post`: ask a run of another process for something."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from statemachine_trainer.cli.common import Debug, Run, console_for, printable

if TYPE_CHECKING:
    from statemachine_trainer.observe.remote import Remote
    from statemachine_trainer.observe.run import Run as RunOfFolder

_PATIENCE = 5.0
"""Seconds that a process has to answer."""

_PULSE = 0.05
"""Seconds between two looks at what became of a request."""


def post(
    run: Run,
    event: Annotated[
        str | None,
        typer.Argument(
            metavar="[EVENT]",
            help="stop, validate, checkpoint, pause, step, continue, or any event that its chart lets be posted.",
            show_default=False,
        ),
    ] = None,
    rank: Annotated[
        int | None,
        typer.Option(metavar="N", min=0, help="Ask this process alone, not all of the run."),
    ] = None,
    wait: Annotated[
        float, typer.Option(metavar="S", min=0.0, help="Seconds to wait for what becomes of it.")
    ] = 5.0,
    debug: Debug = False,
) -> None:
    """Ask a run to stop, validate, checkpoint, pause or continue.

    Tells what became of it. Without an event: what can be asked for now. The exit code is 2 if the
    run refuses, or if nobody listens.
    """
    from statemachine_trainer.observe.remote import Remote
    from statemachine_trainer.observe.run import Run as RunOfFolder

    folder = RunOfFolder(run)
    remote = Remote(folder, rank=rank, patience=_PATIENCE)
    if event is None:
        _print_possible(remote.looks())
        return
    since, before = datetime.now(UTC), remote.looks()
    told = remote.press(event)
    waiting = _Waiting(folder, event, since, before)
    end = time.monotonic() + wait
    while len(waiting.became) < len(told) and time.monotonic() < end:
        waiting.look(remote)
        time.sleep(_PULSE)
    for number, handed_over in told.items():
        became = waiting.became.get(number) or f"{handed_over} It has not happened yet."
        typer.echo(printable(became if len(told) == 1 else f"Rank {number}: {became}"))


class _Waiting:
    """What became of a request, as far as it is known.

    Attributes:
        became: In words, by rank.
    """

    def __init__(
        self, run: RunOfFolder, event: str, since: datetime, before: dict[int, dict[str, Any]]
    ) -> None:
        self.became: dict[int, str] = {}
        self._run = run
        self._event = event
        self._since = since
        self._before = before

    def look(self, remote: Remote) -> None:
        """Ask what has happened."""
        from statemachine_trainer.control.control_errors import NoAnswer, NobodyListens

        try:
            looks = remote.looks()
        except NoAnswer:
            return
        except NobodyListens:  # it has ended meanwhile
            for rank in self._before:
                self.became.setdefault(rank, remote.silence())
            return
        for rank, look in looks.items():
            became = None if rank in self.became else self._of(rank, look)
            if became is not None:
                self.became[rank] = became

    def _of(self, rank: int, look: dict[str, Any]) -> str | None:
        written = look["checkpoint"]
        if self._event in ("pause", "step"):
            stands = look["held"] and not look["stepping"]
            return f"The run is held before {look['state']}." if stands else None
        if self._event == "continue":
            return None if look["held"] else "The run goes on."
        if self._event == "checkpoint":
            new = written is not None and written != self._before[rank]["checkpoint"]
            return f"The checkpoint {written} is written." if new else None
        if self._event in look["posted"]:
            return None
        return f"{self._event!r} was taken{self._where(rank)}."

    def _where(self, rank: int) -> str:
        """Say where a posted event led to, if the black box tells."""
        for ring in self._run.rings():
            entries = ring.entries() if ring.rank == rank else []
            for one in reversed(entries):
                if one.event == self._event and one.time >= self._since:
                    return f": it led to {one.state}"
        return ""


def _print_possible(looks: dict[int, dict[str, Any]]) -> None:
    from rich.table import Table
    from rich.text import Text

    console = console_for()
    for rank, look in looks.items():
        stands = "held before" if look["held"] else "in"
        who = f"Rank {rank}, {stands}" if len(looks) > 1 else stands.capitalize()
        posted = f"; posted: {', '.join(look['posted'])}" if look["posted"] else ""
        console.print(Text(printable(f"{who} {look['state']}{posted}")))
        table = Table(box=None, pad_edge=False, show_header=False)
        for name, refusal in look["buttons"].items():
            table.add_row(Text(name, style="dim" if refusal else "bold"), Text(refusal or ""))
        others = [one for one in look["events"] if one not in look["buttons"]]
        for name in others:
            table.add_row(Text(printable(name), style="bold"), Text("an event of its chart"))
        console.print(table)
