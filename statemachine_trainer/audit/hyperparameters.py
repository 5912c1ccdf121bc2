"""The hyperparameters of a run: what it is set to, as its record holds it, for people who compare runs.

They come from five places: what the user gives as `Trainer(hparams=...)`, the model, the trainer, the optimizers,
and the data. Each value is a plain one, so that any reader of the record understands it.
"""

from __future__ import annotations

import argparse
import ast
import math
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, Final

import torch

from statemachine_trainer.audit.settings_of_run import (
    Settings,
    as_text,
    as_texts,
    constructor_values,
    is_plain,
)
from statemachine_trainer.loops.context import Context
from statemachine_trainer.loops.loop_errors import SettingError
from statemachine_trainer.observe.readings import named_apart
from statemachine_trainer.run_record import configuration

if TYPE_CHECKING:
    from statemachine_trainer.loops.assembly import Equipment

Value = None | bool | int | float | str
Sections = dict[str, dict[str, Value]]
"""Hyperparameters by where they come from, and by name."""

_LONGEST: Final = 500
_BITS: Final = 4096
"""Bits of a number up to which it is written as decimals; of many more Python refuses to."""
_DEEPEST: Final = 20
"""Mappings in mappings that are opened."""
_SWITCHES: Final = ("deterministic", "matmul_precision")
"""Those that the bits depend on."""


class Hyperparameters:
    """What the runs of one trainer are set to.

    What a model was made with is read once, before it trains: training may change its attributes.

    Args:
        own: What the user gave as `Trainer(hparams=...)`: a mapping, a dataclass or an `argparse.Namespace`, nested as
            deep as one likes. None means the options of `smt train`, if it runs.
        settings: Those that the trainer was made with, its equipment included.

    Raises:
        SettingError: `own` is something else.
    """

    def __init__(self, own: object, settings: Mapping[str, object]) -> None:
        configured = configuration()
        if own is None and configured is not None:
            own = configured.values
        if own is not None and _named_values(own) is None:
            raise SettingError(
                f"Trainer(hparams={own!r}): give a dict, a dataclass or an argparse.Namespace of what the run is set "
                "to, such as hparams={'width': 64}."
            )
        self._own = dict(_flat(own))
        self.settings = dict(settings)
        self._of_model: tuple[Context, dict[str, object]] | None = None

    def of(self, context: Context | None) -> dict[str, Value]:
        """Return all by name; a name that two places have means the first, and else it is `place/name`."""
        return named_apart(self.sections(context))

    def sections(self, context: Context | None) -> Sections:
        """Return all by the place they come from: "hparams", "model", "trainer", "optimizer" and "data".

        Args:
            context: That of the fit; None if there was none yet.
        """
        found: dict[str, Mapping[str, object]] = {"hparams": self._own}
        if context is not None:
            model = {"model": type(context.model).__name__, **self._values_of_model(context)}
            found |= {"model": model, "trainer": self.settings, **_of_optimizers(context)}
            found["data"] = _of_data(context)
        else:
            found["trainer"] = self.settings
        return {
            place: {name: _as_value(value) for name, value in named.items()}
            for place, named in found.items()
        }

    def record(self, context: Context) -> Settings:
        """Return what checkpoints hold, so that a script that resumes is told what it has changed."""
        of_model = self._values_of_model(context)
        return {
            "the hparams of the trainer": as_texts(self._own),
            f"the model ({type(context.model).__name__})": as_texts(of_model),
            "torch, as the trainer sets it": as_texts(
                {name: self.settings[name] for name in _SWITCHES if name in self.settings}
            ),
        }

    def _values_of_model(self, context: Context) -> dict[str, object]:
        if self._of_model is None or self._of_model[0] is not context:
            given = getattr(context.model, "hparams", None)
            named = dict(_flat(given)) or dict(constructor_values(context.model))
            self._of_model = (context, {k: v for k, v in named.items() if is_plain(v)})
        return self._of_model[1]


def settings_of_equipment(equipment: Equipment, device: object) -> dict[str, object]:
    """Return what all runs of a trainer have in common, by the names of its arguments."""
    return {
        "precision": str(equipment.precision_name),
        "seed": equipment.seed,
        "seed_samples": equipment.seed_samples,
        "prefetch": equipment.prefetch,
        "device": str(device),
    }


# -- Where they come from --------------------------------------------------------------------------


def _of_optimizers(context: Context) -> dict[str, dict[str, object]]:
    """Return what each group of parameters was given; the first of them is called "optimizer"."""
    found: dict[str, dict[str, object]] = {}
    for index, slot in enumerate(context.slots):
        for place, group in enumerate(slot.configured):
            name = f"optimizer {index}.{place}" if index or place else "optimizer"
            kind = {} if place else {"optimizer": type(slot.optimizer).__name__}
            values = {key: _read(value) for key, value in group.items()}
            found[name] = {**kind, **{k: v for k, v in values.items() if v is not None}}
    return found


def _of_data(context: Context) -> dict[str, object]:
    loader = None if context.train is None else context.train.loader
    size = getattr(loader, "batch_size", None)
    return {} if size is None else {"batch_size": size}


def _read(value: object) -> object:
    """Return a value of an optimizer; one that came from a checkpoint is text there."""
    if type(value) is str or not isinstance(value, str):
        return value
    try:
        return ast.literal_eval(repr(value))
    except (ValueError, SyntaxError):
        return str(value)


def _named_values(given: object) -> dict[str, Any] | None:
    """Return what stands in a mapping, a dataclass or a namespace; None for anything else."""
    try:
        if isinstance(given, Mapping):
            return {str(name): value for name, value in given.items()}
        if is_dataclass(given) and not isinstance(given, type):
            return {one.name: getattr(given, one.name) for one in fields(given)}
        return dict(vars(given)) if isinstance(given, argparse.Namespace) else None
    except Exception:  # a class of a user may do anything
        return None


def _flat(
    given: object, before: str = "", around: tuple[int, ...] = ()
) -> Iterator[tuple[str, object]]:
    """Yield what stands in nested mappings and dataclasses: "optimizer.lr". One that holds itself is no more opened."""
    around = (*around, id(given))
    for name, value in (_named_values(given) or {}).items():
        is_opened = id(value) not in around and len(around) < _DEEPEST
        if is_opened and _named_values(value):
            yield from _flat(value, f"{before}{name}.", around)
        else:
            yield f"{before}{name}", value


# -- As plain values -------------------------------------------------------------------------------


def _as_value(value: object) -> Value:
    """Return a value that JSON holds: numbers and texts as they are, else how Python writes it."""
    try:
        return _plain_value(value)
    except Exception:  # a class of a user may do anything
        return type(value).__qualname__


def _plain_value(value: object) -> Value:
    if isinstance(value, torch.Tensor) and value.numel() == 1:
        value = value.item()
    if isinstance(value, Enum):
        return str(value)
    if isinstance(value, float) and not math.isfinite(value):
        return repr(value)
    if isinstance(value, int) and value.bit_length() > _BITS:
        return hex(value)[:_LONGEST]
    if value is None or isinstance(value, bool | int | float):
        return value
    text = _as_words(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def _as_words(value: object) -> str:
    if isinstance(value, str | PurePath):
        return str(value)
    if (text := as_text(value)) is not None:
        return text
    # No `repr`: that of most objects has an address in it, which is another one in each process.
    return str(getattr(value, "__qualname__", type(value).__qualname__))
