"""Settings are changed on the page, while the run goes on."""

from __future__ import annotations

import json
import math
import os
import sqlite3
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from statemachine_trainer import RecoverLoop, RunFolder, Trainer
from statemachine_trainer.control.control_errors import NotNow, PageError
from statemachine_trainer.loops.loop_errors import SettingError
from statemachine_trainer.page import Page
from statemachine_trainer.page.live import LiveRun
from statemachine_trainer.page.recorded import FolderRun
from statemachine_trainer.page.settings import LONGEST, values_of
from tests.observe.recorded import Net, batches, trainer
from tests.page.runs import Run, until


def rate(run: Run) -> float:
    return float(run.trainer.context.optimizers[0].param_groups[0]["lr"])


def test_a_live_run_tells_its_settings_changes_them_and_what_was_changed(run: Run) -> None:
    live = LiveRun(run.trainer)
    assert live.state()["settings"] == {}
    run.begin()
    told = live.state()["settings"]["lr"]
    assert told == {
        **{"value": 0.1, "kind": "a number from 0", "unit": "times the update"},
        "refusal": "",
    }
    assert live.state()["changes"] == []
    assert "It is set at the next boundary" in live.set({"lr": 0.01})
    until(lambda: rate(run) == 0.01, "that it is set")
    until(lambda: live.state()["changes"], "that it is in the journal")
    (change,) = live.state()["changes"]
    assert change.items() >= {"name": "lr", "from": 0.1, "to": 0.01, "by": "the page"}.items()
    assert datetime.fromisoformat(change["at"]) <= datetime.now(UTC)
    (mark,) = live.state()["marks"]
    assert (mark["step"], mark["text"]) == (change["step"], "lr 0.1 → 0.01, by the page")
    with pytest.raises(SettingError, match="it is a number from 0"):
        live.set({"lr": -1})
    live.close()


def test_a_run_is_changed_through_its_folder(run: Run, tmp_path: Path) -> None:
    run.begin()
    page = FolderRun(tmp_path / "run")
    assert page.state()["settings"]["lr"]["value"] == 0.1
    page.set({"lr": 0.02, "max_epochs": 500000})
    until(lambda: rate(run) == 0.02, "that it is set")
    until(lambda: len(page.state()["changes"]) == 2, "that it is in the journal")
    run.end()
    ended = page.state()
    assert ended.get("settings", {}) == {}
    assert [one["name"] for one in ended["changes"]] == ["lr", "max_epochs"]
    assert {one["by"] for one in ended["changes"]} == {f"process {os.getpid()}"}


def test_a_run_that_stands_still_is_not_changed() -> None:
    with pytest.raises(NotNow, match=r"has ended|stands still"):
        LiveRun(Trainer(max_epochs=1, progress=False)).set({"lr": 0.1})


def test_a_setting_without_a_limit_is_told_as_text() -> None:
    trainer = Trainer(max_epochs=1, progress=False, clip_norm=math.inf)
    model = nn.Linear(1, 1)
    batches = [(torch.ones(1, 1), torch.ones(1, 1))]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    trainer.start(model, batches, loss=nn.functional.mse_loss, optimizer=optimizer)
    state = LiveRun(trainer).state()
    assert state["settings"]["clip_norm"]["value"] == "inf"
    json.dumps(state, allow_nan=False)


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b"\xff", b"3", b" " * (LONGEST + 1)])
def test_a_request_that_sets_nothing_is_refused(body: bytes) -> None:
    with pytest.raises(PageError, match="names settings"):
        values_of(body)


