"""`smt launch`: several ranks on this machine, by `torchrun`, for a function of the user."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from collections.abc import Sequence
from typing import Annotated, Any, Final

import typer

from statemachine_trainer.cli.common import Debug
from statemachine_trainer.machine.errors import StateMachineError

OF_THE_FUNCTION: Final[dict[str, Any]] = {
    "allow_extra_args": True,
    "allow_interspersed_args": False,  # what stands behind the function is its own
}
COMMAND_VARIABLE: Final = "SMT_LAUNCH"
"""Where the environment tells a rank by which command it was started."""

_SHARED_STORE: Final = "TORCH_DISABLE_SHARE_RDZV_TCP_STORE"


class RankFailed(StateMachineError):
    """A rank has failed, and no restart was left."""


def launch(
    context: typer.Context,
    target: Annotated[
        str,
        typer.Argument(
            metavar="FILE:FUNCTION",
            help="A function that trains, or that returns a trainer which was started.",
        ),
    ],
    ranks: Annotated[
        int, typer.Option("--ranks", metavar="N", min=1, help="Processes on this machine.")
    ],
    restarts: Annotated[
        int,
        typer.Option(
            "--max-restarts", metavar="N", min=0, help="How often lost ranks are started again."
        ),
    ] = 0,
    debug: Debug = False,
) -> None:
    """Call your function in several ranks, by torchrun.

    Options of launch stand before FILE:FUNCTION; what follows it are options of the function, as of smt train.
    The function wraps its model with parallel.ddp, or initialises the process group itself, as under torchrun.
    A trainer that it returns is run. Ranks that are started again go on from the newest checkpoint. smt resume
    starts as many ranks.
    """
    from statemachine_trainer.cli.targets import BadTarget, object_of_target
    from statemachine_trainer.cli.train import read_options

    options = [*context.args]
    # Here, once and before any rank starts: a mistake is told in one line.
    if takes_options(options):
        read_options(target, options)
    elif not callable(found := object_of_target(target)):
        raise BadTarget(f"{target} is a {type(found).__name__}. Name a function that trains.")
    chosen = ["--ranks", str(ranks), *(["--max-restarts", str(restarts)] if restarts else [])]
    chosen += ["--debug"] if debug else []
    command = [sys.executable, "-m", "statemachine_trainer", "launch", *chosen, target]
    os.environ[COMMAND_VARIABLE] = json.dumps(command)
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # as torchrun sets it, with a warning
    if restarts:
        os.environ.setdefault(_SHARED_STORE, "1")  # else ranks that are started again never meet
    _run_ranks(
        ["--standalone", "--nproc-per-node", str(ranks), "--max-restarts", str(restarts)],
        ["-m", "statemachine_trainer.cli.launched", target, *options],
    )


def takes_options(options: Sequence[str]) -> bool:
    """Whether the options of the function are read: not where there are none, and no package that reads them."""
    return bool(options) or importlib.util.find_spec("jsonargparse") is not None


def _run_ranks(torchrun: list[str], program: list[str]) -> None:
    """Run a program by `torchrun` in this process.

    Raises:
        RankFailed: A rank has failed for good.
        Exit: A signal has ended the run.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import parse_args, run

    try:
        run(parse_args([*torchrun, *program]))
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        how = f"exit code {failure.exitcode}"
        if failure.exitcode < 0:
            how = failure.signal_name()
        raise RankFailed(
            f"Rank {rank} (process {failure.pid}) has failed with {how}. What it printed stands above, and `smt "
            "blackbox RUN` shows what each rank did last."
        ) from error
    except SignalException as error:
        typer.echo(f"smt: The ranks were stopped by {error.sigval.name}.", err=True)
        raise typer.Exit(128 + error.sigval) from None
