"""How long something takes, over many times, in little and bounded memory."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any, Final

_PER_E: Final = 25
"""Buckets between a duration and one e times as long: a quantile is right within 2 %."""

_SHORTEST: Final = 1e-8


class Durations:
    """Counts durations in buckets that grow with them.

    Nothing is drawn at random, so that measuring leaves the generators of random numbers alone.

    Attributes:
        count: How many.
        total: Their sum, in seconds.
        longest: The longest, in seconds.
    """

    __slots__ = ("_buckets", "count", "longest", "total")

    def __init__(self) -> None:
        self.count = 0
        self.total = 0.0
        self.longest = 0.0
        self._buckets: Counter[int] = Counter()

    def add(self, seconds: float) -> None:
        """Take in a duration."""
        self.count += 1
        self.total += seconds
        if seconds > self.longest:
            self.longest = seconds
        # Clocks may answer zero, and subtraction a little less.
        self._buckets[int(math.log(max(seconds, _SHORTEST) / _SHORTEST) * _PER_E)] += 1

    @property
    def mean(self) -> float:
        """The mean in seconds; 0 of none."""
        return self.total / self.count if self.count else 0.0

    def quantile(self, share: float) -> float:
        """Return the duration that a share of them does not exceed, within 2 %; 0 of none.

        Args:
            share: Between 0 and 1; 0.95 for the 95th percentile.
        """
        if self.count == 1:
            return self.longest
        buckets = dict(self._buckets)  # a copy: others may look while it is written
        left = share * sum(buckets.values())
        for bucket in sorted(buckets):
            left -= buckets[bucket]
            if left <= 1e-9:
                middle = _SHORTEST * math.exp((bucket + 0.5) / _PER_E)
                return min(middle, self.longest)
        return self.longest

    def to_dict(self) -> dict[str, Any]:
        """Return the figures as data that JSON can hold, in seconds."""
        return {
            "count": self.count,
            "total": self.total,
            "mean": self.mean,
            "p95": self.quantile(0.95),
            "longest": self.longest,
        }
