"""The steps of a model as functions of one form: a module with steps, or a plain model with a loss."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar, Final, NoReturn

from torch import nn
from torch.optim import Optimizer

from statemachine_trainer.loops.loop_errors import ModelError, OptimizerError, SettingError
from statemachine_trainer.loops.metrics.objects import MetricObject
from statemachine_trainer.loops.plain import (
    NOTHING_GIVEN,
    PlainMetrics,
    PlainParts,
    optimizers_of,
)
from statemachine_trainer.loops.plain_steps import (
    Step,
    finds_own_loss,
    inputs_of,
    own_loss_steps,
    supervised_steps,
)
from statemachine_trainer.machine.errors import suggest
from statemachine_trainer.machine.loop import Loop
from statemachine_trainer.parallel.gradient_sync import GradientSync, sync_of
from statemachine_trainer.parallel.ranks import Ranks

STEPS: Final = ("training_step", "validation_step", "test_step", "predict_step")


ASKABLE: Final = (
    "batch_idx", "dataloader_idx", "optimizer_idx", "split_idx", "hiddens", "optimizers", "trainer",
)  # fmt: skip
"""Further arguments that a step may name in its signature."""


class Steps:
    """The steps of a model, each called as `step(batch, batch_idx)`.

    Besides the batch and its number, a step gets the arguments that its signature names:
    `dataloader_idx`, `optimizer_idx`, `split_idx`, `hiddens`, `optimizers`, `trainer`. A second
    argument without a default gets the number of the batch, whatever its name; so does `*args`.
    `**kwargs` stays empty.

    Args:
        model: Any module. With `loss`, its training step is `loss(model(x), y)` on batches `(x,
            y)`, unless it has one of its own. A model without either that takes `labels`, as those
            of Hugging Face do, is called with the batch as keywords and computes its loss itself.
        given: What a plain model is given. An optimizer is used instead of `configure_optimizers`.
        source: Has an attribute for each further argument of a step; read at each call.
        sync: How the gradients of the model are averaged over the ranks. The training step is called
            through it.
        whole: The model as it was given, in all its wrappers; None if it is in none.

    Attributes:
        model: The module.
        sync: How its gradients are averaged over the ranks.
        whole: The module as it was given, in its wrappers.
        training: The training step.
        bare: The training step without what averages its gradients.
        takes_hiddens: Whether it has a parameter `hiddens`.
        apart: Whether a loop averages the gradients itself. Then no loop inlines the usual case of a forward or
            backward pass.
        given: What a plain model was given: its loss, optimizer, scheduler and metrics.
        metrics: Those metrics of each kind of step; None if there are none.
        by_hand: Whether the model asks for manual optimization (`automatic_optimization = False`).

    Raises:
        ModelError: A step has an unknown parameter without a default.
    """

    def __init__(
        self,
        model: nn.Module,
        source: object,
        given: PlainParts = NOTHING_GIVEN,
        sync: GradientSync | None = None,
        whole: nn.Module | None = None,
    ) -> None:
        if not isinstance(model, nn.Module):
            given = (
                f"the class {model.__name__}. Make one: {model.__name__}(...)"
                if isinstance(model, type)
                else f"a {type(model).__name__}; it must be a torch.nn.Module, and comes first: fit(model, loader)"
            )
            raise ModelError(f"The model is {given}.")
        self.sync = sync_of(model) if sync is None else sync
        if _is_lightning_module(model):
            _refuse_lightning(model, self.sync)
        self.model = model
        self.source = source
        self.whole: nn.Module = model if whole is None else whole
        self.by_hand = getattr(model, "automatic_optimization", True) is False
        self.takes_hiddens = self.apart = False
        self.training: Step = self._missing_training_step
        self.given = given
        self.metrics: PlainMetrics | None = None
        self._found: dict[str, Step] = {}
        for name in STEPS:
            method = getattr(model, name, None)
            if callable(method):
                self._found[name] = _adapt(method, f"{type(model).__name__}.{name}", source)
                if name == "training_step":
                    self.takes_hiddens = "hiddens" in inspect.signature(method).parameters
        if given.metrics is not None:
            self._refuse_unused_metrics()
            self.metrics = PlainMetrics(given.metrics, source)
        if given.loss is not None:
            for name, step in supervised_steps(model, given.loss, self.metrics).items():
                self._found.setdefault(name, step)
        elif not self._found and finds_own_loss(model):
            self._found.update(own_loss_steps(model))
        self.training = self._found.get("training_step", self.training)
        self.bare = self.training
        self._found.setdefault("predict_step", lambda batch, _batch_idx: model(inputs_of(batch)))
        if self.sync.by:
            self._call_through(self.sync)
        if Ranks.are_up() and not (self.sync.can_stand_in or self.by_hand):
            self._agree_on_none()

    # -- what a guest does in its own way ----------------------------------------------------------

    foreign: ClassVar[bool] = False
    """Whether the model is written for another library, with its own hooks; see `Guest`."""

    def arrive(self, _stage: str, *data: Any) -> tuple[Any, ...]:
        """Get the model ready for a fit or an evaluation; return the data to use."""
        return data

    def data_again(self, *data: Any) -> tuple[Any, ...]:
        """Return the data of a fit that goes on; None for those that it has."""
        return data

    def optimizer_loop(self, loop: Loop) -> Loop:
        """Return the loop to use in place of an `OptimizerLoop`."""
        return loop

    @property
    def keeps_modes(self) -> bool:
        """Whether parts of the model are to stay in training mode in the present evaluation."""
        return False

    def receiver(self) -> object:
        """Return the object whose methods receive signals."""
        return self.model

    def subscribe(self, _trainer: Any) -> bool:
        """Let the model subscribe its hooks; False if the caller must subscribe them by name."""
        return False

    def expect(self, state: Any) -> None:
        """Called with the state of the context before it, and the states of receivers, are loaded."""

    def failed(self, error: BaseException) -> None:
        """Called with an exception that ends the run."""

    # -- steps -----------------------------------------------------------------------------------

    @property
    def wants_outputs(self) -> bool:
        """Whether the model has a `training_epoch_end(outputs)`."""
        return callable(getattr(self.model, "training_epoch_end", None))

    def training_epoch_end(self, outputs: list[Any]) -> None:
        """Pass the outputs of an epoch's training steps to the model."""
        self.model.training_epoch_end(outputs)  # type: ignore[operator]

    def __contains__(self, name: str) -> bool:
        return name in self._found

    def get(self, name: str) -> Step:
        """Return a step.

        Raises:
            ModelError: The model has none; the message says what to write.
        """
        if name not in self._found:
            near = [n for n in dir(self.model) if n.endswith("_step") and n not in STEPS]
            advice = (
                "train a plain model with `fit(model, data, loss=..., optimizer=...)`"
                if name == "training_step"
                else "give the `loss=` of a plain model, to `fit` as to `validate` and `test`"
            )
            raise ModelError(
                f"{type(self.model).__name__} has no {name}(batch, batch_idx). "
                f"{suggest(name, near) + ' ' if near else ''}Write one, or {advice}."
            )
        return self._found[name]

    def configure_optimizers(self) -> Any:
        """Return the optimizers as the model, or the argument `optimizer=`, configures them."""
        return optimizers_of(self.given, self._configured(), self._total_steps)

    def metric_named(self, name: str) -> MetricObject | None:
        """Return the metric object of a plain model that is logged by a name; None if there is none."""
        return None if self.metrics is None else self.metrics.find(name)

    def _total_steps(self) -> int:
        found: int = self.source.trainer.total_steps  # type: ignore[attr-defined]
        return found

    def _configured(self) -> Any:
        if self.given.optimizer is not None:
            made: Any = self.given.optimizer
            if not isinstance(made, Optimizer) and callable(made):
                _refuse_needs(made)
                if next(self.model.parameters(), None) is None:
                    raise OptimizerError(
                        f"{type(self.model).__name__} has no parameters, so there is nothing to train. Are its layers "
                        "attributes of the model (or in a plain list, instead of nn.ModuleList)?"
                    )
                made = made(self.model.parameters())
                if isinstance(made, Mapping) or (isinstance(made, list | tuple) and made):
                    return made
            if not isinstance(made, Optimizer):
                raise OptimizerError(
                    "optimizer= is an optimizer, or a function that makes one of the parameters; this "
                    f"is a {type(made).__name__}. For more than one write configure_optimizers()."
                )
            return made
        configure = getattr(self.model, "configure_optimizers", None)
        if configure is None:
            raise OptimizerError(
                f"{type(self.model).__name__} has no configure_optimizers() and no optimizer= was "
                "given. Write the method, or pass one: "
                "`optimizer=torch.optim.Adam(model.parameters())`."
            )
        asked = inspect.signature(configure).parameters
        needed = [
            one.name
            for one in asked.values()
            if one.default is one.empty
            and one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD)
            and one.name != "total_steps"
        ]
        if needed:
            raise OptimizerError(
                f"{type(self.model).__name__}.configure_optimizers needs {', '.join(needed)}, which nothing fills. It "
                "may have a parameter total_steps; keep other settings as attributes of the model."
            )
        if "total_steps" in asked:
            return configure(total_steps=self._total_steps())
        return configure()

    def _refuse_unused_metrics(self) -> None:
        """Refuse metrics where nothing would fill them.

        Raises:
            SettingError: There is no loss, or the model has steps of its own.
        """
        own = [name for name in STEPS[:3] if name in self._found]
        if self.given.loss is None or own:
            why = f"has a {own[0]} of its own" if own else "was given no loss="
            raise SettingError(
                f"metrics= is for a plain model with loss=, and {type(self.model).__name__} {why}. Log metrics in its "
                "steps: log('acc', self.accuracy)."
            )

    def _call_through(self, sync: GradientSync) -> None:
        """Let the steps of a model of several ranks be called through what averages its gradients."""
        own = {name for name in STEPS if callable(getattr(self.model, name, None))}
        if "training_step" in self._found:
            kind = self._goes_backward_itself()
            if kind:
                step = sync.by_itself(self.training, kind)
            else:
                step = sync.through(self.training, own="training_step" in own)
            self.training = self._found["training_step"] = step
        for name in self._found.keys() - {"training_step"}:
            self._found[name] = sync.evaluated(self._found[name], own=name in own)

    def _agree_on_none(self) -> None:
        """Let the ranks agree on batches that are left out, if the code of the step leaves some out."""
        from statemachine_trainer.loops.agreed_step import agreed, may_return_none

        step = getattr(self.model, "training_step", None)
        if step is None or inspect.isgeneratorfunction(step) or not may_return_none(step):
            return
        self.training = self._found["training_step"] = agreed(self.training, self.sync)

    def _goes_backward_itself(self) -> str:
        """Return what the training step does if backward passes begin within it, or from what it yields; else "".

        Raises:
            ModelError: It yields losses, and it cannot be seen which one is whose.
        """
        yields = inspect.isgeneratorfunction(getattr(self.model, "training_step", None))
        kind, sync = type(self.model).__name__, self.sync
        if yields and sync.sees_all:
            raise ModelError(
                f"{kind} yields its losses in training_step, and its parameters are cut up by {sync.by}, so that "
                "it cannot be seen which loss is whose. Return one loss, or optimize by hand "
                "(automatic_optimization = False)."
            )
        if yields:
            return f"{kind} yields its losses in training_step"
        return f"{kind} optimizes by hand" if self.by_hand else ""

    def _missing_training_step(self, _batch: Any, _batch_idx: int) -> Any:
        return self.get("training_step")

    def split(self, batch: Any, split_steps: int) -> list[Any] | None:
        """Return the model's own splits of a batch along time; None if the model has no method for it."""
        for name in ("split_batch", "tbptt_split_batch"):
            method = getattr(self.model, name, None)
            if method is not None:
                pieces = method(batch, split_steps)
                if not isinstance(pieces, Iterable):
                    raise ModelError(
                        f"{type(self.model).__name__}.{name} returned a {type(pieces).__name__}; it "
                        "has to return the list of splits."
                    )
                return list(pieces)
        return None


