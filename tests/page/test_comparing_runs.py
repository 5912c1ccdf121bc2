"""The page of several runs: a table of what differs, and their curves over one another."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from statemachine_trainer.cli import app
from statemachine_trainer.control.control_errors import PageError
from statemachine_trainer.observe.run import NoRun
from statemachine_trainer.page import Page
from statemachine_trainer.page.several import SeveralRuns
from tests.observe.recorded import Net, batches, trainer
from tests.page.test_guard import Client


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    for name, hparams in {
        "a": {"depth": 2, "kind": "wide"},
        "below/b": {"depth": 10, "kind": "wide", "rate": 0.25},
    }.items():
        trainer(run=folder / name, max_epochs=3, hparams=hparams).fit(Net(), batches(2), batches(1))
    return folder


@pytest.fixture
def folder(recorded: Path, tmp_path: Path) -> Path:
    """The recorded runs, to be changed."""
    return Path(shutil.copytree(recorded, tmp_path / "runs"))


def column(state: dict[str, Any], name: str) -> dict[str, Any]:
    return next(one for one in state["columns"] if one["name"] == name)


def test_the_table_has_what_differs_and_the_metrics_of_each_run(recorded: Path) -> None:
    state = SeveralRuns([recorded]).state()
    assert [one["name"] for one in state["runs"]] == ["a", "below/b"]
    assert column(state, "depth")["numbers"] == [2.0, 10.0]
    assert column(state, "rate")["cells"] == ["-", "0.25"]
    assert column(state, "rate")["numbers"] == [None, 0.25]
    assert column(state, "state")["cells"] == ["ended", "ended"]
    assert column(state, "loss")["kind"] == "metric"
    assert "kind" not in [one["name"] for one in state["columns"]]
    assert "the same in all" in state["same"]


def test_the_page_and_the_command_compare_alike(recorded: Path) -> None:
    printed = CliRunner().invoke(app, ["runs", "--compare", str(recorded)]).stdout
    rows = [line.split()[0] for line in printed.splitlines() if line]
    columns = [one["name"] for one in SeveralRuns([recorded]).state()["columns"]]
    assert rows[1 : len(columns) + 1] == columns


def test_curves_are_those_of_the_runs_that_were_asked_for(recorded: Path) -> None:
    shown = SeveralRuns([recorded / "below" / "b", recorded / "a"])
    assert [one["name"][-1] for one in shown.state()["runs"]] == ["b", "a"]
    assert set(shown.curves([0, 1])["loss"]) == {0, 1}
    assert set(shown.curves([1, 99])["loss"]) == {1}
    assert [step for step, _ in shown.curves([1])["loss"][1]] == [2, 4, 6]
    assert shown.curves([]) == {}


def test_a_run_keeps_its_number_when_others_come_and_go(folder: Path) -> None:
    shown = SeveralRuns([folder])
    shutil.copytree(folder / "a", folder / "Another")
    found = {one["name"]: one["key"] for one in shown.state()["runs"]}
    assert found == {"a": 0, "below/b": 1, "Another": 2}
    shutil.rmtree(folder / "a")
    assert {one["name"]: one["key"] for one in shown.state()["runs"]} == {
        "below/b": 1,
        "Another": 2,
    }


def test_a_run_that_cannot_be_read_is_told_and_hides_no_other(folder: Path) -> None:
    (folder / "a" / "journal.sqlite").write_bytes(b"no database, but longer than the head of one")
    state = SeveralRuns([folder]).state()
    troubles = {one["name"]: one["trouble"] for one in state["runs"]}
    assert "cannot be read" in troubles["a"]
    assert troubles["below/b"] == ""
    assert column(state, "state")["cells"] == ["damaged", "ended"]


def test_a_folder_without_runs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NoRun, match=r"No run is recorded in .* or three folders down"):
        SeveralRuns([tmp_path])
    with pytest.raises(NoRun, match="There is no folder"):
        SeveralRuns([tmp_path, tmp_path / "none"])


def test_the_server_tells_what_is_wrong_with_a_run(folder: Path) -> None:
    shown = SeveralRuns([folder])
    with pytest.raises(PageError, match="There is no run 7"):
        shown.run(7)
    with Page(shown) as page:
        client = Client(page)
        assert client.ask("/state").status == 403
        client.enter()
        client.ask("/run/0/state")
        assert json.loads(client.body)["running"] is False
        client.ask("/curves?run=0&run=x&run=-1")
        assert "loss" in json.loads(client.body)
        assert client.ask("/run/7/state").status == 409
        assert client.body.startswith("There is no run 7")
        shutil.rmtree(folder)
        assert client.ask("/state").status == 409
        assert client.body.startswith("There is no folder")


# -- In a browser ---------------------------------------------------------------------------------


@pytest.fixture
def tab(tab: Any, recorded: Path) -> Iterator[Any]:
    with Page(SeveralRuns([recorded])) as page:
        tab.goto(page.url)
        tab.wait_for_selector('svg[aria-label^="val_loss"], svg[aria-label^="loss"]')
        yield tab
        assert tab.complaints == []
        tab.goto("about:blank")


def lines(tab: Any, metric: str) -> Any:
    return tab.locator(f'svg[aria-label^="{metric},"] [data-line]')


def test_each_run_that_is_ticked_is_a_line_of_its_own_colour(tab: Any) -> None:
    from playwright.sync_api import expect

    expect(lines(tab, "loss")).to_have_count(2)
    shades = tab.eval_on_selector_all(
        'svg[aria-label^="loss,"] [data-line]',
        "all => all.map(one => getComputedStyle(one).stroke)",
    )
    assert len(set(shades)) == 2
    expect(tab.locator("#legend li")).to_have_count(2)
    tab.uncheck("#show-0")
    expect(lines(tab, "loss")).to_have_count(1)
    expect(tab.locator("#legend li")).to_have_text("below/b")
    tab.reload()
    expect(lines(tab, "loss")).to_have_count(1)  # the address keeps what was ticked


def test_the_pointer_reads_the_value_of_each_run_at_a_step(tab: Any) -> None:
    from playwright.sync_api import expect

    picture = tab.locator('svg[aria-label^="loss,"]')
    box = picture.bounding_box()
    tab.mouse.move(box["x"] + box["width"] * 0.97, box["y"] + box["height"] / 2)
    figure = tab.locator("figure").filter(has=picture)
    expect(figure.locator("figcaption b")).to_have_text("step 6")
    expect(figure.locator(".values li")).to_have_count(2)
    expect(figure.locator(".values li").filter(has_text="below/b")).to_have_count(1)
    tab.check("#log")
    expect(lines(tab, "loss")).to_have_count(2)


def test_the_table_is_sorted_by_numbers_with_what_is_missing_last(tab: Any) -> None:
    from playwright.sync_api import expect

    names = tab.locator("#runs tbody a")
    tab.click('#runs th button:text-is("depth")')
    expect(names).to_have_text(["a", "below/b"])
    tab.click('#runs th button:text-is("depth")')
    expect(names).to_have_text(["below/b", "a"])
    for _ in range(2):
        tab.click('#runs th button:text-is("rate")')
        expect(names).to_have_text(["below/b", "a"])


def test_a_run_of_the_table_has_a_page_of_its_own_that_leads_back(tab: Any) -> None:
    from playwright.sync_api import expect

    tab.click('#runs a:text-is("below/b")')
    tab.wait_for_selector("#graph [data-path]")
    expect(tab.locator("#mood")).to_have_text(re.compile("^ended"))
    tab.click("#all-runs")
    expect(tab.locator("#runs tbody tr")).to_have_count(2)


def test_it_fits_a_telephone_and_asks_for_nothing_outside(tab: Any) -> None:
    tab.set_viewport_size({"width": 380, "height": 800})
    tab.reload()
    tab.wait_for_selector("#curves figure")
    assert tab.evaluate("document.documentElement.scrollWidth") <= 380
    (origin,) = {url.split("/")[2] for url in tab.asked}
    assert tab.url.startswith(f"http://{origin}/")
    assert origin.startswith("127.0.0.1:")
