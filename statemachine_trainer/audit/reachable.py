"""The starting points of the search for state: all objects that a fit uses."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from functools import cache, partial
from types import FunctionType, MethodType
from typing import Any, Final

import torch
from torch import nn

from statemachine_trainer.data import Feed
from statemachine_trainer.data.own_generators import parts_of
from statemachine_trainer.loops.context import Context
from statemachine_trainer.machine.board import SignalBoard
from statemachine_trainer.machine.driver import Driver
from statemachine_trainer.parallel.wrappers import modules_of
from statemachine_trainer.snapshot.search import Search

Roots = dict[str, object]
"""Objects, each with the name that begins the paths of what it reaches."""

Searches = dict[tuple[str, int], Search]
"""What was found in data, by the name of the feed and the identity of its loader."""


def roots_besides_model_and_data(board: SignalBoard, driver: Driver, context: Context) -> Roots:
    """Return callbacks, receivers, loops, schedulers and the loss function.

    The model and the data save the random number generators that they reach themselves.
    """
    found: list[tuple[str, object]] = [
        *_listeners(board, context),
        *((f"loop {path}", loop) for path, loop in driver.loops()),
        *_schedulers(context),
    ]
    for name, source in zip(("train", "validation"), context.sources, strict=True):
        if isinstance(source, FunctionType | MethodType | partial):
            found.append((f"function for {name}", source))
    given = context.steps.given
    for name in ("loss", "metrics"):
        if getattr(given, name) is not None:
            found.append((name, getattr(given, name)))
    found += _hooks_of_all()
    roots: Roots = {}
    for name, thing in found:
        roots.setdefault(_free(name, roots), thing)
    return roots


def feeds_of(context: Context) -> Iterator[tuple[str, Feed]]:
    """Yield the feeds of a fit by name."""
    if context.train is not None:
        yield from context.train.parts.items()
    for feeds in (context.validation, *context.others.values()):
        for _, feed in feeds:
            yield from feed.parts.items()


def roots_of_feed(name: str, feed: Feed) -> Roots:
    """Return the parts of a loader, named as by `parts_of` and prefixed with the name of the loader."""
    return {f"{name}.{part}": thing for part, thing in parts_of(feed.loader).items()}


def _listeners(board: SignalBoard, context: Context) -> Iterator[tuple[str, object]]:
    """Yield the receivers of signals, each once: objects with methods, and functions."""
    seen = {id(module) for module in modules_of(context.model)}
    for one in board.subscriptions:
        owner = getattr(one.receiver, "__self__", None)
        thing: Any = one.receiver if owner is None else owner
        if id(thing) in seen:
            continue
        seen.add(id(thing))
        module = type(thing).__module__
        if module.startswith("statemachine_trainer.integrations."):
            # It stands for callbacks of another library.
            for callback in vars(thing).get("callbacks", ()):
                yield f"callback {type(callback).__name__}", callback
        elif owner is None:
            inner = thing.func if isinstance(thing, partial) else thing
            name = getattr(inner, "__qualname__", type(thing).__name__)
            yield f"receiver {name}", thing
        else:
            kind = "module" if isinstance(thing, nn.Module) else "callback"
            yield f"{kind} {type(thing).__name__}", thing


def _hooks_of_all() -> Iterator[tuple[str, object]]:
    """Yield the hooks that torch calls for each module, or for each optimizer, of the process."""
    for module in _WITH_HOOKS:
        space = vars(sys.modules[module])
        for name in _names_of_hooks(module):
            if hooks := space.get(name):
                # Their keys are numbers that count the hooks of the whole process.
                yield f"{module}.{name}", [*hooks.values()]


_WITH_HOOKS: Final = (nn.Module.__module__, torch.optim.Optimizer.__module__)


@cache
def _names_of_hooks(module: str) -> tuple[str, ...]:
    """Return the names under which a module of torch keeps hooks. Kept: each checkpoint asks."""
    return tuple(
        name
        for name in vars(sys.modules[module])
        if name.startswith("_global") and name.endswith("hooks")
    )


def _schedulers(context: Context) -> Iterator[tuple[str, object]]:
    for slot in context.slots:
        yield f"optimizer {type(slot.optimizer).__name__}", slot.optimizer
        for one in slot.schedulers:
            yield f"scheduler {type(one.scheduler).__name__}", one.scheduler


def _free(name: str, taken: Roots) -> str:
    if name not in taken:
        return name
    number = 2
    while f"{name} #{number}" in taken:
        number += 1
    return f"{name} #{number}"
