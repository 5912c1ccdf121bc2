"""What is read from the source of a method."""

from __future__ import annotations

import importlib.util
import warnings
from pathlib import Path

from statemachine_trainer.machine.source import facts_of

SOURCE = """
def state(self):
    self.pattern = "\\d"
    return "done"
"""


def test_what_the_compiler_has_warned_of_is_not_told_again(tmp_path: Path) -> None:
    path = tmp_path / "with_a_warning.py"
    path.write_text(SOURCE)
    spec = importlib.util.spec_from_file_location("with_a_warning", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        spec.loader.exec_module(module)
        told.clear()
        facts = facts_of(module.state)
    assert told == []
    assert facts is not None
    assert facts.sets == {"pattern"}
