"""The README shows what the code is."""

from __future__ import annotations

import re
from pathlib import Path

from statemachine_trainer import FitLoop, graph_of

README = Path(__file__).parents[2] / "README.md"


def test_the_graph_in_the_readme_is_that_of_the_default_tree() -> None:
    found = re.search(r"```mermaid\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    assert found is not None
    assert found[1].strip() == graph_of(FitLoop(), "fit").to_mermaid().strip()


def test_the_python_of_the_readme_runs() -> None:
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) >= 5
    names: dict[str, object] = {"__name__": "readme"}
    for block in blocks:
        exec(block, names)
