"""What the parts of a trainer need of the whole."""

from __future__ import annotations

from typing import Any, Protocol

from statemachine_trainer.callbacks.checkpoints import Checkpoints
from statemachine_trainer.callbacks.checkpoints import Host as HostOfCheckpoints
from statemachine_trainer.machine.board import SignalBoard


class Host(HostOfCheckpoints, Protocol):
    """A trainer, as its parts see it.

    Attributes:
        board: The board with the signals of all its loops.
        checkpoints: When and where checkpoints are written; None if they are not.
    """

    board: SignalBoard
    checkpoints: Checkpoints | None

    def load_state_dict(self, state: Any) -> None:
        """Stand where a state of the fit was taken."""
        ...