def _adapt(method: Callable[..., Any], label: str, source: object) -> Step:
    """Wrap a method as a step that is called with the batch and its number."""
    yields = inspect.isgeneratorfunction(method) and not label.endswith(".training_step")
    if yields or inspect.iscoroutinefunction(method):
        raise ModelError(
            f"{label} {'yields' if yields else 'is asynchronous'}, so that a call of it does nothing "
            "yet. Write a plain method that returns."
        )
    parameters = list(inspect.signature(method).parameters.values())
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    spread = any(p.kind is p.VAR_POSITIONAL for p in parameters)
    if (not positional and not spread) or (positional and positional[0].name in ASKABLE):
        raise ModelError(
            f"The first parameter of {label} has to be the batch. Write it as "
            f"`{label.rpartition('.')[2]}(self, batch, batch_idx)`."
        )
    takes_number = spread if len(positional) < 2 else _is_number(positional[1])
    used = positional[: 1 + takes_number]
    extra = []
    for parameter in parameters:
        if parameter in used or parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        if parameter.name in ASKABLE and parameter.kind is not parameter.POSITIONAL_ONLY:
            extra.append(parameter.name)
        elif parameter.default is parameter.empty:
            raise ModelError(
                f"{label} has a parameter {parameter.name!r} that nothing fills. "
                f"{suggest(parameter.name, ASKABLE)} Or give it a default."
            )
    if not extra:
        return method if takes_number else lambda batch, _batch_idx: method(batch)

    def step(batch: Any, batch_idx: int) -> Any:
        arguments = {name: getattr(source, name) for name in extra}
        return method(batch, batch_idx, **arguments) if takes_number else method(batch, **arguments)

    return step


