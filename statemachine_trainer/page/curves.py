"""Metrics over steps, thinned so that a long run fits a page."""

from __future__ import annotations

import math
from collections.abc import Mapping

POINTS = 400
"""Points of a curve; of more, every other one is dropped."""


class Curves:
    """The curve of each metric."""

    def __init__(self) -> None:
        self._points: dict[str, list[tuple[int, float]]] = {}

    def add(self, step: int, metrics: Mapping[str, float]) -> None:
        """Add the values at a step; those of a step that is there already are replaced."""
        for name, value in metrics.items():
            points = self._points.setdefault(name, [])
            while points and points[-1][0] >= step:  # gone back by a resume, or the same step
                points.pop()
            points.append((step, float(value)))
            if len(points) > POINTS:
                del points[1:-1:2]

    def to_dict(self) -> dict[str, list[tuple[int, float | None]]]:
        """Each curve as pairs; JSON has no NaN and no infinity, so these are None."""
        return {
            name: [(step, value if math.isfinite(value) else None) for step, value in [*points]]
            for name, points in [*self._points.items()]
        }
