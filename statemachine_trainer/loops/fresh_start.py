"""Beginning anew: a fit that is put together, the next fold or round, a saved state to load.

All of them begin with `begin_fit`. What it resets follows from the scopes that the fields of the
context declare.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Final

import torch
from torch.optim import Optimizer
from torch.utils.data import DataLoader, Dataset

from statemachine_trainer.data import Feed, as_loader, dataset_of
from statemachine_trainer.loops.context import Context
from statemachine_trainer.loops.loop_errors import ModelError, SettingError
from statemachine_trainer.loops.optimizers import read_optimizers
from statemachine_trainer.parallel import Precision, map_leaves
from statemachine_trainer.snapshot.modules import load_module_state, module_state

_OF_THE_FIT: Final = ("stop", "end_epoch", "validate")
"""Posted events that were meant for the fit that is over."""


def begin_fit(context: Context) -> None:
    """Bring all that belongs to a fit to where it begins; optimizers and schedulers are new.

    What belongs to the run stays: the model with its weights, the data where they stand, and the
    generators of random numbers.

    Raises:
        OptimizerError: There is no optimizer, or something else in its place.
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
    """Begin a fit within a run, such as the next fold: nothing of the last one is left.

    Besides all that `begin_fit` resets, gradients are cleared, and the intervals of checkpoints
    begin anew. How often subscriptions with `every=` were called stays.

    Args:
        context: What the loops of the run share; its model stays the same object.
        weights: What `captured` returned; None leaves the weights as they are.
        callbacks: What `captured_callbacks` returned: callbacks begin with that state.
        train: A loader for the new fit; None leaves the present one, where it stands.
        validation: The same; one loader, or several as `fit` takes them.

    Raises:
        SettingError: The optimizer was given as an object, which cannot be made anew.
    """
    check_renewable(context)
    if weights is not None:
        load_module_state(context.model, weights)
    context.model.zero_grad(set_to_none=True)
    begin_fit(context)
    equip(context, train=train, validation=validation)
    _renew_trainer(context, callbacks)


def captured(context: Context) -> dict[str, Any]:
    """Return a copy of the model's state, on the CPU, that later steps do not change."""
    state: dict[str, Any] = _copied(module_state(context.model, grads=False))
    return state


def check_renewable(context: Context) -> None:
    """Refuse an optimizer object: it would carry what it has learned into the next fit.

    Raises:
        SettingError: It is one.
    """
    given = context.steps.given[1]
    if isinstance(given, Optimizer):
        raise SettingError(
            f"optimizer= is a {type(given).__name__} that was made once, but each fit of this loop "
            "needs a new one. Give a function: `optimizer=lambda parameters: "
            f"torch.optim.{type(given).__name__}(parameters, lr=...)`."
        )


def reopen(context: Context) -> None:
    """Make a context as it was when its fit began, so that a saved state can be loaded into it.

    Loops may have exchanged optimizers and data since. They put in theirs once more when they are
    told where they stand. The context and its model stay the same objects.
    """
    for feed in _feeds(context):
        feed.shutdown()
    begin_fit(context)
    train, validation = context.sources
    context.train, context.validation, context.others = None, (), {}  # type: ignore[assignment]
    context.sources = (None, None)
    replace_data(context, train, validation)


# -- Data -----------------------------------------------------------------------------------------


def replace_data(context: Context, train: Any, validation: Any) -> None:
    """Give a context its data. None, or the very data it has, keeps them where they stand.

    Raises:
        ModelError: There are no training data, or data for a step that the model lacks.
        EmptyLoader: A loader has no batch.
    """
    if train is None and context.train is None:
        raise ModelError("fit needs training data: fit(model, loader).")
    if validation is not None and "validation_step" not in context.steps:
        raise ModelError(
            f"There is validation data, but {type(context.model).__name__} has no "
            "validation_step(batch, batch_idx). Write one, or leave the data out."
        )

    def load(train: Any, validation: Any) -> None:
        feed = None
        if train is not None:
            feed = context.equipment.training_feed(as_loader(train, "train"), context)
        if validation is not None:
            context.validation = context.equipment.feeds(validation, "validation")
        if feed is not None:
            context.train = feed

    given, had = (train, validation), context.sources
    new = [None if one is was else one for one, was in zip(given, had, strict=True)]
    load(*new)
    sources = (had[0] if train is None else train, had[1] if validation is None else validation)
    context.sources = sources
    again = [source if _can_be_made_anew(source) else None for source in sources]
    context.reload_data = None if again == [None, None] else partial(load, *again)


def equip(context: Context, *, train: Any = None, validation: Any = None) -> None:
    """Give a context feeds of other data; the loaders given to `fit` are not reloaded any more.

    Workers of the feeds before end, persistent ones too: nobody reads from them again.
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
    """Make a feed of training data, which reads ahead where the trainer is to."""
    feed: Feed = context.equipment.training_feed(as_loader(loader, "train"), context)
    return feed


def feeds_for(context: Context, loader: Any, name: str) -> list[tuple[str, Feed]]:
    """Make feeds to put into `context.others`, for an evaluation within a loop of loops."""
    feeds: list[tuple[str, Feed]] = context.equipment.feeds(loader, name)
    return feeds


def withdraw_feeds(context: Context, name: str) -> None:
    """Take feeds out of `context.others`, if they are there, and end their workers."""
    for _, feed in context.others.pop(name, ()):
        feed.shutdown()


def given_dataset(context: Context, wanted_by: object) -> Dataset[Any]:
    """Return the data set of the training data given to `fit`.

    Args:
        context: What the loops of the run share.
        wanted_by: The loop that takes them apart, for the error.

    Raises:
        BadSource: They have no length, or no items by index.
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
    """Withdraw posted events that were meant for the fit that is over."""
    if context.trainer is None:
        return
    for event in _OF_THE_FIT:
        if event in context.trainer.driver.posted:
            context.trainer.driver.withdraw(event)


def renew_callbacks(context: Context, saved: Sequence[Mapping[str, Any]]) -> None:
    """Put callbacks into the state that `captured_callbacks` returned."""
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
    """Whether a loader, or one of several, was given as a function."""
    if isinstance(source, Mapping | list | tuple):
        sources = source.values() if isinstance(source, Mapping) else source
        return any(map(_is_function, sources))
    return _is_function(source)


def _is_function(source: Any) -> bool:
    data = isinstance(source, DataLoader | Dataset) or hasattr(type(source), "__iter__")
    return callable(source) and not data