def test_a_field_of_the_page_sets_and_shows_what_it_may_be(shown: Any, run: Run) -> None:
    api = pytest.importorskip("playwright.sync_api")
    run.begin()
    field = shown.locator("#setting-lr")
    field.fill("fast")
    field.press("Enter")
    message = shown.locator("#message")
    api.expect(message).to_have_text("lr is a number from 0, and not “fast”.")
    field.fill("1e-3")
    field.press("Enter")
    until(lambda: rate(run) == 0.001, "that it is set")
    api.expect(message).to_have_text("It is set at the next boundary that can be written down.")
    api.expect(shown.locator("#changes li").first).to_contain_text("lr 0.1 → 0.001")
    api.expect(shown.locator("#changes li").first).to_contain_text("by the page")
    api.expect(shown.locator("#about-setting-max_epochs")).to_have_text(
        "a whole number from 1 (epochs)"
    )
    api.expect(field).to_have_value("0.001")


# -- beside the curves ------------------------------------------------------------------------------


def recorded(folder: Path, change: Callable[[Trainer], None], **fit: Any) -> FolderRun:
    """A run that changes something of itself while it goes on, as the page reads it from its folder."""
    mine = trainer(run=RunFolder(folder, log_every=1), **fit)
    mine.on("batch_end", lambda: change(mine))
    mine.fit(Net(), batches())
    return FolderRun(folder)


def slower_at_3(mine: Trainer) -> None:
    if mine.steps == 3:
        mine.post("set", lr=0.05, clip_norm=1.0)


def test_a_change_is_a_mark_at_its_step_in_the_curves(tab: Any, tmp_path: Path) -> None:
    api = pytest.importorskip("playwright.sync_api")
    with Page(recorded(tmp_path / "run", slower_at_3, max_epochs=1)) as page:
        tab.goto(page.url)
        figure = tab.locator("figure").filter(has=tab.locator('svg[aria-label^="step/loss,"]'))
        api.expect(figure.locator(".mark")).to_have_count(2)
        box = figure.locator(".mark").first.bounding_box()
        tab.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
        told = figure.locator(".told-mark")
        api.expect(told).to_contain_text("step 3, ")
        api.expect(told).to_contain_text("lr 0.1 → 0.05, by the program")
        api.expect(told).to_contain_text("clip_norm none → 1.0, by the program")


def test_a_recovery_is_a_mark_too(tmp_path: Path) -> None:
    mine = trainer(run=RunFolder(tmp_path / "run", log_every=1), max_epochs=1)
    mine.loop.replace(batch=RecoverLoop(when=lambda one: one.context.counts.batch == 4))
    mine.fit(Net(), batches())
    (mark,) = FolderRun(tmp_path / "run").state()["marks"]
    assert mark["step"] == 3
    assert mark["text"] == "went back, and passed over batch 4: <lambda> says so"


def test_what_was_set_in_a_fold_that_is_not_drawn_is_no_mark(tmp_path: Path) -> None:
    journal = tmp_path / "run" / "journal.sqlite"
    state = recorded(tmp_path / "run", slower_at_3, max_epochs=1).state()
    assert len(state["marks"]) == 2
    with sqlite3.connect(journal) as file:  # as the next fold begins: its steps begin anew
        file.execute(
            "INSERT INTO entries (at, kind, epoch, step, facts) "
            "VALUES ((SELECT max(at) + 1 FROM entries), 'train', 0, 1, '{}')"
        )
    file.close()
    state = FolderRun(tmp_path / "run").state()
    assert (len(state["changes"]), state["marks"]) == (2, [])


def test_of_many_changes_the_newest_are_shown(tmp_path: Path) -> None:
    recorded(tmp_path / "run", slower_at_3, max_epochs=1)
    with sqlite3.connect(tmp_path / "run" / "journal.sqlite") as file:  # as if set in each batch
        file.executemany(
            "INSERT INTO entries (at, kind, epoch, step, facts) VALUES (?, 'set', 0, ?, ?)",
            [(4e9 + n, n, json.dumps({"lr": {"from": n, "to": n + 1}})) for n in range(9, 509)],
        )
    file.close()
    state = FolderRun(tmp_path / "run").state()
    assert [one["step"] for one in state["marks"]] == [*range(309, 509)]
    assert [one["step"] for one in state["changes"]] == [*range(309, 509)]
