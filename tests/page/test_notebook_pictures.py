"""The picture that a notebook shows, in a real browser: light or dark as the page around it is."""

from __future__ import annotations

from typing import Any, Literal

import pytest

from statemachine_trainer.graph.style import DARK, LIGHT, Palette
from statemachine_trainer.trainer import Trainer

pytest.importorskip("pygraphviz", reason="pictures are drawn by pygraphviz: pip install it")

Scheme = Literal["light", "dark"]
BY_SCHEME: dict[str, Palette] = {"light": LIGHT, "dark": DARK}
OTHER: dict[str, Scheme] = {"light": "dark", "dark": "light"}

# What the pages of JupyterLab, VS Code and Colab say of themselves.
PAGES = [
    ("light", "", 'data-jp-theme-light="true" data-jp-theme-name="JupyterLab Light"'),
    ("dark", "", 'data-jp-theme-light="false" data-jp-theme-name="JupyterLab Dark"'),
    ("light", "", 'class="vscode-light"'),
    ("dark", "", 'class="vscode-dark"'),
    ("light", "", 'class="vscode-high-contrast vscode-high-contrast-light"'),
    ("dark", "", 'class="vscode-high-contrast"'),
    ("light", 'theme="light"', ""),
    ("dark", 'theme="dark"', ""),
]
BESIDE = '<p class="beside">Text <b>of</b> others</p><svg class="beside"><path d="M0 0H9"/></svg>'


def shown_in_notebook() -> str:
    graph = Trainer().graph().open("batch")
    return str(graph._repr_mimebundle_()["text/html"])


def page_of(*pieces: str, html: str = "", body: str = "") -> str:
    cells = "".join(f"<div>{piece}</div>" for piece in pieces)
    return f"<!DOCTYPE html><html {html}><head></head><body {body}>{cells}</body></html>"


def show(tab: Any, page: str, system: Scheme) -> None:
    tab.emulate_media(color_scheme=system)
    tab.set_content(page)


def colours(tab: Any) -> list[tuple[str, str]]:
    """Of each picture of the page: the colour of its paper, and that of a name in it."""
    script = """() => [...document.querySelectorAll(".smt-graph")].map(picture => [
        getComputedStyle(picture.querySelector(".smt-fill-paper")).fill,
        getComputedStyle(picture.querySelector("[data-path] > text")).fill,
    ])"""
    return [(paper, ink) for paper, ink in tab.evaluate(script)]


def colours_of(palette: Palette) -> tuple[str, str]:
    return _as_computed(palette.paper), _as_computed(palette.ink)


def _as_computed(colour: str) -> str:
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgb({red}, {green}, {blue})"


@pytest.mark.parametrize("says, html, body", PAGES)
def test_a_picture_is_light_or_dark_as_its_page_says_whatever_the_system_is(
    tab: Any, says: str, html: str, body: str
) -> None:
    show(tab, page_of(shown_in_notebook(), html=html, body=body), OTHER[says])
    assert colours(tab) == [colours_of(BY_SCHEME[says])]


@pytest.mark.parametrize("system", ["light", "dark"])
def test_on_a_page_that_says_nothing_it_follows_the_system(tab: Any, system: Scheme) -> None:
    show(tab, page_of(shown_in_notebook()), system)
    assert colours(tab) == [colours_of(BY_SCHEME[system])]


def test_it_follows_when_the_theme_of_the_notebook_is_changed(tab: Any) -> None:
    page = page_of(shown_in_notebook(), body='data-jp-theme-light="true"')
    show(tab, page, "light")
    assert colours(tab) == [colours_of(LIGHT)]
    tab.evaluate("document.body.dataset.jpThemeLight = 'false'")
    assert colours(tab) == [colours_of(DARK)]


def test_two_pictures_of_a_page_do_not_disturb_each_other(tab: Any) -> None:
    plain = Trainer().graph().open("optimizer").to_svg()
    page = page_of(shown_in_notebook(), plain, shown_in_notebook(), body='class="vscode-dark"')
    show(tab, page, "light")
    assert colours(tab) == [colours_of(DARK)] * 3
    assert tab.locator("[id]").count() == 0


def test_the_picture_is_seen_and_not_the_text_that_stands_for_it(tab: Any) -> None:
    # As Bootstrap has it, which many pages are made with.
    page = page_of("<style>[hidden] { display: none !important; }</style>", shown_in_notebook())
    show(tab, page, "light")
    assert tab.locator(".smt-graph").is_visible()
    assert not tab.locator(".smt-outline").is_visible()


def test_where_styles_and_drawings_are_taken_out_the_text_is_seen_alone(tab: Any) -> None:
    show(tab, page_of(shown_in_notebook()), "light")
    tab.evaluate("""() => {
        document.querySelectorAll("style").forEach(style => style.remove());
        document.querySelectorAll("svg").forEach(svg => svg.replaceWith(svg.textContent));
    }""")
    assert tab.inner_text("body") == str(Trainer().graph().open("batch"))


def test_nothing_beside_the_picture_looks_different_for_it(tab: Any) -> None:
    script = """() => [document.documentElement, document.body,
        ...document.querySelectorAll(".beside, .beside *")].map(element => {
            const style = getComputedStyle(element);
            return [...style].filter(name => !/size|height|width|origin|inset/.test(name))
                .map(name => `${name}: ${style.getPropertyValue(name)}`);
        })"""
    body = 'data-jp-theme-light="false"'
    show(tab, page_of(BESIDE, body=body), "light")
    alone = tab.evaluate(script)
    show(tab, page_of(BESIDE, shown_in_notebook(), body=body), "light")
    assert tab.evaluate(script) == alone
