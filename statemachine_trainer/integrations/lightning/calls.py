"""Calls hooks of a LightningModule, its data module and Lightning's callbacks."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from functools import partial
from typing import Any

from statemachine_trainer.integrations.lightning.library import Library
from statemachine_trainer.integrations.lightning.ranks import prepares_data, wait_for_all


class HookCalls:
    """Calls hooks in Lightning's order: those of the callbacks, then the module's.

    Args:
        module: The LightningModule.
        datamodule: A LightningDataModule, or None.
        callbacks: Lightning's callbacks.
        library: Where these come from.

    Attributes:
        callbacks: Those of the present run.
        trainer: What the callbacks take for Lightning's trainer.
    """

    trainer: Any

    def __init__(
        self, module: Any, datamodule: Any, callbacks: Sequence[Any], library: Library
    ) -> None:
        self.module = module
        self.datamodule = datamodule
        self.callbacks = list(callbacks)
        self.library = library
        self._own_callbacks = list(callbacks)

    def call(self, name: str, *args: Any) -> Any:
        """Call a hook of every callback, then the module's; return what the module's answers."""
        self.call_callbacks(name, *args)
        return self.call_module(name, *args)

    def call_module(self, name: str, *args: Any, **kwargs: Any) -> Any:
        """Call a hook of the module; `self.log` learns from its name what it may do."""
        return self._within(name, lambda: getattr(self.module, name)(*args, **kwargs))

    def in_turns(self, name: str, step: Generator[Any, Any, Any]) -> Generator[Any, Any, Any]:
        """Go through a step that yields, each part of it as a call of the hook of this name."""
        received = None
        try:
            while True:
                received = yield self._within(name, partial(step.send, received))
        except StopIteration as end:
            return end.value
        finally:
            step.close()

    def call_callbacks(
        self, name: str, *args: Any, only: Callable[[Any], bool] | None = None
    ) -> None:
        """Call a hook of every callback, or of some."""

        def call() -> None:
            for callback in self.callbacks:
                if only is None or only(callback):
                    getattr(callback, name)(self.trainer, self.module, *args)

        self._within(name, call)

    def call_data(self, name: str, *args: Any) -> Any:
        """Call a hook of the data module where it has one, else the module's."""
        if self.library.is_overridden(name, self.datamodule):
            return getattr(self.datamodule, name)(*args)
        return self.call_module(name, *args)

    def any_has(self, *names: str) -> bool:
        """Tell whether module or data module has one of these methods of its own."""
        return any(
            self.library.is_overridden(name, thing)
            for name in names
            for thing in (self.module, self.datamodule)
        )

    def _within(self, name: str, function: Callable[[], Any]) -> Any:
        outer = self.module._current_fx_name
        self.module._current_fx_name = name
        try:
            return function()
        finally:
            self.module._current_fx_name = outer

    def model_eval(self, kind: str) -> bool:
        """Call the hook that puts the model into evaluation mode; tell whether it has left parts in training mode."""
        self.call_module(f"on_{kind}_model_eval")
        return any(module.training for module in self.module.modules())

    # -- before and after a run ------------------------------------------------------------------

    def take_callbacks(self) -> None:
        """Take the callbacks given, and those of the module in the place of others of the same class."""
        found = self.call_module("configure_callbacks")
        new = list(found) if isinstance(found, Sequence) else [found]
        given = self._own_callbacks
        kinds = {type(one) for one in given} - {self.library.get("callbacks:Callback")}
        replaced = {kind for kind in kinds if any(isinstance(one, kind) for one in new)}
        kept = [one for one in given if type(one) not in replaced]
        saving = self.library.get("callbacks:Checkpoint")
        self.callbacks = sorted([*kept, *new], key=lambda one: isinstance(one, saving))

    def setup(self, stage: str) -> None:
        """Call what prepares data, callbacks and module for a stage."""
        if self.datamodule is not None and prepares_data(self.datamodule):
            self.datamodule.prepare_data()
        if prepares_data(self.module):
            self.call_module("prepare_data")
        if stage == "fit":  # an evaluation may be that of one rank alone
            wait_for_all()
        self._call_all("setup", stage)
        self.call_module("configure_model")

    def teardown(self, stage: str) -> None:
        """Call what cleans up after a stage."""
        self._call_all("teardown", stage)

    def _call_all(self, name: str, stage: str) -> None:
        """Call a hook of data module, callbacks and module with the stage."""
        if self.datamodule is not None:
            getattr(self.datamodule, name)(stage)
        self.call_callbacks(name, stage)
        self.call_module(name, stage)
