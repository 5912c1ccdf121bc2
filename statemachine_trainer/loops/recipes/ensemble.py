"""Several states of one model, tested as one: their answers averaged, or put to the vote."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import torch
from torch import Tensor

from statemachine_trainer.loops.evaluation import EvaluationLoop
from statemachine_trainer.loops.loop_errors import SettingError
from statemachine_trainer.machine.fields import RUN, field
from statemachine_trainer.snapshot.modules import load_module_state

Combine = str | Callable[[Tensor], Tensor]

_LEAST: Final = 1e-12


class EnsembleLoop(EvaluationLoop, states="ensemble"):
    """Runs the model's own `test_step`, in which each call of the model asks all of its states.

    So the metrics are those that the model logs. Whatever the step computes from `self(inputs)`, or
    from `model(inputs)`, it computes from the combined outputs.

    Args:
        combine: "mean": the outputs are logits with the classes along dimension 1; what the step
            gets is the logarithm of their averaged probabilities, logits that stand for these.
            "vote": the same of the shares of the votes. Or a function of the stacked outputs
            (models, batch, ...) that returns outputs (batch, ...), such as
            `lambda outputs: outputs.mean(0)` for a regression.
        **settings: Of `EvaluationLoop`.

    Attributes:
        models: The states, as `captured` returns them; whoever runs this loop puts them here.
    """

    step_name = "test_step"

    models: list[dict[str, Any]] = field(factory=list, scope=RUN)

    def __init__(self, combine: Combine = "mean", **settings: Any) -> None:
        super().__init__(**settings)
        self.combine = combiner(combine)

    def evaluate(self) -> None:
        """Test the batch with all models as one."""
        with self._all_as_one():
            super().evaluate()

    def feeds(self) -> Any:
        """Return the loaders of the test."""
        return self.context.others["ensemble"]

    @contextmanager
    def _all_as_one(self) -> Iterator[None]:
        model = self.context.model
        forward = model.forward

        def ask_all(*args: Any, **kwargs: Any) -> Tensor:
            outputs = []
            for state in self.models:
                load_module_state(model, state)
                model.eval()
                outputs.append(forward(*args, **kwargs))
            return self.combine(torch.stack(outputs))

        model.__dict__["forward"] = ask_all  # the class's own is found again when this is gone
        try:
            yield
        finally:
            del model.__dict__["forward"]


def combiner(combine: Combine) -> Callable[[Tensor], Tensor]:
    """Return the function that combines outputs.

    Raises:
        SettingError: Nobody knows it.
    """
    if callable(combine):
        return combine
    if combine not in _KNOWN:
        raise SettingError(
            f"ensemble={combine!r}: use 'mean', 'vote', or a function of the stacked outputs."
        )
    return _KNOWN[combine]


def _mean(outputs: Tensor) -> Tensor:
    return outputs.softmax(dim=2).mean(dim=0).clamp_min(_LEAST).log()


def _vote(outputs: Tensor) -> Tensor:
    votes = torch.nn.functional.one_hot(outputs.argmax(dim=2), outputs.shape[2])
    return votes.to(outputs.dtype).mean(dim=0).clamp_min(_LEAST).log()


_KNOWN: Final[dict[str, Callable[[Tensor], Tensor]]] = {"mean": _mean, "vote": _vote}
