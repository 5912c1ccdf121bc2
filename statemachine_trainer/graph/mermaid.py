"""Mermaid: renders a graph as the text of a state diagram, which GitHub and notebooks draw."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Literal

from statemachine_trainer.graph.model import (
    END,
    SEPARATOR,
    BadOption,
    GraphData,
    GraphEdge,
    GraphState,
)
from statemachine_trainer.graph.style import SIGNS, Change, Style, edge_keys

FINAL = "[*]"
# Only the running state has a fill, with a text colour: all must be legible on dark pages.
CLASSES = {
    "transient": "stroke-dasharray:5 5",
    "resting": "stroke-width:4px",
    "added": "stroke:#1a7f37,stroke-width:3px",
    "removed": "stroke:#c62832,stroke-width:2px,stroke-dasharray:2 3",
    "changed": "stroke:#9a6200,stroke-width:3px,stroke-dasharray:8 3",
    "running": "fill:#f5b041,stroke:#b9770e,color:#000",
}
# Keywords (in any case) that Mermaid does not accept as the id of a state.
KEYWORDS = {
    *("as", "class", "classdef", "click", "default", "direction", "end", "hide", "href"),
    *("note", "scale", "state", "statediagram", "style"),
}


def render(
    graph: GraphData,
    *,
    direction: Literal["TB", "LR"] = "TB",
    outcomes: bool = True,
    style: Style | None = None,
) -> str:
    """Return a graph as a Mermaid `stateDiagram-v2`: loops nested, the running state highlighted.

    A dashed border marks a transient state, a thick one a state that may rest.

    Args:
        graph: What to draw.
        direction: From top to bottom or from left to right.
        outcomes: Whether each loop shows the states that end it, with their events. The transition
            that takes such an event further out is drawn in either case.
        style: The changed states and edges; heat is not shown.

    Raises:
        BadOption: The direction is neither of these.
    """
    if direction not in ("TB", "LR"):
        raise BadOption(
            f"direction={direction!r}: use 'TB', from top to bottom, or 'LR', from left to right."
        )
    return "\n".join([*_Diagram(graph, direction, outcomes, style or Style()).lines(), ""])


class _Diagram:
    def __init__(self, graph: GraphData, direction: str, outcomes: bool, style: Style) -> None:
        self.graph = graph
        self.became = style.states
        self.outcomes = outcomes
        self.direction = [] if direction == "TB" else [f"direction {direction}"]
        self.ids = _ids(graph.root)
        self.edges: dict[str, list[tuple[GraphEdge, str]]] = {}
        for edge, key in zip(graph.edges, edge_keys(graph.edges), strict=True):
            label = f"{_sign(style.edges.get(key))}{edge.label}"
            self.edges.setdefault(_home(edge), []).append((edge, label))

    def lines(self) -> Iterator[str]:
        yield "stateDiagram-v2"
        root = self.graph.root
        around = root.path.rpartition(SEPARATOR)[0]
        body = [*self.direction, f"{FINAL} --> {self.ids[root.path]}", *self._arrows(around)]
        yield from _indented([*body, *self._state(root), *self._classes()])

    def _state(self, state: GraphState) -> Iterator[str]:
        title = f"{_escape(_sign(self.became.get(state.path)))}{_title(state)}"
        head = f'state "{title}" as {self.ids[state.path]}'
        if not state.children:
            yield head
            return
        yield head + " {"
        yield from _indented(self._inside(state))
        yield "}"

    def _inside(self, loop: GraphState) -> Iterator[str]:
        """Draw what is inside a loop, the arrows before the states that they lead to.

        Mermaid draws a state in the composite that mentions it last, and an arrow to an entry point
        mentions a state that is further inside.
        """
        yield from self.direction
        if loop.initial is not None:
            yield f"{FINAL} --> {self.ids[loop.initial]}"
        yield from self._arrows(loop.path)
        if self.outcomes:
            for child in loop.children:
                if child.leaving:
                    label = _escape(", ".join(child.leaving))
                    yield f"{self.ids[child.path]} --> {FINAL} : {label}"
        for child in loop.children:
            yield from self._state(child)

    def _arrows(self, home: str) -> Iterator[str]:
        merged: dict[tuple[str, str], list[str]] = {}
        for edge, label in self.edges.get(home, ()):
            target = edge.target
            if target.startswith(edge.source + SEPARATOR):
                # Mermaid cannot draw an arrow from a composite to what is inside it.
                target, label = edge.source, f"{label} (to {target[len(edge.source) + 1 :]})"
            ends = self.ids[edge.source], FINAL if target == END else self.ids[target]
            merged.setdefault(ends, []).append(_escape(label))
        for (source, target), labels in merged.items():
            yield f"{source} --> {target} : {', '.join(labels)}"

    def _classes(self) -> Iterator[str]:
        shown = [state for state in self.graph.root.walk() if not state.children]
        members: dict[str, list[GraphState]] = {
            "transient": [s for s in shown if s.transient],
            "resting": [s for s in shown if s.resting],
            **{c: [s for s in shown if self.became.get(s.path) == c] for c in SIGNS},
            "running": [s for s in shown if s.path == self.graph.current],
        }
        used = {name: states for name, states in members.items() if states}
        for name in used:
            yield f"classDef {name} {CLASSES[name]}"
        for name, states in used.items():
            yield f"class {','.join(self.ids[s.path] for s in states)} {name}"


def _sign(change: Change | None) -> str:
    return "" if change is None else SIGNS[change]


def _home(edge: GraphEdge) -> str:
    """Return the path of the innermost loop around both ends of an edge, in which it is drawn."""
    home = edge.source.rpartition(SEPARATOR)[0]
    while edge.target != END and home and not edge.target.startswith(home + SEPARATOR):
        home = home.rpartition(SEPARATOR)[0]
    return home


def _ids(root: GraphState) -> dict[str, str]:
    """Give each state an id: its path with underscores, changed if that is not a valid, unique id."""
    taken = {"root_start", "root_end"}
    ids: dict[str, str] = {}
    for state in root.walk():
        name = re.sub(r"[^0-9A-Za-z]", _in_ascii, state.path)
        while name.casefold() in KEYWORDS or taken & _claimed(name, state):
            name += "_"
        taken |= _claimed(name, state)
        ids[state.path] = name
    return ids


def _claimed(name: str, state: GraphState) -> set[str]:
    """Return an id with those that Mermaid gives to the first and last state of a composite."""
    return {name, f"{name}_start", f"{name}_end"} if state.children else {name}


def _in_ascii(found: re.Match[str]) -> str:
    return "_" if found[0] in f"_{SEPARATOR}" else f"u{ord(found[0]):x}"


def _title(state: GraphState) -> str:
    title = f"{state.name} ({state.loop})" if state.kind == "loop" else state.name
    signals = {"entry": state.on_enter, "exit": state.on_exit}
    heard = [f"{kind} / {', '.join(labels)}" for kind, labels in signals.items() if labels]
    if state.children:
        # Mermaid gives the title of a composite one line, and does not read Markdown in it.
        return _entities(", ".join([title, *heard]))
    return "<br/>".join(_escape(text) for text in [title, *heard])


def _escape(text: str) -> str:
    """Escape a label for Mermaid, HTML and Markdown."""
    # A backslash before possible emphasis or code of Markdown; an underscore within a word is plain.
    return _entities(re.sub(r"[*`\\]|(?<![^\W_])_|_(?![^\W_])", r"\\\g<0>", text))


def _entities(text: str) -> str:
    text = " ".join(text.split())
    return re.sub(r"[^\w .,/()\[\]+=-]", lambda found: f"#{ord(found[0])};", text)


def _indented(lines: Iterable[str]) -> list[str]:
    return [f"  {line}" for line in lines]
