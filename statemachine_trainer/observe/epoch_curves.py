"""The metrics of epochs as small curves, for the output of a notebook's cell."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence

from statemachine_trainer.observe.epoch_table import Column, EpochRecord, format_number

_WIDTH, _HEIGHT, _MARGIN = 150, 40, 3
_MOST = 8
"""Curves that are drawn; the table has all metrics."""


def curves_as_html(records: Sequence[EpochRecord]) -> str:
    """Return a curve for each of the first metrics, those of validation first; nothing before the second epoch.

    Args:
        records: The epochs, in their order.
    """
    columns = [*dict.fromkeys(column for record in records for column in record.columns)]
    columns.sort(key=lambda column: column[0] != "validation")
    drawn = [_curve(records, column) for column in columns]
    shown = "".join([one for one in drawn if one][:_MOST])
    return f'<div style="display: flex; flex-wrap: wrap; gap: 1em">{shown}</div>' if shown else ""


def _curve(records: Sequence[EpochRecord], column: Column) -> str:
    values = [(record.epoch, record.value(column)) for record in records]
    points = [(x, y) for x, y in values if y is not None and math.isfinite(y)]
    if len(points) < 2:
        return ""
    left, right = points[0][0], points[-1][0]
    low, high = min(y for _, y in points), max(y for _, y in points)
    span = high / 2 - low / 2  # halves: the difference of two large numbers may be infinite
    across, down = (_WIDTH - 2 * _MARGIN) / (right - left or 1), _HEIGHT - 2 * _MARGIN
    line = " ".join(
        f"{_MARGIN + (x - left) * across:.1f},"
        f"{_MARGIN + down * ((high / 2 - y / 2) / span if span > 0 else 0.5):.1f}"
        for x, y in points
    )
    part, name = column
    label = f"{html.escape(name)} ({part})"
    about = f"{label} from {format_number(low)} to {format_number(high)}"
    return (
        f'<div style="font-size: small">{label}<br>'
        f'<svg width="{_WIDTH}" height="{_HEIGHT}" role="img" aria-label="{about}">'
        f'<polyline points="{line}" fill="none" stroke="#2f7ed8" stroke-width="1.5"/></svg>'
        f"<br>{format_number(points[-1][1])}</div>"
    )
