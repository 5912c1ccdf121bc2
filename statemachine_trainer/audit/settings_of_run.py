"""The settings of a run as short texts, which lie in its checkpoints.

What a script that resumes the run has set otherwise is found in them: see `settings_record`.
"""

from __future__ import annotations

import inspect
import pathlib
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import timedelta
from enum import Enum
from functools import lru_cache
from operator import attrgetter
from typing import Any, Final

import torch
from torch import nn
from torch.utils.data import DataLoader

from statemachine_trainer.audit.functions import (
    code_of_function,
    compiler,
    functions_of,
    name_of_function,
)
from statemachine_trainer.callbacks.checkpoints import Checkpoints
from statemachine_trainer.data.mapstyle import sampler_name
from statemachine_trainer.intervals import Every
from statemachine_trainer.loops.base import in_training
from statemachine_trainer.loops.context import Context
from statemachine_trainer.loops.slots import Scheduler
from statemachine_trainer.machine.loop import Loop
from statemachine_trainer.parallel.wrappers import PlainNames

Modules = Sequence[tuple[str, nn.Module]]
"""The modules of a model by name, without wrappers."""

Settings = dict[str, dict[str, str]]
"""Settings as text, by owner and name."""

CODE: Final = f" (code in {compiler()})"
"""Ends the name of a code: other versions of Python compile the same source to other code."""

CHANGES: Final = "what training makes of it"
"""The text of what is not compared, since the code changes it."""

ITS_CLASS: Final = "its class"
"""The name of the class of an owner: what refers to one of another class tells so."""

RECEIVERS: Final = "receivers and callbacks that may change the training"
"""The owner of the names of these, by signal."""

NOTED: Final = {"script", "of libraries", "code"}
"""Parts that a script notes before training: see `script_record`."""

_AS_GIVEN: Final = {"optimizers", "content", *NOTED}
"""Parts of which the settings that were given are noted anyway: no run changes these."""

_PLAIN: Final = (
    bool, int, float, complex, str, bytes, type(None), Enum, timedelta, pathlib.PurePath, Every,
    torch.device, torch.dtype,
)  # fmt: skip
_TYPES: Final = frozenset(_PLAIN)
_LONGEST: Final = 500
_DEEPEST: Final = 20
"""Collections in collections."""

_MISSING: Final = object()
_SHOWN: Final = 4
"""Names of a long list that are shown."""


def settings_of_run(
    loops: Iterable[tuple[str, Loop]],
    callbacks: Sequence[object],
    context: Context,
    hyperparameters: Settings,
    checkpoints: Checkpoints | None,
) -> dict[str, Settings]:
    """Read the settings of all parts of a run.

    Args:
        loops: The loops of the fit by their paths.
        callbacks: The callbacks that have a state.
        context: The context of the run.
        hyperparameters: What the user told the trainer and the model.
        checkpoints: When they are written, and which are kept; None if none are.
    """
    equipment = context.equipment
    loops = [*loops]
    names = PlainNames(context.model)  # one walk over the modules for all
    modules = names.modules(wrappers=False)
    parts = {
        f"{what} of {path} ({type(one).__name__})": _settings_of(one)
        for path, loop in loops
        for what, one in in_training(loop).parts_with_settings().items()
    }
    return {
        "loops": {
            # A stand-in may be set by callbacks of its library, which put that back themselves.
            f"{path} ({type(loop).__name__})": _settings_of(
                in_training(loop).stands_in_for() or loop
            )
            for path, loop in loops
        }
        | parts,
        "callbacks": {
            f"callback {place} ({type(one).__name__})": _settings_of(one)
            for place, one in enumerate(callbacks)
        },
        "trainer": {
            "the trainer": {
                "seed": repr(equipment.seed),
                "seed_samples": repr(equipment.seed_samples),
                "prefetch": repr(equipment.prefetch),
            }
        },
        "checkpoints": {} if checkpoints is None else _settings_of_checkpoints(checkpoints),
        "hyperparameters": hyperparameters,
        "model": _settings_of_model(modules, context),
        "layers": {"the model": _layers(modules), "the fit": _class_of_model(modules)},
        "modes": {"the model": _modes(names, modules)},
        "loss": _settings_of_loss(context),
        "data": _settings_of_data(context),
        "optimizers": _settings_of_optimizers(context),
    }


def others_than(
    settings: Mapping[str, Settings], present: Mapping[str, Settings]
) -> dict[str, Settings]:
    """Return those of `settings` that have another value at present, by part and owner."""
    found: dict[str, Settings] = {}
    for part, owners in settings.items():
        for owner, texts in owners.items() if part not in _AS_GIVEN else ():
            now = present.get(part, {}).get(owner, {})
            changed = {name: text for name, text in texts.items() if now.get(name) != text}
            if changed:
                found.setdefault(part, {})[owner] = changed
    return found