def _is_number(second: inspect.Parameter) -> bool:
    """Return whether the second parameter of a step is the number of the batch."""
    if second.name in ASKABLE:
        return second.name == "batch_idx"
    return second.default is second.empty


def _refuse_lightning(model: nn.Module, sync: GradientSync) -> NoReturn:
    kind = type(model).__name__
    if sync.by:
        raise ModelError(
            f"{kind} is a LightningModule in {sync.by}. Give `lightning.module({kind}())`, without a wrapper: when "
            "several ranks fit it, it is put into DistributedDataParallel as Lightning does."
        )
    raise ModelError(
        f"{kind} is a LightningModule. Give `lightning.module(model)`, with `from "
        "statemachine_trainer.integrations import lightning`."
    )


def _is_lightning_module(model: nn.Module) -> bool:
    bases = ((base.__name__, base.__module__.partition(".")[0]) for base in type(model).__mro__)
    return any(
        name == "LightningModule" and package in ("lightning", "pytorch_lightning")
        for name, package in bases
    )


def hooks_of(model: nn.Module) -> Mapping[str, Callable[..., Any]]:
    """Return the model's `on_<state>` methods, which are subscribed like those of a callback."""
    names = [n for n in dir(type(model)) if n.startswith("on_")]
    return {name: method for name in names if callable(method := getattr(model, name, None))}


def _refuse_needs(make: Any) -> None:
    """Refuse what cannot be called with the parameters of a model alone."""
    try:
        inspect.signature(make).bind(())
    except ValueError:  # it tells nobody what it takes
        return
    except TypeError as error:
        name = getattr(make, "__name__", type(make).__name__)
        raise OptimizerError(
            f"optimizer={name} is called with the parameters of the model: {error}. Give a function of them alone: "
            "optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1)."
        ) from None
