"""What `Trainer.serve` returns, for a trainer that knows no page."""

from __future__ import annotations

from types import TracebackType
from typing import Protocol, Self


class ServedPage(Protocol):
    """A live page that is being served; see `statemachine_trainer.page.Page`.

    Attributes:
        url: The address to open. Anyone who knows it can control the run.
    """

    url: str

    def wait(self) -> None:
        """Serve until the process is stopped."""
        ...

    def close(self) -> None:
        """Close the page. A run that it paused continues."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
        /,
    ) -> None: ...
