"""Giving a run the parts that it began with, so that a state can be loaded into it."""

from __future__ import annotations

from collections.abc import Iterator

from statemachine_trainer.data import Feed
from statemachine_trainer.loops.assembly import replace_data
from statemachine_trainer.loops.context import Context
from statemachine_trainer.loops.optimizers import read_optimizers
from statemachine_trainer.loops.turns import Turns
from statemachine_trainer.parallel import Precision


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
