"""The address of a run's own page, left in its folder for `smt watch`."""

from __future__ import annotations

import json
import os
import socket
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

ADDRESS = "page.json"


def leave(folder: Path, url: str) -> None:
    """Write down the address, for the eyes of this user alone: whoever has it can steer the run."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / ADDRESS
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        json.dump({"url": url}, file)


def take_back(folder: Path, url: str) -> None:
    """Remove the address, if it is still this one."""
    if left_in(folder) == url:
        with suppress(OSError):
            (folder / ADDRESS).unlink()


def left_in(folder: Path) -> str | None:
    """The address that a page left; None if there is none."""
    try:
        url = json.loads((folder / ADDRESS).read_text(encoding="utf-8"))["url"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return url if isinstance(url, str) else None


def is_answering(url: str) -> bool:
    """Whether something still listens there: a process that was killed takes nothing back."""
    try:
        there = urlsplit(url)
        address = there.hostname or "", there.port or 0
        with socket.create_connection(address, timeout=1.0):
            return address[0] == "127.0.0.1"
    except (OSError, ValueError):
        return False
