"""The machine by itself: `pip install --no-deps`, and two small packages beside it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

NEEDED = {"blinker", "six", "statemachine_trainer", "transitions", "typing_extensions"}
"""All that the machine and its graphs may import besides the standard library."""

PROGRAM = """
import sys
from typing import Literal
from statemachine_trainer import Driver, Loop, graph_of

class Hello(Loop):
    initial = "ask"
    transitions = (["asked", "ask", "answer"],)
    outcomes = ("answered",)
    def ask(self) -> Literal["asked"]:
        return "asked"
    def answer(self) -> Literal["answered"]:
        return "answered"

driver = Driver(Hello())
driver.start()
assert driver.run() == "answered"
assert "ask" in graph_of(Hello()).to_mermaid()
roots = {name.partition(".")[0] for name in sys.modules}
print(*sorted(roots - set(sys.stdlib_module_names) - {"__main__"}))
"""


def test_the_machine_and_its_graphs_need_two_packages_and_no_torch() -> None:
    root = Path(__file__).parents[2]
    # -S: without what the environment's own start-up files import; -I would lose the path.
    site = next(path for path in sys.path if path.endswith("site-packages"))
    code = f"import sys; sys.path[:0] = [{str(root)!r}, {site!r}]\n{PROGRAM}"
    done = subprocess.run(
        [sys.executable, "-S", "-c", code], capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stderr
    assert set(done.stdout.split()) <= NEEDED
