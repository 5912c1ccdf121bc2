"""What shows a run takes no random numbers from it."""

from __future__ import annotations

import subprocess
import sys

FIRST_LINE = """
import random
from statemachine_trainer.observe.screens import screen_for

before = random.getstate()
screen_for()
assert random.getstate() == before
assert "rich.style" in __import__("sys").modules
"""


def test_the_first_line_of_progress_draws_nothing() -> None:
    subprocess.run([sys.executable, "-c", FIRST_LINE], check=True)
