"""The page in a real browser: the graph is moved, zoomed, closed, searched and asked; curves are read."""

from __future__ import annotations

import re
from typing import Any

import pytest

from statemachine_trainer.page import Page
from tests.page.runs import Run

pytest.importorskip("pygraphviz", reason="the picture is laid out by Graphviz")
expect = pytest.importorskip("playwright.sync_api").expect
expect.set_options(timeout=100_000)

STEP = "fit.epoch.batch.optimizer.optimizer_step"


def drawn(tab: Any) -> None:
    """Wait until the picture of the graph is there."""
    expect(tab.locator("#graph svg")).to_be_visible()


def state(tab: Any, path: str) -> Any:
    return tab.locator(f'#graph [data-path="{path}"]')


def view(tab: Any) -> list[float]:
    """The part of the picture that is shown: its left and upper end, its width and height."""
    text: str = tab.get_attribute("#graph svg", "viewBox")
    return [float(part) for part in text.split()]


def test_all_of_it_fits_into_the_window_and_the_page_does_not_scroll(shown: Any) -> None:
    drawn(shown)
    inside = """() => {
        const [pane, graph] = ["#graph", "#graph .graph"].map(
            (one) => document.querySelector(one).getBoundingClientRect());
        return graph.left >= pane.left - 1 && graph.right <= pane.right + 1
            && graph.top >= pane.top - 1 && graph.bottom <= pane.bottom + 1
            && document.documentElement.scrollHeight <= innerHeight;
    }"""
    assert shown.evaluate(inside)


def test_it_is_zoomed_and_moved_by_buttons_keys_wheel_and_pointer(shown: Any) -> None:
    drawn(shown)
    whole = view(shown)
    shown.click("#zoom-in")
    assert view(shown)[2] == pytest.approx(whole[2] / 1.25)
    shown.focus("#graph")
    shown.keyboard.press("-")
    assert view(shown) == pytest.approx(whole, abs=0.01)
    shown.keyboard.press("ArrowRight")
    assert view(shown)[0] == pytest.approx(whole[0] + whole[2] / 10)
    shown.keyboard.press("0")
    assert view(shown) == pytest.approx(whole, abs=0.01)
    box = shown.locator("#graph").bounding_box()
    shown.mouse.move(box["x"] + 100, box["y"] + 100)
    shown.mouse.down()
    shown.mouse.move(box["x"] + 160, box["y"] + 130)
    shown.mouse.up()
    assert view(shown)[0] < whole[0]
    assert view(shown)[1] < whole[1]
    shown.mouse.wheel(0, -300)
    expect(shown.locator(f'#graph svg[viewBox$="{whole[2]:g} {whole[3]:g}"]')).to_have_count(0)
    shown.click("#fit")
    assert view(shown) == pytest.approx(whole, abs=0.01)
    assert shown.is_hidden("#about")  # what was moved was not clicked


def test_a_loop_is_closed_and_opened_again(shown: Any, run: Run) -> None:
    run.begin()
    drawn(shown)
    state(shown, "fit.epoch.batch").locator("text").first.click()
    shown.get_by_role("button", name="close", exact=True).click()
    expect(state(shown, "fit.epoch.batch.batch_start")).to_have_count(0)
    shown.wait_for_selector('#graph [data-path="fit.epoch.batch"].hot')  # as warm as what it hides
    shown.get_by_role("button", name="open", exact=True).click()
    expect(state(shown, "fit.epoch.batch.batch_start")).to_have_count(1)
    state(shown, "fit.sanity").locator("text").first.dblclick()
    expect(state(shown, "fit.sanity.sanity_start")).to_have_count(0)
    shown.click("#open-all")
    expect(state(shown, "fit.sanity.sanity_start")).to_have_count(1)


def test_states_are_found_by_their_names(shown: Any) -> None:
    drawn(shown)
    shown.fill("#search", "optimizer_step")
    expect(shown.locator("#graph .found")).to_have_count(1)
    assert view(shown)[2] < float(
        shown.evaluate("document.querySelector('#graph svg').getBBox().width")
    )
    shown.fill("#search", "no such state")
    expect(shown.locator("#graph .found")).to_have_count(0)


def test_a_state_that_is_clicked_tells_its_time_its_receivers_and_its_source(
    shown: Any, run: Run
) -> None:
    run.begin()
    drawn(shown)
    state(shown, "fit.epoch.batch.batch_start").click()
    expect(shown.locator("#about-path")).to_have_text("fit.epoch.batch.batch_start")
    expect(shown.locator("#about-source")).to_have_text(re.compile(r"loops/batch\.py:\d+$"))
    expect(shown.locator("#about-receivers")).to_contain_text("enter: ")
    expect(shown.locator("#about-time")).to_have_text(re.compile(r"^worked [\d,]+ times, .* each"))
    shown.click("#about-close")
    expect(shown.locator("#about")).to_be_hidden()


