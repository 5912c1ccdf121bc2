"""What becomes of a batch that the training step leaves out at one rank, while others train on it.

All ranks that train on a batch wait for the gradients of the one that does not. So that rank takes part
in their exchange without gradients. The meetings tell all ranks, which end with an error at one boundary.
Nothing of this is on the way of a batch that every rank trains on.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch

from statemachine_trainer.loops.context import Context
from statemachine_trainer.loops.slots import OptimizerSlot
from statemachine_trainer.parallel.parallel_errors import RanksPart
from statemachine_trainer.parallel.ranks import Ranks


class LeftOut:
    """Batches for which the training step returned None at this rank.

    Where all ranks leave out the same batch, it is as if they never had it.

    Args:
        ranks: The ranks.
        context: The context of the fit.

    Attributes:
        unsure: Whether this rank has told of a pass in which no gradients were exchanged, so that it does not
            know yet what the others did.
    """

    def __init__(self, ranks: Ranks, context: Context) -> None:
        self._ranks = ranks
        self._context = context
        self._count = 0
        self._last = self._here = (0.0, 0.0, 0.0)
        self._open: list[OptimizerSlot] = []
        self._told: list[OptimizerSlot] = []

    @property
    def unsure(self) -> bool:
        return bool(self._told)

    def leave_out(self) -> torch.Tensor | None:
        """Leave out a pass; return a loss of zero if another rank has a loss, so that both go on alike.

        A collective of the ranks that exchange gradients in this pass.
        """
        context = self._context
        sync, slot = context.steps.sync, context.slots[context.optimizer_idx]
        self._count += 1
        who = float(self._ranks.size - self._ranks.rank)
        self._last = self._here = (
            who,
            float(context.counts.epoch + 1),
            float(context.batch_idx + 1),
        )
        if not sync.averages():
            self._open.append(slot)
            return None
        return _zero(slot) if sync.stand_in() else None

    # -- what the ranks tell each other ------------------------------------------------------------

    def tell(self) -> tuple[float, ...]:
        """Return what this rank tells at a meeting, of which the largest of all ranks is heard."""
        said = (*self._here, float(self._count), float(-self._count))
        self._here = (0.0, 0.0, 0.0)
        self._told, self._open = self._open, []
        return said

    def hear(self, heard: Sequence[float], *, ahead: bool = False) -> None:
        """Take what was told at a meeting.

        Args:
            heard: The largest of each number.
            ahead: Whether the others hear it one meeting later, where this rank will hear it once more. Until there it
                goes along with them.

        Raises:
            RanksPart: One rank left out a batch, and another one did not.
        """
        who, epoch, batch, most, least = heard
        unclear, self._told = self._told, []
        if most == -least:
            return
        if not ahead:
            raise self._parted(int(who), int(epoch), int(batch))
        for (
            slot
        ) in unclear:  # as at those that had a loss, which exchange gradients when it is full
            slot.window += 1

    def check_all(self) -> None:
        """Compare at once what the ranks did. A collective.

        Raises:
            RanksPart: One rank left out a batch, and another one did not; or it went backward more often.
        """
        self._context.steps.sync.check_passes()
        told = cast("list[list[float]]", self._ranks.from_all([self._count, *self._last]))
        least = min(count for count, *_ in told)
        for count, *where in told:
            if count > least:
                raise self._parted(*map(int, where))

    def _parted(self, who: int, epoch: int, batch: int) -> RanksPart:
        where = f"rank {self._ranks.size - who} for batch {batch} of epoch {epoch}"
        return RanksPart(
            f"The training step returned None at {where}, and a loss at another rank. Gradients are averaged "
            "over the ranks, so all of them train on a batch, or none. Let all leave it out, which costs one "
            "small exchange a batch: Trainer(nonfinite_loss='skip'). Or return a loss of zero there: 0 * loss."
        )


def _zero(slot: OptimizerSlot) -> torch.Tensor:
    """Return a loss that changes nothing."""
    first = next(one for one in slot.parameters if one.requires_grad)
    return 0 * first.real.sum()
