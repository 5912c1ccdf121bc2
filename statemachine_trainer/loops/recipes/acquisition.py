"""Which samples of a pool are worth a label: the loop that scores them, and the functions that do.

An acquisition function takes probabilities, (pool, classes) or (pool, classes, mc_samples), and
returns scores (pool,): the larger, the more useful.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, Final, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.dropout import _DropoutNd
from torch.overrides import TorchFunctionMode

from statemachine_trainer.loops.evaluation import EvaluationLoop
from statemachine_trainer.loops.loop_errors import SettingError, StepOutputError
from statemachine_trainer.loops.settings_checks import whole_number
from statemachine_trainer.machine.errors import level_of_caller, suggest
from statemachine_trainer.machine.fields import field


@runtime_checkable
class Ranking(Protocol):
    """What BaaL's heuristics look like: they rank a pool themselves, the most useful first."""

    def get_ranks(self, predictions: Any) -> Any:
        """Return the ranked indices, and the scores, of an array (pool, classes, iterations)."""
        ...


Acquisition = str | Callable[[Tensor], Any] | Ranking


class PoolLoop(EvaluationLoop, states="pool", answer="predicted", outcome="pool_scored"):
    """Gathers the probabilities that the model gives to the classes of each sample of a pool.

    With several `mc_samples` dropout is on, so that each is a draw of its own (Gal, Ghahramani:
    Dropout as a Bayesian Approximation, 2016): modules of dropout, `torch.nn.functional.dropout`
    whatever its `training`, and what the recurrent, attention and transformer modules of torch drop.
    All else is in evaluation mode.

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
        dropout = nullcontext() if self.mc_samples == 1 else _dropout_on(context.model)
        with torch.no_grad(), context.precision.context(), dropout:
            every = [
                self._checked(self.probabilities(self.call_step())) for _ in range(self.mc_samples)
            ]
        self.found.append(torch.stack(every, dim=2) if self.mc_samples > 1 else every[0])

    def finish(self) -> None:
        """Go back to training mode."""
        self.restore_modes()

    def feeds(self) -> Any:
        """Return the loader of the pool."""
        return self.context.others["pool"]

    # -- parts -----------------------------------------------------------------------------------

    def _checked(self, found: Any) -> Tensor:
        if not isinstance(found, Tensor) or found.dim() != 2:
            shown = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise StepOutputError(
                f"The prediction of a batch of the pool is {shown}; it has to be probabilities of "
                "the shape (batch, classes). Write a predict_step, or give `probabilities=`."
            )
        return found.float().cpu()


class _DropoutOn(TorchFunctionMode):
    """Lets the functions of dropout drop, also where a step says that it does not train."""

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func in _DROPOUTS:
            if len(args) > 2:
                args = (*args[:2], True, *args[3:])
            else:
                kwargs["train" if "train" in kwargs else "training"] = True
        return func(*args, **kwargs)


@contextmanager
def _dropout_on(model: nn.Module) -> Iterator[None]:
    """Within the block all dropout of a model is on; the mode of its modules is put back."""
    asleep = [
        module
        for module in model.modules()
        if isinstance(module, _DROPPING) and not module.training
    ]
    for module in asleep:
        module.training = True  # of the module alone: parts of it may be normalisations
    try:
        with _DropoutOn():
            yield
    finally:
        for module in asleep:
            module.training = False


_DROPPING: Final = (
    _DropoutNd,
    nn.RNNBase,
    nn.MultiheadAttention,
    nn.TransformerEncoderLayer,
    nn.TransformerDecoderLayer,
)
"""Modules of torch that drop in training mode, and do nothing else then."""

_DROPOUTS: Final = frozenset({
    F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, F.feature_alpha_dropout,
    torch.dropout, torch.feature_dropout, torch.alpha_dropout, torch.feature_alpha_dropout,
})  # fmt: skip
"""Functions whose third argument says whether they drop."""


def _softmax(logits: Any) -> Any:
    return logits.softmax(dim=1) if isinstance(logits, Tensor) and logits.dim() == 2 else logits


# -- Acquisition functions ------------------------------------------------------------------------


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
_SAME: Final = 1e-6
"""Probabilities that differ by no more than this are the same, but for rounding."""


class SameDraws(UserWarning):
    """Several predictions of each sample were asked for, and they do not differ."""


def check_acquisition(acquisition: Acquisition, mc_samples: int = 2) -> None:
    """Refuse what is no acquisition function.

    Args:
        acquisition: The function.
        mc_samples: Predictions of each sample that it will get.

    Raises:
        SettingError: It is unknown, or does not work with this number of predictions.
    """
    known = [RANDOM, *FUNCTIONS]
    if acquisition == "bald" and mc_samples < 2:
        raise SettingError(
            f"acquisition='bald' with mc_samples={mc_samples}: it measures how far several predictions "
            "of a sample disagree. Leave mc_samples out (20), and give the model dropout."
        )
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
        SettingError: The function did not return one score for each sample, or one is NaN.
    """
    if isinstance(acquisition, Ranking):
        found = acquisition.get_ranks(probabilities.numpy())
        ranks = [int(at) for at in (found[0] if isinstance(found, tuple) else found)[:number]]
        if len({*ranks}) < min(number, len(probabilities)) or not {*ranks} <= {
            *range(len(probabilities))
        }:
            raise SettingError(
                f"{type(acquisition).__name__}.get_ranks returned {ranks[:5]}... for a pool of "
                f"{len(probabilities)}. Return the place of each sample once, the best first."
            )
        return ranks
    function = FUNCTIONS[acquisition] if isinstance(acquisition, str) else acquisition
    answer = function(probabilities)
    try:
        scores = torch.as_tensor(answer)
    except (TypeError, ValueError, RuntimeError) as error:
        raise SettingError(
            f"The acquisition function returned a {type(answer).__name__} ({error}). Return one score "
            "for each sample, as a tensor."
        ) from None
    if scores.shape != (len(probabilities),):
        raise SettingError(
            f"The acquisition function returned the shape {tuple(scores.shape)} for a pool of "
            f"{len(probabilities)}. Return one score for each sample, the larger the more useful."
        )
    if bool(scores.isnan().any()):
        where = int(scores.isnan().nonzero()[0])
        cause = (
            " The model's own probabilities are NaN."
            if bool(probabilities[where].isnan().any())
            else ""
        )
        raise SettingError(
            f"The acquisition function gave a NaN to {int(scores.isnan().sum())} of {len(scores)} "
            f"samples of the pool, the first at place {where}.{cause} Return a number for each: a NaN is "
            "neither more nor less useful."
        )
    order = scores.double().argsort(descending=True, stable=True)
    return [int(at) for at in order[:number]]


