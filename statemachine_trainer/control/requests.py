"""Asking a run of another process, through its folder: what it is at, and to press a button.

The other end is `control.listener`. Needs no torch.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from statemachine_trainer.control.control_errors import NoAnswer, NobodyListens
from statemachine_trainer.control.processes import is_alive
from statemachine_trainer.files import names_in, parse_json, read_json

BUTTONS: Final = ("pause", "step", "continue", "validate", "checkpoint", "stop")
"""What can be asked for beside the events of the chart, in the order in which they are shown."""

LONGEST: Final = 4096
"""Bytes of a request."""

_LONGEST_ANSWER: Final = 2**20
_LONGEST_FILE: Final = 2**16
_FILES: Final = "requests-*.json"


@dataclass(frozen=True)
class Endpoint:
    """Where a process of a run takes requests.

    Attributes:
        rank: Its rank.
        ranks: Processes of the run; None if nobody said how many.
        address: Path of the socket.
        process: Who it is; see `control.processes`.
    """

    rank: int
    ranks: int | None
    address: str
    process: Mapping[str, Any]

    @staticmethod
    def path(folder: Path, rank: int) -> Path:
        """Return the file in the folder of a run that tells."""
        return folder / _FILES.replace("*", f"{rank}")

    def write(self, folder: Path) -> None:
        """Tell it to this user.

        Raises:
            OSError: The file cannot be written.
        """
        path = self.path(folder, self.rank)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f"{path.name}.new")
        temporary.unlink(missing_ok=True)
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            facts = {"ranks": self.ranks, "address": self.address, "process": dict(self.process)}
            json.dump(facts, file)
        temporary.replace(path)

    def look(self, *, patience: float) -> dict[str, Any]:
        """Ask what the fit is at; see `Buttons.look`.

        Args:
            patience: Seconds to wait for the answer.

        Raises:
            NobodyListens: The process is gone.
            NoAnswer: It does not answer.
        """
        look: dict[str, Any] = self._ask({"look": True}, patience)["look"]
        return look

    def press(self, name: str, *, patience: float) -> dict[str, Any]:
        """Ask for a button to be pressed, or an event to be posted.

        Args:
            name: Of the button or the event.
            patience: Seconds to wait for the answer.

        Returns:
            What was "told", or the "refusal", and a "look" at the fit after it.

        Raises:
            NobodyListens: The process is gone.
            NoAnswer: It does not answer.
        """
        return self._ask({"press": name}, patience)

    def set(self, values: Mapping[str, object], *, patience: float) -> dict[str, Any]:
        """Ask for settings of the fit to be changed; answers as `press` does."""
        return self._ask({"set": dict(values)}, patience)

    def _ask(self, request: Mapping[str, Any], patience: float) -> dict[str, Any]:
        if is_alive(self.process) is False or not hasattr(socket, "AF_UNIX"):
            raise NobodyListens(f"The process of rank {self.rank} cannot be asked from here.")
        line = json.dumps(request).encode() + b"\n"
        if len(line) > LONGEST:
            raise NobodyListens(f"A request of {len(line)} bytes is read by nobody.")
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
                connection.settimeout(patience)
                connection.connect(self.address)
                connection.sendall(line)
                answer = _checked(parse_json(receive_line(connection, _LONGEST_ANSWER, patience)))
        except TimeoutError as error:
            raise NoAnswer(
                f"The process of rank {self.rank} ({self.process.get('pid')}) did not answer within "
                f"{patience:g} s: it hangs, or was stopped."
            ) from error
        except (FileNotFoundError, ConnectionRefusedError) as error:
            host = self.process.get("host")
            elsewhere = is_alive(self.process) is None
            where = f"takes requests on {host} alone" if elsewhere else "takes none any more"
            raise NobodyListens(f"The process of rank {self.rank} {where}.") from error
        except (OSError, ValueError) as error:
            raise NoAnswer(
                f"The process of rank {self.rank} gave no answer that can be read: {error}."
            ) from error
        return answer


def _checked(answer: Any) -> dict[str, Any]:
    """Return an answer that has all that is read of one.

    Raises:
        ValueError: It has not.
    """
    look = answer.get("look") if isinstance(answer, dict) else None
    buttons = look.get("buttons") if isinstance(look, dict) else None
    if not isinstance(answer, dict) or not isinstance(look, dict) or not isinstance(buttons, dict):
        raise ValueError("it is no answer of a run")
    texts = [answer.get("told"), answer.get("refusal"), look.get("state"), *buttons.values()]
    lists = (look.get("posted"), look.get("events"))
    if not (
        all(one is None or isinstance(one, str) for one in texts)
        and all(isinstance(one, list) for one in lists)
        and {"held", "running", "stepping", "checkpoint", "outcome"} <= look.keys()
        and set(BUTTONS) <= buttons.keys()
    ):
        raise ValueError("it is the answer of another version")
    return answer


def endpoints_in(folder: Path) -> list[Endpoint]:
    """Return where the processes of a run take requests, in the order of ranks."""
    files = [
        one for one in names_in(folder) if one.startswith("requests-") and one.endswith(".json")
    ]
    numbers = [one.removeprefix("requests-").removesuffix(".json") for one in files]
    ranks = sorted(int(number) for number in numbers if number.isdecimal())
    found = [one for rank in ranks if (one := endpoint_of(folder, rank)) is not None]
    size = found[0].ranks if found else None  # of an earlier run with more, some may be left
    return [one for one in found if size is None or one.rank < size]


def endpoint_of(folder: Path, rank: int) -> Endpoint | None:
    """Return where one process takes requests; None if it says nothing."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        facts = read_json(Endpoint.path(folder, rank), _LONGEST_FILE)
        ranks, address, process = facts["ranks"], facts["address"], facts["process"]
        if isinstance(address, str) and isinstance(process, dict):
            return Endpoint(rank, ranks if type(ranks) is int else None, address, process)
    return None


def receive_line(connection: socket.socket, longest: int, seconds: float) -> bytes:
    """Return what comes up to the end of a line, of the other side, or of what is read at most.

    Raises:
        TimeoutError: It does not come in time.
    """
    line, end = bytearray(), time.monotonic() + seconds
    while not line.endswith(b"\n") and len(line) < longest:
        connection.settimeout(max(0.001, end - time.monotonic()))
        more = connection.recv(longest - len(line))
        if not more:
            break
        line += more
    return bytes(line)