def _settings_of(thing: object) -> dict[str, str]:
    return as_texts(dict(constructor_values(thing)))


def constructor_values(thing: object) -> Iterator[tuple[str, object]]:
    """Yield what the constructor of an object takes, and the object keeps under the same name."""
    for name, place in _places_of_arguments(type(thing)):  # type: ignore[arg-type]
        try:
            value = getattr(thing, place, _MISSING)
        except Exception:  # a place for a loop, or a property that is not ready
            continue
        if is_plain(value):
            yield name, value


@lru_cache(maxsize=1024)
def _places_of_arguments(kind: type) -> tuple[tuple[str, str], ...]:
    """Return the names of what constructors take, each with the name under which an object shows it.

    A loop with a field or a state of the name of a setting shows that in a property, with a `_` before its name.
    """
    places = []
    for name in _names_in_turn(kind):
        shown = f"_{name}"
        with suppress(Exception):  # of an attribute of the class that is not ready
            is_shown = isinstance(getattr(kind, shown, None), property)
            places.append((name, shown if is_shown else name))
    return tuple(places)


@lru_cache(maxsize=1024)
def _names_in_turn(kind: type) -> tuple[str, ...]:
    """Return the names of what the constructors of a class and of its bases take, its own first."""
    bases = [one for one in kind.__mro__[:-1] if "__init__" in vars(one)]
    return tuple(dict.fromkeys(name for one in bases for name in _taken_by(one)))


@lru_cache(maxsize=2048)
def names_given(kind: type) -> frozenset[str]:
    """Return the names of what the constructors of a class and of its bases take."""
    return frozenset(_names_in_turn(kind))


@lru_cache(maxsize=1024)
def _taken_by(kind: type) -> tuple[str, ...]:
    """Return the names of the arguments of a class's own constructor. Kept: each checkpoint asks."""
    try:
        parameters = inspect.signature(vars(kind)["__init__"]).parameters.values()
    except (TypeError, ValueError):  # it is not written in Python
        return ()
    several = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return tuple(one.name for one in parameters if one.kind not in several and one.name != "self")


def _settings_of_checkpoints(checkpoints: Checkpoints) -> Settings:
    return {
        "the checkpoints": {
            "every": repr(checkpoints.every),
            "retention": repr(checkpoints.store.retention),
        }
    }


def _settings_of_model(modules: Modules, context: Context) -> Settings:
    """Read the settings of torch's own layers, such as the `p` of a Dropout, and of a loss."""
    found = {
        f"model.{name} ({type(module).__name__})".replace("model. ", "model "): constants
        for name, module in modules
        if (constants := _constants(module))
    }
    loss = context.steps.given.loss
    if isinstance(loss, nn.Module) and (constants := _constants(loss)):
        found[f"loss ({type(loss).__name__})"] = constants
    return found


def _settings_of_loss(context: Context) -> Settings:
    loss = context.steps.given.loss
    return {} if loss is None else {"the trainer": _of_function("loss", loss)}


def _of_function(name: str, function: object) -> dict[str, str]:
    """Return name and code of a function, by the name of the setting."""
    code = code_of_function(function)
    return {name: name_of_function(function)} | ({} if code is None else {f"{name}{CODE}": code})


def _settings_of_data(context: Context) -> Settings:
    """Read what torch's own loaders are set to, but for how many workers read."""
    named = [("train", context.train), *context.validation]
    return {
        f"data {name}": {
            "batch_size": repr(loader.batch_size),
            "drop_last": repr(loader.drop_last),
            "sampler": sampler_name(loader),
            **_of_function("collate_fn", loader.collate_fn),
            **(
                {}
                if loader.worker_init_fn is None
                else _of_function("worker_init_fn", loader.worker_init_fn)
            ),
        }
        for name, feed in named
        if feed is not None and isinstance(loader := feed.loader, DataLoader)
    }


def _layers(modules: Modules) -> dict[str, str]:
    """Read the class of each module: one without parameters leaves no trace in the weights."""
    return {name: _class_of_layer(module) for name, module in modules if name}


def _class_of_model(modules: Modules) -> dict[str, str]:
    _, model = modules[0]
    return {"model": _class_of_layer(model)}


