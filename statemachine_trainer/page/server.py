"""The server of the page: a thread of its own beside the training."""

from __future__ import annotations

import json
import os
import secrets
import socket
import threading
import webbrowser
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from statemachine_trainer.control.control_errors import PageError
from statemachine_trainer.files import read_json

if TYPE_CHECKING:
    from statemachine_trainer.page.app import SeveralSources, Source
    from statemachine_trainer.page.live import Shown

HOST: Final = "127.0.0.1"
_ENDING: Final = 10.0
"""Seconds that the server has to end."""


class Page:
    """A page that is being served; closed by `close`, at the end of a `with`, or with the process.

    Attributes:
        url: The address to open, with its token. Whoever has it can steer the run.
    """

    def __init__(self, shown: Source | SeveralSources, *, port: int = 0) -> None:
        try:
            import uvicorn

            from statemachine_trainer.page.app import make_app
            from statemachine_trainer.page.connections import ACCEPTED_AT_ONCE, BoundedProtocol
        except ModuleNotFoundError as error:
            raise PageError(
                f"The page needs the package {error.name!r}: "
                "pip install 'statemachine-trainer[page]'."
            ) from error
        self._closing: list[Callable[[], None]] = []
        self._socket = _listening(port)
        self.port: int = self._socket.getsockname()[1]
        token = secrets.token_urlsafe(24)
        self.url = f"http://{HOST}:{self.port}/?token={token}"
        app = make_app(shown, token=token, port=self.port)
        settings = uvicorn.Config(
            app,
            http=BoundedProtocol,
            backlog=ACCEPTED_AT_ONCE,
            log_level="error",
            access_log=False,
            lifespan="off",
        )
        self._server = uvicorn.Server(settings)
        self._thread = threading.Thread(target=self._serve, name="page", daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        self._server.run(sockets=[self._socket])

    def wait(self) -> None:
        """Serve until the process is told to stop."""
        while self._thread.is_alive():
            self._thread.join(0.5)

    def on_close(self, action: Callable[[], None]) -> None:
        """Call `action` when the page is closed."""
        self._closing.append(action)

    def close(self) -> None:
        """End the page. A run that it held goes on."""
        while self._closing:
            self._closing.pop()()
        self._server.should_exit = True
        self._server.force_exit = True
        self._thread.join(_ENDING)
        self._socket.close()

    def __enter__(self) -> Page:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Page({self.url})"


def serve(trainer: Shown, *, port: int = 0, open_browser: bool = False) -> Page:
    """Serve the page of a trainer's fit. Training never waits for it, unless it is told to pause.

    Args:
        trainer: The trainer; it may be running, or begin later.
        port: The port; any free one unless given. Only this machine can reach it.
        open_browser: Open the page in a browser, too.

    Raises:
        PageError: The extra is missing, or the port is taken or none.
    """
    from statemachine_trainer.page.live import LiveRun

    run = LiveRun(trainer)
    try:
        page = Page(run, port=port)
    except BaseException:
        run.close()
        raise
    page.on_close(run.close)
    folder = trainer.run_folder
    if folder is not None:
        leave(folder, page.url)
        page.on_close(lambda: take_back(folder, page.url))
    if open_browser:
        webbrowser.open(page.url)
    return page


def _listening(port: int) -> socket.socket:
    if isinstance(port, bool) or not isinstance(port, int):
        raise PageError(f"port={port!r}: use a whole number, or leave it out to get a free one.")
    found = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        found.bind((HOST, port))
    except (OSError, OverflowError) as error:
        found.close()
        raise PageError(
            f"Port {port} cannot be served ({error}). Leave it out to get a free one."
        ) from error
    found.listen(128)
    return found


# -- The address of a run's own page --------------------------------------------------------------

ADDRESS: Final = "page.json"
"""Name of the file in the folder of a run."""

_LONGEST: Final = 4096
"""Bytes of that file."""


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
        url = read_json(folder / ADDRESS, _LONGEST)["url"]
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
