"""Colours that can be told apart: contrasts as WCAG 2.2 measures them."""

from __future__ import annotations

import itertools

import pytest

from statemachine_trainer.graph import dot
from statemachine_trainer.graph.graph import graph_of
from statemachine_trainer.graph.style import DARK, HEAT, LIGHT, ON_RUNNING, RUNNING, Palette, Style
from statemachine_trainer.loops import FitLoop

PALETTES = pytest.mark.parametrize("palette", [LIGHT, DARK], ids=["light", "dark"])
GROUNDS = ("paper", "state", "loop", "loop_inside")


def parts(colour: str) -> list[float]:
    return [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]


def luminance(channels: list[float]) -> float:
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: list[float], other: list[float]) -> float:
    low, high = sorted([luminance(one), luminance(other)])
    return (high + 0.05) / (low + 0.05)


def mixed(colour: str, ground: str, share: float) -> list[float]:
    return [share * a + (1 - share) * b for a, b in zip(parts(colour), parts(ground), strict=True)]


@PALETTES
@pytest.mark.parametrize("ground", GROUNDS)
def test_borders_and_lines_have_a_contrast_of_3_and_text_of_4_and_a_half(
    palette: Palette, ground: str
) -> None:
    on = parts(getattr(palette, ground))
    for name in ("border", "line"):
        assert contrast(parts(getattr(palette, name)), on) >= 3, name
    for name in ("ink", "posted", "error", "added", "removed", "changed"):
        assert contrast(parts(getattr(palette, name)), on) >= 4.5, name


@PALETTES
def test_names_on_hot_and_running_states_can_be_read(palette: Palette) -> None:
    assert contrast(parts(ON_RUNNING), parts(RUNNING)) >= 4.5
    for tenth in range(11):
        fill = mixed(HEAT, palette.loop, dot.HOTTEST * tenth / 10)
        assert contrast(parts(palette.ink), fill) >= 4.5, tenth


def test_posted_edges_edges_of_errors_and_plain_ones_differ_by_line_and_head() -> None:
    class Loop(FitLoop):
        errors = [[RuntimeError, "epoch", "next_epoch"]]

    graph = graph_of(Loop(), "fit")
    text = dot.render(graph, Style(), LIGHT).splitlines()
    kinds = {
        kind: next(line for line in text if f'class="edge{kind}"' in line)
        for kind in ("", " posted", " error")
    }
    for sign in ("style=", "arrowhead="):
        signs = [line.partition(sign)[2].partition(",")[0] for line in kinds.values()]
        assert all(a != b for a, b in itertools.combinations(signs, 2)), signs
