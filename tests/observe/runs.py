"""A small training that logs, and the terminal in which its progress is looked at."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import subprocess
import sys
import termios
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from statemachine_trainer.loops.metrics.log import log

ROOT = Path(__file__).resolve().parents[2]
BATCHES = [(torch.randn(4, 3), torch.randint(0, 2, (4,))) for _ in range(6)]


class Net(nn.Module):
    """Logs in training, validation and test."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        loss = F.cross_entropy(self.layer(batch[0]), batch[1])
        log("loss", loss)
        log("score", 0.25, prog_bar=True)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        log("val_loss", F.cross_entropy(self.layer(batch[0]), batch[1]))

    def test_step(self, batch: Any, batch_idx: int) -> None:
        log("test_loss", F.cross_entropy(self.layer(batch[0]), batch[1]))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Output:
    """What was written to a terminal.

    Attributes:
        text: All of it, control sequences included.
    """

    def __init__(self) -> None:
        self.text = ""

    @property
    def screen(self) -> list[str]:
        """The lines that the terminal shows after that."""
        return screen_after(self.text)


@contextlib.contextmanager
def terminal() -> Iterator[Output]:
    """Make standard output a terminal; what was written is known after the block."""
    leader, follower = pty.openpty()
    output, read = Output(), bytearray()
    # A terminal takes no more than some kilobytes that nobody has read.
    reader = threading.Thread(target=lambda: read.extend(_read_all(leader)))
    reader.start()
    try:
        with os.fdopen(follower, "w") as file, contextlib.redirect_stdout(file):
            yield output
    finally:
        reader.join()
        os.close(leader)
        output.text = read.decode()


def interrupted_in_terminal(code: str, at: str) -> tuple[str, int]:
    """Run Python code in a terminal and press Ctrl-C; return what stands there, and its exit code.

    Args:
        code: What to run.
        at: The key is pressed when this has been written.
    """
    leader, follower = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", "import sys; sys.path.insert(0, '.')\n" + textwrap.dedent(code)],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=follower,
        stderr=follower,
        env={**os.environ, "TERM": "xterm-256color", "COLUMNS": "100"},
        start_new_session=True,
        # Its own terminal, so that the key becomes a signal, and is echoed as `^C`.
        preexec_fn=lambda: fcntl.ioctl(1, termios.TIOCSCTTY, 0),
    )
    os.close(follower)
    written = b""
    while at.encode() not in written:
        written += os.read(leader, 65536)
    os.write(leader, b"\x03")
    written += _read_all(leader)
    os.close(leader)
    return written.decode(), process.wait()


def _read_all(descriptor: int) -> bytes:
    read = bytearray()
    with contextlib.suppress(OSError):  # so Linux says that the other end was closed
        while chunk := os.read(descriptor, 65536):
            read += chunk
    return bytes(read)


def screen_after(written: str, height: int = 200, width: int = 100) -> list[str]:
    """Return the lines that a terminal shows after what was written to it.

    Knows as much of the language of terminals as a bar in its last lines needs.
    """
    lines = [""] * height
    row = column = at = 0
    while at < len(written):
        char = written[at]
        at += 1
        if char == "\x1b":
            end = at + 1
            while not written[end].isalpha():
                end += 1
            argument, command = written[at + 1 : end], written[end]
            at = end + 1
            if command == "A":
                row -= int(argument or 1)
            elif command == "K":
                lines[row] = "" if argument == "2" else lines[row][:column]
            elif command not in "mhl":
                raise AssertionError(f"unknown control sequence {argument + command!r}")
        elif char == "\r":
            column = 0
        elif char == "\n":
            row, column = row + 1, 0
        else:
            if column == width:  # a longer line goes on in the next one, as on a terminal
                row, column = row + 1, 0
            lines[row] = lines[row][:column].ljust(column) + char + lines[row][column + 1 :]
            column += 1
    return [line.rstrip() for line in "\n".join(lines).rstrip().split("\n")]
