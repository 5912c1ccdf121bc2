"""The look of a picture: heat, changes and colours."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Literal

from statemachine_trainer.graph.model import GraphEdge

Change = Literal["added", "removed", "changed"]

# Put before the names of changed parts, so that they are distinct without colours, too.
SIGNS: Mapping[Change, str] = {"added": "+ ", "removed": "- ", "changed": "~ "}

# Source, event, target, and a number for edges that have these three in common.
EdgeKey = tuple[str, str, str, int]


@dataclass(frozen=True, slots=True)
class Style:
    """What to mark on a graph.

    Attributes:
        heat: How hot states are, from 0 to 1, by path.
        states: The changed states, by path.
        edges: The changed edges.
        legend: Whether the picture explains its signs.
        room: A text for which each edge leaves room below its label, for what is written there later.
    """

    heat: Mapping[str, float] = field(default_factory=dict)
    states: Mapping[str, Change] = field(default_factory=dict)
    edges: Mapping[EdgeKey, Change] = field(default_factory=dict)
    legend: bool = True
    room: str = ""


def edge_keys(edges: Sequence[GraphEdge]) -> list[EdgeKey]:
    """Return a key for each edge that is equal for the same edge of another graph."""
    seen: Counter[tuple[str, str, str]] = Counter()
    keys: list[EdgeKey] = []
    for edge in edges:
        ends = edge.source, edge.event, edge.target
        keys.append((*ends, seen[ends]))
        seen[ends] += 1
    return keys


# -- Colours --------------------------------------------------------------------------------------


Theme = Literal["auto", "light", "dark"]
THEMES: tuple[Theme, ...] = ("auto", "light", "dark")

# The same on light and dark pages. The hotter a state, the more opaque its fill.
HEAT = "#e4572e"
RUNNING = "#f5b041"
ON_RUNNING = "#1a1206"


@dataclass(frozen=True, slots=True)
class Palette:
    """The colours of a picture by use. All are different, because `svg` finds their names by colour."""

    paper: str
    ink: str
    line: str
    state: str
    loop: str
    loop_inside: str
    border: str
    posted: str
    error: str
    added: str
    removed: str
    changed: str


LIGHT = Palette(
    paper="#ffffff",
    ink="#1f2933",
    line="#4a5868",
    state="#fdfdfe",
    loop="#f3f6fa",
    loop_inside="#e9eef5",
    border="#6f8096",
    posted="#2563c9",
    error="#b0307c",
    added="#187433",
    removed="#c62832",
    changed="#8f5b00",
)
DARK = Palette(
    paper="#10151c",
    ink="#e8edf3",
    line="#b3bfcd",
    state="#2b3645",
    loop="#171e28",
    loop_inside="#1f2834",
    border="#8496ad",
    posted="#82b1ff",
    error="#ff8ad1",
    added="#56d364",
    removed="#ff7b72",
    changed="#e3b341",
)


def names_by_colour() -> dict[str, str]:
    """Return the name of each colour of the light palette."""
    return {getattr(LIGHT, one.name): one.name.replace("_", "-") for one in fields(LIGHT)}


def css_variables(palette: Palette) -> str:
    """Return the palette as custom properties of CSS: `--smt-ink: #1f2933; ...`."""
    return " ".join(
        f"--smt-{one.name.replace('_', '-')}: {getattr(palette, one.name)};"
        for one in fields(palette)
    )
