"""Resets a run: for a new fit, for the next fold or round, and before a saved state is loaded.

All of these call `begin_fit`. It resets the fields of the context by the scopes that they declare.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Final

import torch
from torch import nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer
from torch.utils.data import DataLoader, Dataset

from statemachine_trainer.data import Feed, as_loader, dataset_of, takes_epoch
from statemachine_trainer.loops.context import Context
from statemachine_trainer.loops.loop_errors import ModelError, SettingError
from statemachine_trainer.loops.slots import read_optimizers
from statemachine_trainer.parallel import Precision, map_leaves
from statemachine_trainer.snapshot.modules import load_module_state, module_state

_OF_THE_FIT: Final = ("stop", "end_epoch", "validate")
"""Posted events that end with the fit that they were meant for."""


def begin_fit(context: Context) -> None:
    """Reset all that belongs to a fit, and make new optimizers and schedulers.

    What belongs to the run stays: the model with its weights, the position in the data, and the
    random number generators.
    Data that are still to come are made now if an optimizer is made of `total_steps`.

    Raises:
        OptimizerError: The model configures no valid optimizer.
    """
    context.begin("fit")
    context.use_optimizers(read_optimizers(context.steps.configure_optimizers()))
    context.precision = Precision(context.equipment.precision_name, context.device)
    context.train_metrics.begin()
    context.validation_metrics.begin()
    context.log_table = context.train_metrics  # receivers may log before the first epoch


def renew(
    context: Context,
    *,
    weights: Mapping[str, Any] | None = None,
    callbacks: Sequence[Mapping[str, Any]] = (),
    train: Any = None,
    validation: Any = None,
) -> None:
    """Begin a new fit within a run, such as the next fold, without any state of the last one.

    Besides what `begin_fit` resets, gradients are cleared and the intervals of checkpoints start
    again. The counters of subscriptions with `every=` stay.

    Args:
        context: The context of the run. Its model stays the same object.
        weights: Weights from `captured`; None keeps the present ones.
        callbacks: States from `captured_callbacks` with which the callbacks begin.
        train: A loader for the new fit; None keeps the present one, at its position.
        validation: The same; one loader, or several as `fit` takes them.

    Raises:
        SettingError: The optimizer was given as an object, so no new one can be made.
        ModelError: Layers get their shape from the first batch, so there are no first weights yet.
    """
    check_renewable(context)
    if weights is not None:
        _check_shapes(context.model)
        load_module_state(context.model, weights)
    context.model.zero_grad(set_to_none=True)
    context.data_to_come = partial(equip, context, train=train, validation=validation)
    begin_fit(context)
    context.have_data()
    _renew_trainer(context, callbacks)


def _check_shapes(model: nn.Module) -> None:
    for name, one in [*model.named_parameters(), *model.named_buffers()]:
        if is_lazy(one):
            raise ModelError(
                f"{name!r} of {type(model).__name__} gets its shape from the first batch, and each fit of this "
                "loop begins with the first weights, which are not there yet. Pass a batch through the "
                "model before you call fit, as in `model(inputs)`."
            )


def captured(context: Context) -> dict[str, Any]:
    """Return a copy of the model's state on the CPU."""
    state: dict[str, Any] = _copied(module_state(context.model, grads=False))
    return state


def check_renewable(context: Context) -> None:
    """Refuse an optimizer object: its state would leak into the next fit.

    Raises:
        SettingError: The optimizer is an object.
    """
    given = context.steps.given.optimizer
    if isinstance(given, Optimizer):
        raise SettingError(
            f"optimizer= is a {type(given).__name__} that was made once, but each fit of this loop "
            "needs a new one. Give a function: `optimizer=lambda parameters: "
            f"torch.optim.{type(given).__name__}(parameters, lr=...)`."
        )


def reopen(context: Context) -> None:
    """Reset a context to the start of its fit, so that a saved state can be loaded into it.

    Loops may have exchanged optimizers and data since then. They do so again when their state is
    restored. The context and its model stay the same objects.
    """
    for feed in _feeds(context):
        feed.shutdown()
    train, validation = context.sources
    context.train, context.validation, context.others = None, (), {}  # type: ignore[assignment]
    context.sources = (None, None)
    context.data_to_come = partial(replace_data, context, train, validation)
    begin_fit(context)
    context.have_data()


# -- Data -----------------------------------------------------------------------------------------


class Reload:
    """Makes the loaders anew that were given as functions.

    Args:
        load: Makes the loaders of training and of validation for an epoch, and gives them to the context.
        train: The training data, if they can be made anew.
        validation: The validation data, if they can be made anew.
        made_for: The epoch that the present ones were made for.

    Attributes:
        made_for: The epoch that the present ones were made for.
        takes_epoch: Whether one of the functions takes the epoch.
    """

    def __init__(
        self, load: Callable[[Any, Any, int], None], train: Any, validation: Any, made_for: int
    ) -> None:
        self._load = load
        self._sources = (train, validation)
        self.made_for = made_for
        self.takes_epoch = takes_epoch(train) or takes_epoch(validation)

    def __call__(self, epoch: int) -> None:
        """Make all of them, for an epoch."""
        self._load(*self._sources, epoch)
        self.made_for = epoch

    def of_epoch(self, epoch: int) -> None:
        """Make those whose functions take the epoch, unless they are those of this epoch already."""
        if epoch != self.made_for:
            train, validation = self._sources
            self._load(
                train if takes_epoch(train) else None,
                validation if takes_epoch(validation) else None,
                epoch,
            )
            self.made_for = epoch


