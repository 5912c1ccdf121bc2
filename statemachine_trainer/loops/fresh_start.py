"""Beginning anew within a run: the next fold, round or phase gets nothing of the last one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import torch
from torch.optim import Optimizer
from torch.utils.data import Dataset

from statemachine_trainer.data import Feed, as_loader, dataset_of
from statemachine_trainer.loops.assembly import replace_data
from statemachine_trainer.loops.context import Context
from statemachine_trainer.loops.loop_errors import SettingError
from statemachine_trainer.loops.optimizers import Turns, read_optimizers
from statemachine_trainer.parallel import Precision, map_leaves
from statemachine_trainer.snapshot.modules import load_module_state, module_state

_OF_THE_FIT: Final = ("stop", "end_epoch", "validate")
"""Posted events that were meant for the fit that is over."""


def renew(
    context: Context,
    *,
    weights: Mapping[str, Any] | None = None,
    callbacks: Sequence[Mapping[str, Any]] = (),
    train: Any = None,
    validation: Any = None,
) -> None:
    """Make a context as it is before a fit: optimizers, schedulers, counters and metrics are new.

    Interval counters of the checkpoints begin anew too. What only the whole run has stays: the
    generators of random numbers, and how often subscriptions with `every=` were called.

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
    context.slots = read_optimizers(context.steps.configure_optimizers())
    context.turns = Turns(context.slots)
    context.precision = Precision(context.equipment.precision_name, context.device)
    _forget(context)
    equip(context, train=train, validation=validation)
    _renew_trainer(context, callbacks)


def equip(context: Context, *, train: Any = None, validation: Any = None) -> None:
    """Give a context feeds of other data; the loaders given to `fit` are not reloaded any more."""
    if train is not None:
        context.train = training_feed_for(context, train)
        context.reload_data = None
    if validation is not None:
        context.validation = context.equipment.feeds(validation, "validation")


def training_feed_for(context: Context, loader: Any) -> Feed:
    """Make a feed of training data, which reads ahead where the trainer is to."""
    feed: Feed = context.equipment.training_feed(as_loader(loader, "train"), context)
    return feed


def feeds_for(context: Context, loader: Any, name: str) -> list[tuple[str, Feed]]:
    """Make feeds to put into `context.others`, for an evaluation within a loop of loops."""
    feeds: list[tuple[str, Feed]] = context.equipment.feeds(loader, name)
    return feeds


def given_dataset(context: Context, wanted_by: object) -> Dataset[Any]:
    """Return the data set of the training data given to `fit`.

    Args:
        context: What the loops of the run share.
        wanted_by: The loop that takes them apart, for the error.

    Raises:
        BadSource: They have no length, or no items by index.
    """
    return dataset_of(as_loader(context.sources[0]), type(wanted_by).__name__)


def captured(context: Context) -> dict[str, Any]:
    """Return a copy of the model's state, on the CPU, that later steps do not change."""
    state: dict[str, Any] = _copied(module_state(context.model, grads=False))
    return state


def captured_callbacks(context: Context) -> list[dict[str, Any]]:
    """Return a copy of the state of each callback that has one."""
    return [
        {"kind": type(one).__qualname__, "state": _copied(one.state_dict())}
        for one in _callbacks(context)
    ]


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


# -- parts ---------------------------------------------------------------------------------------


def _forget(context: Context) -> None:
    """Bring everything that a fit counts, keeps or has in flight to where it begins."""
    context.begin_counting()
    context.batch = context.split = context.output = context.loss = context.outputs = None
    context.splits, context.kept_hiddens, context.aside = [], {}, []
    context.batch_idx = context.split_idx = context.optimizer_idx = context.dataloader_idx = 0
    context.finished = context.stopping = context.flushing = False
    context.validated_at, context.results = None, {}
    for table in (context.train_metrics, context.validation_metrics):
        table.begin()
    context.log_table, context.log_suffix = context.train_metrics, ""


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


# -- Going on after the end -----------------------------------------------------------------------


def reopen(context: Context) -> None:
    """Make optimizers, schedulers and feeds anew, as they are when a fit begins.

    A saved state is loaded into a run that has just begun: loops may have exchanged optimizers and
    data since, and put in theirs once more when they are told where they stand.

    Args:
        context: What the loops of the run share. It and its model stay the same objects.
    """
    for feed in _feeds(context):
        feed.shutdown()
    context.slots = read_optimizers(context.steps.configure_optimizers())
    context.turns, context.counted_optimizer = Turns(context.slots), 0
    context.precision = Precision(context.equipment.precision_name, context.device)
    train, validation = context.sources
    context.train, context.validation, context.others = None, (), {}  # type: ignore[assignment]
    context.sources = (None, None)
    replace_data(context.equipment, context, train, validation)


def _feeds(context: Context) -> Iterator[Feed]:
    if context.train is not None:
        yield context.train
    for feeds in (context.validation, *context.others.values()):
        for _, feed in feeds:
            yield feed
