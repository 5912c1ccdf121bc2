"""What a part on a GPU has found is written down, whatever becomes of it."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def on_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.syspath_prepend(BENCHMARKS)
    yield importlib.import_module("on_gpu")
    del sys.modules["on_gpu"]


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


FINDS = """
import json, sys
print(json.dumps({"what": "steps", "value": 3.25, "unit": "us"}), flush=True)
print('{"what": "half', flush=True)
print(json.dumps(["no", "result"]), flush=True)
"""


def test_what_a_part_printed_before_it_failed_is_kept_with_its_last_errors(on_gpu: Any) -> None:
    part = on_gpu.run_part("x", 60, command=python(f"{FINDS}\nraise SystemExit('it broke')"))
    assert (part.status, part.errors) == ("failed", ["it broke"])
    assert part.found == [{"what": "steps", "value": 3.25, "unit": "us"}]


def test_a_part_that_is_killed_has_failed(on_gpu: Any) -> None:
    code = f"{FINDS}\nimport os; os.kill(os.getpid(), 9)"
    part = on_gpu.run_part("x", 60, command=python(code))
    assert (part.status, len(part.found)) == ("failed", 1)


def test_a_part_that_does_not_end_is_ended_with_what_it_started(
    on_gpu: Any, tmp_path: Path
) -> None:
    code = "import signal, subprocess, sys; subprocess.Popen(['cat'], stdin=subprocess.PIPE)\n"
    part = on_gpu.run_part("x", 0.5, command=python(f"{code}signal.pause()"))
    assert part.status == "out of time"


def test_what_a_part_has_found_is_kept_when_all_are_told_to_end(tmp_path: Path) -> None:
    """In a process of its own, whose signals are changed for good."""
    part = f"{FINDS}\nimport os, signal; os.kill(os.getppid(), signal.SIGTERM)"
    code = f"""
import json, sys
sys.path.insert(0, {str(BENCHMARKS)!r})
from on_gpu import Part, end_when_told, run_part, write
from pathlib import Path
end_when_told()
found = run_part("resume", 60, command=[sys.executable, "-c", {part!r}])
write(Path(sys.argv[1]), {{}}, [found, Part("fp16")])
"""
    subprocess.run([*python(code), str(tmp_path)], check=True)
    parts = json.loads((tmp_path / "on_gpu.json").read_text())["parts"]
    assert [part["status"] for part in parts] == ["stopped", "not begun"]
    assert [one["what"] for one in parts[0]["found"]] == ["steps"]


def test_a_part_that_is_done_or_finds_no_gpu_says_so(on_gpu: Any) -> None:
    assert on_gpu.run_part("x", 60, command=python(FINDS)).status == "done"
    none = on_gpu.run_part("x", 60, command=python('print(\'{"what": "no GPU", "value": true}\')'))
    assert (none.status, none.found) == ("no GPU", [])


def test_a_part_for_which_no_time_is_left_is_not_begun(on_gpu: Any) -> None:
    assert on_gpu.run_part("x", 0, command=["there is no such program"]).status == "not begun"
    assert on_gpu.run_part("x", 60, command=["there is no such program"]).status == "failed"


def test_both_files_are_written_also_if_there_is_no_time_at_all(tmp_path: Path) -> None:
    command = [sys.executable, str(BENCHMARKS / "on_gpu.py"), "--out", str(tmp_path)]
    done = subprocess.run([*command, "--seconds", "0"], check=False, capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    content = json.loads((tmp_path / "on_gpu.json").read_text())
    assert {part["status"] for part in content["parts"]} == {"not begun"}
    assert (tmp_path / "on_gpu.md").read_text() in done.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == ["on_gpu.json", "on_gpu.md"]


def test_the_page_names_the_device_and_holds_what_was_found(on_gpu: Any) -> None:
    found = [{"what": "a | b", "value": 3.14159, "unit": "ms"}, {"what": "bits", "value": True}]
    parts = [on_gpu.Part("resume", "done", 3.0, found), on_gpu.Part("fp16", errors=["no memory"])]
    page = on_gpu.page({"device": "NVIDIA H200", "torch": "2.13"}, parts)
    assert page.startswith("# On NVIDIA H200\n\ntorch 2.13\n")
    assert "| resume | done | 3 |" in page
    assert "| a / b | 3.142 ms |" in page
    assert "no memory" in page


def test_all_parts_together_take_less_than_eight_minutes(on_gpu: Any) -> None:
    assert sum(on_gpu.PARTS.values()) <= 480 - 20
