"""Starting programs of these tests by `torchrun`; nothing of them outlives a test."""

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
from tests.processes import ROOT, in_group

HERE = Path(__file__).parent
LONGEST = 90.0
"""Seconds after which a run hangs."""


@contextmanager
def launched(
    program: str, folder: Path, *arguments: object, size: int = 2, restarts: int = 0
) -> Iterator[subprocess.Popen[bytes]]:
    """Start a program with some ranks; at the end of the block all of them are gone.

    `torchrun` gives each rank a session of its own, so that no process group holds all of them: a
    program writes its number to `pid-RANK` in the folder. What they print is in `output.txt`.
    """
    folder.mkdir(exist_ok=True)
    for left in folder.glob("pid-*"):
        left.unlink()
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(size)]
    torchrun += ["--log-dir", str(folder / "log"), "--max-restarts", str(restarts)]
    command = [sys.executable, *torchrun, HERE / program, folder, *arguments]
    try:
        with in_group(command, folder / "output.txt", cwd=ROOT, env=_environment()) as process:
            yield process
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
    restarts: int = 0,
    longest: float = LONGEST,
) -> int:
    """Run a program with some ranks to its end, whatever it is; return the exit code of `torchrun`."""
    with launched(program, folder, *arguments, size=size, restarts=restarts) as process:
        code = process.wait(longest * (1 + restarts))
    sys.stderr.write(output_of(folder))
    return code


def output_of(folder: Path) -> str:
    """What the ranks printed."""
    return (folder / "output.txt").read_text(errors="replace")


def alone(program: str, folder: Path, *arguments: object) -> int:
    """Run a program as one process; return its exit code."""
    folder.mkdir(exist_ok=True)
    with (folder / "output.txt").open("wb") as output:
        done = subprocess.run(
            [sys.executable, HERE / program, folder, *map(str, arguments)],
            cwd=ROOT,
            env=_environment(),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            timeout=LONGEST,
            check=False,
        )
    sys.stderr.write(output_of(folder))
    return done.returncode


def ranks(folder: Path) -> list[int]:
    """The numbers of the processes of a launch, in the order of ranks."""
    found = [path.read_text() for path in sorted(folder.glob("pid-*"))]
    return [int(one) for one in found if one]


def is_there(number: int) -> bool:
    """Whether a process lives; one that only waits to be collected does not."""
    try:
        state = Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in ("Z", "X")


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
