"""A LightningModule as a model of this trainer: its steps, loaders, hooks and callbacks."""

from __future__ import annotations

import functools
import inspect
import warnings
from collections.abc import Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from torch import nn

from statemachine_trainer.integrations.lightning.calls import HookCalls
from statemachine_trainer.integrations.lightning.files import LightningFiles, is_lightning_file
from statemachine_trainer.integrations.lightning.hooks import Hooks
from statemachine_trainer.integrations.lightning.library import Library, NotSupported
from statemachine_trainer.integrations.lightning.loaders import (
    TrainingSource,
    evaluation_source,
    is_maker,
    is_nothing,
    is_several,
)
from statemachine_trainer.integrations.lightning.loggers import LoggerConnector
from statemachine_trainer.integrations.lightning.memory import Memory
from statemachine_trainer.integrations.lightning.optimizer_loops import (
    LightningManualLoop,
    LightningOptimizerLoop,
    Parts,
)
from statemachine_trainer.integrations.lightning.ranks import Dealer, begin, wrap
from statemachine_trainer.integrations.lightning.results import Results
from statemachine_trainer.integrations.lightning.scheduler_configs import with_scheduler_hook
from statemachine_trainer.integrations.lightning.standing import Standing
from statemachine_trainer.integrations.lightning.strategy import StrategyView
from statemachine_trainer.integrations.lightning.uncalled_hooks import tell_of_hooks_not_called
from statemachine_trainer.integrations.lightning.view import TrainerView
from statemachine_trainer.loops.context import Context
from statemachine_trainer.loops.guest import Guest
from statemachine_trainer.loops.optimizer import OptimizerLoop
from statemachine_trainer.machine.errors import level_of_caller
from statemachine_trainer.machine.loop import Loop
from statemachine_trainer.parallel import to_device

_STEPS: Final = ("training_step", "validation_step", "test_step")
_LOADERS: Final = {
    "validate": ("val_dataloader",),
    "test": ("test_dataloader",),
    "predict": ("predict_dataloader",),
}
_TRANSFERS: Final = (
    "on_before_batch_transfer", "transfer_batch_to_device", "on_after_batch_transfer",
)  # fmt: skip
_INSTEAD: Final = {
    "LearningRateFinder": "Set the rate yourself: `fit` from one checkpoint with several rates shows which is good",
    "BatchSizeFinder": "Set the batch size of the loader yourself",
}
"""Callbacks of Lightning that run its own trainer, with what to do in their place."""


class LeftOutWarning(UserWarning):
    """Data were given that no step of the module takes."""


def module(
    module: nn.Module,
    *,
    callbacks: Sequence[Any] | Any = (),
    datamodule: Any = None,
    loggers: Sequence[Any] | Any = (),
    log_every_n_steps: int = 50,
) -> LightningGuest:
    """Make a model for our trainer of a LightningModule, which is not changed.

    The hooks of module and callbacks are called in Lightning's order: callbacks first, then the module.
    Keep the model that is returned: `fit` called again with it goes on.

    Args:
        module: The LightningModule.
        callbacks: Lightning's callbacks, one or several. (Ours are given to the trainer.)
        datamodule: A LightningDataModule; its data are used where the trainer is given none.
        loggers: Lightning's loggers, one or several, to which `self.log` writes. (Trackers of ours are given
            to the trainer.)
        log_every_n_steps: Steps from one writing of steps to the next.

    Returns:
        A model for `fit`, `validate`, `test` and `predict`. Its weights have the names that they have
        in the module. `fit(model, resume="some.ckpt")` goes on from a checkpoint of Lightning's.

    Raises:
        NotALightningModule: It is something else.
        NotSupported: It is written in a way that cannot run here; the message says what to do.
    """
    Library.of(module)
    # Of the same name as the module's class, so that every message names what the user knows.
    kind: type[LightningGuest] = type(
        type(module).__name__, (LightningGuest,), {"__module__": __name__}
    )
    return kind(module, callbacks, datamodule, loggers, log_every_n_steps)


