"""What a picture shows besides the graph: the running state, heat, and what changed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from statemachine_trainer.machine.graph import GraphEdge

Change = Literal["added", "removed", "changed"]

# Before the name of what changed, so that it is told apart without colours too.
SIGNS: Mapping[Change, str] = {"added": "+ ", "removed": "- ", "changed": "~ "}

# Source, event, target, and a number that tells those alike in these apart.
EdgeKey = tuple[str, str, str, int]


@dataclass(frozen=True, slots=True)
class Style:
    """How a graph is dressed.

    Attributes:
        heat: How hot states are, from 0 to 1, by path.
        states: What became of states, by path.
        edges: What became of edges.
        legend: Whether the picture explains its signs.
    """

    heat: Mapping[str, float] = field(default_factory=dict)
    states: Mapping[str, Change] = field(default_factory=dict)
    edges: Mapping[EdgeKey, Change] = field(default_factory=dict)
    legend: bool = True


def edge_keys(edges: Sequence[GraphEdge]) -> list[EdgeKey]:
    """Return a key for each edge, the same for the same edge of another graph."""
    seen: Counter[tuple[str, str, str]] = Counter()
    keys: list[EdgeKey] = []
    for edge in edges:
        ends = edge.source, edge.event, edge.target
        keys.append((*ends, seen[ends]))
        seen[ends] += 1
    return keys
