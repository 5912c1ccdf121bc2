"""Runs all that needs a GPU, part by part, and writes down what is found after each.

Each part (see `_on_gpu.py`) is a process of its own with a time limit of its own. Whatever a part
does, what it has found so far is kept, and the parts after it run. After each part two files are
replaced: `on_gpu.json` and a page for people, `on_gpu.md`. Where this process is told to end, the
part that runs is ended too, and what it has found is written.

    python benchmarks/on_gpu.py --out FOLDER [--seconds 460] [--part resume] [--rehearse]

Without a GPU each part says "no GPU". With --rehearse the parts run on the CPU, small, as far as
they can: that shows that they work, and nothing else.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NoReturn

HERE = Path(__file__).parent

PARTS = {
    "tests": 90,
    "overhead": 110,
    "prefetch": 40,
    "snapshot": 60,
    "memory": 40,
    "resume": 60,
    "fp16": 40,
    "fingerprints": 20,
}
"""Seconds that each part may take; together less than 8 minutes."""

_LAST = 15
"""Lines of the errors of a part that are kept."""


class Stopped(BaseException):
    """This process was told to end: what is known is written, and no part begins any more."""


def end_when_told() -> None:
    """Let SIGTERM, a hangup and Ctrl-C end the part that runs, and then this process."""

    def stop(number: int, _frame: object) -> NoReturn:
        for one in stopping:
            signal.signal(one, signal.SIG_IGN)  # what is left takes a moment
        raise Stopped(signal.Signals(number).name)

    stopping = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    for one in stopping:
        signal.signal(one, stop)


@dataclass
class Part:
    """What came out of a part.

    Attributes:
        name: Its name.
        status: "done", "no GPU", "failed", "out of time", "stopped" or "not begun".
        seconds: What it took.
        found: What it has found, in order: `what`, `value` and, mostly, `unit`.
        errors: The last lines of its errors, if it is not done.
    """

    name: str
    status: str = "not begun"
    seconds: float = 0.0
    found: list[dict[str, Any]] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


def run_part(
    name: str, limit: float, options: Sequence[str] = (), command: Sequence[str] | None = None
) -> Part:
    """Run a part in a process of its own, and end it with all that it has started.

    Args:
        name: Of the part.
        limit: Seconds that it may take.
        options: For the part.
        command: What to run instead of the module of the parts.
    """
    part, begun = Part(name), time.monotonic()
    if limit <= 0:
        return part
    if command is None:
        command = [sys.executable, str(HERE / "_on_gpu.py"), name, *options]
    with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as errors:
        process = None
        try:
            process = subprocess.Popen(
                command, stdout=output, stderr=errors, start_new_session=True
            )
            part.status = "failed" if process.wait(limit) else "done"
        except subprocess.TimeoutExpired:
            part.status = "out of time"
        except OSError as error:
            part.status, part.errors = "failed", [str(error)]
            return part
        except Stopped:
            part.status = "stopped"
        finally:
            if process is not None:
                _end(process)
        part.seconds = round(time.monotonic() - begun, 1)
        output.seek(0)
        part.found = _lines(output.read())
        errors.seek(0)
        if part.status != "done":
            part.errors = errors.read().splitlines()[-_LAST:]
    if part.status == "done" and any(one["what"] == "no GPU" for one in part.found):
        part.status, part.found = "no GPU", []
    return part


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill what is left of a part: it has a session of its own."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _lines(text: str) -> list[dict[str, Any]]:
    """Return the results in what a part has printed; a line that is half written is left out."""
    found = []
    for line in text.splitlines():
        try:
            one = json.loads(line)
        except ValueError:
            continue
        if isinstance(one, dict) and "what" in one and "value" in one:
            found.append(one)
    return found


def write(folder: Path, about: dict[str, Any], parts: Sequence[Part]) -> None:
    """Replace both files by what is known now."""
    folder.mkdir(parents=True, exist_ok=True)
    content = {"about": about, "parts": [asdict(part) for part in parts]}
    texts = {
        "on_gpu.json": json.dumps(content, indent=1) + "\n",
        "on_gpu.md": page(about, parts),
    }
    for name, text in texts.items():
        temporary = folder / f"{name}.new"
        temporary.write_text(text)
        temporary.replace(folder / name)


def page(about: dict[str, Any], parts: Sequence[Part]) -> str:
    """Lay out what was found in Markdown."""
    lines = [f"# On {about.get('device', 'no GPU')}", ""]
    lines += [", ".join(f"{key} {value}" for key, value in about.items() if key != "device"), ""]
    lines += ["| part | | seconds |", "|---|---|---|"]
    lines += [f"| {part.name} | {part.status} | {part.seconds:.0f} |" for part in parts]
    for part in parts:
        if not part.found and not part.errors:
            continue
        lines += ["", f"## {part.name}", ""]
        if part.found:
            lines += ["| | |", "|---|---|"]
            lines += [f"| {_cell(one['what'])} | {_shown(one)} |" for one in part.found]
        if part.errors:
            lines += ["", "```", *part.errors, "```"]
    return "\n".join(lines) + "\n"


def _shown(one: dict[str, Any]) -> str:
    value = one["value"]
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return _cell(f"{text} {one.get('unit', '')}")


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "/")


def machine(limit: float, options: Sequence[str]) -> tuple[dict[str, Any], bool]:
    """Ask a process of its own for device and versions: a driver that hangs, hangs there.

    Returns:
        What was found, and whether this process was told to end meanwhile.
    """
    part = run_part("about", limit, options)
    found = {one["what"]: one["value"] for one in part.found}
    if part.status in ("failed", "out of time"):
        found["torch"] = f"({part.status}: {part.errors[-1] if part.errors else 'it said nothing'})"
    return {"python": platform.python_version(), **found}, part.status == "stopped"


def main() -> None:
    """Run the parts; exit with an error unless all are done."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for the results")
    parser.add_argument("--seconds", type=float, default=460.0, help="for all parts together")
    parser.add_argument("--part", action="append", choices=PARTS, help="only this one, or these")
    parser.add_argument("--rehearse", action="store_true", help="on the CPU, small")
    options = parser.parse_args()
    end = time.monotonic() + options.seconds
    end_when_told()
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # products of matrices are exact
    passed = ["--rehearse"] if options.rehearse else []
    parts = [Part(name) for name in options.part or PARTS]
    about: dict[str, Any] = {}
    write(options.out, about, parts)
    about, stopped = machine(min(60.0, options.seconds), passed)
    for place, part in enumerate(parts):
        if stopped:
            break
        write(options.out, about, parts)
        limit = min(PARTS[part.name], end - time.monotonic())
        print(f"{part.name}: at most {max(limit, 0):.0f} s", file=sys.stderr, flush=True)
        parts[place] = run_part(part.name, limit, passed)
        print(f"{part.name}: {parts[place].status}", file=sys.stderr, flush=True)
        stopped = parts[place].status == "stopped"
    write(options.out, about, parts)
    print((options.out / "on_gpu.md").read_text())
    if any(part.status != "done" for part in parts):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
