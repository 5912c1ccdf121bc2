"""What `torchrun` does for the ranks of a machine, without its start: it forks them, and ends all when one fails.

    agent.py SIZE SCRIPT [ARGUMENT ...]      (by `tests.forking`)

Each rank has a session of its own and the variables that `torchrun` sets. They meet at a store of the agent, as they do
by default. Nothing is restarted: for that, and for what is lost on the way, tests use `torchrun` itself.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import time
from contextlib import suppress

from torch._C._distributed_c10d import TCPStore

from tests.forking import as_main

PATIENCE = 30.0
"""Seconds after which ranks that do not heed SIGTERM are killed."""


def main() -> None:
    """Start the ranks and wait for them; the exit code is that of `torchrun`."""
    size, *arguments = sys.argv[1:]
    ours, theirs = os.pipe()
    port = _host_store(ours, theirs)
    started: dict[int, int] = {}
    for rank in range(int(size)):
        child = os.fork()
        if child == 0:
            os.close(theirs)
            for descriptor in started:
                os.close(descriptor)
            _become(rank, size, port)
            as_main(arguments)
            return
        started[os.pidfd_open(child)] = child
    sys.exit(_watch(started))


def _host_store(reading: int, writing: int) -> str:
    """Let a process of its own have the store, for its threads, until the agent ends; return the port."""
    telling, told = os.pipe()
    if os.fork() == 0:
        os.close(writing)
        store = TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
        os.write(told, str(store.port).encode())
        os.close(told)
        os.read(reading, 1)
        os._exit(0)
    os.close(told)
    os.close(reading)
    with os.fdopen(telling) as file:
        return file.read()


def _become(rank: int, size: str, port: str) -> None:
    os.setsid()
    os.environ |= {
        "RANK": f"{rank}",
        "LOCAL_RANK": f"{rank}",
        "WORLD_SIZE": size,
        "LOCAL_WORLD_SIZE": size,
        "GROUP_RANK": "0",
        "GROUP_WORLD_SIZE": "1",
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": port,
        "TORCHELASTIC_RUN_ID": "forked",
        "TORCHELASTIC_RESTART_COUNT": "0",
        "TORCHELASTIC_MAX_RESTARTS": "0",
        "TORCHELASTIC_USE_AGENT_STORE": "True",
    }


def _watch(started: dict[int, int]) -> int:
    """Wait for all; when one fails, end the others."""
    failed, end = False, None
    while started:
        left = None if end is None else max(0.0, end - time.monotonic())
        ended = select.select([*started], [], [], left)[0]
        if not ended:
            _tell(started, signal.SIGKILL)
            end = None
        for descriptor in ended:
            _, status = os.waitpid(started.pop(descriptor), 0)
            if status and not failed:
                failed, end = True, time.monotonic() + PATIENCE
                _tell(started, signal.SIGTERM)
    return int(failed)


def _tell(started: dict[int, int], number: int) -> None:
    for child in started.values():
        with suppress(ProcessLookupError):
            os.kill(child, number)


if __name__ == "__main__":
    main()
