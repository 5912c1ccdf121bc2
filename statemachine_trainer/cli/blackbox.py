"""`smt blackbox`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Final

import typer

from statemachine_trainer.cli.common import Debug, Run, console_for, printable
from statemachine_trainer.files import missing_folder

if TYPE_CHECKING:
    from rich.table import Table

    from statemachine_trainer.observe.blackbox import Parting, Ring

_TELLING: Final = 0.02
"""The share of the time from which on a rank is called the straggler."""


def blackbox(
    run: Run,
    last: Annotated[int, typer.Option("-n", metavar="N", min=1, help="Transitions to show.")] = 30,
    earlier: Annotated[
        bool, typer.Option("--earlier", help="Of the processes before the present or last ones.")
    ] = False,
    debug: Debug = False,
) -> None:
    """Print the last transitions of a run, and what it is doing.

    Works while the run goes on, while it hangs, and after it was killed. Several processes are
    shown side by side, and around the transition at which they part, if they do.
    """
    from statemachine_trainer.observe.blackbox import NoBlackBox, find_parting, read_blackbox

    rings = read_blackbox(run, earlier=earlier)
    if not run.is_dir():
        raise NoBlackBox(missing_folder(run))
    if not rings:
        raise NoBlackBox(f"{run} has no {'earlier ' if earlier else ''}black box.")
    parting = find_parting(rings)
    console = console_for()
    one = len(rings) == 1
    console.print(_of_one(rings[0], last) if one else _side_by_side(rings, last, parting))
    for ring in rings:
        console.print(_story(ring), markup=False, highlight=False, soft_wrap=True)
    if parting is not None:
        console.print(_parting(parting), markup=False, highlight=False, style="red")
    elif len(rings) > 1:
        console.print("Where all of them can be compared, they did the same.", highlight=False)
        for text in _behind(rings):
            console.print(text, markup=False, highlight=False, style="red", soft_wrap=True)
    for text in _waited(rings):
        console.print(text, markup=False, highlight=False, soft_wrap=True)


def _of_one(ring: Ring, last: int) -> Table:
    table = _new_table("", "time", "step", "event", "state")
    for one in ring.entries(last):
        time = f"{one.time.astimezone():%H:%M:%S.%f}"
        _add(table, f"{one.number}", time, f"{one.step}", one.event, one.state)
    return table


def _side_by_side(rings: list[Ring], last: int, parting: Parting | None) -> Table:
    """Put the same transition of each process into a line; one that is behind has none yet."""
    entries = [{one.number: one for one in ring.entries()} for ring in rings]
    newest = max((max(found, default=0) for found in entries), default=0)
    if parting is not None:  # what came after it has less and less to do with each other
        newest = min(newest, parting.number + last // 2)
    table = _new_table("", *(f"rank {ring.rank}" for ring in rings))
    for number in range(max(1, newest - last + 1), newest + 1):
        ones = [found.get(number) for found in entries]
        cells = ["" if one is None else f"{one.event} > {one.state}" for one in ones]
        parted = parting is not None and number == parting.number
        _add(table, f"{number}", *cells, style="red" if parted else None)
    return table


def _new_table(*columns: str) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in columns:
        numbers = name in ("", "step")
        table.add_column(name, justify="right" if numbers else "left", overflow="fold")
    return table


def _add(table: Table, *cells: str, style: str | None = None) -> None:
    from rich.text import Text

    table.add_row(*(Text(printable(cell)) for cell in cells), style=style)


def _story(ring: Ring) -> str:
    """Say what a process does, or how it ended."""
    who = printable(f"Rank {ring.rank}, process {ring.pid} on {ring.host}")
    state, status = printable(ring.state or ""), ring.status
    if ring.since is None or ring.seconds is None:
        lives = {True: "it lives", False: "it is gone", None: "whether it lives is unknown"}
        return f"{who}: nothing has run yet; {lives[ring.alive]}."
    ago = _ago(ring.seconds)
    where = _where(ring)
    if status == "running":
        text = f"running, {where} for {ago}"
    elif status == "killed":
        text = f"killed {where}; its last transition was {ago} before now"
    elif status == "unknown":
        text = f"{where} for {ago}, if it lives: that cannot be seen from this machine"
    else:
        text = f"{status} {ago} ago, after {state}"
        if ring.alive is False and status in ("paused", "resting"):
            text += "; the process is gone"
    return f"{who}: {text}."


def _where(ring: Ring) -> str:
    """Say in what a process is: a state, or a receiver that is called when it is left."""
    if ring.receiver is None:
        return printable(f"in {ring.state}")
    return printable(f"in the receiver {ring.receiver.name} (after {ring.state})")


def _parting(parting: Parting) -> str:
    told = [
        f"rank {rank}: {one.event} to {one.state}" for rank, one in sorted(parting.entries.items())
    ]
    return printable(f"They part at transition {parting.number}: {'; '.join(told)}.")


def _behind(rings: list[Ring]) -> Iterator[str]:
    """Say of each process that has come less far what the others may be waiting for, and since when."""
    from statemachine_trainer.observe.waiting import newest_together, who_waits

    newest = newest_together(rings)
    reached = [(ring, newest[ring.rank].number) for ring in rings if ring.rank in newest]
    foremost = max((number for _, number in reached), default=0)
    for ring, number in reached:
        if number < foremost:
            yield printable(
                f"Rank {ring.rank} is {foremost - number} behind, {_where(ring)}: the others may "
                "be waiting for it."
            )
    for one in who_waits(rings):
        whom = " and ".join(f"rank {rank}" for rank in one.behind)
        since = f"{one.since.astimezone():%H:%M:%S}"
        yield f"Rank {one.rank} waits for {whom} since {since}, for {_ago(one.seconds)}."


def _waited(rings: list[Ring]) -> Iterator[str]:
    """Say how long the processes have waited for each other, and which of them was the slowest."""
    from statemachine_trainer.observe.waiting import waiting_of

    if len(rings) < 2:
        return
    if len({ring.host for ring in rings}) > 1:
        yield "How long ranks have waited is not told: the clocks of several machines differ."
        return
    waiting = waiting_of(rings)
    if waiting is None or not waiting.seconds:
        return
    shares = ", ".join(f"rank {ring.rank} {waiting.share_of(ring.rank):.0%}" for ring in rings)
    yield f"Of the last {_ago(waiting.seconds)} they have waited for others: {shares}."
    straggler = waiting.straggler
    if straggler is not None and waiting.share_for(straggler) >= _TELLING:
        most = max(waiting.states, key=lambda path: waiting.states[path])
        yield printable(
            f"The straggler is rank {straggler}: the others have waited for it in "
            f"{waiting.share_for(straggler):.0%} of that time, most of it in {most}."
        )


def _ago(seconds: float) -> str:
    from statemachine_trainer.observe.epoch_table import format_seconds

    return format_seconds(max(0.0, seconds))
