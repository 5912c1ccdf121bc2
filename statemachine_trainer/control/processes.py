"""Who a process is, so that another one can tell later whether it still lives; and who asks a run for something."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, Final

_BY: ContextVar[str] = ContextVar("asked_by", default="")
_CREDENTIALS: Final = struct.Struct("3i")


def rank_of_process() -> int:
    """Return the rank of this process among those of its run: `RANK`, as launchers set it, else 0."""
    rank = os.environ.get("RANK", "0")
    return int(rank) if rank.isdecimal() else 0


def ranks_of_run() -> int | None:
    """Return how many processes the run has: `WORLD_SIZE`; None if there are ranks and nobody says."""
    size = os.environ.get("WORLD_SIZE", "")
    if size.isdecimal():
        return int(size)
    return None if "RANK" in os.environ else 1


def attempt_of_process() -> int:
    """Return how often `torchrun` has started the ranks again before this process; 0 without it."""
    count = os.environ.get("TORCHELASTIC_RESTART_COUNT", "")
    return int(count) if count.isdecimal() and count.isascii() else 0


def describe_process() -> dict[str, Any]:
    """Return what `is_alive` needs, as data that JSON can hold."""
    pid = os.getpid()
    return {"pid": pid, "host": socket.gethostname(), "begun": _begun(pid)}


def is_alive(process: Mapping[str, Any]) -> bool | None:
    """Tell whether a described process lives; None if that cannot be seen from this machine.

    A number that another process got later is told apart by when that one began, where the system
    says so (Linux).
    """
    if process.get("host") != socket.gethostname():
        return None
    pid = process.get("pid")
    if type(pid) is not int or not 0 < pid < 2**31:
        return None
    begun = process.get("begun")
    if begun is not None:
        return bool(_begun(pid) == begun)
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # it lives, and is somebody else's
        return True
    return True


def _begun(pid: int) -> str | None:
    """Return the boot and the tick in which a process began; None if it is gone, or nobody knows."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return None
    dead = fields[0] in ("Z", "X")
    return None if dead else f"{boot}:{fields[19]}"


# -- who asks --------------------------------------------------------------------------------------


def asked_by() -> str:
    """Return who asks for what is being done, such as "the page"; "" if it is the program itself."""
    return _BY.get()


@contextmanager
def asking(who: str) -> Iterator[None]:
    """Let `asked_by` tell somebody within the block."""
    token = _BY.set(who)
    try:
        yield
    finally:
        _BY.reset(token)


def at_the_other_end(connection: socket.socket) -> str:
    """Return which process is at the other end of a connection, as far as the system tells."""
    option = getattr(socket, "SO_PEERCRED", None)  # Linux
    if option is None:
        return "another process"
    try:
        found = connection.getsockopt(socket.SOL_SOCKET, option, _CREDENTIALS.size)
        return f"process {_CREDENTIALS.unpack(found)[0]}"
    except (OSError, struct.error):
        return "another process"
