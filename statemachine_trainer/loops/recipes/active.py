"""Active learning: the model asks for the labels that it would learn most from."""

from __future__ import annotations

import itertools
import logging
import operator
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any, Literal, cast

import torch
from torch.utils.data import Dataset, Subset

from statemachine_trainer.data import as_loader, reloaded
from statemachine_trainer.loops.base import TrainingLoop
from statemachine_trainer.loops.fit import FitLoop
from statemachine_trainer.loops.fresh_start import (
    captured,
    captured_callbacks,
    check_renewable,
    equip,
    feeds_for,
    given_dataset,
    renew,
    withdraw_feeds,
)
from statemachine_trainer.loops.loop_errors import MissingMetric, SettingError
from statemachine_trainer.loops.metrics.named import near_metric
from statemachine_trainer.loops.recipes.acquisition import (
    RANDOM,
    Acquisition,
    PoolLoop,
    check_acquisition,
    check_draws,
    choose,
    choose_blindly,
)
from statemachine_trainer.loops.recipes.labelling import (
    LabelFolder,
    Labelled,
    Labeller,
    check_labels,
    hidden_labels,
    in_order,
)
from statemachine_trainer.loops.settings_checks import flags, function, whole_number
from statemachine_trainer.machine.fields import field
from statemachine_trainer.machine.loop import Loop, place
from statemachine_trainer.snapshot.rng import isolated_rng

_log = logging.getLogger(__name__)

Target = tuple[str, float] | Callable[[Mapping[str, float]], bool] | None


