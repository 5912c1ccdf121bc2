"""The page in a real browser: it shows the run, and its buttons steer it."""

from __future__ import annotations

import re
from typing import Any

import pytest

from statemachine_trainer.page import Page
from tests.page.runs import Run, until

expect = pytest.importorskip("playwright.sync_api").expect
expect.set_options(timeout=100_000)


def mood(tab: Any, pattern: str) -> None:
    """Wait until the page says this of the run."""
    expect(tab.locator("#mood")).to_have_text(re.compile(pattern))


def held(tab: Any) -> str:
    """Wait until the page shows a held run; return the state before which it is."""
    mood(tab, "^held")
    return str(tab.text_content("#state"))


def test_it_shows_the_graph_with_the_running_state_and_the_curves(shown: Any, run: Run) -> None:
    run.begin()
    shown.wait_for_selector('#graph [data-path="fit.epoch.batch.optimizer.backward"]')
    shown.wait_for_selector('#graph [data-path="fit.epoch"].lit')
    shown.wait_for_selector(
        '#graph [data-source="fit.epoch.batch"][data-event="batch_done"] .count'
    )
    shown.wait_for_selector('svg[aria-label^="val_loss"]')
    assert "batch_start" in shown.text_content("#subscribers")
    assert shown.locator("#recent li").count() > 5
    assert shown.locator("#times tr").count() > 5


def test_nothing_is_asked_for_outside_and_the_token_is_not_in_the_address(
    shown: Any, page: Page
) -> None:
    shown.wait_for_selector("#graph [data-path]")
    assert all(url.startswith(f"http://127.0.0.1:{page.port}/") for url in shown.asked)
    assert shown.url == f"http://127.0.0.1:{page.port}/"


def test_pause_holds_the_run_step_moves_it_by_one_state_and_continue_lets_it_go(
    shown: Any, run: Run
) -> None:
    run.begin()
    assert shown.is_disabled("#button-step")
    shown.click("#button-pause")
    before = held(shown)
    batch = run.batch
    seen = [before]
    while "fit.epoch.batch.optimizer.backward" not in seen:  # a transient boundary, too
        shown.click("#button-step")
        expect(shown.locator("#state")).not_to_have_text(seen[-1])
        seen.append(held(shown))
        assert len(seen) < 40
    assert run.batch <= batch + 1
    shown.click("#button-continue")
    until(lambda: run.batch > batch + 10, "that it goes on")
    mood(shown, "^running")


def test_validate_and_checkpoint_are_done_at_the_next_boundary_that_takes_them(
    shown: Any, run: Run
) -> None:
    validations: list[int] = []
    run.trainer.on(
        "validation_start", lambda trainer: validations.append(trainer.context.counts.batch)
    )
    run.begin()
    shown.click("#button-pause")
    held(shown)
    begun = len(validations)
    while str(shown.text_content("#state")) in (
        "fit.next_epoch",
        "fit.epoch",
    ):  # none to be had there
        assert shown.is_disabled("#button-validate")
        shown.click("#button-step")
        held(shown)
    shown.click("#button-validate")
    mood(shown, "^held")
    shown.click("#button-continue")
    until(lambda: len(validations) > begun, "a validation")
    store = run.trainer.checkpoints
    assert store is not None
    written = len(store.store.list())
    shown.click("#button-checkpoint")
    until(lambda: len(store.store.list()) > written, "a checkpoint")


def test_stop_ends_the_fit_and_then_every_button_is_greyed(shown: Any, run: Run) -> None:
    run.begin()
    shown.click("#button-stop")
    run.thread.join(100)
    mood(shown, "^ended")
    for name in ("pause", "step", "continue", "validate", "checkpoint", "stop"):
        expect(shown.locator(f"#button-{name}")).to_be_disabled()
    assert "has ended" in shown.get_attribute("#button-pause", "title")


def test_closing_the_page_lets_a_held_run_go_on(shown: Any, run: Run, page: Page) -> None:
    run.begin()
    shown.click("#button-pause")
    held(shown)
    batch = run.batch
    page.close()
    until(lambda: run.batch > batch + 5, "that it goes on")
    shown.wait_for_selector("#message:not([hidden])")
    shown.complaints.clear()  # the browser notes that the server is gone
