"""Names of folders being written or deleted, and which of them nobody works on any more."""

from __future__ import annotations

import os
import re
import secrets
import socket
import time
from pathlib import Path

TEMPORARY = ".tmp@"
TRASH = ".trash@"

_DAY = 24 * 60 * 60
_HOST = re.sub(r"[^\w.-]", "_", socket.gethostname())
# A container that starts again often has the same host and process number: this tells them apart.
_PROCESS = secrets.token_hex(4)


def temporary_name(final: str) -> str:
    """The name under which this process writes what will be called `final`."""
    return f"{TEMPORARY}{_HOST}@{os.getpid()}@{_PROCESS}@{final}"


def trash_name(name: str) -> str:
    """The name under which `name` is deleted: whoever finds it may finish the work."""
    return f"{TRASH}{name}"


def is_abandoned(path: Path) -> bool:
    """Whether the writer of a temporary folder is known to be gone, or silent for a day."""
    if path.name.startswith(TRASH):
        return True
    parts = path.name.split("@")
    if not path.name.startswith(TEMPORARY) or len(parts) != 5 or not parts[2].isdecimal():
        return False
    host, number, process = parts[1], int(parts[2]), parts[3]
    if host == _HOST:
        if number == os.getpid():
            return process != _PROCESS
        if not _is_running(number):
            return True
    return time.time() - path.lstat().st_mtime > _DAY


def _is_running(number: int) -> bool:
    if os.name == "nt":  # Windows has no harmless way to ask
        return True
    try:
        os.kill(number, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True