class LightningGuest(Guest):
    """A LightningModule as a model of our trainer; made by `lightning.module`.

    Attributes:
        module: The LightningModule itself.
    """

    def __init__(
        self,
        module: Any,
        callbacks: Sequence[Any] | Any = (),
        datamodule: Any = None,
        loggers: Sequence[Any] | Any = (),
        log_every_n_steps: int = 50,
    ) -> None:
        library = Library.of(module)
        super().__init__()
        self.module = module
        self._standing = standing = Standing(module, library)
        self._calls = calls = HookCalls(module, datamodule, _several(callbacks), library)
        strategy, files = StrategyView(standing, calls), LightningFiles(standing, calls)
        self._connector = LoggerConnector(
            standing, calls, Results(standing), _several(loggers), log_every_n_steps
        )
        self._memory = Memory(calls, standing, files)
        self.hooks = Hooks(calls, standing, self._memory, self._connector, self)
        self._parts = Parts(self.hooks, standing, strategy)
        self._dealer = Dealer(library)
        self._given: tuple[Any, ...] = (None, None)
        self._found: tuple[Any, ...] = (None, None)
        self._view = calls.trainer = TrainerView(standing, calls, strategy, files, self._connector)
        self.automatic_optimization: bool = module.automatic_optimization
        for name in _STEPS:
            if library.is_overridden(name, module):
                self._take_step(name)
        self._take_step("predict_step")

    # -- what the trainer asks of a guest --------------------------------------------------------

    def arrive(self, context: Context, stage: str, *data: Any) -> tuple[Any, ...]:
        """Attach the module to the run, call what prepares it, and find its data."""
        view, calls, standing = self._view, self._calls, self._standing
        standing.begin(context, stage)
        self.module.trainer = view
        if calls.datamodule is not None:
            calls.datamodule.trainer = view
        for inner in self.module.modules():
            if hasattr(inner, "_device") and hasattr(inner, "_dtype"):
                inner._device = context.device  # known to `setup`, before anything is moved
        if stage == "fit" or not standing.has_fitted:  # an evaluation leaves those of a fit alone
            calls.take_callbacks()
            _refuse_callbacks(calls.callbacks)
        if stage == "fit":
            begin(calls.library)
            tell_of_hooks_not_called(context.trainer.loop, calls)
            self._memory.arrive()
            standing.validates = self._data("val_dataloader") is not None or data[1] is not None
            standing.validates &= calls.library.is_overridden("validation_step", self.module)
        calls.setup(stage)
        self.module.to(context.device)  # what `setup` and `configure_model` have made
        if context.device.type != "cpu" or calls.any_has(*_TRANSFERS):
            context.transfer = self._transfer
        if stage == "fit":
            standing.averaging = wrap(self.module, context.steps, context.device)
            found = self._training_data(data[0], context), self._validation_data(data[1], context)
            self._given, self._found = data, found
            return found
        given = self._data(*_LOADERS[stage]) if data[0] is None else data[0]
        return (None if given is None else evaluation_source(given, context, self._combined),)

    def data_again(self, context: Context, *data: Any) -> tuple[Any, ...]:
        """Return the data of a fit that goes on: those that were given before keep their place."""
        settle = (self._training_data, self._validation_data)
        found = tuple(
            None if one is None else known if one is was else make(one, context)
            for one, was, known, make in zip(data, self._given, self._found, settle, strict=True)
        )
        self._given, self._found = (
            tuple(was if one is None else one for one, was in zip(new, before, strict=True))
            for new, before in ((data, self._given), (found, self._found))
        )
        return found

    def optimizer_loop(self, loop: OptimizerLoop) -> Loop:
        """Return the loop that calls the module's hooks within a batch."""
        if self.automatic_optimization:
            return LightningOptimizerLoop(self._parts, loop)
        return LightningManualLoop(self._parts, loop)

    def receiver(self) -> Hooks:
        """Return what calls the hooks."""
        return self.hooks

    def subscribe(self, trainer: Any) -> None:
        """Subscribe to the signals at which hooks are called."""
        self.hooks.subscribe(trainer)

    def failed(self, error: BaseException) -> None:
        """Tell the callbacks, the data module and the loggers of an exception."""
        self._calls.call_callbacks("on_exception", error)
        if self._calls.datamodule is not None:
            self._calls.datamodule.on_exception(error)
        self._connector.finish("failed")

    def goes_on_from(self, path: object) -> bool:
        """Take a checkpoint of Lightning's to go on from, if the path names one."""
        if not is_lightning_file(path):
            return False
        self._memory.go_on_from_file(Path(str(path)).absolute())
        return True

    def expect(self, state: Mapping[str, Any]) -> None:
        """Hear of the state of the fit that is about to be loaded."""
        self._memory.expect(state)

    # -- what the loops ask of a model -----------------------------------------------------------

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call the module."""
        return self.module(*args, **kwargs)

    def configure_optimizers(self) -> Any:
        """Return what the module returns."""
        found = self._calls.call_module("configure_optimizers")
        return with_scheduler_hook(found, self._calls, automatic=self.automatic_optimization)

    @property
    def keeps_modes(self) -> bool:
        """Whether the module has left parts of itself in training mode for the present evaluation."""
        return self._standing.keeps_modes

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
            made = self._calls.call_module(name, *args, **kwargs)
            return self._calls.in_turns(name, made) if isinstance(made, Generator) else made

        self.__dict__[name] = step

    def _data(self, name: str) -> Any:
        """Return a method of data module or module that makes loaders; None if there is none."""
        for thing in (self._calls.datamodule, self.module):
            if self._calls.library.is_overridden(name, thing):
                return getattr(thing, name)
        return None

    @property
    def _combined(self) -> Any:
        return self._calls.library.get("utilities.combined_loader:CombinedLoader")

    def _training_data(self, given: Any, context: Context) -> Any:
        """Return what the fit makes its training loader of, and what hooks may ask for it before."""
        source = self._data("train_dataloader") if given is None else given
        if source is None:
            return None
        source = self._dealt(source, training=True)
        made = TrainingSource(source, context, self._combined)
        self._standing.take_training_source(made)
        several = is_several(source) or isinstance(source, self._combined)
        return source if given is not None and not several else made

    def _validation_data(self, given: Any, context: Context) -> Any:
        """Return the validation data; None where the module has no step for them, or there are none."""
        source = self._data("val_dataloader") if given is None else given
        if source is None or is_nothing(source):
            return None
        if not self._calls.library.is_overridden("validation_step", self.module):
            warnings.warn(
                f"There are validation data, and {type(self).__name__} has no validation_step: the validation is left "
                "out, as in Lightning. Write one, or give no data.",
                LeftOutWarning,
                stacklevel=level_of_caller(),
            )
            return None
        source = self._dealt(source, training=False)
        return evaluation_source(source, context, self._combined)

    def _dealt(self, source: Any, *, training: bool) -> Any:
        """Return data of a fit, or what makes them, of which each of several ranks reads its own samples."""
        if not is_maker(source):
            return self._dealer.deal(source, training=training)

        @functools.wraps(source)
        def make(*arguments: Any, **named: Any) -> Any:
            with self._dealer.watching():
                made = source(*arguments, **named)
            return self._dealer.deal(made, training=training)

        return make

    def _transfer(self, batch: Any) -> Any:
        """Move a batch to the device by the hooks that Lightning has for it."""
        context, call = self._standing.context, self._calls.call_data
        where = context.dataloader_idx
        batch = call("on_before_batch_transfer", batch, where)
        if self._calls.any_has("transfer_batch_to_device"):
            batch = call("transfer_batch_to_device", batch, context.device, where)
        elif context.device.type != "cpu":
            batch = to_device(batch, context.device)
        return call("on_after_batch_transfer", batch, where)


def _several(given: Any) -> list[Any]:
    if given is None or given is False:
        return []
    return list(given) if isinstance(given, list | tuple) else [given]


def _refuse_callbacks(callbacks: Sequence[Any]) -> None:
    for one in callbacks:
        for base in type(one).__mro__:
            if base.__name__ in _INSTEAD:
                raise NotSupported(
                    f"{type(one).__name__} runs Lightning's own trainer, which never runs here. "
                    f"{_INSTEAD[base.__name__]}. See docs/migration.md."
                )