def check_draws(acquisition: Acquisition, probabilities: Tensor, model: nn.Module) -> None:
    """Warn if the predictions of each sample are all the same, because nothing was random.

    Args:
        acquisition: What is to use them.
        probabilities: Those of the pool, (pool, classes, mc_samples).
        model: Whose they are.

    Raises:
        SettingError: For "bald", whose scores would be rounding errors.

    Warns:
        SameDraws: For other functions.
    """
    if probabilities.dim() < 3 or probabilities.shape[2] < 2 or not len(probabilities):
        return
    if float((probabilities - probabilities[..., :1]).abs().max()) > _SAME:
        return
    told = (
        f"The {probabilities.shape[2]} predictions of each sample of the pool are the same: no dropout "
        f"of {type(model).__name__} was on. Dropout is switched on in torch's own modules and in "
        "torch.nn.functional.dropout; for any other kind draw in predict_step yourself."
    )
    if acquisition == "bald":
        raise SettingError(
            f"{told} So every score of 'bald' is a rounding error. Or use acquisition='entropy'."
        )
    warnings.warn(f"{told} Or set mc_samples=1.", SameDraws, stacklevel=level_of_caller())


def choose_blindly(pool: Sequence[int], number: int, generator: torch.Generator) -> list[int]:
    """Return random samples of a pool."""
    return [pool[int(at)] for at in torch.randperm(len(pool), generator=generator)[:number]]


def _mean(probabilities: Tensor) -> Tensor:
    return probabilities.mean(dim=2) if probabilities.dim() == 3 else probabilities


def _entropy(probabilities: Tensor) -> Tensor:
    found: Tensor = torch.special.entr(probabilities).sum(dim=1)
    return found
