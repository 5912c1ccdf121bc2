"""K-fold cross validation around a fit loop, and the ensemble of its models."""

from __future__ import annotations

import statistics
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import torch
from torch.utils.data import Dataset, Subset

from statemachine_trainer.data import as_loader, reloaded, targets_of
from statemachine_trainer.loops.base import TrainingLoop
from statemachine_trainer.loops.context import Context
from statemachine_trainer.loops.evaluation import TestLoop
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
from statemachine_trainer.loops.loop_errors import LikelyMistake, ModelError, SettingError
from statemachine_trainer.loops.recipes.ensemble import Combine, EnsembleLoop, combiner
from statemachine_trainer.loops.settings_checks import (
    flags,
    function,
    is_sequence,
    is_whole,
    refuse,
    whole_number,
)
from statemachine_trainer.machine.errors import level_of_caller
from statemachine_trainer.machine.fields import field
from statemachine_trainer.machine.loop import Loop, place
from statemachine_trainer.snapshot.modules import load_module_state

Fold = tuple[torch.Tensor, torch.Tensor]
"""Indices to train on, and indices to test on."""


@runtime_checkable
class Splitter(Protocol):
    """What scikit-learn's splitters look like (`KFold`, `StratifiedGroupKFold`, ...)."""

    def split(self, X: Any, y: Any = None, groups: Any = None) -> Iterable[Any]:  # noqa: N803
        """Yield pairs of arrays of indices."""
        ...


Labels = Sequence[Any] | bool | Callable[[Any], Sequence[Any]] | None
"""The label, or the group, of each sample; a function of the data set; True for its second parts."""


class LeftOutLoop(TestLoop):
    """A test of the fold's model on the fold that was left out."""

    def feeds(self) -> Any:
        """Return the loader of the fold."""
        return self.context.others["test"]


class NoEnsemble(LikelyMistake):
    """An ensemble was asked for, and there are no data to test it on."""


