"""Runs the code of a run again, as it is or in another version, and takes over the trainer that it makes."""

from __future__ import annotations

import contextlib
import os
import runpy
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from statemachine_trainer.cli.places import CannotReplay
from statemachine_trainer.cli.replaying import Replay
from statemachine_trainer.cli.targets import trainer_of_target
from statemachine_trainer.run_record import CannotResume, resume_command
from statemachine_trainer.running.replaying import Replaying, ReplayOver, replaying

if TYPE_CHECKING:
    from statemachine_trainer.trainer import Trainer


@dataclass(frozen=True)
class Code:
    """The version of the code with which a run is replayed: what is there, unless told otherwise.

    Attributes:
        script: A file in the place of the script that the run was started with.
        root: The project's git repository.
        checkout: A copy of a commit of it, from which the code is taken.
    """

    script: Path | None = None
    root: Path | None = None
    checkout: Path | None = None

    def of(self, path: Path) -> Path:
        """Return the file or folder that stands for one of the project."""
        path = path.resolve()
        if self.root is None or self.checkout is None or not path.is_relative_to(self.root):
            return path
        return self.checkout / path.relative_to(self.root)

    def script_for(self, path: Path) -> Path:
        """Return the script that is run in the place of one."""
        return self.of(path) if self.script is None else self.script

    def target_for(self, target: str) -> str:
        """Return the target that stands for a `FILE:FUNCTION`."""
        file, _, function = target.rpartition(":")
        is_file = file.endswith(".py")
        return f"{self.script_for(Path(file)) if is_file else file}:{function}"

    def check_modules(self, known: set[str]) -> None:
        """Refuse modules that were imported from the project as it is, in the place of this version of it.

        Args:
            known: Modules that were there before the code of the run.

        Raises:
            CannotReplay: There is one.
        """
        if self.root is None or self.checkout is None:
            return
        for name in sorted(set(sys.modules) - known):
            file = getattr(sys.modules[name], "__file__", None)
            path = None if file is None else Path(file).resolve()
            inside = path is not None and path.is_relative_to(self.root)
            if inside and path is not None and "site-packages" not in path.parts:
                raise CannotReplay(
                    f"The module {name} was imported from {path}, and not from the commit: the project is "
                    "installed, or its folder is on the path otherwise. It must be found beside the script, or by "
                    "PYTHONPATH."
                )


AS_IT_IS: Final = Code()


def replay_by(
    target: str | None, replay: Replay, then: Callable[[Trainer], object], code: Code = AS_IT_IS
) -> None:
    """Let the code of a run make its trainer, go through the replay, and do something at its end.

    Args:
        target: `FILE:FUNCTION`, which starts a trainer and returns it; None for the run's own command.
        replay: The replay.
        then: Called with the trainer where the replay has ended.
        code: The version of the code.

    Raises:
        CannotReplay: The code does not start the run.
        CannotResume: It is not recorded how the run was started.
        BadTarget: There is no such function.
    """

    def take_over(trainer: Trainer) -> None:
        replay.go(trainer)
        then(trainer)

    path = None if replay.checkpoint is None else replay.checkpoint.path
    one = Replaying(replay.run.path, path, take_over)
    with replaying(one):
        if target is None:
            with contextlib.suppress(ReplayOver):
                _run_command(replay.run.path, code)
                raise CannotReplay(
                    f"The command of {replay.run.path} has ended without starting a fit in this folder. Name a "
                    "function that does: --from FILE:FUNCTION."
                )
            return
        with contextlib.suppress(ReplayOver):
            trainer = trainer_of_target(code.target_for(target))
            if trainer is not one.trainer:
                raise CannotReplay(
                    f"{target} starts a trainer with another folder than {replay.run.path}."
                )
            take_over(trainer)


def _run_command(root: Path, code: Code) -> None:
    """Run the command of a run in this process.

    Raises:
        CannotReplay: It is not known, or there is no such script in this version of the code.
        CannotResume: It is none of a script or module.
    """
    try:
        command, folder = resume_command(root)
    except CannotResume as error:
        raise CannotReplay(
            f"{error} Or name a function that starts its trainer: --from FILE:FUNCTION."
        ) from error
    os.chdir(folder)
    arguments = [*_without_options(command[1:])]
    if len(arguments) > 1 and arguments[0] == "-m":
        if code.script is not None:
            raise CannotReplay(
                f"The run {root} was started as the module {arguments[1]}, so a single file cannot stand for it. "
                "Compare two commits, or name a function: --from FILE:FUNCTION."
            )
        with _arguments(arguments[1:]):
            sys.path.insert(0, str(code.of(folder)))
            runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    elif arguments and not arguments[0].startswith("-") and Path(arguments[0]).is_file():
        script = code.script_for(Path(arguments[0]))
        if not script.is_file():
            raise CannotReplay(f"This version of the code has no {arguments[0]}.")
        with _arguments([str(script), *arguments[1:]] if code != AS_IT_IS else arguments):
            sys.path.insert(0, str(script.resolve().parent))
            runpy.run_path(sys.argv[0], run_name="__main__")
    elif arguments and arguments[0].endswith(".py"):
        raise CannotReplay(
            f"The run {root} was started by the script {arguments[0]}, and there is no such file in {folder} any "
            "more. Name a function that starts its trainer, wherever it is now: --from FILE:FUNCTION."
        )
    else:
        raise CannotResume(
            f"The run {root} was started by `{' '.join(command)}`, which is neither a script nor a module. Name a "
            "function that starts its trainer: --from FILE:FUNCTION."
        )


def _without_options(arguments: Sequence[str]) -> Iterator[str]:
    """Yield the arguments of a Python from its script, or from `-m`, on."""
    rest = [*arguments]
    while rest and rest[0].startswith("-") and rest[0] not in ("-m", "-c"):
        del rest[: 2 if rest[0] in ("-X", "-W") else 1]
    yield from rest


@contextlib.contextmanager
def _arguments(arguments: Sequence[str]) -> Iterator[None]:
    before, path = sys.argv, [*sys.path]
    sys.argv = [*arguments]
    try:
        yield
    finally:
        sys.argv, sys.path[:] = before, path