class ActiveLearningLoop(TrainingLoop):
    """Fits on the labelled samples, asks for labels of the most useful other samples, and fits again.

    The training data given to `fit` are the pool; its loader says how parts of it are loaded.
    Validation data are apart from it, so that no sample is ever on both sides. Each fit begins with
    new optimizers, schedulers and counters, with the callbacks as they were at the beginning, and
    with the first weights, unless told otherwise.

    Example:
        loop = ActiveLearningLoop(
            fit=FitLoop(max_epochs=20), acquisition="bald", mc_samples=20, query=10, budget=200
        )
        Trainer(loop).fit(model, pool, validation)

    Source: Settles, Active Learning Literature Survey, 2009.

    Args:
        acquisition: "random", "entropy", "margin", "bald", a function of the probabilities (pool,
            classes) or, with several `mc_samples`, (pool, classes, mc_samples) that returns a score
            for each sample; or a heuristic of BaaL.
        mc_samples: Predictions of each sample, with dropout on (Monte Carlo dropout); 20 for "bald",
            else 1, unless given.
        query: Number of labels to ask for in each round.
        budget: Largest number of labels; None for the whole pool.
        rounds: Largest number of fits; None for no limit.
        target: Ends it once a fit has come so far: a metric and the least value wanted, or a
            function of the metrics.
        first: How many labels are asked for before the first fit, chosen by chance; or which
            samples, by index; or the labels themselves, by index.
        labeller: "hidden" (the data set has them), a function of the indices and the data set that
            returns their labels, or None if it has none yet; or a folder, in which a person finds
            the question and puts the answer (see `LabelFolder`). Where there are no labels yet the
            machine rests in its state `labelling`: `fit` and `run` return and may be called again.
        fresh_weights: Begin each fit with the first weights; else with those of the last fit.
        seed: Of what is chosen by chance; the global generators have no part in it.
        make_loader: Makes the loader of a part of the data, if not as the loader given to `fit`.
        **loops: Loops for `fit` and `scoring`.

    Attributes:
        indices: The samples that are labelled, in the order in which they were.
        labels: Their labels.
        asked: The samples whose labels are waited for.
        history: The number of labels and the metrics after each fit.

    Raises:
        SettingError: A setting is invalid.
    """

    initial = "learning_start"
    transitions = (
        # event          source            destination
        ["ask", "learning_start", "labelling"],
        ["labels_known", "learning_start", "round_start"],
        ["labelled", "labelling", "round_start"],
        ["round_ready", "round_start", "fit"],
        ["fit_done", "fit", "round_end"],
        ["score", "round_end", "scoring"],
        ["pool_scored", "scoring", "query"],
        ["choose", "round_end", "query"],
        ["queried", "query", "labelling"],
        ["enough", "round_end", "learning_end"],
    )
    outcomes = ("fit_done",)

    fit: Loop = place(FitLoop)
    scoring: Loop = place(PoolLoop)

    indices: list[int] = field(factory=list)
    labels: list[Any] = field(factory=list)
    asked: list[int] = field(factory=list)
    pool: list[int] = field(factory=list)
    fitted: int = 0
    history: list[dict[str, float]] = field(factory=list)
    first_weights: dict[str, Any] | None = None
    first_callbacks: list[dict[str, Any]] | None = None

    def __init__(
        self,
        *,
        acquisition: Acquisition = "entropy",
        mc_samples: int | None = None,
        query: int = 10,
        budget: int | None = None,
        rounds: int | None = None,
        target: Target = None,
        first: int | Sequence[int] | Mapping[int, Any] = 10,
        labeller: Labeller | str = "hidden",
        fresh_weights: bool = True,
        seed: int = 0,
        make_loader: Callable[[Dataset[Any]], Any] | None = None,
        **loops: Any,
    ) -> None:
        if mc_samples is not None and "scoring" in loops:
            raise SettingError("Set mc_samples on the scoring loop that you give.")
        if mc_samples is not None:
            whole_number(self, "mc_samples", mc_samples, 1)
        flags(self, fresh_weights=fresh_weights)
        function(self, "make_loader", make_loader, "that makes a loader of a data set.")
        often = mc_samples if mc_samples is not None else 20 if acquisition == "bald" else 1
        super().__init__(**loops)
        if "scoring" not in loops and often != 1:
            self.fill("scoring", mc_samples=often)
        check_acquisition(acquisition, getattr(self.scoring, "mc_samples", often))
        self.acquisition = acquisition
        self.query_size = whole_number(self, "query", query, 1)
        self.budget = None if budget is None else whole_number(self, "budget", budget, 1)
        self.rounds = None if rounds is None else whole_number(self, "rounds", rounds, 1)
        self.target = _target(target)
        self.first = _first(first)
        self.labeller = _labeller(labeller)
        self.fresh_weights = fresh_weights
        self.seed = whole_number(self, "seed", seed)
        self.make_loader = make_loader

    def why_whole(self) -> str | None:
        return (
            "may give each round the first weights, which it keeps whole. "
            "Use DistributedDataParallel."
        )

    @property
    def _query(self) -> int:
        """The setting `query`, for the repr: the state of this name asks for labels."""
        return self.query_size

    @property
    def _mc_samples(self) -> int | None:
        """The setting `mc_samples`, for the repr: the scoring loop keeps it."""
        return cast(PoolLoop, self.scoring).mc_samples if "mc_samples" in self._given else None

    def learning_start(self) -> Literal["ask", "labels_known"]:
        """Remember model and callbacks, and choose the first samples to label."""
        check_renewable(self.context)
        self.first_weights = captured(self.context)
        self.first_callbacks = captured_callbacks(self.context)
        data = given_dataset(self.context, self)
        first, size = self.first, len(data)  # type: ignore[arg-type]
        if isinstance(first, int):
            self._check_first(first, size)
            first = choose_blindly(range(size), self._most(first), self._generator())
        chosen = [*first]
        if not chosen or len(set(chosen)) < len(chosen) or not {*chosen} <= {*range(size)}:
            raise SettingError(
                f"{type(self).__name__}(first=...): the first samples are numbers from 0 to "
                f"{size - 1}, at least one and none of them twice."
            )
        if self.budget is not None and len(chosen) > self.budget:
            raise SettingError(
                f"{type(self).__name__}(first=...) has {len(chosen)} samples, and budget={self.budget} "
                "allows fewer labels. Raise the budget, or begin with fewer."
            )
        if isinstance(first, Mapping):
            self._check([first[i] for i in chosen], chosen, "first")
            self.indices, self.labels = chosen, [first[i] for i in chosen]
            return "labels_known"
        self.asked = chosen
        return "ask"

    def _check_first(self, first: int, size: int) -> None:
        """Refuse more first labels than there can be, if somebody has said how many.

        Raises:
            SettingError: The budget or the pool is smaller.
        """
        if "first" not in self._given:
            return
        for least, what in (
            (self.budget, f"budget={self.budget}"),
            (size, f"the pool of {size} samples"),
        ):
            if least is not None and first > least:
                raise SettingError(
                    f"{type(self).__name__}(first={first}): {what} allows fewer. Begin with fewer labels."
                )

    def labelling(self) -> Literal["labelled"] | None:
        """Get the labels of the samples; wait if there are none yet."""
        found = self._ask()
        if found is None:
            self._tell_of_waiting()
            return None
        labels = in_order(found, self.asked)
        if self.labeller is not hidden_labels:
            self._check(labels, self.asked, self._answered())
        self.indices.extend(self.asked)
        self.labels.extend(labels)
        self.asked = []
        return "labelled"

    def round_start(self) -> Literal["round_ready"]:
        """Begin the next fit, on all labelled samples."""
        self._read_again()
        self.fitted = len(self.indices)
        renew(
            self.context,
            weights=self.first_weights if self.fresh_weights else None,
            callbacks=self.first_callbacks or (),
            train=self._labelled(),
        )
        return "round_ready"

    def round_end(self) -> Literal["enough", "score", "choose"]:
        """Record the metrics, and decide whether to stop."""
        metrics = self.context.read_metrics()
        self.context.train.shutdown()
        self.history.append({"labels": float(len(self.indices)), **metrics})
        labelled = set(self.indices)
        rest = [i for i in range(len(given_dataset(self.context, self))) if i not in labelled]  # type: ignore[arg-type]
        last = self.rounds is not None and len(self.history) >= self.rounds
        if last or not rest or not self._most(self.query_size) or self._target_is_met(metrics):
            return "enough"
        self.pool = rest
        if self.acquisition == RANDOM:
            return "choose"
        self._provide_pool()
        return "score"

    def query(self) -> Literal["queried"]:
        """Choose the samples to ask for."""
        number = self._most(self.query_size)
        if self.acquisition == RANDOM:
            self.asked = choose_blindly(self.pool, number, self._generator())
        else:
            found = torch.cat(self.scoring.found)  # type: ignore[attr-defined]
            check_draws(self.acquisition, found, self.context.model)
            chosen = choose(self.acquisition, found, number)
            self.asked = [self.pool[at] for at in chosen]
            self.scoring.found = []  # type: ignore[attr-defined]
        self.pool = []
        withdraw_feeds(self.context, "pool")
        return "queried"

    def learning_end(self) -> Literal["fit_done"]:
        """The model is the one of the last fit."""
        return "fit_done"

    def more_to_come(self) -> bool | None:
        return False

    def restore(self) -> None:
        """Make the loaders of the saved run again."""
        withdraw_feeds(self.context, "pool")
        self._read_again()
        if self.fitted:
            equip(self.context, train=self._labelled())
        if self.pool and self.acquisition != RANDOM:
            self._provide_pool()

    # -- parts -----------------------------------------------------------------------------------

    def _check(self, labels: Sequence[Any], indices: Sequence[int], where: str) -> None:
        """Refuse labels that came from outside and that the model cannot be trained on."""
        names = [f"{i} in {where}" for i in indices]
        check_labels(labels, names, classes=self._classes(indices[0]), like=self.labels[:1])

    def _answered(self) -> str:
        """Return where the present labels came from, for errors."""
        if isinstance(self.labeller, LabelFolder):
            return repr(str(self.labeller.answer(len(self.indices))))
        return "what the labeller returned"

    def _classes(self, index: int) -> int | None:
        """Return how many classes the model tells apart; None if it does not show.

        The model predicts one sample, in evaluation mode and with generators that are put back.
        """
        context = self.context
        part = Subset(given_dataset(context, self), [index])
        collate = getattr(self._load(part, evaluate=True), "collate_fn", None)
        modes = [(module, module.training) for module in context.model.modules()]
        try:
            with isolated_rng(), torch.no_grad(), context.precision.context():
                context.model.eval()
                batch = part[0] if collate is None else collate([part[0]])
                batch = batch if context.transfer is None else context.transfer(batch)
                found = context.steps.get("predict_step")(batch, 0)
                found = self.scoring.probabilities(found)  # type: ignore[attr-defined]
        except Exception:  # a model that cannot be asked is found out when it is to be
            return None
        finally:
            for module, training in modes:
                module.training = training
        return found.shape[1] if isinstance(found, torch.Tensor) and found.dim() == 2 else None

    def _tell_of_waiting(self) -> None:
        """Log that the run waits for labels, and what lets it go on."""
        done, number = len(self.indices), len(self.asked)
        if isinstance(self.labeller, LabelFolder):
            question, answer = self.labeller.question(done), self.labeller.answer(done)
            how = f"{question} names them; write {answer}, then call fit or run again"
        else:
            how = "the labeller returned None. Call fit or run again to ask it again"
        _log.warning("The run waits for the labels of %d samples: %s.", number, how)

    def _read_again(self) -> None:
        """Take over what a person has corrected in the files of answers since they were read."""
        if not isinstance(self.labeller, LabelFolder):
            return
        for begin, end in self._questions():
            indices = self.indices[begin:end]
            if not self.labeller.answer(begin).exists():
                continue
            found = self.labeller(indices, given_dataset(self.context, self), begin)
            if found is None or found == self.labels[begin:end]:
                continue
            self._check(found, indices, repr(str(self.labeller.answer(begin))))
            self.labels[begin:end] = found
            _log.warning(
                "Labels in %s have changed since they were read; the new ones hold from here on.",
                self.labeller.answer(begin),
            )

    def _questions(self) -> list[tuple[int, int]]:
        """Return which of the labels came as the answer to one question."""
        begins = [int(one["labels"]) for one in self.history]
        begins = (
            [*begins, len(self.indices)] if not begins or begins[-1] < len(self.indices) else begins
        )
        asked = [(begin, end) for begin, end in itertools.pairwise([0, *begins]) if begin < end]
        return asked[1:] if isinstance(self.first, Mapping) else asked

    def _ask(self) -> Sequence[Any] | Mapping[int, Any] | None:
        data = given_dataset(self.context, self)
        if isinstance(self.labeller, LabelFolder):
            return self.labeller(self.asked, data, len(self.indices))
        return self.labeller([*self.asked], data)

    def _most(self, wanted: int) -> int:
        """How many of these labels the budget allows."""
        if self.budget is None:
            return wanted
        return max(0, min(wanted, self.budget - len(self.indices)))

    def _generator(self) -> torch.Generator:
        """A generator for one choice: what it draws follows from the labels so far."""
        return torch.Generator().manual_seed(self.seed * 1_000_003 + len(self.indices))

    def _target_is_met(self, metrics: Mapping[str, float]) -> bool:
        if self.target is None:
            return False
        if callable(self.target):
            return bool(self.target(metrics))
        name, least = self.target
        if name not in metrics:
            raise MissingMetric(
                f"The target is {name!r}, which no fit has logged. {near_metric(name, metrics)}"
            )
        return metrics[name] >= least

    def _labelled(self) -> Any:
        """Make the loader of what the present fit learns from."""
        known = slice(0, self.fitted)
        return self._load(
            Labelled(given_dataset(self.context, self), self.indices[known], self.labels[known])
        )

    def _provide_pool(self) -> None:
        loader = self._load(Subset(given_dataset(self.context, self), self.pool), evaluate=True)
        self.context.others["pool"] = feeds_for(self.context, loader, "pool")

    def _load(self, part: Dataset[Any], *, evaluate: bool = False) -> Any:
        made = None if self.make_loader is None else self.make_loader(part)
        if made is not None and not evaluate:
            return made
        loader: Any = as_loader(self.context.sources[0]) if made is None else made
        return reloaded(loader, part, evaluate=evaluate)  # the pool in order, whoever loads it


