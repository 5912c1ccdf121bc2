"""`smt graph` shows what the graph of a trainer shows in Python: subscribers, loops, the running state."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from statemachine_trainer.cli import app
from statemachine_trainer.observe.run import Run
from statemachine_trainer.trainer import Trainer
from tests.cli.sandbox import clean_imports
from tests.observe.recorded import Net, batches, trainer

USERS_FILE = """
    from statemachine_trainer.loops import BatchLoop, SAMLoop
    from statemachine_trainer.graph import graph_of
    from statemachine_trainer.trainer import Trainer

    class Mine:
        def graph(self): return graph_of(BatchLoop(), "batch")

    def report(): ...
    def count(): ...

    def make_trainer():
        trainer = Trainer(max_epochs=2)
        trainer.on("epoch_end", report)
        trainer.on("batch:batch_done", count)
        return trainer

    def quiet(): return Trainer(max_epochs=2)

    def swapped():
        trainer = Trainer(max_epochs=2)
        trainer.loop.replace(optimizer=SAMLoop(rho=0.05))
        return trainer

    mine = Mine()
    drawn = quiet().graph()
"""
BATCH = "statemachine_trainer.loops:BatchLoop"
FORWARD = "fit.epoch.batch.optimizer.forward"

NOTHING = (
    "No state and no transition changed. Settings are no part of a graph, and are not compared.\n"
)


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    Path("train.py").write_text(textwrap.dedent(USERS_FILE))
    with clean_imports():
        yield


def smt(*arguments: str, code: int = 0) -> str:
    result = CliRunner().invoke(app, ["graph", *arguments])
    assert result.exit_code == code, result.output
    return result.stderr if code else result.stdout


# -- what is shown ---------------------------------------------------------------------------------


def test_subscribers_are_named_where_they_listen_if_asked_for() -> None:
    written = smt("train.py:make_trainer", "--subscribers")
    assert "entry / report" in written
    assert "batch_done / count" in written
    assert "report" not in smt("train.py:make_trainer")
    assert "batch_done / count" in smt("train.py:make_trainer", "--subscribers", "-f", "text")


def test_subscribers_that_were_added_are_part_of_a_difference() -> None:
    between = ("train.py:quiet", "--diff", "train.py:make_trainer", "-f", "text")
    assert smt(*between) == NOTHING
    assert smt(*between, "--subscribers").splitlines() == [
        "~ fit.epoch.epoch_end: on enter none -> report",
        "~ fit.epoch.batch: batch_done / count -> fit.epoch.fetch (was batch_done)",
    ]


@pytest.mark.parametrize("name", ["fit", "validate", "test", "predict"])
def test_each_loop_of_a_trainer_can_be_shown(name: str) -> None:
    assert smt("--loop", name) == Trainer().graph(name).to_mermaid()


def test_a_loop_that_the_trainer_does_not_have_is_a_mistake() -> None:
    assert "no loop 'valid'. Did you mean 'validate'?" in smt("--loop", "valid", code=2)


@pytest.mark.parametrize("option", [("--subscribers",), ("--loop", "fit")])
@pytest.mark.parametrize("target", [BATCH, "train.py:drawn"])
def test_what_is_no_trainer_has_neither_subscribers_nor_several_loops(
    target: str, option: tuple[str, ...]
) -> None:
    assert "only a trainer has subscribers, and several loops" in smt(target, *option, code=2)


def test_a_graph_that_takes_no_questions_is_one_line_too() -> None:
    assert smt("train.py:mine") == smt(BATCH)
    assert "train.py:mine raised TypeError" in smt("train.py:mine", "--subscribers", code=2)


def test_the_running_state_is_lit_also_within_a_loop_that_is_closed() -> None:
    assert smt("--running", FORWARD) == Trainer().graph().at(FORWARD).to_mermaid()
    assert "batch (BatchLoop) [running]" in smt("--running", FORWARD, "--depth", "2", "-f", "text")
    assert "no state 'fit.epok'" in smt("--running", "fit.epok", code=2)


def test_the_running_state_of_a_difference_is_that_of_the_second() -> None:
    climb = "fit.epoch.batch.optimizer.climb"
    written = smt("--diff", "train.py:swapped", "--running", climb)
    assert "class fit_epoch_batch_optimizer_climb running" in written


# -- how it is written -----------------------------------------------------------------------------


def test_mermaid_takes_a_direction_and_leaves_outcomes_out() -> None:
    written = smt("--direction", "LR", "--no-outcomes")
    assert written == Trainer().graph().to_mermaid(direction="LR", outcomes=False)


def test_a_picture_may_have_no_legend() -> None:
    written = smt("-f", "dot", "--no-legend")
    assert written == Trainer().graph().to_dot(legend=False) != smt("-f", "dot")


def test_a_png_is_as_fine_as_asked_for() -> None:
    pytest.importorskip("pygraphviz", reason="pictures are drawn by pygraphviz")
    smt(BATCH, "-o", "coarse.png", "--pixels-per-inch", "40")
    smt(BATCH, "-o", "fine.png")
    assert Path("coarse.png").stat().st_size < Path("fine.png").stat().st_size


@pytest.mark.parametrize(
    "arguments, says",
    [
        (["--theme", "dark"], "--theme says nothing in the format mermaid. It goes with svg, png"),
        (["--heat", "profile.json"], "--heat says nothing in the format mermaid"),
        (["--no-legend", "-o", "graph.txt"], "--no-legend says nothing in the format text"),
        (["--pixels-per-inch", "72", "-f", "svg"], "--pixels-per-inch says nothing in the format"),
        (["--direction", "LR", "-f", "json"], "--direction says nothing in the format json"),
        (["--no-outcomes", "-o", "graph.svg"], "--no-outcomes says nothing in the format svg"),
    ],
)
def test_an_option_that_would_do_nothing_is_refused(arguments: list[str], says: str) -> None:
    assert says in smt(*arguments, code=2)
    assert not Path("graph.txt").exists()


# -- runs ------------------------------------------------------------------------------------------


def test_the_graph_of_a_run_is_drawn_from_its_folder_and_compared(tmp_path: Path) -> None:
    folder = tmp_path / "digits"
    trainer(run=folder, max_epochs=1).fit(Net(), batches(1))
    recorded = Run(folder).graph()
    assert recorded is not None
    assert smt("digits") == recorded.to_mermaid()
    assert smt("digits", "--diff", "train.py:quiet", "-f", "text") == NOTHING
    differences = smt("digits", "--diff", "train.py:swapped", "-f", "text").splitlines()
    assert "+ fit.epoch.batch.optimizer.climb" in differences


def test_a_run_tells_what_it_does_not_record(tmp_path: Path) -> None:
    folder = tmp_path / "digits"
    trainer(run=folder, max_epochs=1).fit(Net(), batches(1))
    assert "Leave --subscribers out" in smt("digits", "--subscribers", code=2)
    assert "Leave --loop out" in smt("digits", "--loop", "test", code=2)
    (folder / "journal.sqlite").unlink()
    assert "digits has no graph in its journal" in smt("digits", code=2)
