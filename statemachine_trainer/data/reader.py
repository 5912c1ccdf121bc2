"""What a feed asks of the thing that reads batches: one reader per kind of loader."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, ClassVar, Final, Literal

Phase = Literal["idle", "begun", "running", "ended"]
"""``idle``: no pass. ``begun``: a pass, none of it read. ``running``: amid it. ``ended``: at its
end, which has been said."""


DrawsIn = Literal["this process", "seeded", "read again", "workers", "workers of a stream"]
"""``seeded``: anywhere, seeded for each sample. ``read again``: in workers, which a run that goes on
starts anew at the beginning of the pass. ``workers``: in workers, which go on where they stand."""


class End:
    """What there is after the last batch."""

    def __repr__(self) -> str:
        return "END"


END: Final = End()
"""What `Feed.next_batch` answers when the pass is over."""


class Reader(ABC):
    """Reads a loader's batches in passes; the feed around it counts them."""

    kind: ClassVar[str]
    batches_of_pass: int | None = None
    """Batches of this pass, where it has another number than others: its rest is dealt out anew."""

    @property
    def draws_in(self) -> DrawsIn:
        """Where the data set and its collate function draw random numbers."""
        return "this process"

    @abstractmethod
    def count(self) -> int | None:
        """Batches in a pass, if that can be relied on."""

    @abstractmethod
    def facts(self) -> dict[str, int | str | None]:
        """What must be as it was when a state is loaded: ``items`` always, the rest in a pass."""

    @abstractmethod
    def begin(self, epoch: int) -> None:
        """Prepare a pass from the first batch. Nothing is read or drawn yet."""

    @abstractmethod
    def open(self, position: int) -> Iterator[Any]:
        """An iterator over the batches of the pass from ``position`` on."""

    @abstractmethod
    def is_over(self, position: int) -> bool:
        """Whether a `StopIteration` that came after ``position`` batches means the end."""

    @abstractmethod
    def failed(self, position: int) -> None:
        """The batch after ``position`` raised: the next ``open`` should give it again."""

    @abstractmethod
    def close(self) -> None:
        """End the pass."""

    def shutdown(self) -> None:
        """End the pass, and the processes kept for the next one."""
        self.close()

    @abstractmethod
    def state_dict(self, *, position: int, phase: Phase) -> dict[str, Any]:
        """Where the data stands, as a plain tree; the feed keeps epoch, position and phase."""

    @abstractmethod
    def load_state_dict(
        self, state: dict[str, Any], *, epoch: int, position: int, phase: Phase
    ) -> None:
        """Stand where the state was taken: the next ``open`` goes on from there.

        The global generators are left as they are; the loader's own are put where they were.
        """
