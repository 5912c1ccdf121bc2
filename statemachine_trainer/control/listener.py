"""Where a run takes requests of other processes: a thread beside the training.

It listens at a Unix domain socket that only this user may connect to. A file in the folder of the
run says where the socket is, and `control.requests` asks there. It is a socket because it answers,
and because the kernel refuses a connection to a process that is gone. It does not lie in the folder
of the run: that may be on any file system, may have a path of any length, and is copied and uploaded
as plain files.

A request is one line of JSON, `{"look": true}`, `{"press": "stop"}` or `{"set": {"lr": 0.1}}`; so is the answer.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import select
import socket
import tempfile
import threading
import time
import weakref
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

from statemachine_trainer.control.buttons import Buttons, Steered
from statemachine_trainer.control.hold import Hold
from statemachine_trainer.control.processes import (
    asking,
    at_the_other_end,
    describe_process,
    is_alive,
    rank_of_process,
    ranks_of_run,
)
from statemachine_trainer.control.requests import LONGEST, Endpoint, endpoint_of, receive_line
from statemachine_trainer.files import parse_json
from statemachine_trainer.machine.errors import StateMachineError

if TYPE_CHECKING:
    from statemachine_trainer.machine.driver import Driver

_log = logging.getLogger(__name__)

_PATIENCE: Final = 1.0
"""Seconds that whoever asks has to say so: others wait meanwhile."""

_PREFIX: Final = "smt-"


class Listener:
    """Takes requests for a fit until it is closed, or the driver is gone.

    The thread sleeps in the kernel until somebody asks, so it costs nothing. Whatever goes wrong with
    it, the run goes on.

    Args:
        folder: The folder of the run.
        driver: That of the fit; its sender is the trainer.

    Attributes:
        pid: The process that listens. One that is forked from it does not.
    """

    def __init__(self, folder: Path, driver: Driver) -> None:
        self.pid = os.getpid()
        self._folder = folder
        self._endpoint: Endpoint | None = None
        self._sockets: list[socket.socket] = []
        self._driver = weakref.ref(driver)
        # A trainer that nobody has any more listens no more; nor does a process that ends.
        self._ending = weakref.finalize(driver, self._end)
        if not hasattr(socket, "AF_UNIX"):
            _log.info("Other processes cannot ask a run for anything on this system.")
            return
        try:
            self._open()
        except OSError as error:
            _log.warning(
                "Other processes cannot ask this run for anything: %s. The run goes on. Make room, or let this "
                "user write, in %s and in the folder for temporary files.",
                error,
                self._folder,
            )
            self.forget()
            if self._endpoint is not None:
                _remove(self._endpoint)
            self._endpoint = None
            return
        _LISTENERS.add(self)
        threading.Thread(target=self._serve, name="requests", daemon=True).start()

    def close(self) -> None:
        """Listen no more, and let a held run go on."""
        self._ending()

    def _end(self) -> None:
        endpoint, self._endpoint = self._endpoint, None
        if endpoint is None or self.pid != os.getpid():
            return
        with suppress(OSError):
            self._sockets[2].send(b".")  # the thread wakes, and closes what it waits at
        driver = self._driver()
        if driver is not None:
            Hold.of(driver).let_go()
        found = endpoint_of(self._folder, endpoint.rank)
        if found is not None and found.address == endpoint.address:
            with suppress(OSError):
                Endpoint.path(self._folder, endpoint.rank).unlink()
        _remove(endpoint)

    def forget(self) -> None:
        """Let go of the sockets in a process that was forked: else they would outlive this one."""
        for one in self._sockets:
            one.close()

    # -- opening ---------------------------------------------------------------------------------

    def _open(self) -> None:
        rank = rank_of_process()
        before = endpoint_of(self._folder, rank)
        if before is not None and is_alive(before.process) is False:
            _remove(before)
        address = str(Path(tempfile.gettempdir(), f"{_PREFIX}{secrets.token_hex(8)}"))
        self._endpoint = Endpoint(rank, ranks_of_run(), address, describe_process())
        listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._sockets = [listening, *socket.socketpair()]
        listening.bind(address)
        Path(address).chmod(0o600)  # before it listens: until then nobody can connect
        listening.listen(16)
        self._endpoint.write(self._folder)

    # -- in the thread ---------------------------------------------------------------------------

    def _serve(self) -> None:
        listening, awake, _ = self._sockets
        waiting = select.poll()
        for one in (listening, awake):
            waiting.register(one, select.POLLIN)
        while self._endpoint is not None:
            waiting.poll()
            if self._endpoint is None:
                break
            try:
                connection, _ = listening.accept()
            except OSError as error:  # too many open files, say; the request is still there
                _log.warning("A request cannot be taken: %s.", error)
                time.sleep(_PATIENCE)
                continue
            with connection:
                self._answer(connection)
        self.forget()

    def _answer(self, connection: socket.socket) -> None:
        try:
            line = receive_line(connection, LONGEST, _PATIENCE)
            driver = self._driver()
            if driver is not None:
                with asking(at_the_other_end(connection)):
                    answer = _answer_to(line, driver)
                connection.sendall(json.dumps(answer).encode() + b"\n")
        except OSError as error:  # whoever asked is gone
            _log.debug("A request was cut short: %s.", error)
        except Exception:
            _log.exception("A request could not be answered. The run goes on.")


def _answer_to(line: bytes, driver: Driver) -> dict[str, Any]:
    """Do what a request says, if it is one."""
    buttons = Buttons(cast(Steered, driver.sender), driver, Hold.of(driver))
    told: str | None = None
    refusal: str | None = None
    try:
        asked = _asked(line)
        if isinstance(asked, dict):
            told = buttons.set(asked)
        elif asked is not None:
            told = buttons.press(asked)
    except ValueError:
        _log.warning("A request was refused, as it is none: %r.", line[:80])
        refusal = (
            'That is no request. There are {"look": true}, {"press": NAME}, {"set": {NAME: VALUE}}.'
        )
    except StateMachineError as error:
        refusal = str(error)
    return {"told": told, "refusal": refusal, "look": buttons.look()}


def _asked(line: bytes) -> str | dict[str, object] | None:
    """Read a request: the button that is pressed, or settings with their values; None for a look.

    Raises:
        ValueError: It is none.
    """
    request = parse_json(line)
    if request == {"look": True}:
        return None
    if not isinstance(request, dict) or request.keys() not in ({"press"}, {"set"}):
        raise ValueError(line)
    if "set" in request:
        if not isinstance(request["set"], dict):
            raise ValueError(line)
        return request["set"]
    if not isinstance(request["press"], str):
        raise ValueError(line)
    return request["press"]


def _remove(endpoint: Endpoint) -> None:
    """Remove a socket of ours, and nothing that only is said to be one."""
    path = Path(endpoint.address)
    with suppress(OSError):
        if path.name.startswith(_PREFIX) and path.is_socket():
            path.unlink()


_LISTENERS: weakref.WeakSet[Listener] = weakref.WeakSet()


def _forget_all() -> None:
    for one in [*_LISTENERS]:
        one.forget()


if hasattr(os, "register_at_fork"):
    # The worker of a loader lives on when the run was killed. If it kept the socket open, whoever
    # asks would wait for an answer instead of being refused.
    os.register_at_fork(after_in_child=_forget_all)
