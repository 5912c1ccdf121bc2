"""Below the bars of a running fit a notebook has its loop, folded, with the running state lit."""

from __future__ import annotations

from typing import Any

import pytest

from statemachine_trainer.graph.style import RUNNING
from statemachine_trainer.observe.loop_picture import folded_picture, light
from statemachine_trainer.trainer import Trainer
from tests.page.test_notebook_pictures import _as_computed, page_of, show

pytest.importorskip("pygraphviz", reason="the layout is Graphviz's")

FIT = """
import torch
from torch import nn
from statemachine_trainer import Trainer

data = [(torch.ones(2, 3), torch.ones(2, 1))] * 3
Trainer(max_epochs=2).fit(nn.Linear(3, 1), data, loss=nn.functional.mse_loss, optimizer=torch.optim.SGD)
"""
LIT = """() => [...document.querySelectorAll(".node[data-path]")]
    .filter((one) => getComputedStyle(one.querySelector("path, ellipse")).fill === "%s")
    .map((one) => one.dataset.path)"""


def lit_states(tab: Any) -> list[str]:
    found: list[str] = tab.evaluate(LIT % _as_computed(RUNNING))
    return found


def test_a_rule_of_style_lights_the_running_state_alone(tab: Any) -> None:
    picture = folded_picture(Trainer().driver.machine, "this")
    other = folded_picture(Trainer().driver.machine, "other")
    show(tab, page_of(light("fit.epoch.fetch", "this"), picture, other), "dark")
    assert not tab.locator(".smt-graph").first.is_visible()
    tab.locator("summary").first.click()
    assert tab.locator(".smt-graph").first.is_visible()
    assert lit_states(tab) == ["fit.epoch.fetch"]


def test_nothing_is_lit_where_nothing_runs() -> None:
    assert light(None, "this") == ""


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # what the kernel's own libraries warn of is not ours
def test_a_cell_shows_the_bars_and_the_loop() -> None:
    nbformat: Any = pytest.importorskip("nbformat")
    nbclient: Any = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(FIT)])
    nbclient.NotebookClient(notebook, timeout=100, kernel_name="python3").execute()
    shown = [one["data"].get("text/html", "") for one in notebook.cells[0].outputs if "data" in one]
    bars, loop = shown[0], shown[1]
    assert "<table" in bars
    assert "<style>" not in bars  # the fit has ended
    assert loop.count("<details") == 1
    assert 'data-path="fit.epoch.fetch"' in loop
