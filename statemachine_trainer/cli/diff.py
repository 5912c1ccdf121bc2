"""`smt diff`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from statemachine_trainer.cli.common import Debug, printable


def diff(
    a: Annotated[Path, typer.Argument(metavar="RUN_A", help="The folder of a run.")],
    b: Annotated[
        Path | None,
        typer.Argument(
            metavar="RUN_B",
            help="That of another one. Without it, the ranks of RUN_A are compared with each other.",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    page: Annotated[
        bool,
        typer.Option(
            "--page",
            help="Serve a page with the curves of both over one another, and where they part, until Ctrl-C.",
        ),
    ] = False,
    debug: Debug = False,
) -> None:
    """Say what differs between two runs, or the ranks of one.

    Where they part is known of runs with Trainer(fingerprints=...). The exit code is 1 if they do.
    """
    if page:
        _show(a, b)
        return
    from statemachine_trainer.observe.difference import Difference, compare_runs
    from statemachine_trainer.observe.replicas import Replicas, compare_ranks

    found: Difference | Replicas = compare_ranks(a) if b is None else compare_runs(a, b)
    if as_json:
        typer.echo(json.dumps(found.to_dict(), indent=2))
    else:
        typer.echo(printable(str(found), keep="\n"))
    if found.parting is not None:
        raise typer.Exit(1)


def _show(a: Path, b: Path | None) -> None:
    """Serve the page that compares two runs; where they part is marked in their curves."""
    from statemachine_trainer.cli.watch import serve
    from statemachine_trainer.page.several import SeveralRuns

    if b is None:
        raise typer.BadParameter(
            "The page shows two runs: smt diff RUN_A RUN_B --page. The ranks of one are told as text."
        )
    several = SeveralRuns([a, b])
    serve(
        several,
        port=0,
        opens=False,
        held=several.held,
        ticked=[several.key_of(one) for one in (a, b)],
    )
