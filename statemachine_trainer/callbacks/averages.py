"""Averages of the weights, evaluated and exported in their place: EMA and SWA, by torch.optim.swa_utils."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from operator import attrgetter, is_
from typing import Any, Final

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import update_bn

from statemachine_trainer.loops.context import Context
from statemachine_trainer.loops.loop_errors import SettingError
from statemachine_trainer.loops.metrics.fingerprint import fingerprint_of_weights
from statemachine_trainer.loops.plain_steps import inputs_of
from statemachine_trainer.loops.settings_checks import number, refuse, whole_number
from statemachine_trainer.machine.keywords import HasSettings
from statemachine_trainer.machine.signals import Moment
from statemachine_trainer.parallel import to_device
from statemachine_trainer.parallel.cut_up import exchange, is_fully_sharded, settle
from statemachine_trainer.parallel.wrappers import KnownParameters, PlainNames
from statemachine_trainer.snapshot.rng import isolated_rng

_ROOT = "fit"
_DEVICE: Final = attrgetter("device")


class Average(HasSettings):
    """What `EMA` and `SWA` have in common: keeps an average, and puts it in for evaluations.

    Validation, test and prediction of the model use the average, once there is one. The training goes on with
    the raw weights, which checkpoints hold as those of the model; the average is in the state of the
    callback. `load_weights(model, run, best="val_loss")` and `restore_best=True` load the average
    that was measured, `load_weights(model, run, average=True)` that of any checkpoint.

    Attributes:
        updates: How often weights were taken in.
        average: The averaged parameters, and buffers that belong to them, by name.
        ended_with: A fingerprint of the raw weights that the fit has ended with; None before its end.
        measured: A fingerprint of the average that the last validation measured.
    """

    def __init__(self) -> None:
        self.reset()

    def __repr__(self) -> str:
        return f"{type(self).__name__}(updates={self.updates})"

    def reset(self) -> None:
        """Forget everything, as at the beginning of a new run."""
        self.updates = 0
        self.average: dict[str, torch.Tensor] = {}
        self.measured: str | None = None
        self._pairs = _Pairs()
        self._raw: dict[str, torch.Tensor] | None = None
        self._out = False  # an error took it out in the middle of a validation of the fit
        self._put_in_by = ""
        self._model: nn.Module | None = None
        self.ended_with: str | None = None
        self._seen = 0

    # -- taking in -------------------------------------------------------------------------------

    def on_fit(self, trainer: Any) -> None:
        """Begin anew with a new run."""
        if trainer.context.counts.batch == 0:
            self.reset()
        self.ended_with = None

    def on_exit_fit(self, trainer: Any, moment: Moment) -> None:
        """Note which weights the fit ended with: the average stands for no others."""
        if moment.path == _ROOT:
            self.ended_with = fingerprint_of_weights(trainer.context.model)

    def failed(self, error: BaseException) -> None:
        """Put the raw weights back after an evaluation by itself that failed."""
        if self._model is not None and self._put_in_by != _ROOT:
            self._exchange(self._model)

    def halted(self, trainer: Any) -> None:
        """Put the raw weights back after a validation of the fit that failed."""
        if self._raw is not None:
            self._exchange(trainer.context.model)
            self._out = True

    def goes_on(self, trainer: Any) -> None:
        """Put the average in again where the fit goes on with the rest of that validation."""
        if self._out:
            self._out, self._put_in_by = False, _ROOT
            self._exchange_in(trainer.context.model)

    def _take_in(self, model: nn.Module, weight: float) -> None:
        """Bring the average up to date; the weights that the model has now count by `weight` in it."""
        groups = self._pairs.of(model, self.average, first=not self.updates)
        # As functions: a block of `no_grad` takes twice as many calls, and this runs after each step.
        before = torch.is_grad_enabled()
        torch.set_grad_enabled(False)
        try:
            for averaged, current in groups:
                torch._foreach_lerp_(averaged, current, weight)
        finally:
            torch.set_grad_enabled(before)
        self.updates += 1

    # -- evaluating ------------------------------------------------------------------------------

    def on_validation_start(self, trainer: Any, moment: Moment) -> None:
        """Put the average in."""
        self._put_in(trainer.context, moment)

    def on_exit_validation_end(self, trainer: Any, moment: Moment) -> None:
        """Put the raw weights back."""
        if self._raw is not None and moment.path.partition(".")[0] == _ROOT:
            self.measured = trainer.context.validated_weights
        self._put_back(trainer.context.model, moment)

    def on_test_start(self, trainer: Any, moment: Moment) -> None:
        """Put the average in."""
        self._put_in(trainer.context, moment)

    def on_exit_test_end(self, trainer: Any, moment: Moment) -> None:
        """Put the raw weights back."""
        self._put_back(trainer.context.model, moment)

    def on_predict_start(self, trainer: Any, moment: Moment) -> None:
        """Put the average in."""
        self._put_in(trainer.context, moment)

    def on_exit_predict_end(self, trainer: Any, moment: Moment) -> None:
        """Put the raw weights back."""
        self._put_back(trainer.context.model, moment)

    def _put_in(self, context: Context, moment: Moment) -> None:
        if not self.updates or self._raw is not None or context.of_checkpoint:
            return
        if not {*self.average} <= {*dict(_tensors(context.model))}:
            return  # another model than the one that was trained
        ended = self.ended_with
        if ended is not None and ended != fingerprint_of_weights(context.model):
            return  # somebody has given it other weights since, such as the best ones
        self._prepare(context)
        self._put_in_by = moment.path.partition(".")[0]
        self._exchange_in(context.model)

    def _exchange_in(self, model: nn.Module) -> None:
        self._model = model
        tensors = dict(_tensors(model))
        self._raw = {name: exchange(tensors[name], value) for name, value in self.average.items()}

    def _prepare(self, context: Context) -> None:
        """Do what the average needs before it is evaluated."""

    def _put_back(self, model: nn.Module, moment: Moment) -> None:
        if self._raw is None or self._put_in_by != moment.path.partition(".")[0]:
            return  # an evaluation by itself, in the middle of a validation of the fit
        self._exchange(model)

    def _exchange(self, model: nn.Module) -> None:
        tensors = dict(_tensors(model))
        for name, value in (self._raw or {}).items():
            exchange(tensors[name], value)
        self._raw = self._model = None

    # -- state -----------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return the average, and the raw weights while it is in their place."""
        return {
            "updates": self.updates,
            "average": dict(self.average),
            "raw": None if self._raw is None else dict(self._raw),
            "out": self._out,
            "put_in_by": self._put_in_by,
            "measured": self.measured,
            "seen": self._seen,
            "ended_with": self.ended_with,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` returned."""
        self.updates, self.measured = state["updates"], state["measured"]
        self.average = {name: one.clone() for name, one in state["average"].items()}
        raw = state["raw"]
        self._raw = None if raw is None else {name: one.clone() for name, one in raw.items()}
        self._put_in_by, self._seen = state["put_in_by"], state["seen"]
        self._out = state.get("out", False)
        self.ended_with = state["ended_with"]


class EMA(Average):
    """Keeps an exponential moving average of the weights, and evaluates it in their place.

    Example:
        >>> EMA(0.999)
        EMA(updates=0)

    Args:
        decay: How much of the average stays at each update; between 0 and 1.
        every: Optimizer steps from one update to the next.
        start: Optimizer steps before the first update.

    Raises:
        SettingError: A setting out of its range.
    """

    def __init__(self, decay: float = 0.999, *, every: int = 1, start: int = 0) -> None:
        if number(self, "decay", decay) >= 1:
            refuse(self, "decay", decay, "use a number between 0 and 1, such as 0.999.")
        self.decay = decay
        self.every = whole_number(self, "every", every, 1)
        self.start = whole_number(self, "start", start)
        super().__init__()

    def on_batch_end(self, trainer: Any, moment: Moment | None = None) -> None:
        """Take in the weights, if a step was made."""
        context = trainer.context
        step = context.counts.step
        before, self._seen = self._seen, step
        every = self.every
        if before < step > self.start and (every == 1 or step // every > before // every):
            self._take_in(context.model, 1 - self.decay)

    def on_drain(self, trainer: Any) -> None:
        """Take in the weights after the step of the last, open window of an epoch."""
        self.on_batch_end(trainer)


class SWA(Average):
    """Averages the weights at the end of each epoch from one on, and evaluates the average in their place.

    The average needs statistics of its own in layers of batch normalization. They are measured by a pass over
    `loader` before each validation, and by nothing else.

    Izmailov et al., "Averaging Weights Leads to Wider Optima and Better Generalization", UAI 2018.

    Args:
        start: Number of the first epoch, from 0, whose weights are taken in.
        loader: Inputs, or pairs of inputs and targets, for batch normalization: a loader of its own, not that of the
            fit. Not needed without such layers.

    Raises:
        SettingError: A setting out of its range.
    """

    def __init__(self, start: int = 0, *, loader: Iterable[Any] | None = None) -> None:
        self.start = whole_number(self, "start", start)
        if loader is not None and not hasattr(loader, "__iter__"):
            refuse(self, "loader", loader, "give a loader, or another iterable of batches.")
        self.loader = loader
        super().__init__()

    def on_fit(self, trainer: Any) -> None:
        """Begin anew with a new run.

        Raises:
            SettingError: Batch normalization without a loader, or with that of the fit.
        """
        super().on_fit(trainer)
        context = trainer.context
        if _normalizes(context.model) and self.loader is None:
            raise SettingError(
                f"{type(context.model).__name__} has batch normalization, and an average of weights needs "
                "statistics of its own there: SWA(loader=...), with a loader of its own."
            )
        if (
            self.loader is not None
            and self.loader is context.sources[0]
            and hasattr(self.loader, "sampler")
        ):
            raise SettingError(
                "SWA(loader=...) is the loader of the fit, whose place in the data it would lose. Make another one."
            )

    def on_drain(self, trainer: Any) -> None:
        """Take in the weights at the end of an epoch, before its validation."""
        context = trainer.context
        epoch = context.counts.epoch
        if context.open_windows or epoch < self.start or self._seen > epoch:
            return
        self._seen = epoch + 1
        self._take_in(context.model, 1 / (self.updates + 1))
        for name in [*self.average.keys() - dict(_parameters(context.model)).keys()]:
            del self.average[name]  # statistics of the average before

    def _prepare(self, context: Context) -> None:
        model, statistics = context.model, dict(_statistics(context.model))
        if not statistics or self.loader is None or statistics.keys() <= self.average.keys():
            return
        tensors = dict(_tensors(model))
        raw: dict[str, torch.Tensor] = {}
        training = [(module, module.training) for module in model.modules()]
        try:
            for name, value in statistics.items():
                raw[name] = exchange(tensors[name], value.clone())
            for name, value in self.average.items():
                before = exchange(tensors[name], value)
                raw.setdefault(name, before)
            with isolated_rng(), torch.no_grad(), context.precision.context():
                update_bn((to_device(inputs_of(one), context.device) for one in self.loader), model)
            self.average.update({name: tensors[name].data for name in statistics})
        finally:
            settle(model)
            for name, value in raw.items():
                exchange(tensors[name], value)
            for module, mode in training:
                module.training = mode


class _Pairs:
    """Each average beside its parameter, in groups that one call averages. Asked after each step.

    The groups are made anew when parameters or averages are other objects, or on other devices.
    """

    def __init__(self) -> None:
        self._parameters = KnownParameters()
        self._named: list[tuple[str, nn.Parameter]] | None = None
        self._current: list[nn.Parameter] = []
        self._devices: list[torch.device] = []
        self._averages: list[torch.Tensor] = []
        self._groups: list[tuple[list[torch.Tensor], list[torch.Tensor]]] = []
        self._cut_up = True

    def __reduce__(self) -> tuple[type[_Pairs], tuple[()]]:
        return _Pairs, ()  # a copy is made without the model

    def of(
        self, model: nn.Module, average: dict[str, torch.Tensor], *, first: bool
    ) -> list[tuple[list[torch.Tensor], list[torch.Tensor]]]:
        """Return the groups. A parameter without an average gets a copy of itself as one, and is in none.

        Args:
            model: The model.
            average: The averages by name; new ones are put in.
            first: Whether nothing was averaged yet, so that all of them are new.
        """
        if self._cut_up:
            settle(model)
        named = self._parameters.of(model)
        if (
            first
            or named is not self._named
            or [*map(_DEVICE, self._current)] != self._devices
            or len(average) != len(self._averages)
            or not all(map(is_, average.values(), self._averages))
        ):
            self._make(model, average, first=first)
        return self._groups

    def _make(self, model: nn.Module, average: dict[str, torch.Tensor], *, first: bool) -> None:
        settle(model)
        self._cut_up = any(map(is_fully_sharded, model.modules()))
        self._named = named = self._parameters.of(model)
        self._current = [one for _, one in named]
        self._devices = [one.device for one in self._current]
        groups: dict[Any, tuple[list[torch.Tensor], list[torch.Tensor]]] = {}
        for name, parameter in named:
            if not parameter.is_floating_point():
                continue
            known = average.get(name)
            if known is None or first:
                average[name] = parameter.detach().clone()
                self._named = None  # it is averaged from the next time on
                continue
            if known.device != parameter.device:
                known = average[name] = known.to(parameter.device)
            averaged, current = groups.setdefault(_kind(known), ([], []))
            averaged.append(known)
            current.append(parameter)
        self._averages, self._groups = [*average.values()], [*groups.values()]


def _kind(tensor: torch.Tensor) -> tuple[Any, ...]:
    """Return what tensors have in common that are averaged by one call."""
    return tensor.device, tensor.dtype, id(getattr(tensor, "device_mesh", None))


def _parameters(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    return ((name, one) for name, one in PlainNames(model).parameters() if one.is_floating_point())


def _tensors(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    settle(model)
    names = PlainNames(model)
    yield from names.parameters()
    yield from names.buffers()


def _normalizes(model: nn.Module) -> bool:
    return any(isinstance(one, _BatchNorm) and one.track_running_stats for one in model.modules())


def _statistics(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the running statistics of batch normalization by name."""
    for name, module in PlainNames(model).modules():
        if isinstance(module, _BatchNorm):
            for own, buffer in module.named_buffers(recurse=False):
                yield f"{name}.{own}" if name else own, buffer
