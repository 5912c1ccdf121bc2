"""`smt post`: ask a run of another process for something."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from statemachine_trainer.cli.common import Debug, Run, console_for, printable
from statemachine_trainer.machine.errors import StateMachineError

if TYPE_CHECKING:
    from statemachine_trainer.observe.remote import Remote
    from statemachine_trainer.observe.run import Run as RunOfFolder


class BadSetting(StateMachineError):
    """What is to be set is not written as a name and a value."""


_PATIENCE = 5.0
"""Seconds that a process has to answer."""

_DOES: Final = {
    "pause": "hold the run after its next boundary",
    "step": "do the work of one state, in a run that is held",
    "continue": "let a run that is held go on",
    "validate": "validate before the next batch",
    "checkpoint": "write a checkpoint at the next boundary at which one can be written",
    "stop": "end the epoch with its validation, then the fit",
    "end_epoch": "leave out the rest of the batches of this epoch",
    "end_cycles": "end the run with the present cycle of its phases",
}
"""What becomes of an event, for those who look at what can be asked for."""

_PULSE = 0.05
"""Seconds between two looks at what became of a request."""


def post(
    run: Run,
    event: Annotated[
        str | None,
        typer.Argument(
            metavar="[EVENT]",
            help="stop, validate, checkpoint, pause, step, continue, set, or any event that its chart lets be posted.",
            show_default=False,
        ),
    ] = None,
    values: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[NAME=VALUE]...",
            help="With set: settings and their new values, such as lr=1e-4 max_epochs=20.",
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

    `smt post RUN set lr=1e-4` changes settings of it, and `smt post RUN set` lists those that may be. Tells
    what became of it. Without an event: what can be asked for now. The exit code is 2 if the
    run refuses, or if nobody listens.
    """
    from statemachine_trainer.observe.remote import Remote
    from statemachine_trainer.observe.run import Run as RunOfFolder

    folder = RunOfFolder(run)
    remote = Remote(folder, rank=rank, patience=_PATIENCE)
    if event is None:
        _print_possible(remote.looks())
        return
    if event == "set" and not values:
        _print_settings(remote.looks())
        return
    since, before = datetime.now(UTC), remote.looks()
    settings = _settings_in(event, values or [])
    told = remote.set(settings) if event == "set" else remote.press(event)
    waiting = _Waiting(folder, event, since, before, settings)
    end = time.monotonic() + wait
    while len(waiting.became) < len(told) and time.monotonic() < end:
        waiting.look(remote)
        time.sleep(_PULSE)
    for number, handed_over in told.items():
        became = waiting.became.get(number) or f"{handed_over} It has not happened yet."
        typer.echo(printable(became if len(told) == 1 else f"Rank {number}: {became}"))


def _settings_in(event: str, values: Sequence[str]) -> dict[str, float | None]:
    """Return the settings that are to be changed, with their values.

    Raises:
        BadSetting: One is not written as NAME=VALUE, or there are some without `set`.
    """
    if values and event != "set":
        raise BadSetting(
            f"{event!r} carries nothing. Settings are changed by: smt post RUN set NAME=VALUE."
        )
    found: dict[str, float | None] = {}
    for text in values:
        name, sign, value = text.partition("=")
        try:
            found[name] = None if value in ("None", "none") else _number(value)
        except ValueError:
            sign = ""
        if not sign or not name:
            raise BadSetting(
                f"{text!r} is no setting: write NAME=VALUE without spaces, with a number or none, "
                "such as lr=1e-4."
            )
    return found


def _number(text: str) -> int | float:
    return int(text) if text.lstrip("+-").isdecimal() else float(text)


class _Waiting:
    """What became of a request, as far as it is known.

    Attributes:
        became: In words, by rank.
    """

    def __init__(
        self,
        run: RunOfFolder,
        event: str,
        since: datetime,
        before: dict[int, dict[str, Any]],
        settings: Mapping[str, float | None],
    ) -> None:
        self.became: dict[int, str] = {}
        self._run = run
        self._event = event
        self._since = since
        self._before = before
        self._settings = settings

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
        if self._event == "set":
            now = {name: one["value"] for name, one in look.get("settings", {}).items()}
            shown = ", ".join(f"{name}={value!r}" for name, value in self._settings.items())
            taken = all(now.get(name) == value for name, value in self._settings.items())
            return f"{shown} is set." if taken else None
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
            table.add_row(
                Text(name, style="dim" if refusal else "bold"), Text(refusal or _DOES[name])
            )
        others = [one for one in look["events"] if one not in look["buttons"]]
        for name in others:
            does = _DOES.get(name, "an event of its chart; `smt graph` shows which states take it")
            table.add_row(Text(printable(name), style="bold"), Text(does))
        table.add_row(
            Text("set", style="bold"), Text("change settings, such as lr=1e-4; alone: list them")
        )
        console.print(table)


def _print_settings(looks: dict[int, dict[str, Any]]) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, show_header=False)
    look = looks[min(looks)]
    for name, one in look.get("settings", {}).items():
        unit = f" ({one['unit']})" if one.get("unit") else ""  # of an older version there is none
        says = one["refusal"] or f"{one['kind']}{unit}; {one['value']!r} now"
        style = "dim" if one["refusal"] else "bold"
        table.add_row(Text(printable(name), style=style), Text(printable(says)))
    console_for().print(table)
