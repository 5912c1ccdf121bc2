"""Where two runs part, on the page that compares them."""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from statemachine_trainer import RunFolder, every
from statemachine_trainer.cli import app
from statemachine_trainer.control.control_errors import PageError
from statemachine_trainer.observe.run import NoRun
from statemachine_trainer.page import Page
from statemachine_trainer.page.several import SeveralRuns
from tests.observe.recorded import Net, batches, trainer
from tests.page.processes import process
from tests.page.runs import until

SMT = "from statemachine_trainer.cli import main; main()"

PARTS_AT = 5
"""The step at whose batch the second run gets another rate."""


def train(folder: Path, *, part: bool = False, looks: int | None = 1) -> None:
    prints = None if looks is None else every(looks, "step")
    mine = trainer(run=RunFolder(folder, log_every=1), fingerprints=prints, max_epochs=2)

    @mine.on("forward")
    def faster() -> None:
        if part and mine.steps == PARTS_AT - 1:
            mine.context.slots[0].optimizer.param_groups[0]["lr"] = 1.0

    mine.fit(Net(), batches())


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs that part, one that is as the first, and one that nobody looked at."""
    folder = tmp_path_factory.mktemp("parting")
    train(folder / "a")
    train(folder / "b", part=True)
    train(folder / "c")
    train(folder / "d", looks=None)
    return folder


def test_where_two_runs_part_is_told_with_the_step_in_their_curves(recorded: Path) -> None:
    found = SeveralRuns([recorded]).difference(0, 1)
    assert found["steps"] == [PARTS_AT, PARTS_AT]
    assert found["verdict"].startswith(f"they part at step {PARTS_AT} ")
    assert "settings: no difference known" in found["text"]
    assert found["verdict"] not in found["text"]


def test_runs_that_were_looked_at_seldom_part_between_two_steps(tmp_path: Path) -> None:
    train(tmp_path / "a", looks=3)
    train(tmp_path / "b", part=True, looks=3)
    assert SeveralRuns([tmp_path]).difference(0, 1)["steps"] == [4, 7]


@pytest.mark.parametrize("other, verdict", [(2, "equal at"), (3, "/d has none")])
def test_nothing_is_marked_where_none_is_known_to_part(
    recorded: Path, other: int, verdict: str
) -> None:
    found = SeveralRuns([recorded]).difference(0, other)
    assert verdict in found["verdict"]
    assert found["steps"] is None


def test_a_fold_that_is_not_drawn_has_no_mark(recorded: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):  # the same fit twice, and a second one that nobody changed
        mine = trainer(run=RunFolder(tmp_path / name), fingerprints=every(1, "step"), max_epochs=1)
        mine.fit(Net(), batches())
        file = tmp_path / name / "fingerprints.bin"
        again = (recorded / name / "fingerprints.bin").read_bytes()
        assert file.read_bytes().startswith(b"smt-prints1")
        file.write_bytes(again + again[len(b"smt-prints1\n") :])
    found = SeveralRuns([tmp_path]).difference(0, 1)
    assert found["verdict"].startswith("they part at")
    assert found["steps"] is None


def test_a_run_that_is_not_there_is_told(recorded: Path) -> None:
    shown = SeveralRuns([recorded])
    with pytest.raises(PageError, match="There is no run 9"):
        shown.difference(0, 9)
    with pytest.raises(NoRun):
        shown.key_of(recorded)


# -- In a browser ---------------------------------------------------------------------------------


@pytest.fixture
def tab(tab: Any, recorded: Path) -> Iterator[Any]:
    with Page(SeveralRuns([recorded / "a", recorded / "b", recorded / "c"])) as page:
        tab.goto(f"{page.url}#0,1")
        yield tab
        assert tab.complaints == []
        tab.goto("about:blank")


def test_the_parting_is_marked_in_the_curves_of_two_runs(tab: Any) -> None:
    from playwright.sync_api import expect

    expect(tab.locator("#verdict")).to_contain_text(f"they part at step {PARTS_AT} ")
    figure = tab.locator("figure").filter(has=tab.locator('svg[aria-label^="step/loss,"]'))
    expect(figure.locator(".mark")).to_have_count(1)
    expect(figure.locator("[data-line]")).to_have_count(2)
    box = figure.locator(".mark").bounding_box()
    tab.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    expect(figure.locator(".told-mark")).to_contain_text("they part at step")
    expect(figure.locator("figcaption b")).to_have_text(f"step {PARTS_AT}")
    tab.click("#parting summary")
    expect(tab.locator("#differs")).to_contain_text("versions: no difference known")


def test_more_than_two_runs_have_no_mark_until_one_is_unticked(tab: Any) -> None:
    from playwright.sync_api import expect

    expect(tab.locator("#verdict")).to_contain_text("they part")
    tab.check("#show-2")
    expect(tab.locator("#parting")).to_be_hidden()
    expect(tab.locator(".mark")).to_have_count(0)
    tab.uncheck("#show-1")
    expect(tab.locator("#verdict")).to_contain_text("equal at")
    expect(tab.locator(".mark")).to_have_count(0)


# -- The command ----------------------------------------------------------------------------------


def test_the_command_serves_the_page_of_two_runs(recorded: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    a, b = recorded / "b", recorded / "a"
    with process("-c", SMT, "diff", f"{a}", f"{b}", "--page", log=log) as one:
        until(lambda: "\n" in log.read_text(), "the address")
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+/\?token=\S+#0,1\n", log.read_text())
        one.send_signal(signal.SIGINT)
        one.wait(60)


def test_the_command_refuses_a_page_of_one_run(recorded: Path) -> None:
    told = CliRunner().invoke(app, ["diff", str(recorded / "a"), "--page"])
    assert told.exit_code == 2
    assert "smt diff RUN_A RUN_B --page" in told.output