def replace_data(context: Context, train: Any, validation: Any, epoch: int | None = None) -> None:
    """Give a context its data. None, or the data that it already has, keeps the position in the data.

    Functions that take the epoch make the data of `epoch`; of that which comes next unless given.

    Raises:
        ModelError: There is no training data, or the model lacks the step for the validation data.
        EmptyLoader: A loader has no batch.
    """
    if train is None and context.train is None:
        raise ModelError("fit needs training data: fit(model, loader).")
    if validation is not None and "validation_step" not in context.steps:
        raise ModelError(
            f"There is validation data, but {type(context.model).__name__} has no "
            "validation_step(batch, batch_idx). Write one, or leave the data out."
        )

    def load(train: Any, validation: Any, epoch: int) -> None:
        feed = None
        if train is not None:
            feed = context.equipment.training_feed(as_loader(train, "train", epoch), context)
        if validation is not None:
            context.validation = context.equipment.feeds(validation, "validation", epoch)
        if feed is not None:
            context.train = feed

    given, had = (train, validation), context.sources
    new = [None if one is was else one for one, was in zip(given, had, strict=True)]
    epoch = context.counts.epoch if epoch is None else epoch
    load(new[0], new[1], epoch)
    sources = (had[0] if train is None else train, had[1] if validation is None else validation)
    context.sources = sources
    again = [source if _can_be_made_anew(source) else None for source in sources]
    before = context.reload_data
    all_made = all(one is source for one, source in zip(new, again, strict=True))
    made_for = epoch if before is None or all_made else before.made_for
    context.reload_data = (
        None if again == [None, None] else Reload(load, again[0], again[1], made_for)
    )


def equip(context: Context, *, train: Any = None, validation: Any = None) -> None:
    """Give a context feeds of other data. The loaders given to `fit` are then no longer reloaded.

    The workers of the previous feeds end, persistent ones too.
    """
    if train is not None:
        if context.train is not None:
            context.train.shutdown()
        context.train = training_feed_for(context, train)
        context.reload_data = None
    if validation is not None:
        for _, feed in context.validation:
            feed.shutdown()
        context.validation = context.equipment.feeds(validation, "validation")


def training_feed_for(context: Context, loader: Any) -> Feed:
    """Make a feed of training data, which reads ahead if the trainer prefetches."""
    feed: Feed = context.equipment.training_feed(as_loader(loader, "train"), context)
    return feed


def feeds_for(context: Context, loader: Any, name: str) -> list[tuple[str, Feed]]:
    """Make feeds for `context.others`, for evaluations of loops such as k-fold."""
    feeds: list[tuple[str, Feed]] = context.equipment.feeds(loader, name)
    return feeds


def withdraw_feeds(context: Context, name: str) -> None:
    """Remove feeds from `context.others`, if they are there, and end their workers."""
    for _, feed in context.others.pop(name, ()):
        feed.shutdown()


def given_dataset(context: Context, wanted_by: object) -> Dataset[Any]:
    """Return the data set of the training data given to `fit`.

    Args:
        context: What the loops of the run share.
        wanted_by: The loop that divides the data, for the error message.

    Raises:
        BadSource: The data has no length, or no items by index.
    """
    return dataset_of(as_loader(context.sources[0]), type(wanted_by).__name__)


# -- Callbacks and posted events ------------------------------------------------------------------


def captured_callbacks(context: Context) -> list[dict[str, Any]]:
    """Return a copy of the state of each callback that has one."""
    return [
        {"kind": type(one).__qualname__, "state": _copied(one.state_dict())}
        for one in _callbacks(context)
    ]


def forget_posted(context: Context) -> None:
    """Withdraw posted events that were meant for the fit that has ended."""
    if context.trainer is None:
        return
    for event in _OF_THE_FIT:
        if event in context.trainer.driver.posted:
            context.trainer.driver.withdraw(event)


def renew_callbacks(context: Context, saved: Sequence[Mapping[str, Any]]) -> None:
    """Restore the states of callbacks that `captured_callbacks` returned."""
    for one, was in zip(_callbacks(context), saved, strict=False):
        if type(one).__qualname__ == was["kind"]:
            one.load_state_dict(_copied(was["state"]))


def _renew_trainer(context: Context, saved: Sequence[Mapping[str, Any]]) -> None:
    trainer = context.trainer
    if trainer is None:
        return
    forget_posted(context)
    if trainer.checkpoints is not None:
        trainer.checkpoints.begin()
    renew_callbacks(context, saved)


def _callbacks(context: Context) -> list[Any]:
    return [] if context.trainer is None else context.trainer.stateful_callbacks()


def _copied(tree: Any) -> Any:
    return map_leaves(_copy, tree)


def _copy(leaf: Any) -> Any:
    return leaf.detach().cpu().clone() if isinstance(leaf, torch.Tensor) else leaf


def _feeds(context: Context) -> Iterator[Feed]:
    if context.train is not None:
        yield context.train
    for feeds in (context.validation, *context.others.values()):
        for _, feed in feeds:
            yield feed


def _can_be_made_anew(source: Any) -> bool:
    """Return whether a loader, or one of several, was given as a function."""
    if isinstance(source, Mapping | list | tuple):
        sources = source.values() if isinstance(source, Mapping) else source
        return any(map(_is_function, sources))
    return _is_function(source)


def _is_function(source: Any) -> bool:
    data = isinstance(source, DataLoader | Dataset) or hasattr(type(source), "__iter__")
    return callable(source) and not data
