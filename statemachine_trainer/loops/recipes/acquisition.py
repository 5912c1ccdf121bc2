"""Acquisition functions: how useful the label of each sample of a pool would be.

Each takes probabilities, (pool, classes) or (pool, classes, mc_samples), and returns scores
(pool,): the larger, the more useful.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.nn.modules.dropout import _DropoutNd

from statemachine_trainer.loops.base import whole_number
from statemachine_trainer.loops.evaluation import EvaluationLoop
from statemachine_trainer.loops.loop_errors import SettingError, StepOutputError
from statemachine_trainer.machine.errors import suggest
from statemachine_trainer.machine.fields import field


@runtime_checkable
class Ranking(Protocol):
    """What BaaL's heuristics look like: they rank a pool themselves, the most useful first."""

    def get_ranks(self, predictions: Any) -> Any:
        """Return the ranked indices, and the scores, of an array (pool, classes, iterations)."""
        ...


Acquisition = str | Callable[[Tensor], Any] | Ranking


def entropy(probabilities: Tensor) -> Tensor:
    """Entropy of the mean prediction (Shannon 1948; as an acquisition Settles 2009)."""
    return _entropy(_mean(probabilities))


def margin(probabilities: Tensor) -> Tensor:
    """How close the two likeliest classes are (Scheffer, Decomain, Wrobel 2001)."""
    best = _mean(probabilities).topk(2, dim=1).values
    return best[:, 1] - best[:, 0]


def bald(probabilities: Tensor) -> Tensor:
    """Mutual information of prediction and weights: Bayesian active learning by disagreement.

    Source: Houlsby et al. 2011; with dropout in the place of weights Gal, Islam, Ghahramani 2017.

    Raises:
        SettingError: There is one prediction for each sample, so nothing can disagree.
    """
    if probabilities.dim() < 3 or probabilities.shape[2] < 2:
        raise SettingError(
            "BALD needs several predictions for each sample: ActiveLearningLoop(mc_samples=20), and "
            "a model with dropout."
        )
    return entropy(probabilities) - _entropy(probabilities).mean(dim=1)


FUNCTIONS: Final[dict[str, Callable[[Tensor], Tensor]]] = {
    "entropy": entropy,
    "margin": margin,
    "bald": bald,
}
RANDOM: Final = "random"


def check_acquisition(acquisition: Acquisition) -> None:
    """Refuse what is no acquisition function.

    Raises:
        SettingError: Nobody knows it.
    """
    known = [RANDOM, *FUNCTIONS]
    if isinstance(acquisition, str):
        if acquisition not in known:
            raise SettingError(
                f"acquisition={acquisition!r}: {suggest(acquisition, known)} Or give a function of "
                "the probabilities."
            )
    elif not callable(acquisition) and not isinstance(acquisition, Ranking):
        raise SettingError(
            f"acquisition is a {type(acquisition).__name__}; it is a name ({', '.join(known)}), a "
            "function of the probabilities, or a heuristic of BaaL."
        )


def choose(acquisition: Acquisition, probabilities: Tensor, number: int) -> list[int]:
    """Return the places in the pool of the most useful samples, the best first.

    Of samples with the same score the first in the pool comes first.

    Raises:
        SettingError: The function did not return one score for each sample.
    """
    if isinstance(acquisition, Ranking):
        found = acquisition.get_ranks(probabilities.numpy())
        ranks = found[0] if isinstance(found, tuple) else found
        return [int(at) for at in ranks[:number]]
    function = FUNCTIONS[acquisition] if isinstance(acquisition, str) else acquisition
    scores = torch.as_tensor(function(probabilities))
    if scores.shape != (len(probabilities),):
        raise SettingError(
            f"The acquisition function returned the shape {tuple(scores.shape)} for a pool of "
            f"{len(probabilities)}. Return one score for each sample, the larger the more useful."
        )
    order = scores.double().argsort(descending=True, stable=True)
    return [int(at) for at in order[:number]]


def choose_blindly(pool: Sequence[int], number: int, generator: torch.Generator) -> list[int]:
    """Return some of a pool by chance."""
    return [pool[int(at)] for at in torch.randperm(len(pool), generator=generator)[:number]]


def _mean(probabilities: Tensor) -> Tensor:
    return probabilities.mean(dim=2) if probabilities.dim() == 3 else probabilities


def _entropy(probabilities: Tensor) -> Tensor:
    found: Tensor = torch.special.entr(probabilities).sum(dim=1)
    return found


# -- Scoring a pool of samples --------------------------------------------------------------------


class PoolLoop(EvaluationLoop, states="pool", answer="predicted", outcome="pool_scored"):
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

    found: list[Tensor] = field(factory=list)

    def __init__(
        self, *, mc_samples: int = 1, probabilities: Callable[[Any], Tensor] | None = None
    ) -> None:
        super().__init__()
        self.mc_samples = whole_number(self, "mc_samples", mc_samples, 1)
        self.probabilities = probabilities or _softmax

    def evaluate(self) -> None:
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

    def finish(self) -> None:
        """Go back to training mode."""
        self.restore_modes()

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
