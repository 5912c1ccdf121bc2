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


@pytest.fixture
def shown(browser: Any, page: Page) -> Iterator[Any]:
    """The page in a tab that notes what it asks for, and every complaint."""
    tab = browser.new_page()
    tab.asked, tab.complaints = [], []
    tab.on("request", lambda request: tab.asked.append(request.url))
    tab.on("pageerror", lambda error: tab.complaints.append(str(error)))
    tab.on("console", lambda message: tab.complaints.append(message.text))
    tab.goto(page.url)
    tab.wait_for_selector("#button-stop")
    yield tab
    assert tab.complaints == []
    tab.close()
