"""A LightningModule as a model of this trainer: its steps, loaders, hooks and callbacks."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Generator, Iterator, Mapping, Sequence
from typing import Any, Final

import torch
from torch import nn

from statemachine_trainer.data import as_loader
from statemachine_trainer.integrations.lightning.hooks import Hooks
from statemachine_trainer.integrations.lightning.library import (
    Library,
    NotSupported,
)
from statemachine_trainer.integrations.lightning.loops import (
    LightningManualLoop,
    LightningOptimizerLoop,
    tell_of_hooks_not_called,
    with_scheduler_hook,
)
from statemachine_trainer.integrations.lightning.view import TrainerView
from statemachine_trainer.loops.context import Context
from statemachine_trainer.loops.guest import Guest
from statemachine_trainer.loops.optimizer import OptimizerLoop
from statemachine_trainer.machine.loop import Loop
from statemachine_trainer.parallel import to_device

_STEPS: Final = ("training_step", "validation_step", "test_step")
_LOADERS: Final = {
    "fit": ("train_dataloader", "val_dataloader"),
    "validate": ("val_dataloader",),
    "test": ("test_dataloader",),
    "predict": ("predict_dataloader",),
}
_TRANSFERS: Final = (
    "on_before_batch_transfer", "transfer_batch_to_device", "on_after_batch_transfer",
)  # fmt: skip


def module(
    module: nn.Module, *, callbacks: Sequence[Any] | Any = (), datamodule: Any = None
) -> LightningGuest:
    """Make a model for our trainer of a LightningModule, which is not changed.

    The hooks of module and callbacks are called in Lightning's order: callbacks first, then the module.
    Keep the model that is returned: `fit` called again with it goes on.

    Args:
        module: The LightningModule.
        callbacks: Lightning's callbacks, one or several. (Ours are given to the trainer.)
        datamodule: A LightningDataModule; its data are used where the trainer is given none.

    Returns:
        A model for `fit`, `validate`, `test` and `predict`. Its weights have the names that they have
        in the module.

    Raises:
        NotALightningModule: It is something else.
        NotSupported: It is written in a way that cannot run here; the message says what to do.
    """
    return LightningGuest(module, callbacks, datamodule)


class LightningGuest(Guest):
    """A LightningModule as a model of our trainer; made by `lightning.module`.

    Attributes:
        module: The LightningModule itself.
    """

    def __init__(self, module: Any, callbacks: Sequence[Any] | Any, datamodule: Any) -> None:
        library = Library.of(module)
        super().__init__()
        self.module = module
        given = list(callbacks) if isinstance(callbacks, Sequence) else [callbacks]
        self._view = TrainerView(self, module, library)
        self.hooks = Hooks(module, datamodule, given, library, self._view)
        self._view.hooks = self.hooks
        self._own_callbacks = given
        self.automatic_optimization: bool = module.automatic_optimization
        for name in _STEPS:
            if library.is_overridden(name, module):
                self._take_step(name)
        self._take_step("predict_step")

    # -- what the trainer asks of a guest --------------------------------------------------------

    def arrive(self, context: Context, stage: str, *data: Any) -> tuple[Any, ...]:
        """Attach the module to the run, call what prepares it, and find its data."""
        view, hooks = self._view, self.hooks
        view.begin(context, stage)
        self.module.trainer = view
        if hooks.datamodule is not None:
            hooks.datamodule.trainer = view
        for inner in self.module.modules():
            if hasattr(inner, "_device") and hasattr(inner, "_dtype"):
                inner._device = context.device  # known to `setup`, before anything is moved
        if stage == "fit" or not view.has_fitted:  # an evaluation leaves those of a fit alone
            hooks.callbacks = list(self._own_callbacks)
            hooks.take_callbacks_of_module()
        if stage == "fit":
            tell_of_hooks_not_called(context.trainer.loop, hooks)
        hooks.setup(stage)
        self.module.to(context.device)  # what `setup` and `configure_model` have made
        overridden = self.hooks.library.is_overridden
        things = (self.module, hooks.datamodule)
        if context.device.type != "cpu" or any(
            overridden(name, thing) for name in _TRANSFERS for thing in things
        ):
            context.transfer = self._transfer
        found = tuple(
            self._data(name) if given is None else given
            for given, name in zip(data, _LOADERS[stage], strict=True)
        )
        if stage == "fit" and found[0] is not None:
            _refuse_combined(found[0])
            train = _Once(found[0])
            view.begin(context, stage, train=train)
            found = (train if data[0] is None else found[0], *found[1:])
        return found

    def optimizer_loop(self, loop: OptimizerLoop) -> Loop:
        """Return the loop that calls the module's hooks within a batch."""
        if self.automatic_optimization:
            return LightningOptimizerLoop(self._view, loop)
        return LightningManualLoop(self._view, loop)

    def receiver(self) -> Hooks:
        """Return what calls the hooks."""
        return self.hooks

    def subscribe(self, trainer: Any) -> None:
        """Subscribe to the signals at which hooks are called."""
        self.hooks.subscribe(trainer)

    def failed(self, error: BaseException) -> None:
        """Tell the callbacks and the data module of an exception."""
        self.hooks.call_callbacks("on_exception", error)
        if self.hooks.datamodule is not None:
            self.hooks.datamodule.on_exception(error)

    # -- what the loops ask of a model -----------------------------------------------------------

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call the module."""
        return self.module(*args, **kwargs)

    def configure_optimizers(self) -> Any:
        """Return what the module returns."""
        found = self.hooks.call_module("configure_optimizers")
        return with_scheduler_hook(found, self.hooks, automatic=self.automatic_optimization)

    # -- names of weights: those of the module ---------------------------------------------------

    @property
    def training(self) -> bool:
        """Whether the module is in training mode."""
        inner = self._modules.get("module")
        return inner is None or inner.training

    @training.setter
    def training(self, mode: bool) -> None:
        inner = self.__dict__.get("_modules", {}).get("module")
        if inner is not None:
            inner.training = mode

    def named_modules(
        self, memo: set[nn.Module] | None = None, prefix: str = "", remove_duplicate: bool = True
    ) -> Iterator[tuple[str, nn.Module]]:
        """Yield the module and those inside it, by their names in the module."""
        yield from self.module.named_modules(memo, prefix, remove_duplicate)

    def get_submodule(self, target: str) -> nn.Module:
        """Return a module by its name in the LightningModule."""
        found: nn.Module = self.module.get_submodule(target)
        return found

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Return the state of the module, as `module.load_state_dict` takes it."""
        return self.module.state_dict(*args, **kwargs)

    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Load a state of the module."""
        return self.module.load_state_dict(state_dict, *args, **kwargs)

    # -- parts -----------------------------------------------------------------------------------

    def _take_step(self, name: str) -> None:
        """Take over a step of the module, with its signature."""
        method = getattr(self.module, name)
        if "dataloader_iter" in inspect.signature(method).parameters:
            raise NotSupported(
                f"{name}(dataloader_iter) reads its data itself, so nobody would know where they stand. "
                f"Write {name}(batch, batch_idx)."
            )

        @functools.wraps(method)
        def step(*args: Any, **kwargs: Any) -> Any:
            made = self.hooks.call_module(name, *args, **kwargs)
            return self.hooks.in_turns(name, made) if isinstance(made, Generator) else made

        self.__dict__[name] = step

    def _data(self, name: str) -> Any:
        """Return a method of data module or module that makes loaders; None if there is none."""
        overridden = self.hooks.library.is_overridden
        for thing in (self.hooks.datamodule, self.module):
            if overridden(name, thing):
                return getattr(thing, name)
        return None

    def _transfer(self, batch: Any) -> Any:
        """Move a batch to the device by the hooks that Lightning has for it."""
        context, call = self._view.context, self.hooks.call_data
        where = context.dataloader_idx
        batch = call("on_before_batch_transfer", batch, where)
        overridden = self.hooks.library.is_overridden
        things = (self.hooks.datamodule, self.module)
        if any(overridden("transfer_batch_to_device", thing) for thing in things):
            batch = call("transfer_batch_to_device", batch, context.device, where)
        elif context.device.type != "cpu":
            batch = to_device(batch, context.device)
        return call("on_after_batch_transfer", batch, where)


class _Once:
    """A source of data whose loader may be asked for before the fit takes it."""

    def __init__(self, source: Any) -> None:
        self._source = source
        self._made: Any = None

    def __call__(self) -> Any:
        """Return the loader: that which was asked for before, later a new one."""
        made, self._made = self._made, None
        return as_loader(self._source) if made is None else made

    def loader(self) -> Any:
        """Return the loader that the fit is going to take."""
        if self._made is None:
            self._made = as_loader(self._source)
        return self._made


def _refuse_combined(source: Any) -> None:
    several = isinstance(source, Mapping) or type(source).__name__ == "CombinedLoader"
    listed = isinstance(source, list | tuple) and all(
        isinstance(one, torch.utils.data.DataLoader) for one in source
    )
    if several or (listed and source):
        raise NotSupported(
            "Several training loaders at once (Lightning's CombinedLoader) cannot be resumed exactly. Give one "
            "loader over a data set that combines them, such as torch.utils.data.StackDataset."
        )