def _first(given: Any) -> Any:
    """Check what is labelled first, as far as it can be checked without the data."""
    if isinstance(given, Mapping | Sequence) and not isinstance(given, str | bytes):
        for index in given:
            if not hasattr(index, "__index__") or isinstance(index, bool):
                raise SettingError(
                    f"ActiveLearningLoop(first=...) has {index!r}, which is no index of a sample."
                )
        if isinstance(given, Mapping):
            return {operator.index(index): label for index, label in given.items()}
        return [operator.index(index) for index in given]
    if hasattr(given, "__index__") and not isinstance(given, bool) and operator.index(given) > 0:
        return operator.index(given)
    raise SettingError(
        f"ActiveLearningLoop(first={given!r}): use a number of samples from 1, a list of indices, or "
        "labels by index."
    )


def _target(given: Any) -> Target:
    """Check what ends the rounds early."""
    pair = isinstance(given, tuple | list) and len(given) == 2
    if given is None or callable(given):
        return cast("Target", given)
    if pair and isinstance(given[0], str) and isinstance(given[1], int | float):
        return given[0], given[1]
    raise SettingError(
        f"ActiveLearningLoop(target={given!r}): use a metric and the least value wanted, such as "
        "('val_accuracy', 0.9), or a function of the metrics."
    )


def _labeller(given: Labeller | str) -> Labeller:
    if given == "hidden":
        return hidden_labels
    if isinstance(given, str) and get_close_matches(given, ["hidden"], cutoff=0.75):
        raise SettingError(
            f"ActiveLearningLoop(labeller={given!r}): did you mean 'hidden'? If it is the name of a folder, write "
            f"'./{given}'."
        )
    return given if callable(given) else LabelFolder(given)
