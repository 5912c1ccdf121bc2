"""Settings are changed on the page, while the run goes on."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from statemachine_trainer import Trainer
from statemachine_trainer.control.control_errors import NotNow, PageError
from statemachine_trainer.loops.loop_errors import SettingError
from statemachine_trainer.page.live import LiveRun
from statemachine_trainer.page.recorded import FolderRun
from statemachine_trainer.page.settings import LONGEST, values_of
from tests.page.runs import Run, until


def rate(run: Run) -> float:
    return float(run.trainer.context.optimizers[0].param_groups[0]["lr"])


def test_a_live_run_tells_its_settings_changes_them_and_what_was_changed(run: Run) -> None:
    live = LiveRun(run.trainer)
    assert live.state()["settings"] == {}
    run.begin()
    told = live.state()["settings"]["lr"]
    assert told == {"value": 0.1, "kind": "a number from 0", "refusal": ""}
    assert live.state()["changes"] == []
    assert "It is set at the next boundary" in live.set({"lr": 0.01})
    until(lambda: rate(run) == 0.01, "that it is set")
    until(lambda: live.state()["changes"], "that it is in the journal")
    (change,) = live.state()["changes"]
    assert {**change, "step": 0} == {"step": 0, "name": "lr", "from": 0.1, "to": 0.01}
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
    api.expect(field).to_have_value("0.001")
