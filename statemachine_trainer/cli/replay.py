"""`smt replay`."""

from __future__ import annotations

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
            help="1200 (steps done), 'epoch 3' (its start), a state or signal such as validation, or "
            "nonfinite (the batch with the first loss that is NaN or infinite).",
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
    remember: Remember = 50,
    debug: Debug = False,
) -> None:
    """Go through a run again, to a place of it.

    It begins at the nearest checkpoint, and stands there as with `smt step`. Nothing is written. On the way it
    is compared with the fingerprints of the run, if it has any. With --print the exit code is 1 if it does not
    reproduce itself.
    """
    from statemachine_trainer.cli.replaying import Place, Replay, replay_by

    one = Replay(run, Place.of(to))

    def arrived(trainer: Trainer) -> None:
        typer.echo(printable(f"{one.told()}\n{one.verdict()}", keep="\n"))
        if prints:
            typer.echo(printable(str(trainer.where()), keep="\n"))
            return
        from statemachine_trainer.cli.step import step_through

        step_through(trainer, remember=remember)

    replay_by(target, one, arrived)
    if prints and one.compared is not None and one.compared.parting is not None:
        raise typer.Exit(1)