class KFoldLoop(TrainingLoop):
    """Fits a fresh model on all folds but one and tests it on that one, for each fold in turn.

    Each fold begins with the weights that the model had at the beginning, with new optimizers,
    schedulers and counters, and with callbacks in the state that they had then. Limits such as
    `max_steps` hold for each fold, and a `stop` ends the fit of the present fold. Validation data
    given to `fit` are the same for each fold; the fold left out is seen in its test only. So the
    model needs a `test_step` (or is a plain one with `loss`); what it logs are the scores.

    At the end the k models are one: an ensemble, tested on `test_data`. The metrics of the run are
    then the mean over the folds and its deviation ("test_acc/mean", "test_acc/std") and the score
    of the ensemble ("test_acc/ensemble"). The model has its first weights again; those of the folds
    are in `models` (`load` puts them in).

    Example:
        trainer = Trainer(KFoldLoop(folds=5, fit=FitLoop(max_epochs=3), test_data=test))
        trainer.fit(model, train)

    Source: Stone, Cross-Validatory Choice and Assessment of Statistical Predictions, 1974.

    Args:
        folds: Number of folds, or a splitter of scikit-learn.
        stratify: The label of each sample (a sequence, or a function of the data set; True: the
            second part of each sample), for folds with the same share of each.
        groups: The group of each sample (a sequence, or a function of the data set): no group is on
            both sides.
        repeats: Number of times to divide the data and run all folds.
        shuffle: Whether to divide the data at random.
        seed: Seed of the division; the global generators are not used.
        test_data: Data to test the ensemble on; without it there is no ensemble.
        ensemble: How the models' outputs become one: "mean" (as the loss of `test_step` says),
            "softmax", "sigmoid", "plain", "vote", or a function of the stacked outputs (models,
            batch, ...) that returns the outputs (batch, ...). See `EnsembleLoop`.
        make_loader: Makes the loader of a part of the data; by default it is like the loader given
            to `fit`.
        **loops: Loops for `fit`, `test` and `ensemble`.

    Attributes:
        folds: The indices to train on and to test on, for each fold.
        fold: Number of the present fold, from 0; -1 before the first and after the last.
        models: The state of each fold's model after its fit.
        scores: The metrics of each fold's test.

    Raises:
        SettingError: A setting is invalid.
        ModelError: The model has no `test_step`.
    """

    initial = "divide"
    transitions = (
        # event          source        destination
        ["divided", "divide", "fold_start"],
        ["fold_ready", "fold_start", "fit"],
        ["fit_done", "fit", "test"],
        ["test_done", "test", "fold_end"],
        ["next_fold", "fold_end", "fold_start"],
        ["folds_done", "fold_end", "kfold_end"],
        ["models_ready", "fold_end", "ensemble"],
        ["ensemble_done", "ensemble", "kfold_end"],
    )
    outcomes = ("fit_done",)

    fit: Loop = place(FitLoop)
    test: Loop = place(LeftOutLoop)
    ensemble: Loop = place(EnsembleLoop)

    folds: list[Fold] = field(factory=list)
    fold: int = -1
    first_weights: dict[str, Any] | None = None
    first_callbacks: list[dict[str, Any]] | None = None
    models: list[dict[str, Any]] = field(factory=list)
    scores: list[dict[str, float]] = field(factory=list)

    def __init__(
        self,
        folds: int | Splitter = 5,
        *,
        stratify: Labels = None,
        groups: Labels = None,
        repeats: int = 1,
        shuffle: bool = True,
        seed: int = 0,
        test_data: Any = None,
        ensemble: Combine | Loop = "mean",
        make_loader: Callable[[Dataset[Any]], Any] | None = None,
        **loops: Any,
    ) -> None:
        if isinstance(ensemble, Loop):
            loops["ensemble"] = ensemble
        super().__init__(**loops)
        if not isinstance(ensemble, Loop) and ensemble != "mean":
            combiner(ensemble)
            self.fill("ensemble", combine=ensemble)
        flags(self, shuffle=shuffle)
        function(self, "make_loader", make_loader, "that makes a loader of a data set.")
        for name, given in (("stratify", stratify), ("groups", groups)):
            by_itself = given is None or isinstance(given, bool) or callable(given)
            if not by_itself and not is_sequence(given):
                refuse(
                    self, name, given, "give one label for each sample, or a function of a sample."
                )
        # A text has a method `split` too.
        self.splitter = (
            folds if isinstance(folds, Splitter) and not isinstance(folds, str) else None
        )
        self.number = 0 if self.splitter else whole_number(self, "folds", folds, 2)
        if self.splitter and repeats != 1:
            raise SettingError("A splitter repeats by itself: use RepeatedKFold, or repeats=1.")
        self.repeats = whole_number(self, "repeats", repeats, 1)
        self.stratify = stratify
        self.groups = groups
        self.shuffle = shuffle
        self.seed = whole_number(self, "seed", seed)
        self.test_data = test_data
        self.make_loader = make_loader

    def why_whole(self) -> str | None:
        return (
            "gives each fold the first weights, which it keeps whole. "
            "Run the folds one after the other, each in a fit."
        )

    @property
    def _folds(self) -> int | Splitter:
        """The setting `folds`, for the repr: the field of this name holds the indices."""
        return self.splitter or self.number

    def divide(self) -> Literal["divided"]:
        """Divide the data, and remember model and callbacks as every fold gets them."""
        context = self.context
        check_renewable(context)
        self._check_test(context)
        if self.test_data is None and "ensemble" in self._given:
            warnings.warn(
                f"{type(self).__name__} was given an ensemble and no test_data, so that no ensemble is tested. Give "
                "test_data=..., or leave ensemble= out.",
                NoEnsemble,
                stacklevel=level_of_caller(),
            )
        data = given_dataset(self.context, self)
        labels, groups = (_of_samples(one, data) for one in (self.stratify, self.groups))
        if self.splitter is not None:
            self.folds = folds_by(self.splitter, len(data), labels, groups)  # type: ignore[arg-type]
        else:
            self.folds = make_folds(
                len(data),  # type: ignore[arg-type]
                self.number,
                labels=labels,
                groups=groups,
                repeats=self.repeats,
                shuffle=self.shuffle,
                seed=self.seed,
            )
        self.first_weights = captured(context)
        self.first_callbacks = captured_callbacks(context)
        return "divided"

    def fold_start(self) -> Literal["fold_ready"]:
        """Begin the next fold from the first weights."""
        self.fold = len(self.models)
        train, test = self._loaders()
        self._begin_anew(train)
        self.context.others["test"] = feeds_for(self.context, test, "test")
        return "fold_ready"

    def fold_end(self) -> Literal["next_fold", "models_ready", "folds_done"]:
        """Keep the fold's model and its scores."""
        self.models.append(captured(self.context))
        self.scores.append(dict(self.context.validation_metrics.compute()))
        self.context.train.shutdown()
        withdraw_feeds(self.context, "test")
        if len(self.models) < len(self.folds):
            return "next_fold"
        if self.test_data is None:
            return "folds_done"
        self._provide_ensemble()
        self.ensemble.models = list(self.models)  # type: ignore[attr-defined]
        return "models_ready"

    def kfold_end(self) -> Literal["fit_done"]:
        """Publish the scores, and restore the first weights and the data."""
        context = self.context
        tested = context.validation_metrics.compute() if self.test_data is not None else {}
        self.fold = -1
        self._forget_loaders()
        self._begin_anew(as_loader(context.sources[0]))
        for name, (mean, deviation) in self.summary().items():
            context.results[f"{name}/mean"], context.results[f"{name}/std"] = mean, deviation
        context.results.update({f"{name}/ensemble": value for name, value in tested.items()})
        return "fit_done"

    def summary(self) -> dict[str, tuple[float, float]]:
        """Return mean and standard deviation (of a sample) over the folds, for each metric."""
        names = self.scores[0] if self.scores else ()
        columns = {name: [one[name] for one in self.scores if name in one] for name in names}
        return {
            name: (statistics.fmean(column), statistics.stdev(column) if len(column) > 1 else 0.0)
            for name, column in columns.items()
        }

    def load(self, fold: int) -> None:
        """Put the weights of a fold's model into the model.

        Args:
            fold: Number of the fold, from 0.

        Raises:
            SettingError: No such fold has ended.
        """
        number = len(self.models)
        if not is_whole(fold) or fold >= number:
            ended = (
                f"{number} folds have ended, from 0 to {number - 1}"
                if number
                else "no fold has ended yet"
            )
            raise SettingError(f"{type(self).__name__}.load({fold!r}): {ended}.")
        load_module_state(self.context.model, self.models[fold])

    def more_to_come(self) -> bool | None:
        return len(self.scores) <= self.fold  # the test of the fold is still to come

    def restore(self) -> None:
        """Make the loaders of the saved run again."""
        self._forget_loaders()
        if self.fold < 0:
            return
        train, test = self._loaders()
        equip(self.context, train=train)
        self.context.others["test"] = feeds_for(self.context, test, "test")
        if len(self.models) == len(self.folds):
            self._provide_ensemble()

    # -- parts -----------------------------------------------------------------------------------

    def _check_test(self, context: Context) -> None:
        """Refuse a model that cannot be tested now, and not after the first fit."""
        try:
            context.steps.get("test_step")
        except ModelError as error:
            raise ModelError(
                f"{type(self).__name__} tests each fold on the part that it left out: write "
                f"test_step(batch, batch_idx), whose metrics are the scores. {error}"
            ) from None

    def _loaders(self) -> tuple[Any, Any]:
        """Make the loaders to train on and to test on, of the present fold."""
        loader: Any = as_loader(self.context.sources[0])
        data = given_dataset(self.context, self)
        train, test = (Subset(data, one.tolist()) for one in self.folds[self.fold])
        if self.make_loader is not None:
            return self.make_loader(train), self.make_loader(test)
        return reloaded(loader, train), reloaded(loader, test, evaluate=True)

    def _forget_loaders(self) -> None:
        for name in ("test", "ensemble"):
            withdraw_feeds(self.context, name)

    def _begin_anew(self, train: Any) -> None:
        renew(
            self.context,
            weights=self.first_weights,
            callbacks=self.first_callbacks or (),
            train=train,
        )

    def _provide_ensemble(self) -> None:
        if self.test_data is not None:
            self.context.others["ensemble"] = feeds_for(self.context, self.test_data, "ensemble")


