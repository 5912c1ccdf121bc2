"""Several states of one model, tested together: their outputs are averaged, or vote."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Final

import torch
from torch import Tensor

from statemachine_trainer.loops.evaluation import EvaluationLoop
from statemachine_trainer.loops.loop_errors import SettingError
from statemachine_trainer.loops.recipes.answers import (
    Answers,
    Combined,
    EnsembleUnclear,
    asking_all,
    average,
)
from statemachine_trainer.machine.fields import RUN, field
from statemachine_trainer.parallel import map_leaves
from statemachine_trainer.snapshot.modules import load_module_state

__all__ = ["Combine", "EnsembleLoop", "EnsembleUnclear", "combiner"]

Combine = str | Callable[[Tensor], Tensor]

_LEAST: Final = 1e-12


class EnsembleLoop(EvaluationLoop, states="ensemble"):
    """Runs the model's own `test_step` once, with the outputs of all its states averaged.

    So the metrics are those that the model logs. The step may call the model, or its parts, as it
    likes: each part answers with the answers of all states. They are averaged where the step hands
    them to a function that says what they are: `cross_entropy` and `softmax` get logits that stand
    for the mean of the probabilities, `binary_cross_entropy_with_logits` and `sigmoid` the same for
    each column, `mse_loss` and `l1_loss` the mean itself. Averages are taken in 32 bits at least.

    Args:
        combine: "mean": as the loss says. Where no function says it, say it yourself: "softmax"
            (logits of classes along dimension 1), "sigmoid" (logits of yes or no), "plain" (the
            numbers themselves, as in a regression). "vote": logits that stand for the shares of the
            votes. Or a function of the stacked outputs (models, batch, ...) that returns outputs
            (batch, ...).
        **settings: Of `EvaluationLoop`.

    Attributes:
        models: The states, as `captured` returns them; set by the caller.

    Raises:
        EnsembleUnclear: The step does not show how to average the outputs.
    """

    step_name = "test_step"

    models: list[dict[str, Any]] = field(factory=list, scope=RUN)

    def __init__(self, combine: Combine = "mean", **settings: Any) -> None:
        super().__init__(**settings)
        self.combine = combiner(combine)
        self._said = combine

    def evaluate(self) -> None:
        """Test the batch with all models as one."""
        model = self.context.model
        try:
            with asking_all(model, self._states(), self._load, self.combine):
                super().evaluate()
        except EnsembleUnclear as error:
            error.explain(f"{type(model).__name__}.{self.step_name}", self._said)
            raise
        self.context.output = map_leaves(_as_usual, self.context.output)

    def feeds(self) -> Any:
        """Return the loaders of the test."""
        return self.context.others["ensemble"]

    def _states(self) -> list[dict[str, Tensor]]:
        """Return parameters and buffers by name, of each model."""
        return [
            {
                name: value
                for name, value in {**state["weights"], **state["buffers"]}.items()
                if isinstance(value, Tensor)
            }
            for state in self.models
        ]

    def _load(self, number: int) -> None:
        load_module_state(self.context.model, self.models[number])
        self.context.model.eval()


def _as_usual(leaf: Any) -> Any:
    """Make an ordinary tensor of what a step returned; None of what was never averaged."""
    if isinstance(leaf, Answers):
        return None
    return leaf.as_subclass(Tensor) if isinstance(leaf, Combined) else leaf


def combiner(combine: Combine) -> Callable[[Tensor], Tensor] | None:
    """Return the function that combines outputs; None if the loss is to say it.

    Raises:
        SettingError: Nobody knows it.
    """
    if callable(combine):
        return combine
    if combine == "mean":
        return None
    if combine not in _KNOWN:
        raise SettingError(
            f"ensemble={combine!r}: use 'mean', 'vote', 'softmax', 'sigmoid', 'plain', or a function "
            "of the stacked outputs."
        )
    return _KNOWN[combine]


def _of_classes(outputs: Tensor) -> Tensor:
    if outputs.dim() < 3 or outputs.shape[2] < 2:
        raise SettingError(
            f"ensemble='softmax' needs the classes along dimension 1 of an output, and an output is of "
            f"the shape {tuple(outputs.shape[1:])}. Use 'sigmoid' for one logit of yes or no."
        )
    return average(outputs, "softmax", 1)


def _vote(outputs: Tensor) -> Tensor:
    if outputs.dim() < 3 or outputs.shape[2] == 1:  # one logit of yes or no
        share = (outputs > 0).to(outputs.dtype).mean(dim=0)
        return share.clamp(_LEAST, 1 - 1e-7).logit()
    votes = torch.nn.functional.one_hot(outputs.argmax(dim=2), outputs.shape[2])
    return votes.movedim(-1, 2).to(outputs.dtype).mean(dim=0).clamp_min(_LEAST).log()


_KNOWN: Final[dict[str, Callable[[Tensor], Tensor]]] = {
    "vote": _vote,
    "softmax": _of_classes,
    "sigmoid": partial(average, meaning="sigmoid"),
    "plain": partial(average, meaning="plain"),
}
