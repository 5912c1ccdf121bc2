"""What was tried."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Report:
    """What `assert_resumable` tried; all of it was exact, or it would have raised.

    Attributes:
        boundaries: Boundaries of the run, its beginning and its end among them.
        transient: Those of them at which no snapshot can be taken.
        unwritable: Those at which the batch in flight is of a class that no checkpoint holds.
        tried: Numbers of the boundaries at which a run was stopped and resumed.
        runs: Resumed runs.
    """

    boundaries: int
    transient: int
    unwritable: int
    tried: set[int] = field(default_factory=set)
    runs: int = 0

    @property
    def possible(self) -> int:
        """Boundaries at which a run can be stopped and resumed."""
        return self.boundaries - self.transient - self.unwritable

    def __str__(self) -> str:
        return (
            f"{len(self.tried)} of {self.possible} stop points tried in {self.runs} resumed runs, "
            f"all exact ({self.boundaries} boundaries, {self.transient} transient, "
            f"{self.unwritable} not writable)"
        )
