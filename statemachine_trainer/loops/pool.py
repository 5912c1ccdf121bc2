"""Scoring a pool of samples without labels: what the model makes of each, once or several times."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.modules.dropout import _DropoutNd

from statemachine_trainer.loops.base import whole_number
from statemachine_trainer.loops.errors import StepOutputError
from statemachine_trainer.loops.evaluation import EvaluationLoop
from statemachine_trainer.machine.fields import field


class PoolLoop(EvaluationLoop):
    """Gathers the probabilities that the model gives to the classes of each sample of a pool.

    With several `mc_samples` dropout stays on, so that each is a draw of its own (Gal, Ghahramani:
    Dropout as a Bayesian Approximation, 2016).

    Args:
        mc_samples: Predictions of each sample; 1 without dropout.
        probabilities: Makes probabilities (batch, classes) of what `predict_step` (or the model
            itself) answers; the softmax unless given.

    Attributes:
        found: The probabilities, by batch, on the CPU.
    """

    step_name = "predict_step"
    initial = "pool_start"
    transitions = (
        ["pool_started", "pool_start", "pool_fetch"],
        ["fetched", "pool_fetch", "pool_step"],
        ["predicted", "pool_step", "pool_fetch"],
        ["exhausted", "pool_fetch", "pool_end"],
    )
    outcomes = ("pool_scored",)

    found: list[Tensor] = field(factory=list)

    def __init__(
        self, *, mc_samples: int = 1, probabilities: Callable[[Any], Tensor] | None = None
    ) -> None:
        super().__init__()
        self.mc_samples = whole_number(self, "mc_samples", mc_samples, 1)
        self.probabilities = probabilities or _softmax

    def pool_start(self) -> Literal["pool_started"]:
        """Go into evaluation mode; leave dropout on if there are several predictions of each."""
        self.begin()
        return "pool_started"

    def pool_fetch(self) -> Literal["fetched", "exhausted"]:
        """Get the next batch of the pool."""
        return "fetched" if self.next_batch() else "exhausted"

    def pool_step(self) -> Literal["predicted"]:
        """Predict the batch, as often as asked for."""
        context = self.context
        if self.mc_samples > 1:
            self._switch_dropout_on()
        step = context.steps.get(self.step_name)
        with torch.no_grad(), context.precision.context():
            every = [
                self._checked(self.probabilities(step(context.batch, context.batch_idx)))
                for _ in range(self.mc_samples)
            ]
        self.found.append(torch.stack(every, dim=2) if self.mc_samples > 1 else every[0])
        return "predicted"

    def pool_end(self) -> Literal["pool_scored"]:
        """Go back to training mode."""
        self.restore_modes()
        return "pool_scored"

    def feeds(self) -> Any:
        """Return the loader of the pool."""
        return self.context.others["pool"]

    # -- parts -----------------------------------------------------------------------------------

    def _switch_dropout_on(self) -> None:
        for module in self.context.model.modules():
            if isinstance(module, _DropoutNd):
                module.train()

    def _checked(self, found: Any) -> Tensor:
        if not isinstance(found, Tensor) or found.dim() != 2:
            shown = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise StepOutputError(
                f"The prediction of a batch of the pool is {shown}; it has to be probabilities of "
                "the shape (batch, classes). Write a predict_step, or give `probabilities=`."
            )
        return found.float().cpu()


def _softmax(logits: Any) -> Any:
    return logits.softmax(dim=1) if isinstance(logits, Tensor) and logits.dim() == 2 else logits