def test_the_run_is_held_at_a_state_that_was_clicked(shown: Any, run: Run) -> None:
    run.begin()
    drawn(shown)
    state(shown, STEP).click()
    shown.get_by_role("button", name="break here", exact=True).click()
    expect(shown.locator("#mood")).to_have_text("held before this state")
    expect(shown.locator("#state")).to_have_text(STEP)
    shown.wait_for_selector(f'#graph [data-path="{STEP}"].breaks')
    shown.get_by_role("button", name="do not break here").click()
    expect(shown.locator("#graph .breaks")).to_have_count(0)
    state(shown, "fit.epoch.batch.batch_split").click()
    shown.get_by_role("button", name="run to here").click()
    expect(shown.locator("#state")).to_have_text("fit.epoch.batch.batch_split")
    expect(shown.locator("#mood")).to_have_text("held before this state")
    shown.click("#button-continue")
    expect(shown.locator("#mood")).to_have_text(re.compile("^running"))


def test_what_runs_and_what_takes_time_are_told_by_different_things(shown: Any, run: Run) -> None:
    run.begin()
    drawn(shown)
    state(shown, STEP).click()
    shown.get_by_role("button", name="run to here").click()
    shown.wait_for_selector(f'#graph [data-path="{STEP}"].running.hot')
    fills = shown.evaluate(
        """(path) => {
            const state = document.querySelector(`#graph [data-path="${path}"]`);
            const shape = state.querySelector("path");
            shape.style.transition = "none";
            const looks = () => ["fill", "stroke"].map((one) => getComputedStyle(shape)[one]);
            const running = looks();
            state.classList.remove("running", "lit");
            return [running, looks()];
        }""",
        STEP,
    )
    assert fills[0][0] == fills[1][0]
    assert fills[0][1] != fills[1][1]


def test_counters_lie_in_the_picture_and_on_no_other_text(shown: Any, run: Run) -> None:
    run.begin()
    expect(shown.locator("#graph text.count:not(:empty)").nth(5)).to_be_attached()
    wrong = shown.evaluate(
        """() => {
            const box = (one) => one.getBoundingClientRect();
            const whole = box(document.querySelector("#graph svg"));
            const texts = [...document.querySelectorAll("#graph text")].filter((one) => one.textContent.trim());
            const meet = (a, b) => a.left < b.right - 1 && b.left < a.right - 1
                && a.top < b.bottom - 2 && b.top < a.bottom - 2;
            return texts.filter((one) => one.matches(".count")).filter((count) => {
                const mine = box(count);
                return mine.left < whole.left || mine.right > whole.right
                    || texts.some((other) => other !== count && meet(mine, box(other)));
            }).map((one) => one.textContent);
        }"""
    )
    assert wrong == []


def test_a_curve_has_axes_and_tells_the_value_under_the_pointer(shown: Any, run: Run) -> None:
    run.begin()
    curve = shown.locator("figure", has_text="val_loss")
    expect(curve.locator("svg text").first).to_be_attached()
    expect(curve.locator("polyline")).to_be_attached()
    curve.locator("svg").hover()
    expect(curve.locator("b")).to_have_text(re.compile(r"^step [\d,]+: \d"))
    before = curve.locator("polyline").get_attribute("points")
    shown.check("#log")
    expect(curve.locator(f'polyline[points="{before}"]')).to_have_count(0)


@pytest.mark.parametrize(
    "asked, told",
    [
        ("0, 10, 3, false", [0, 5, 10]),
        ("0.0012, 0.0047, 3, false", [0.002, 0.004]),
        ("5, 5, 3, false", [5]),
        ("0.001, 100, 3, true", [0.001, 0.1, 10]),
        ("2, 3, 3, true", [2, 3]),
    ],
)
def test_axes_have_round_numbers(shown: Any, asked: str, told: list[float]) -> None:
    script = f"async () => (await import('/curves.js')).ticks({asked})"
    assert shown.evaluate(script) == pytest.approx(told)


def test_the_run_has_its_name_its_epoch_and_its_time(shown: Any, run: Run) -> None:
    run.begin()
    expect(shown.locator("#name")).to_have_text("run")
    words = re.compile(
        r"^epoch \d+ of 1000000 · batch \d of 5 · steps [\d,]+ · .*elapsed · about .* left$"
    )
    expect(shown.locator("#counts")).to_have_text(words)


def test_on_a_telephone_nothing_is_wider_than_the_window(page: Page, tab: Any) -> None:
    tab.set_viewport_size({"width": 360, "height": 740})
    tab.goto(page.url)
    drawn(tab)
    assert tab.evaluate("document.documentElement.scrollWidth") <= 360
