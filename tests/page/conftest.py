"""A run that is served, and a real browser to look at it with."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from statemachine_trainer import Checkpoints
from statemachine_trainer.page import Page, serve
from tests.page.runs import Run

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    # Nothing is written but what a test asks for: then what is there can be counted.
    one = Run(Checkpoints(tmp_path / "run", every=10**9))
    yield one
    one.end()


@pytest.fixture
def page(run: Run) -> Iterator[Page]:
    with serve(run.trainer) as one:
        yield one


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    api = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("needs a chromium (Debian: apt-get install chromium)")
    with api.sync_playwright() as playwright:
        arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield chromium
        chromium.close()


@pytest.fixture(scope="session")
def only_tab(browser: Any) -> Any:
    """The one tab of all tests: a new one each time would cost more than most of them."""
    tab = browser.new_page()
    tab.on("request", lambda request: tab.asked.append(request.url))
    tab.on("pageerror", lambda error: tab.complaints.append(str(error)))
    tab.on("console", lambda message: tab.complaints.append(message.text))
    return tab


@pytest.fixture
def tab(only_tab: Any) -> Iterator[Any]:
    """An empty tab, as a new one is, that notes what its page asks for, and every complaint."""
    only_tab.asked, only_tab.complaints = [], []
    only_tab.context.clear_cookies()
    only_tab.set_viewport_size({"width": 1280, "height": 720})
    only_tab.emulate_media(color_scheme="light")
    only_tab.mouse.move(0, 0)
    yield only_tab
    only_tab.goto("about:blank")


@pytest.fixture
def shown(page: Page, tab: Any) -> Iterator[Any]:
    """The page in a tab, without a complaint up to the end."""
    tab.goto(page.url)
    tab.wait_for_selector("#button-stop")
    yield tab
    assert tab.complaints == []
