"""Pictures by Graphviz: SVG that a page can light, PNG, HTML, and what a notebook shows."""

from __future__ import annotations

import re
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Literal
from xml.etree import ElementTree

import pytest
from hypothesis import HealthCheck, given, settings

from statemachine_trainer.graph import Graph, GraphvizMissing, dot, graph_of
from statemachine_trainer.graph.model import GraphEdge, UnknownFormat
from statemachine_trainer.machine import Chart, Loop
from tests.machine.kit import Fit
from tests.machine.random_loops import NAME, trees

pytest.importorskip("pygraphviz", reason="pictures are drawn by pygraphviz: pip install it")


class Größe(Loop):
    initial = "fängt_an"
    transitions = [["weiter", "fängt_an", "終了"]]
    outcomes = ["fertig"]

    def fängt_an(self) -> Literal["weiter"]:
        """Sagt <b>&amp;</b> "etwas"."""
        return "weiter"

    def 終了(self) -> Literal["fertig"]:  # noqa: N802
        return "fertig"


class Two(Loop):
    initial = "first"
    transitions = [["on", "first", "second"]]
    outcomes = ["over"]

    def first(self) -> Literal["on", "over"]:
        return "on"

    def second(self) -> Literal["over"]:
        return "over"


def fit_graph() -> Graph:
    return Graph.of(Chart(Fit(), "fit"))


def drawn_states(svg: str) -> Counter[str]:
    root = ElementTree.fromstring(svg)
    return Counter(g.attrib["data-path"] for g in root.iter() if "data-path" in g.attrib)


def drawn_edges(svg: str) -> Counter[tuple[str, str, str]]:
    root = ElementTree.fromstring(svg)
    return Counter(
        (g.attrib["data-source"], g.attrib["data-event"], g.attrib["data-target"])
        for g in root.iter()
        if "data-event" in g.attrib
    )


def ends(edges: tuple[GraphEdge, ...]) -> Counter[tuple[str, str, str]]:
    return Counter((edge.source, edge.event, edge.target) for edge in edges)


@given(trees)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_every_state_and_edge_of_any_tree_is_in_the_picture_once(root: type[Loop]) -> None:
    graph = Graph.of(Chart(root(), NAME))
    for one in (graph, graph.collapse(0), graph.collapse(1)):
        svg = one.to_svg(fold=False)
        shown = {"end"} if one.edges and any(e.target == "end" for e in one.edges) else set()
        assert drawn_states(svg) == Counter([*(s.path for s in one.root.walk()), *shown])
        assert drawn_edges(svg) == ends(one.edges)


def test_an_outcome_of_several_states_is_one_group_of_arrows() -> None:
    graph = graph_of(Two(), "two")
    root = ElementTree.fromstring(graph.to_svg())
    (group,) = [g for g in root.iter() if g.get("data-event") == "over"]
    assert len(group.findall("{http://www.w3.org/2000/svg}path")) == 2


def test_a_picture_has_no_ids_so_that_a_page_may_hold_several() -> None:
    assert not re.search(r'\bid="', fit_graph().to_svg())


def test_the_colours_follow_the_reader_unless_a_theme_is_asked_for() -> None:
    auto, light, dark = (fit_graph().to_svg(theme=t) for t in ("auto", "light", "dark"))
    assert "prefers-color-scheme: dark" in auto
    assert "<style>" not in light + dark
    assert len({auto, light, dark}) == 3
    # Where no CSS is known, the light colours stand in the elements themselves.
    assert set(re.findall('stroke="(#[0-9a-f]{6})"', light)) == set(
        re.findall('stroke="(#[0-9a-f]{6})"', auto)
    )


def test_every_colour_of_an_automatic_picture_is_set_by_css() -> None:
    root = ElementTree.fromstring(fit_graph().to_svg())
    texts = list(root.iter("{http://www.w3.org/2000/svg}text"))
    assert texts
    assert all("smt-fill-" in text.get("class", "") for text in texts)


def test_the_running_state_keeps_dark_text_on_its_light_fill_in_both_themes() -> None:
    path = next(s.path for s in fit_graph().root.walk() if not s.children)
    root = ElementTree.fromstring(fit_graph().to_svg(running=path))
    (group,) = [g for g in root.iter() if g.get("data-path") == path]
    assert "running" in group.get("class", "").split()
    (text,) = group.findall("{http://www.w3.org/2000/svg}text")
    assert "smt-fill" not in text.get("class", "")


def test_names_of_any_script_and_signs_of_markup_are_drawn_as_they_are() -> None:
    svg = graph_of(Größe(), "größe").to_svg()
    assert drawn_states(svg)["größe.終了"] == 1
    assert "Größe" in svg
    texts = [t.text or "" for t in ElementTree.fromstring(svg).iter() if t.tag.endswith("title")]
    assert any('Sagt <b>&amp;</b> "etwas".' in text for text in texts)
    graph = graph_of(Two(), "two")
    odd = replace(graph.edges[-1], guards=('<b> & "x" \\N \\l &lt;',))
    labels = ElementTree.fromstring(replace(graph, edges=(*graph.edges[:-1], odd)).to_svg())
    assert any('[<b> & "x" \\N \\l &lt;]' in (t.text or "") for t in labels.iter())


def test_a_png_is_drawn_without_a_system_graphviz(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    png = fit_graph().to_png(theme="dark")
    assert png.startswith(b"\x89PNG")
    assert len(fit_graph().to_png(pixels_per_inch=30)) < len(png)


def test_the_page_needs_nothing_else() -> None:
    page = fit_graph().to_html()
    assert "<svg" in page
    assert "epoch" in page
    assert not re.search(r"<script|<link|\bsrc=|@import|url\(", page)


@pytest.mark.parametrize("suffix", ["svg", "png", "html", "dot", "gv", "mmd", "mermaid", "txt"])
def test_the_ending_of_a_file_tells_the_format(suffix: str, tmp_path: Path) -> None:
    graph = fit_graph()
    written = graph.save(tmp_path / f"graph.{suffix}").read_bytes()
    by_suffix = {"gv": "dot", "mmd": "mermaid", "txt": "text"}
    form = by_suffix.get(suffix, suffix)
    drawn = f"{graph}\n" if form == "text" else getattr(graph, f"to_{form}")()
    assert written == (drawn if isinstance(drawn, bytes) else drawn.encode())


def test_an_ending_that_tells_no_format_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnknownFormat, match=r"'\.svg'"):
        fit_graph().save(tmp_path / "graph.svgg")


def test_pictures_may_be_asked_for_by_several_threads() -> None:
    graph = fit_graph()
    alone = graph.to_svg()
    with ThreadPoolExecutor(4) as pool:
        drawn = list(pool.map(lambda _: graph.to_svg(), range(8)))
    assert drawn == [alone] * 8


def test_a_notebook_shows_the_picture() -> None:
    shown = fit_graph()._repr_mimebundle_()
    assert shown["image/svg+xml"].startswith("<svg")
    assert shown["text/plain"] == str(fit_graph())


def test_without_pygraphviz_a_notebook_shows_mermaid_and_a_hint(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(dot, "is_installed", lambda: False)
    shown = fit_graph()._repr_mimebundle_()
    assert shown["text/vnd.mermaid"] == fit_graph().to_mermaid()
    assert "statemachine-trainer[graph]" in shown["text/plain"]


def test_without_pygraphviz_a_picture_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "pygraphviz", None)
    with pytest.raises(GraphvizMissing, match=r"pip install .*\[graph\]"):
        fit_graph().to_svg()
    assert fit_graph().to_dot().startswith("digraph")
