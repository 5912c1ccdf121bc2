"""`smt graph` draws pictures, differences and heat."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from statemachine_trainer.cli import app
from statemachine_trainer.graph.graph import graph_of
from statemachine_trainer.loops import BatchLoop
from statemachine_trainer.trainer import Trainer
from tests.cli.sandbox import clean_imports

USERS_FILE = """
from statemachine_trainer.loops import SAMLoop
from statemachine_trainer.trainer import Trainer

def swapped():
    trainer = Trainer()
    trainer.loop.replace(optimizer=SAMLoop(rho=0.05))
    return trainer
"""
BATCH = "statemachine_trainer.loops:BatchLoop"


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    Path("train.py").write_text(USERS_FILE)
    with clean_imports():
        yield


def smt(*arguments: str, code: int = 0) -> str:
    result = CliRunner().invoke(app, ["graph", *arguments])
    assert result.exit_code == code, result.output
    return result.stderr if code else result.stdout


def batch_graph() -> str:
    return graph_of(BatchLoop(), "batch").to_dot()


def test_dot_is_written_as_text() -> None:
    assert smt(BATCH, "-f", "dot") == batch_graph()


@pytest.mark.parametrize("name", ["graph.svg", "graph.html", "graph.png", "graph.mmd", "graph.gv"])
def test_the_ending_of_the_output_tells_the_format(name: str) -> None:
    pytest.importorskip("pygraphviz", reason="pictures are drawn by pygraphviz")
    smt(BATCH, "-o", name)
    graph_of(BatchLoop(), "batch").save(f"by_save{Path(name).suffix}")
    assert Path(name).read_bytes() == Path(f"by_save{Path(name).suffix}").read_bytes()


@pytest.mark.parametrize("name", ["graph.xyz", "graph"])
def test_an_ending_that_tells_no_format_is_a_mistake_that_lists_the_endings(name: str) -> None:
    written = smt(BATCH, "-o", name, code=2)
    assert f"The ending of {name} tells no format" in written
    assert all(ending in written for ending in (".mmd", ".svg", ".png", ".json", "--format"))
    assert not Path(name).exists()
    smt(BATCH, "-o", name, "--format", "dot")
    assert Path(name).read_text() == batch_graph()


def test_the_format_that_is_asked_for_wins_over_the_ending() -> None:
    smt(BATCH, "-o", "graph.txt", "--format", "json")
    assert json.loads(Path("graph.txt").read_text())["name"] == "batch"


def test_a_png_is_not_printed() -> None:
    pytest.importorskip("pygraphviz", reason="pictures are drawn by pygraphviz")
    assert "with -o PATH" in smt(BATCH, "-f", "png", code=2)


def test_one_loop_is_shown_alone() -> None:
    assert smt("--open", "batch", "-f", "text").startswith("batch (BatchLoop)")
    assert "no loop called 'batsh'" in smt("--open", "batsh", code=2)


def test_a_difference_is_told_and_drawn() -> None:
    text = smt("statemachine_trainer.trainer:Trainer", "--diff", "train.py:swapped", "-f", "text")
    assert "+ fit.epoch.batch.optimizer.climb" in text.splitlines()
    assert "classDef added" in smt("--diff", "train.py:swapped")
    data = json.loads(smt("--diff", "train.py:swapped", "-f", "json"))
    assert data["states"]["fit.epoch.batch.optimizer.climb"] == "added"


def test_states_are_coloured_by_a_profile() -> None:
    totals = {"fit.epoch.fetch": 1.0, "fit.epoch.batch.batch_end": 4.0}
    states = {path: {"count": 1, "total": total} for path, total in totals.items()}
    Path("profile.json").write_text(json.dumps({"states": states}))
    heat = {"fit.epoch.fetch": 0.25, "fit.epoch.batch.batch_end": 1.0}
    assert smt("--heat", "profile.json", "-f", "dot") == Trainer().graph().to_dot(heat=heat)


@pytest.mark.parametrize("content", ["[]", '{"states": {"a": 1}}', "not JSON", '{"states": 3}'])
def test_what_is_no_profile_is_refused(content: str) -> None:
    Path("profile.json").write_text(content)
    assert "is no profile" in smt("--heat", "profile.json", "-f", "dot", code=2)
    assert "cannot be read" in smt("--heat", "missing.json", "-f", "dot", code=2)