# -- Dividing a data set into folds ---------------------------------------------------------------


def folds_by(
    splitter: Splitter, length: int, labels: Sequence[Any] | None, groups: Sequence[Any] | None
) -> list[Fold]:
    """Let a splitter of scikit-learn's kind divide a data set."""
    y = None if labels is None else np.asarray(labels)
    pairs = splitter.split(np.zeros((length, 1)), y, groups)
    return [(_indices(train), _indices(test)) for train, test in pairs]


def make_folds(
    length: int,
    number: int,
    *,
    labels: Sequence[Any] | None = None,
    groups: Sequence[Any] | None = None,
    repeats: int = 1,
    shuffle: bool = True,
    seed: int = 0,
) -> list[Fold]:
    """Divide `length` samples into folds; each is left out once in each repeat.

    Args:
        length: How many samples there are.
        number: How many folds.
        labels: Of each sample, for folds with the same share of each label.
        groups: Of each sample; no group is on both sides of a fold.
        repeats: Number of times to divide the data.
        shuffle: Whether chance divides. It comes from `seed`, never from the global generators.
        seed: Of the first repeat; the others follow from it.

    Raises:
        SettingError: It cannot be done.
    """
    if labels is not None and groups is not None:
        raise SettingError(
            "Folds that are stratified and grouped at once need a splitter of scikit-learn: "
            "KFoldLoop(StratifiedGroupKFold(5), stratify=..., groups=...)."
        )
    if repeats > 1 and not shuffle:
        raise SettingError("Without shuffling every repeat would be the same: shuffle=True.")
    _check_length("samples", length, number)
    for name, given in (("stratify", labels), ("groups", groups)):
        if given is not None and len(given) != length:
            raise SettingError(f"{name} has {len(given)} entries for {length} samples.")
    found: list[Fold] = []
    for repeat in range(repeats):
        generator = torch.Generator().manual_seed(seed + repeat) if shuffle else None
        if groups is not None:
            place = _by_groups(groups, number, generator)
        else:
            place = _by_labels([0] * length if labels is None else labels, number, generator)
        for fold in range(number):
            out = place == fold
            found.append((torch.nonzero(~out).flatten(), torch.nonzero(out).flatten()))
    return found


