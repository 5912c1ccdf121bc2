"""When a loss is a spike: far above those before it, by a deviation that no spike can widen."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Final

WINDOW: Final = 64
"""Losses that a new one is compared with."""
LEAST: Final = 16
"""Losses that there must be before one is called a spike."""


def why_spike(loss: float, before: Sequence[float], limit: float) -> str:
    """Return why a loss is a spike, in words; "" if it is none, or if too few are known.

    Args:
        loss: The loss.
        before: Those of the batches before it, the newest `WINDOW` of them; without spikes.
        limit: Largest deviation from their median, in robust standard deviations: 1.4826 times the
            median absolute deviation, which is the standard deviation of a normal distribution.
    """
    if len(before) < LEAST:
        return ""
    middle = statistics.median(before)
    spread = 1.4826 * statistics.median(abs(one - middle) for one in before)
    if loss - middle <= limit * spread:  # never true of NaN
        return ""
    return f"the loss is {loss:.6g}, and the median before it {middle:.6g} (+- {spread:.2g})"


def with_loss(before: Sequence[float], loss: float) -> list[float]:
    """Return the losses that the next one is compared with."""
    return [*before[1 - WINDOW :], loss]
