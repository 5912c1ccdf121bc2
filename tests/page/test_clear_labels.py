"""Labels of edges lie on no line, border or other text, and beside their own edge: measured in a real browser."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from statemachine_trainer.graph.folding import fold
from statemachine_trainer.trainer import Trainer
from tests.graph.test_clear_pictures import TREES

pytest.importorskip("pygraphviz", reason="the layout is Graphviz's")

# What is wrong with each label, with its text. A line that only touches a label does no harm.
MEASURE = """() => {
    const [near, slack] = [16, 1.5];
    const points = (path) => {
        const [matrix, length, found] = [path.getScreenCTM(), path.getTotalLength(), []];
        for (let at = 0; at <= length; at += 2) {
            found.push(path.getPointAtLength(at).matrixTransform(matrix));
        }
        return framed(found);
    };
    const box = (one) => {
        const { left, right, top, bottom } = one.getBoundingClientRect();
        return { left: left + slack, right: right - slack, top: top + 2 * slack, bottom: bottom - 2 * slack };
    };
    // What is farther than `near` is as good as nowhere: lines whose frame is so far need no look at their points.
    const framed = (points) => {
        const [xs, ys] = [points.map(({ x }) => x), points.map(({ y }) => y)];
        const frame = {
            left: Math.min(...xs) - near, right: Math.max(...xs) + near,
            top: Math.min(...ys) - near, bottom: Math.max(...ys) + near,
        };
        return { points, frame };
    };
    const far = (box, { x, y }) => Math.hypot(
        Math.max(0, box.left - x, x - box.right), Math.max(0, box.top - y, y - box.bottom));
    const meet = (a, b) => a.left < b.right && b.left < a.right && a.top < b.bottom && b.top < a.bottom;

    const [lines, labels] = [[], []];
    for (const group of document.querySelectorAll("[data-event], .initial")) {
        let line = null;
        for (const one of group.children) {
            if (one.tagName === "path") lines.push(line = { group, ...points(one) });
            if (one.tagName === "text") labels.push({ group, line, box: box(one), text: one.textContent.trim() });
        }
    }
    const borders = [...document.querySelectorAll("[data-path] > path")].map(points);
    const states = [...document.querySelectorAll(".node[data-path] > path")].map(box);
    const least = (box, { points, frame }) =>
        meet(box, frame) ? Math.min(Infinity, ...points.map((point) => far(box, point))) : Infinity;
    return labels.flatMap(({ group, line, box, text }, number) => {
        const others = lines.filter((one) => one.group !== group).map((one) => least(box, one));
        const own = least(box, line);
        return [
            others.some((one) => one === 0) && "on a line",
            borders.some((one) => least(box, one) === 0) && "on a border",
            states.some((one) => meet(box, one)) && "on a state",
            labels.some((one, other) => other !== number && meet(box, one.box)) && "on a label",
            own > near && "far from its edge",
            own <= near && others.some((one) => one + slack < own) && "nearer to another edge",
        ].filter(Boolean).map((what) => [what, text]);
    });
}"""


def wrong(tab: Any, picture: str) -> Counter[str]:
    """How often each thing is wrong in a picture."""
    tab.set_content(picture)
    found = tab.evaluate(MEASURE)
    return Counter(what for what, _text in found)


@pytest.mark.parametrize("tree", [*TREES, "default"])
def test_every_label_of_the_loops_of_this_package_can_be_read_and_is_at_its_edge(
    tab: Any, tree: str
) -> None:
    graph = TREES[tree] if tree in TREES else Trainer().graph()
    found = wrong(tab, fold(graph).to_svg())
    crowded = found.pop("nearer to another edge", 0)
    assert found == Counter()
    assert crowded <= 1  # beside two lines that run close together


def test_what_is_wrong_is_found(tab: Any) -> None:
    picture = """<svg xmlns="http://www.w3.org/2000/svg" width="400" height="300" font-size="10">
        <g data-event="a"><path d="M0,50 L300,50"/><text x="50" y="53">across</text></g>
        <g data-event="b"><path d="M0,90 L300,90"/><text x="50" y="53">the other</text></g>
        <g data-event="c"><path d="M0,200 L300,200"/><text x="50" y="195">right</text></g>
    </svg>"""
    found = wrong(tab, picture)
    assert found == {"on a line": 1, "on a label": 2, "far from its edge": 1}
