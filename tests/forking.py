"""Processes that are forks of one that has imported torch and this package, and so begin at once.

A process of its own computes for three seconds before its first line. A fork is else the same: it has a session,
signals and threads of its own, a `__main__` module, and ends as Python ends. For tests that are not about the start.

Each test worker has one server, started when it is first needed. It has one thread, trains nothing, and ends with the
worker. It tells of each end, as the parent of the forks.
"""

from __future__ import annotations

import atexit
import gc
import importlib.util
import json
import os
import pkgutil
import random
import select
import signal
import socket
import subprocess
import sys
import time
import types
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

from tests.processes import ROOT

_LARGEST = 1 << 20
"""Bytes of a message."""

_BESIDE = (
    "torch._dynamo",
    "torch.distributed.fsdp",
    "torch.distributed.tensor",
    "torch.nn.parallel",
)
"""What programs of tests import besides all of this package; the first optimizer imports the first of them."""

_LEFT_OUT = ("statemachine_trainer.integrations", "statemachine_trainer.__main__")


class Forked:
    """A process that the server has forked; as a `Popen`, as far as tests need it.

    Attributes:
        pid: Its number, and that of its session and group.
    """

    def __init__(self, server: _Server, pid: int) -> None:
        self.pid = pid
        self._server = server

    def poll(self) -> int | None:
        """Return its exit code, the negative number of the signal that ended it, or None while it runs."""
        return self._server.code_of(self.pid, 0.0)

    def wait(self, timeout: float = 100.0) -> int:
        """Wait for its end.

        Raises:
            subprocess.TimeoutExpired: It runs on after so many seconds.
        """
        code = self._server.code_of(self.pid, timeout)
        if code is None:
            raise subprocess.TimeoutExpired(f"process {self.pid}", timeout)
        return code

    def send_signal(self, number: int) -> None:
        """Send it a signal."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """Send it SIGKILL."""
        self.send_signal(signal.SIGKILL)


@contextmanager
def forked(
    *arguments: object,
    output: Path,
    env: Mapping[str, str],
    errors: Path | None = None,
    cwd: Path | None = None,
) -> Iterator[Forked]:
    """Run Python in a process group of its own, which is killed at the end of the block.

    Args:
        *arguments: As of `python`: a script, `-m` and a module, or `-c` and code; then those of the program.
        output: The file that has what it prints.
        env: Its environment. What Python or torch reads as it starts is as in the tests, whatever this says.
        errors: Another file, for what it prints on stderr.
        cwd: Its folder, that of the project unless told.
    """
    process = _server().start(
        {
            "arguments": [*map(str, arguments)],
            "outputs": [str(output), *([] if errors is None else [str(errors)])],
            "env": dict(env),
            "cwd": str(cwd or ROOT),
        }
    )
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(60.0)


def as_main(arguments: Sequence[str]) -> None:
    """Run a program as Python does that is started with these arguments."""
    random.seed()  # what was seeded at the start of the server is the same in each fork
    if numpy := sys.modules.get("numpy"):
        numpy.random.seed()
    sys.orig_argv = [sys.executable, *arguments]
    main = types.ModuleType("__main__")
    kind, *given = arguments
    place, name = "", kind
    if kind == "-c":
        source: str | bytes = given.pop(0)
        name = "<string>"
    elif kind == "-m":
        spec = importlib.util.find_spec(given.pop(0))
        if spec is not None and spec.submodule_search_locations is not None:
            spec = importlib.util.find_spec(f"{spec.name}.__main__")
        assert spec is not None
        assert spec.origin is not None
        name, place = spec.origin, str(Path.cwd())
        source = Path(name).read_bytes()
        main.__spec__, main.__package__ = spec, spec.parent
    else:
        source, place = Path(name).read_bytes(), str(Path(name).resolve().parent)
    if kind != "-c":
        main.__file__ = name
    sys.path[0] = place
    sys.argv = ["-c" if kind == "-c" else name, *given]
    sys.modules["__main__"] = main
    exec(compile(source, name, "exec"), vars(main))


class _Server:
    """The side of the tests.

    Attributes:
        owner: Number of the process that it belongs to: a fork of that has no server of its own.
    """

    def __init__(self) -> None:
        self.owner = os.getpid()
        self._codes: dict[int, int] = {}
        self._collected: set[int] = set()
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.forking", str(theirs.fileno())],
                cwd=ROOT,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        atexit.register(self._close)

    def start(self, task: Mapping[str, Any]) -> Forked:
        self._ask(task)
        while (pid := self._hear().get("started")) is None:
            pass
        return Forked(self, pid)

    def code_of(self, pid: int, longest: float) -> int | None:
        """Wait for an end, and collect the process: until somebody waits for it, it stays as a zombie."""
        end = time.monotonic() + longest
        while pid not in self._codes:
            if not select.select([self._socket], [], [], max(0.0, end - time.monotonic()))[0]:
                return None
            self._hear()
        if pid not in self._collected:
            self._ask({"collect": pid})
            while pid not in self._collected:
                self._hear()
        return self._codes[pid]

    def _ask(self, message: Mapping[str, Any]) -> None:
        self._socket.send(json.dumps(message).encode())

    def _hear(self) -> dict[str, int]:
        """Wait for a message, and note of which end it tells."""
        message = self._socket.recv(_LARGEST)
        assert message, "the server of forks is gone"
        told: dict[str, int] = json.loads(message)
        if "ended" in told:
            self._codes[told["ended"]] = told["code"]
        elif "collected" in told:
            self._collected.add(told["collected"])
        return told

    def _close(self) -> None:
        self._socket.close()
        if self.owner == os.getpid():
            self._process.wait()


@cache
def _server() -> _Server:
    return _Server()


# -- the side of the server -----------------------------------------------------------------------


def _serve(requests: socket.socket) -> dict[str, Any] | None:
    """Fork until nobody asks any more; return what a fork has to do, in that fork."""
    running: dict[int, int] = {}
    while True:
        for ready in select.select([requests.fileno(), *running], [], [])[0]:
            if ready in running:
                pid = running.pop(ready)
                os.close(ready)
                end = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
                assert end is not None
                code = end.si_status if end.si_code == os.CLD_EXITED else -end.si_status
                requests.send(json.dumps({"ended": pid, "code": code}).encode())
                continue
            asked: dict[str, Any] = json.loads(requests.recv(_LARGEST) or "null")
            if asked is None:
                return None
            if "collect" in asked:
                os.waitpid(asked["collect"], 0)
                requests.send(json.dumps({"collected": asked["collect"]}).encode())
                continue
            pid = os.fork()
            if pid == 0:
                requests.close()
                for other in running:
                    os.close(other)
                return asked
            running[os.pidfd_open(pid)] = pid
            requests.send(json.dumps({"started": pid}).encode())


def _become(task: dict[str, Any]) -> None:
    """Make of a fork the process that was asked for."""
    os.setsid()
    os.chdir(task["cwd"])
    os.environ.clear()
    os.environ.update(task["env"])
    for number, output in enumerate(task["outputs"], 1):
        opened = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        os.dup2(opened, number)
        os.close(opened)
    if len(task["outputs"]) == 1:
        os.dup2(1, 2)
    if os.environ.get("PYTHONUNBUFFERED"):
        sys.stdout.reconfigure(write_through=True)  # type: ignore[union-attr]
    as_main(task["arguments"])


def _prepare() -> None:
    """Import what programs need."""
    package = importlib.import_module("statemachine_trainer")
    for one in pkgutil.walk_packages(package.__path__, "statemachine_trainer."):
        if not one.name.startswith(_LEFT_OUT):
            importlib.import_module(one.name)
    for name in _BESIDE:
        importlib.import_module(name)
    importlib.import_module("torch").set_num_threads(1)
    gc.collect()
    gc.freeze()  # else each fork copies what is imported, as it looks for garbage there
    threads = len([*Path("/proc/self/task").iterdir()])
    assert threads == 1, f"{threads} threads: what one of them holds at a fork is held for ever"


def _main() -> None:
    _prepare()
    with socket.socket(fileno=int(sys.argv[1])) as requests:
        task = _serve(requests)
    if task is not None:
        _become(task)


if __name__ == "__main__":
    _main()
