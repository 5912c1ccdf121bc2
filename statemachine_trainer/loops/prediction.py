"""The prediction loop: the model's answers for each batch of one or several loaders."""

from __future__ import annotations

from typing import Any, Literal

from statemachine_trainer.loops.evaluation import EvaluationLoop
from statemachine_trainer.machine.fields import field
from statemachine_trainer.parallel import map_leaves


class PredictionLoop(EvaluationLoop):
    """Gathers what `predict_step` (or the model itself) answers for each batch.

    The batch and its predictions are in the context until the next batch is fetched, so that a
    receiver of `predict_step:exit` can write them down.

    Args:
        keep: Gather the predictions, on the CPU; False where a receiver takes care of them.
        limit_batches: Batches of each loader at most.
    """

    step_name = "predict_step"
    initial = "predict_start"
    transitions = (
        ["predict_started", "predict_start", "predict_fetch"],
        ["fetched", "predict_fetch", "predict_step"],
        ["predicted", "predict_step", "predict_fetch"],
        ["exhausted", "predict_fetch", "predict_end"],
    )
    outcomes = ("predict_done",)

    predictions: list[list[Any]] = field(factory=list)

    def __init__(self, *, keep: bool = True, limit_batches: int | float | None = None) -> None:
        super().__init__(limit_batches=limit_batches)
        self.keep = keep

    def predict_start(self) -> Literal["predict_started"]:
        """Go into evaluation mode."""
        self.begin()
        self.predictions = [[] for _ in self.feeds()]
        return "predict_started"

    def predict_fetch(self) -> Literal["fetched", "exhausted"]:
        """Get the next batch of the loaders."""
        return "fetched" if self.next_batch() else "exhausted"

    def predict_step(self) -> Literal["predicted"]:
        """Predict the batch; predictions are kept on the CPU."""
        self.evaluate()
        if self.keep:
            self.predictions[self.loader].append(map_leaves(_to_cpu, self.context.output))
        return "predicted"

    def predict_end(self) -> Literal["predict_done"]:
        """Go back to training mode."""
        self.restore_modes()
        return "predict_done"


def _to_cpu(leaf: Any) -> Any:
    return leaf.cpu() if hasattr(leaf, "cpu") else leaf
