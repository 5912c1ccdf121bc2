"""`smt replay`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from statemachine_trainer.cli.common import Debug, Remember, Run, printable

if TYPE_CHECKING:
    from statemachine_trainer.trainer import Trainer


def replay(
    run: Run,
    to: Annotated[
        str,
        typer.Option(
            metavar="PLACE",
            help="1200 (steps done), 'epoch 3' (its start), a state or signal such as validation, "
            "nonfinite (the batch with the first loss that is NaN or infinite), or spike (the batch with the first "
            "loss that is 8 robust standard deviations above those before it; 'spike 6': 6 of them).",
        ),
    ],
    target: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="FILE:FUNCTION",
            help="A function that starts the trainer of the run and returns it; the run's own command unless given.",
        ),
    ] = None,
    prints: Annotated[
        bool, typer.Option("--print", help="Print where the run stands, and end.")
    ] = False,
    operations: Annotated[
        bool,
        typer.Option(
            "--operations",
            help="Do the next batch twice, and name the first operation that differs although it reads the same; "
            "and end.",
        ),
    ] = False,
    against: Annotated[
        Path | None,
        typer.Option(
            metavar="RUN_B", help="With --operations: compare with the same batch of another run."
        ),
    ] = None,
    from_b: Annotated[
        str | None,
        typer.Option(
            metavar="FILE:FUNCTION", help="With --against: what starts the trainer of RUN_B."
        ),
    ] = None,
    bisect: Annotated[
        tuple[str, str] | None,
        typer.Option(
            metavar="A B",
            help="Two versions of the code: files in the place of the script, or commits of its git repository. Say "
            "where the run parts with them, with which commit first; and end.",
        ),
    ] = None,
    remember: Remember = 50,
    debug: Debug = False,
) -> None:
    """Go through a run again, to a place of it.

    It begins at the nearest checkpoint, and stands there as with `smt step`. Nothing is written. On the way it
    is compared with the fingerprints of the run, if it has any. With --print the exit code is 1 if it does not
    reproduce itself, with --operations and --bisect if something differs.
    """
    if bisect is not None or against is not None or from_b is not None:
        _compare_apart(run, to, target, operations, against, from_b, bisect)
        return
    from statemachine_trainer.cli.code_of_run import replay_by
    from statemachine_trainer.cli.places import Place
    from statemachine_trainer.cli.replaying import Replay

    one, differs = Replay(run, Place.of(to)), False

    def arrived(trainer: Trainer) -> None:
        nonlocal differs
        typer.echo(printable(f"{one.told()}\n{one.verdict()}", keep="\n"))
        if operations:
            from statemachine_trainer.cli.operations import twice

            found = twice(trainer)
            differs = found.departure is not None
            typer.echo(printable(str(found), keep="\n"))
            return
        if prints:
            typer.echo(printable(str(trainer.where()), keep="\n"))
            return
        from statemachine_trainer.cli.step import step_through

        step_through(trainer, remember=remember)

    replay_by(target, one, arrived)
    parts = prints and one.compared is not None and one.compared.parting is not None
    if parts or differs:
        raise typer.Exit(1)


def _compare_apart(
    run: Path,
    to: str,
    target: str | None,
    operations: bool,
    against: Path | None,
    from_b: str | None,
    bisect: tuple[str, str] | None,
) -> None:
    """Replay in processes of their own, and compare what comes of it."""
    from statemachine_trainer.cli.places import CannotReplay, Place

    Place.of(to)  # a mistake in it is told before anything starts
    if from_b is not None and against is None:
        raise CannotReplay(
            "--from-b says what starts RUN_B, and there is none: add --against RUN_B."
        )
    if (against is not None) != operations or (bisect is not None and operations):
        raise CannotReplay(
            "--against RUN_B goes with --operations, and --bisect A B with neither of the two."
        )
    found: object
    if bisect is not None:
        from statemachine_trainer.cli.bisecting import bisect as bisect_run

        found = bisected = bisect_run(run, to, target, *bisect)
        differs = bisected.parts
    else:
        assert against is not None
        from statemachine_trainer.cli.operations import against as compare_with

        found = compared = compare_with(run, against, to, (target, from_b))
        differs = compared.departure is not None
    typer.echo(printable(str(found), keep="\n"))
    if differs:
        raise typer.Exit(1)
