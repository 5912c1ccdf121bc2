"""Starting programs of these tests as ranks, by `torchrun` or as forks; nothing of them outlives a test."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tests import processes
from tests.forking import Forked, forked
from tests.processes import ROOT, in_group, state_of

HERE = Path(__file__).parent
LONGEST = 90.0
"""Seconds after which a run hangs."""


@contextmanager
def launched(
    program: str,
    folder: Path,
    *arguments: object,
    size: int = 2,
    torchrun: bool = False,
    restarts: int = 0,
) -> Iterator[subprocess.Popen[bytes] | Forked]:
    """Start a program with some ranks; at the end of the block all of them are gone.

    Each rank has a session of its own, so that no process group holds all of them: a program writes
    its number to `pid-RANK` in the folder. What they print is in `output.txt`.

    Args:
        program: Its file, in this folder.
        folder: Its first argument.
        *arguments: The others.
        size: How many ranks there are.
        torchrun: Start it by `torchrun`, as people do; else ranks are forks, which costs a tenth.
        restarts: How often `torchrun` starts them again.
    """
    folder.mkdir(exist_ok=True)
    for left in folder.glob("pid-*"):
        left.unlink()
    given = (HERE / program, folder, *arguments)
    output, environment = folder / "output.txt", _environment()
    try:
        if torchrun:
            options = ["--standalone", "--nproc-per-node", size, "--max-restarts", restarts]
            options += ["--log-dir", folder / "log"]
            command = [sys.executable, "-m", "torch.distributed.run", *options, *given]
            with in_group(command, output, cwd=ROOT, env=environment) as process:
                yield process
        else:
            with forked(HERE / "agent.py", size, *given, output=output, env=environment) as agent:
                yield agent
    finally:
        for number in ranks(folder):
            with suppress(ProcessLookupError):
                os.kill(number, signal.SIGKILL)
        wait_until(lambda: not any(map(is_there, ranks(folder))))


def launch(
    program: str,
    folder: Path,
    *arguments: object,
    size: int = 2,
    torchrun: bool = False,
    restarts: int = 0,
    longest: float = LONGEST,
) -> int:
    """Run a program with some ranks to its end, whatever it is; return the exit code of `torchrun`."""
    with launched(
        program, folder, *arguments, size=size, torchrun=torchrun, restarts=restarts
    ) as process:
        code = process.wait(longest * (1 + restarts))
    sys.stderr.write(output_of(folder))
    return code


def output_of(folder: Path) -> str:
    """What the ranks printed."""
    return (folder / "output.txt").read_text(errors="replace")


def alone(program: str, folder: Path, *arguments: object) -> int:
    """Run a program as one process; return its exit code."""
    folder.mkdir(exist_ok=True)
    given = (HERE / program, folder, *arguments)
    with forked(*given, output=folder / "output.txt", env=_environment()) as process:
        code = process.wait(LONGEST)
    sys.stderr.write(output_of(folder))
    return code


def ranks(folder: Path) -> list[int]:
    """The numbers of the processes of a launch, in the order of ranks."""
    found = [path.read_text() for path in sorted(folder.glob("pid-*"))]
    return [int(one) for one in found if one]


def is_there(number: int) -> bool:
    """Whether a process lives; one that only waits to be collected does not."""
    try:
        return state_of(Path(f"/proc/{number}")) not in ("Z", "X")
    except OSError:
        return False


def wait_until(true: Callable[[], bool]) -> None:
    """Wait for something that has to come about."""
    processes.wait_until(true, LONGEST)


def _environment() -> dict[str, str]:
    return {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",  # else ranks that are restarted never meet
    }


Found = list[dict[str, Any]]
"""What came of the scenes of a program, by rank."""


def found_by(
    program: str, folder: Path, *arguments: object, size: int = 2, longest: float = LONGEST
) -> Found:
    """Play the scenes of a program, each rank of which writes what came of them."""
    assert launch(program, folder, *arguments, size=size, longest=longest) == 0
    return [json.loads((folder / f"found-{rank}.json").read_text()) for rank in range(size)]


def both(found: Found, scene: str) -> Any:
    """What a scene came to, which has to be the same at both ranks."""
    assert found[0][scene] == found[1][scene]
    return found[0][scene]
