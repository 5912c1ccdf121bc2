"""What a notebook gets of a graph: HTML for its page, an image for exports, and text."""

from __future__ import annotations

import re

import pytest

from statemachine_trainer.graph import Graph
from statemachine_trainer.graph.drawable import Drawable
from statemachine_trainer.machine import Chart
from tests.machine.kit import Fit

pytest.importorskip("pygraphviz", reason="pictures are drawn by pygraphviz: pip install it")

GRAPH = Graph.of(Chart(Fit(), "fit"))
DIFFERENCE = GRAPH.diff(GRAPH.collapse(1))


@pytest.mark.parametrize("drawn", [GRAPH, DIFFERENCE])
def test_the_page_gets_the_picture_inline_and_an_export_gets_it_alone(drawn: Drawable) -> None:
    shown = drawn._repr_mimebundle_()
    assert shown["image/svg+xml"] in shown["text/html"]
    assert shown["image/svg+xml"] == drawn.to_svg()
    assert shown["text/plain"] == str(drawn)


def test_every_rule_is_for_pictures_and_nothing_is_named_that_a_second_one_names_too() -> None:
    html = GRAPH._repr_mimebundle_()["text/html"]
    styles = "\n".join(re.findall(r"<style[^>]*>(.*?)</style>", html, re.DOTALL))
    rules = re.sub(r"@media [^{]*\{(.*)\}", r"\1", styles)
    selectors = [
        one for head in re.findall(r"([^{}]+)\{[^{}]*\}", rules) for one in head.split(",")
    ]
    assert len(selectors) > 10
    assert all(re.search(r"(^|\s)\.smt-[a-z-]+(\[hidden\])?$", one.strip()) for one in selectors)
    assert not re.search(r'\bid="|<script', html)