def _by_labels(
    labels: Sequence[Any], number: int, generator: torch.Generator | None
) -> torch.Tensor:
    """Deal the samples of each label out in turn, each label beginning where the last one ended."""
    place = torch.empty(len(labels), dtype=torch.int64)
    dealt = 0
    for members in _members(labels):
        order = _order(len(members), generator)
        for at in order:
            place[members[at]] = dealt % number
            dealt += 1
    return place


def _by_groups(
    groups: Sequence[Any], number: int, generator: torch.Generator | None
) -> torch.Tensor:
    """Put each group, the largest first, into the fold that has the fewest samples."""
    members = list(_members(groups))
    _check_length("groups", len(members), number)
    sizes = [0] * number
    place = torch.empty(len(groups), dtype=torch.int64)
    shuffled = [members[at] for at in _order(len(members), generator)]
    for group in sorted(shuffled, key=len, reverse=True):
        fold = sizes.index(min(sizes))
        sizes[fold] += len(group)
        place[group] = fold
    return place


def _members(keys: Sequence[Any]) -> Iterator[list[int]]:
    """Yield the numbers of the samples of each key, keys in the order of their first sample."""
    found: dict[Any, list[int]] = {}
    for number, key in enumerate(keys):
        found.setdefault(key.item() if hasattr(key, "item") else key, []).append(number)
    yield from found.values()


def _order(length: int, generator: torch.Generator | None) -> list[int]:
    if generator is None:
        return list(range(length))
    return [int(at) for at in torch.randperm(length, generator=generator)]


def _check_length(what: str, length: int, number: int) -> None:
    if length < number:
        raise SettingError(f"{length} {what} cannot make {number} folds. Use fewer folds.")


def _indices(found: Any) -> torch.Tensor:
    return torch.as_tensor(np.asarray(found), dtype=torch.int64).clone()


def _of_samples(given: Labels, data: Any) -> Sequence[Any] | None:
    """Return the label, or the group, of each sample."""
    if given is None or given is False:
        return None
    if given is True:
        return targets_of(data)
    return given(data) if callable(given) else given
