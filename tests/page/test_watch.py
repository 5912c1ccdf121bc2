"""Watching a run from another process, and one that is over, through its folder."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from statemachine_trainer.observe.run import NoRun
from statemachine_trainer.page import Page
from statemachine_trainer.page.address import left_in
from statemachine_trainer.page.errors import NotNow, PageError
from statemachine_trainer.page.folder import FolderRun
from tests.page.runs import Run, until

expect = pytest.importorskip("playwright.sync_api").expect
expect.set_options(timeout=20_000)

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}


@contextmanager
def process(*arguments: str, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("wb") as out:
        one = subprocess.Popen(
            [sys.executable, *arguments],
            env=ENVIRONMENT,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # as in a terminal
        )
    try:
        yield one
    finally:
        if one.poll() is None:
            os.killpg(one.pid, signal.SIGKILL)
        one.wait()


TRAINING = """
import sys
from pathlib import Path
from tests.page.runs import Run
run = Run(Path(sys.argv[1]))
run.begin()
run.thread.join()
"""


def steps_in(folder: Path) -> int:
    """Steps that the run in a folder has done; none while it has not begun."""
    try:
        return int(FolderRun(folder).state()["counts"]["step"])
    except (NoRun, PageError):
        return 0


def open_page(browser: Any, page: Page) -> Any:
    tab = browser.new_page()
    tab.goto(page.url)
    tab.wait_for_selector("#graph [data-path]")
    return tab


def test_a_run_of_another_process_is_followed_and_seen_to_be_killed(
    tmp_path: Path, browser: Any
) -> None:
    folder = tmp_path / "run"
    with process("-c", TRAINING, str(folder), log=tmp_path / "log") as training:
        until(lambda: steps_in(folder) > 0, "a step")
        assert training.poll() is None
        with Page(FolderRun(folder)) as page:
            tab = open_page(browser, page)
            expect(tab.locator("#mood")).to_have_text(re.compile("^running"))
            tab.wait_for_selector('#graph [data-source="fit.epoch.batch"] .count')
            counts = tab.text_content("#counts")
            expect(tab.locator("#counts")).not_to_have_text(counts)  # it goes on
            tab.wait_for_selector('svg[aria-label^="val_loss"]')
            assert tab.is_disabled("#button-stop")
            assert "trainer.serve()" in tab.get_attribute("#button-stop", "title")
            training.kill()
            training.wait()
            expect(tab.locator("#mood")).to_have_text(re.compile("^killed"))
            tab.close()


def test_a_run_that_is_over_is_shown(run: Run, browser: Any) -> None:
    run.begin()
    until(lambda: run.trainer.epoch > 1, "two epochs")
    run.end()
    folder = run.trainer.run_folder
    assert folder is not None
    with Page(FolderRun(folder)) as page:
        tab = open_page(browser, page)
        expect(tab.locator("#mood")).to_have_text("ended")
        tab.wait_for_selector('svg[aria-label^="loss"]')
        tab.close()
    with pytest.raises(NotNow, match=r"trainer\.serve"):
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
        assert watching.wait(30) == 0
    assert log.read_text().strip() == page.url
    page.close()
    assert left_in(folder) is None
    with process(*command, log=log) as watching:
        until(lambda: "http://127.0.0.1:" in log.read_text(), "an address")
        assert log.read_text().strip() != page.url
        watching.send_signal(signal.SIGINT)
        assert watching.wait(30) == 0
