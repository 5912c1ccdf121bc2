"""A replay in a process of its own, so that two versions of the same modules do not meet.

`python -m statemachine_trainer.cli.replay_child REQUEST.json` writes the `Outcome` beside the request.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from statemachine_trainer.cli.batch_again import BatchAgain
from statemachine_trainer.cli.code_of_run import AS_IT_IS, Code, replay_by
from statemachine_trainer.cli.places import CannotReplay, Place
from statemachine_trainer.cli.replaying import EACH_BATCH, Replay
from statemachine_trainer.machine.errors import StateMachineError
from statemachine_trainer.observe.fingerprint_writer import FingerprintWriter

if TYPE_CHECKING:
    from statemachine_trainer.trainer import Trainer

_OUTCOME: Final = "outcome.json"
_LAST: Final = 3
"""Lines of an error that are told."""


@dataclass(frozen=True)
class Request:
    """What a process is asked to replay.

    Attributes:
        run: The folder of the run.
        to: The place, as `Place.of` reads it.
        target: `FILE:FUNCTION`; None for the run's own command.
        does: "operations": records those of the batch at the place. "fingerprints": takes them at each batch.
        code: The version of the code.
    """

    run: Path
    to: str
    target: str | None
    does: Literal["operations", "fingerprints"]
    code: Code = AS_IT_IS

    def to_json(self) -> str:
        """Return it as text."""
        return json.dumps(asdict(self), default=str)

    @classmethod
    def from_json(cls, text: str) -> Request:
        """Read what `to_json` has returned."""
        said = json.loads(text)
        code = Code(**{n: None if one is None else Path(one) for n, one in said["code"].items()})
        return cls(**{**said, "run": Path(said["run"]), "code": code})


@dataclass(frozen=True)
class Outcome:
    """What came of a replay.

    Attributes:
        reproduces: Whether the run reproduces itself; None if that is not known.
        verdict: The same in words.
        found: Of operations: which batch, and its operations.
        error: Why the replay did not come to the place; "" if it did.
        folder: Where its fingerprints are.
    """

    reproduces: bool | None = None
    verdict: str = ""
    found: Mapping[str, Any] = field(default_factory=dict)
    error: str = ""
    folder: Path = Path()


def replay_apart(request: Request, folder: Path) -> Outcome:
    """Replay in a process of its own.

    Args:
        request: What.
        folder: An empty folder for what it writes.

    Returns:
        What came of it. An error of the code, or of the replay, is told in it.
    """
    asked = folder / "request.json"
    asked.write_text(request.to_json())
    # `-P`: a `statemachine_trainer` in the present folder is another one.
    command = [sys.executable, "-P", "-m", "statemachine_trainer.cli.replay_child", str(asked)]
    done = subprocess.run(
        command, env=_environment(), capture_output=True, text=True, errors="replace"
    )
    answer = folder / _OUTCOME
    if not answer.is_file():
        lines = [one.strip() for one in done.stderr.splitlines() if one.strip()]
        said = " ".join(lines[-_LAST:]) or f"the process ended with {done.returncode}"
        return Outcome(error=f"Its code fails: {said}", folder=folder)
    return Outcome(**{**json.loads(answer.read_text()), "folder": folder})


def _environment() -> dict[str, str]:
    """Return the environment of a process that imports this very package, installed or not."""
    root = Path(__file__).resolve().parents[2]
    paths = [] if root.name == "site-packages" else [str(root)]
    paths += filter(None, [os.environ.get("PYTHONPATH")])
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)} if paths else {**os.environ}


def main(asked: Path) -> None:
    """Do what a request asks for."""
    request, folder, known = Request.from_json(asked.read_text()), asked.parent, set(sys.modules)
    sys.path[:] = [str(request.code.of(Path(one))) if one else one for one in sys.path]
    writer = None
    if request.does == "fingerprints":
        writer = FingerprintWriter(folder, {"every": asdict(EACH_BATCH)})
        writer.begin()
    found: dict[str, Any] = {}

    def arrived(trainer: Trainer) -> None:
        request.code.check_modules(known)
        if request.does == "operations":
            again = BatchAgain(trainer)
            operations = [one.to_dict() for one in again.operations()]
            found.update(batch=again.where, operations=operations)

    one, error = None, ""
    try:
        one = Replay(request.run, Place.of(request.to), writer)
        replay_by(request.target, one, arrived, request.code)
    except StateMachineError as failure:
        error = str(failure)
    outcome: dict[str, Any] = {"error": error, "found": found}
    if one is not None:
        outcome["verdict"] = one.verdict()
        if one.compared is not None:
            outcome["reproduces"] = one.compared.parting is None
    temporary = folder / f"{_OUTCOME}.new"
    temporary.write_text(json.dumps(outcome))
    temporary.replace(folder / _OUTCOME)


def checked(outcome: Outcome, name: str) -> Outcome:
    """Return an outcome of a replay that has come to its place.

    Raises:
        CannotReplay: It has not.
    """
    if outcome.error:
        raise CannotReplay(f"{name}: {outcome.error}")
    return outcome


if __name__ == "__main__":
    main(Path(sys.argv[1]))
