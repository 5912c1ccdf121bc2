"""`smt watch`: the live page of a run of another process, or of several runs."""

from __future__ import annotations

import shlex
import webbrowser
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from statemachine_trainer.cli.common import Debug

if TYPE_CHECKING:
    from statemachine_trainer.page.recorded import FolderRun
    from statemachine_trainer.page.several import SeveralRuns


def watch(
    folders: Annotated[
        list[Path],
        typer.Argument(metavar="RUN...", help="The folder of a run; or several, or one of runs."),
    ],
    port: Annotated[
        int,
        typer.Option(metavar="N", min=0, max=65535, help="Port to serve on; 0 for any free one."),
    ] = 0,
    opens: Annotated[bool, typer.Option("--open", help="Open the page in a browser.")] = False,
    debug: Debug = False,
) -> None:
    """Show a run in the browser, or compare several.

    They may go on meanwhile, or be over. Prints the address of the page; Ctrl-C ends it.
    Its buttons steer the run while that listens.
    Where the run serves a page of its own, the address of that is printed.
    Of several runs, the page has a table of what differs, and their curves over one another.
    """
    from statemachine_trainer.observe.run import is_run

    if len(folders) > 1 or (folders[0].is_dir() and not is_run(folders[0])):
        from statemachine_trainer.page.several import SeveralRuns

        several = SeveralRuns(folders)
        serve(several, port=port, opens=opens, held=several.held)
        return
    from statemachine_trainer.page.recorded import FolderRun
    from statemachine_trainer.page.server import is_answering, left_in

    (run,) = folders
    own = left_in(run)
    if own is not None and is_answering(own):
        typer.echo(own)
        if opens:
            webbrowser.open(own)
        return
    shown = FolderRun(run)
    serve(shown, port=port, opens=opens, held=lambda: [run] if shown.is_held() else [])


def serve(
    shown: FolderRun | SeveralRuns,
    *,
    port: int,
    opens: bool,
    held: Callable[[], Sequence[Path]],
    ticked: Sequence[int] = (),
) -> None:
    """Serve a page until Ctrl-C, and say of each run that is left held how it is let go on.

    Args:
        shown: The run, or several.
        port: Port to serve on; 0 for any free one.
        opens: Whether to open it in a browser.
        held: Returns the runs that are held.
        ticked: Of several runs, the numbers of those whose curves are drawn at first.
    """
    from statemachine_trainer.page.server import Page

    page = Page(shown, port=port)
    url = f"{page.url}#{','.join(map(str, ticked))}" if ticked else page.url
    typer.echo(url)
    if opens:
        webbrowser.open(url)
    try:
        page.wait()
    except KeyboardInterrupt:
        page.close()
        for run in held():
            typer.echo(
                f"The run is held. To let it go on: smt post {shlex.quote(str(run))} continue"
            )