def _modes(names: PlainNames, modules: Modules) -> dict[str, str]:
    """Read what is not trained or stands under several names, and which modules are in evaluation mode."""
    frozen = [name for name, one in names.parameters() if not one.requires_grad]
    evaluated = [name or "itself" for name, one in modules if not one.training]
    return {
        "frozen": _in_few_words(frozen),
        "in evaluation mode": _in_few_words(evaluated),
        "tied": _in_few_words(_ties(modules, attrgetter("_parameters"))),
        "tied buffers": _in_few_words(_ties(modules, attrgetter("_buffers"))),
    }


def _ties(modules: Modules, held: Callable[[nn.Module], Mapping[str, object]]) -> list[str]:
    """Return the names of each object that stands under several of them, as "emb.weight = head.weight".

    Args:
        modules: Those of the model by name.
        held: Returns what a module holds, by name.
    """
    found: dict[int, list[str]] = {}
    for where, module in modules:
        for name, one in held(module).items():
            if one is not None:
                found.setdefault(id(one), []).append(f"{where}.{name}" if where else name)
    return [" = ".join(places) for places in found.values() if len(places) > 1]


def _in_few_words(names: list[str]) -> str:
    """Return names, the first of many and a checksum of all."""
    if len(names) <= _SHOWN:
        return ", ".join(names) or "nothing"
    checksum = zlib.crc32(" ".join(names).encode())
    return f"{', '.join(names[:_SHOWN])} and {len(names) - _SHOWN} more (#{checksum:08x})"


def _class_of_layer(module: nn.Module) -> str:
    """Return the name of its class, without what torch puts before it once it is lazy or sharded."""
    return type(module).__name__.removeprefix("FSDP").removeprefix("Lazy")


def _constants(module: nn.Module) -> dict[str, str]:
    """Read the attributes that a layer of torch declares to be constant."""
    if not type(module).__module__.startswith("torch.nn."):
        return {}
    names = getattr(module, "__constants__", ())
    texts = {name: as_text(getattr(module, name, _MISSING)) for name in names}
    return {name: text for name, text in texts.items() if text is not None}


def _settings_of_optimizers(context: Context) -> Settings:
    """Read the settings that optimizers and schedulers had when they were made."""
    found: Settings = {}
    for index, slot in enumerate(context.slots):
        kind = type(slot.optimizer).__name__
        for place, group in enumerate(slot.configured):
            found[f"optimizer {index} ({kind}), group {place}"] = as_texts(group)
        for one in slot.schedulers:
            whose = f"{type(one.scheduler).__name__} of optimizer {index}"
            found[whose] = as_texts(one.configured)
            own = {name: getattr(one, name) for name in ("interval", "frequency", "monitor")}
            found[f"the use of {whose}"] = as_texts(own)
            if functions := note_functions(one):
                found[f"the functions of {whose}, for {compiler()}"] = functions
    return found


def note_functions(scheduler: Scheduler) -> dict[str, str]:
    """Say what the functions of a scheduler do, as it was when this was asked first."""
    if scheduler.functions is None:
        scheduler.functions = functions_of(scheduler.scheduler)
    return scheduler.functions


def as_texts(settings: Mapping[str, Any]) -> dict[str, str]:
    """Return the plain ones of these values as text."""
    texts = {}
    for name, value in settings.items():
        try:
            if type(value) in _TYPES or is_plain(value):
                text = repr(value)
                texts[name] = text if len(text) <= _LONGEST else text[:_LONGEST]
        except Exception as error:
            if (in_words := _without_decimals(value, error)) is not None:
                texts[name] = in_words
    return texts


def as_text(value: object) -> str | None:
    """Return a plain value as text; None for other values."""
    return as_texts({"": value}).get("")


def _without_decimals(value: object, error: Exception) -> str | None:
    """Return the text of a number with too many decimals to write; None of others, whose class may do anything."""
    is_number = isinstance(error, ValueError) and type(value) is int
    return hex(value)[:_LONGEST] if is_number else None  # type: ignore[arg-type]


def is_plain(value: object, around: tuple[int, ...] = ()) -> bool:
    """Whether a value is written the same in every process: numbers, texts, times, and collections of them.

    A collection that holds itself is not, and none that is nested too deeply.

    Args:
        value: The value.
        around: The collections that it stands in, by `id`.
    """
    try:
        if type(value) in _TYPES:  # most are
            return True
        if not isinstance(value, list | tuple | set | frozenset | Mapping):
            return isinstance(value, _PLAIN)
        if len(value) > _LONGEST or len(around) >= _DEEPEST or id(value) in around:
            return False
        inside = [*value, *value.values()] if isinstance(value, Mapping) else value
        around = (*around, id(value))
        return all(is_plain(one, around) for one in inside)
    except Exception:  # a class of a user may do anything
        return False
