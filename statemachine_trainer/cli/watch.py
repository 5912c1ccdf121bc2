"""`smt watch`: the live page of a run of another process."""

from __future__ import annotations

import shlex
import webbrowser
from typing import Annotated

import typer

from statemachine_trainer.cli.common import Debug, Run


def watch(
    run: Run,
    port: Annotated[
        int,
        typer.Option(metavar="N", min=0, max=65535, help="Port to serve on; 0 for any free one."),
    ] = 0,
    opens: Annotated[bool, typer.Option("--open", help="Open the page in a browser.")] = False,
    debug: Debug = False,
) -> None:
    """Show a run in the browser, while it goes on or afterwards.

    Prints the address of the page; Ctrl-C ends it. Its buttons steer the run while that listens.
    Where the run serves a page of its own, the address of that is printed.
    """
    from statemachine_trainer.page.recorded import FolderRun
    from statemachine_trainer.page.server import Page, is_answering, left_in

    own = left_in(run)
    if own is not None and is_answering(own):
        typer.echo(own)
        if opens:
            webbrowser.open(own)
        return
    shown = FolderRun(run)
    page = Page(shown, port=port)
    typer.echo(page.url)
    if opens:
        webbrowser.open(page.url)
    try:
        page.wait()
    except KeyboardInterrupt:
        page.close()
        if shown.is_held():
            typer.echo(
                f"The run is held. To let it go on: smt post {shlex.quote(str(run))} continue"
            )
