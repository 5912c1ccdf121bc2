"""Watching a run from another process, and one that is over, through its folder."""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from statemachine_trainer.control.control_errors import NobodyListens
from statemachine_trainer.observe.run import NoRun
from statemachine_trainer.page import Page
from statemachine_trainer.page.recorded import FolderRun
from statemachine_trainer.page.server import left_in
from tests.page.processes import process, steps_in, training
from tests.page.runs import Run, until

expect = pytest.importorskip("playwright.sync_api").expect
expect.set_options(timeout=100_000)

BUTTONS = ("pause", "step", "continue", "validate", "checkpoint", "stop")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "run"


@pytest.fixture
def watched(folder: Path) -> Iterator[Page]:
    """The page of a run that goes on in another process."""
    with training(folder), Page(FolderRun(folder)) as page:
        yield page


def open_page(tab: Any, page: Page) -> None:
    tab.goto(page.url)
    tab.wait_for_selector("#graph [data-path]")


def mood(tab: Any, pattern: str) -> None:
    """Wait until the page says this of the run."""
    expect(tab.locator("#mood")).to_have_text(re.compile(pattern))


def all_are_greyed(tab: Any, why: str) -> None:
    """Wait until no button can be pressed, and the page says why."""
    expect(tab.locator("#why")).to_have_text(re.compile(why))
    for name in BUTTONS:
        assert tab.is_disabled(f"#button-{name}")
        # Asked for in one call: the page is brought up to date in between.
        assert tab.evaluate(
            "id => document.getElementById(id).title == document.getElementById('why').textContent",
            f"button-{name}",
        )


def test_a_run_of_another_process_is_followed_and_seen_to_be_killed(folder: Path, tab: Any) -> None:
    with training(folder) as one, Page(FolderRun(folder)) as page:
        open_page(tab, page)
        mood(tab, "^running")
        tab.wait_for_selector('#graph [data-source="fit.epoch.batch"] .count')
        counts = tab.text_content("#counts")
        expect(tab.locator("#counts")).not_to_have_text(counts)  # it goes on
        tab.wait_for_selector('svg[aria-label^="val_loss"]')
        expect(tab.locator("#button-stop")).to_be_enabled()
        assert tab.is_disabled("#button-step")
        one.kill()
        one.wait()
        mood(tab, "^killed")
        all_are_greyed(tab, r"^The run was killed in fit\.\S+: its process is gone")


def test_the_buttons_steer_a_run_of_another_process(folder: Path, watched: Page, tab: Any) -> None:
    open_page(tab, watched)
    expect(tab.locator("#why")).to_be_empty()
    tab.click("#button-pause")
    mood(tab, "^held before this state")
    expect(tab.locator("#message")).to_have_text("The run is held after its next boundary.")
    steps = steps_in(folder)
    seen = [str(tab.text_content("#state"))]
    while len(seen) < 6:
        tab.click("#button-step")
        expect(tab.locator("#state")).not_to_have_text(seen[-1])
        mood(tab, "^held")
        seen.append(str(tab.text_content("#state")))
    assert steps_in(folder) <= steps + 1
    assert tab.is_disabled("#button-pause")
    tab.click("#button-continue")
    mood(tab, "^running")
    until(lambda: steps_in(folder) > steps + 10, "that it goes on")
    tab.click("#button-stop")
    mood(tab, "^ended")
    all_are_greyed(tab, "^The run has ended .* ago. Nobody listens")


def test_a_button_that_is_greyed_by_now_says_why(folder: Path, watched: Page, tab: Any) -> None:
    open_page(tab, watched)
    expect(tab.locator("#button-pause")).to_be_enabled()
    FolderRun(folder).press("pause")
    expect(tab.locator("#button-pause")).to_be_disabled()
    # As if it was clicked just before it was greyed.
    tab.evaluate(
        "() => Object.assign(document.getElementById('button-pause'), {disabled: false}).click()"
    )
    expect(tab.locator("#message")).to_have_text("The run is held already.")


def test_a_run_that_is_over_is_shown(run: Run, tab: Any) -> None:
    run.begin()
    until(lambda: run.trainer.epoch > 1, "two epochs")
    run.end()
    folder = run.trainer.run_folder
    assert folder is not None
    with Page(FolderRun(folder)) as page:
        open_page(tab, page)
        mood(tab, "^ended")
        tab.wait_for_selector('svg[aria-label^="loss"]')
        all_are_greyed(tab, "^The run has ended")
    with pytest.raises(NobodyListens, match="The run has ended"):
        FolderRun(folder).press("stop")


def test_a_folder_without_a_run_is_said(tmp_path: Path) -> None:
    with pytest.raises(NoRun):
        FolderRun(tmp_path)


def test_smt_watch_gives_the_address_of_the_run_s_own_page_while_there_is_one(
    run: Run, page: Page, tmp_path: Path
) -> None:
    run.begin()
    folder = run.trainer.run_folder
    assert folder is not None
    assert (folder / "page.json").stat().st_mode & 0o777 == 0o600
    command = ("-m", "statemachine_trainer", "watch", str(folder))
    log = tmp_path / "watch.log"
    with process(*command, log=log) as watching:
        assert watching.wait(100) == 0
    assert log.read_text().strip() == page.url
    page.close()
    assert left_in(folder) is None
    with process(*command, log=log) as watching:
        until(lambda: "http://127.0.0.1:" in log.read_text(), "an address")
        assert log.read_text().strip() != page.url
        watching.send_signal(signal.SIGINT)
        assert watching.wait(100) == 0


def test_a_run_that_is_held_when_watching_ends_is_not_forgotten(
    folder: Path, tmp_path: Path
) -> None:
    log = tmp_path / "watch.log"
    with (
        training(folder),
        process("-m", "statemachine_trainer", "watch", str(folder), log=log) as watching,
    ):
        until(lambda: "http://127.0.0.1:" in log.read_text(), "an address")
        FolderRun(folder).press("pause")
        until(lambda: FolderRun(folder).is_held(), "that it is held")
        watching.send_signal(signal.SIGINT)
        assert watching.wait(100) == 0
        assert f"smt post {folder} continue" in log.read_text()
