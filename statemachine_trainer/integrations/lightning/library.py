"""The parts of Lightning that are used, from whichever of its two packages a module comes."""

from __future__ import annotations

import importlib
from functools import cached_property
from typing import Any, Final

from torch import nn

from statemachine_trainer.machine.errors import StateMachineError
from statemachine_trainer.parallel.wrappers import inner_of

_ROOTS: Final = ("lightning.pytorch", "pytorch_lightning")


class LightningError(StateMachineError):
    """Base of what can go wrong with a LightningModule here."""


class NotALightningModule(LightningError):
    """Something else was given where a LightningModule is expected."""


class NotAvailable(LightningError, AttributeError):
    """A module or callback asks for a part of Lightning's trainer that does not exist here."""


class NotSupported(LightningError):
    """A module is written in a way that cannot run here."""


class BadLightningFile(LightningError):
    """A file cannot be read as a checkpoint of Lightning, or is one of another model."""


class HooksNotCalledWarning(UserWarning):
    """A loop of the tree calls hooks neither of the module nor of its callbacks."""


class Library:
    """Lightning, as the package `lightning` or as `pytorch_lightning`.

    Their classes are not the same: a module is served by the package that it comes from.

    Args:
        root: "lightning.pytorch" or "pytorch_lightning".
    """

    def __init__(self, root: str) -> None:
        self.root = root

    @classmethod
    def of(cls, module: object) -> Library:
        """Find the library of a module.

        Raises:
            NotALightningModule: It is none.
        """
        root = _root_of(module)
        if root is not None:
            return cls(root)
        hint = (
            " A plain model goes to trainer.fit as it is." if isinstance(module, nn.Module) else ""
        )
        inner = inner_of(module) if isinstance(module, nn.Module) else None
        if inner is not None and _root_of(inner) is not None:
            hint = (
                " Give it the module inside. Several ranks put that into DistributedDataParallel when their fit "
                "begins; to do it yourself: parallel.ddp(lightning.module(lit))."
            )
        raise NotALightningModule(
            f"lightning.module takes a LightningModule, not a {type(module).__name__}.{hint}"
        )

    def get(self, path: str) -> Any:
        """Return an object of the library, such as "core.optimizer:LightningOptimizer"."""
        module, _, name = path.partition(":")
        return getattr(importlib.import_module(f"{self.root}.{module}"), name)

    def is_overridden(self, name: str, thing: object) -> bool:
        """Tell whether a module, data module or callback has a method of its own."""
        return thing is not None and bool(
            self.get("utilities.model_helpers:is_overridden")(name, thing)
        )

    @cached_property
    def version(self) -> str:
        """Version of the package."""
        return str(importlib.import_module(self.root).__version__)


def _root_of(module: object) -> str | None:
    """Return the package that a LightningModule comes from; None if it is none."""
    for base in type(module).__mro__:
        if base.__name__ == "LightningModule":
            for root in _ROOTS:
                if base.__module__.startswith(f"{root}."):
                    return root
    return None
