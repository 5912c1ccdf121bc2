"""Phases: fits one after the other in one machine, each with its declared changes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, Self, cast

from torch import nn
from torch.optim import Optimizer

from statemachine_trainer.loops.base import TrainingLoop, in_training
from statemachine_trainer.loops.context import Limits, Reloads
from statemachine_trainer.loops.fresh_start import (
    captured_callbacks,
    check_renewable,
    feeds_for,
    forget_posted,
    renew_callbacks,
    training_feed_for,
    withdraw_feeds,
)
from statemachine_trainer.loops.loop_errors import SettingError
from statemachine_trainer.loops.settings_checks import whole_number
from statemachine_trainer.loops.slots import OptimizerSlot, read_optimizers
from statemachine_trainer.machine.errors import suggest
from statemachine_trainer.machine.fields import field
from statemachine_trainer.machine.keywords import HasSettings, check_keywords
from statemachine_trainer.machine.loop import Loop
from statemachine_trainer.parallel.wrappers import PlainNames

Freeze = Sequence[str]
"""Names of modules and parameters."""

_GIVEN: Final = "given"
"""Under this name the data given to `fit` wait while a phase has data of its own."""

_NO_NAMES: Final = (_GIVEN, "phases", "cycles")


@dataclass(frozen=True)
class Phase(HasSettings):
    """One phase: a loop, and the changes while it runs. Nothing else changes.

    At the end of the phase `freeze`, the data and `optimizers` are undone. The next phase keeps the
    weights, the optimizers with their settings and schedulers, the callbacks, the counters, the
    random number generators, and the position in the data.

    Args:
        name: Of the phase, and of its state.
        loop: What runs: a `FitLoop`, or any loop that ends with `fit_done`. Its limits count from
            the beginning of the phase.
        freeze: Names of modules or parameters (`"backbone"`, `"backbone.0"`, `"head.bias"`) that
            stay as they are: without gradients, and the modules in evaluation mode, so that running
            statistics do not move either.
        train: Training data of the phase, as `fit` takes them. If the phase comes round again, they
            go on where they stood.
        validation: The same for validation.
        optimizer: "keep" (those that there are), "new" (what `configure_optimizers` returns, once
            more), or a function of the parameters that are not frozen that returns what
            `configure_optimizers` may return. A phase that comes round again makes them anew again.
        settings: For every parameter group of the optimizers at work, such as `{"lr": 1e-4}`; a
            scheduler that goes on may overrule them.
        schedule: A function of an optimizer that returns its scheduler for this phase (or a dict
            with `scheduler`, `interval` and so on); it begins at the present learning rate.
        optimizers: Numbers of those that work, where there are several; None for all. `max_steps`
            counts the steps of the first of these.
        fresh_callbacks: Begin with the callbacks as they were at the beginning of the run. So early
            stopping has no memory of the phases before; but neither has an average of weights.
    """

    name: str
    loop: Loop | type[Loop]
    freeze: Freeze = ()
    train: Any = None
    validation: Any = None
    optimizer: Literal["keep", "new"] | Callable[[list[nn.Parameter]], Any] = "keep"
    settings: Mapping[str, Any] | None = None
    schedule: Callable[[Optimizer], Any] | None = None
    optimizers: Sequence[int] | None = None
    fresh_callbacks: bool = False

    def __post_init__(self) -> None:
        if self.optimizer not in ("keep", "new") and not callable(self.optimizer):
            raise SettingError(
                f"Phase({self.name!r}, optimizer={self.optimizer!r}): use 'keep', 'new', or a "
                "function of the parameters that makes one."
            )
        if isinstance(self.freeze, str):
            raise SettingError(
                f"Phase({self.name!r}, freeze={self.freeze!r}): give a list, [{self.freeze!r}]."
            )


class PhasesLoop(TrainingLoop):
    """Runs fits one after the other, on one model; each phase is a state with its own name.

    Counters run on from phase to phase, so steps and epochs of a whole run are numbered once, and
    intervals of checkpoints and validations hold over all phases; the limits of each phase count
    from its beginning. A `stop` ends the present phase, and one that no phase took is forgotten
    when the next begins. With `cycles`, `end_cycles` may be posted: the run ends with the present
    round.

    A phase that a limit of steps ends within the data is validated at its end, as every fit is, and
    the next one goes on with the rest of the data. For short phases that alternate,
    `EpochLoop(validate_epochs=...)` says how often.

    Example:
        loop = PhasesLoop(
            Phase("pretrain", FitLoop(max_epochs=2), freeze=["backbone"]),
            Phase("finetune", FitLoop(max_epochs=3), optimizer="new", settings={"lr": 1e-4}),
        )
        Trainer(loop).fit(model, train, validation)

    Args:
        *phases: In order.
        cycles: How often they are gone through.

    Attributes:
        phases: The phases by name.
        phase: Name of the present one; "" between two.
        done: Phases that have ended.

    Raises:
        SettingError: A phase has no name, or the name of another.
    """

    initial = "phase_start"
    outcomes = ("fit_done",)

    phase: str = ""
    done: int = 0
    frozen: list[str] = field(factory=list)
    asleep: list[str] = field(factory=list)
    opened: list[str] = field(factory=list)
    first_callbacks: list[dict[str, Any]] | None = None

    _reload: Reloads | None = None
    """Makes the loaders anew that the data put aside were given with."""

    def __new__(cls, *phases: Phase, **settings: Any) -> Self:
        """Make a loop of a class of its own: states belong to a class, and here they are given."""
        check_keywords(cls, settings)
        kind = _with_states(cls, phases, settings.get("cycles", 1))
        return cast("Self", super().__new__(kind))

    def __init__(self, *phases: Phase, cycles: int = 1) -> None:
        self.phases = {phase.name: phase for phase in phases}
        self.cycles = whole_number(self, "cycles", cycles, 1)
        super().__init__(**{name: phase.loop for name, phase in self.phases.items()})

    # -- states ----------------------------------------------------------------------------------

    def __repr__(self) -> str:
        """Return the names of the phases and the settings that are not the defaults."""
        name, _, settings = super().__repr__().partition("(")
        phases = ", ".join(f"Phase({one!r})" for one in self.phases)
        return f"{name}({phases}{')' if settings == ')' else ', ' + settings}"

    def phase_start(self) -> str:
        """Apply the changes of the next phase."""
        context = self.context
        self.abandon()  # of an attempt that failed half-way
        if not self.done:
            self._begin_run()
        name = self._next_name()
        phase = self.phases[name]
        forget_posted(context)
        if phase.fresh_callbacks:
            renew_callbacks(context, self.first_callbacks or ())
        context.model.zero_grad(set_to_none=True)
        if not context.model.training:
            context.model.train()
        self.frozen, self.asleep = freeze(context.model, phase.freeze)
        self._equip_with_optimizers(phase)
        self._open_data(phase)
        self._exchange_data(phase, _GIVEN, name)
        context.read_clock()
        in_training(self[name]).count_from(context.counts)
        self.phase = name
        return name

    def phase_end(self) -> Literal["next_phase", "phases_done"]:
        """Undo the changes that hold for this phase only."""
        phase = self.phases[self.phase]
        self._exchange_data(phase, phase.name, _GIVEN)
        self._let_work(None)
        self.context.limits = Limits()
        self.abandon()
        self.phase = ""
        self.done += 1
        if self.done > (self.cycles - 1) * len(self.phases):  # it does not come round again
            self._let_go(phase.name)
        return "next_phase" if self.done < self.cycles * len(self.phases) else "phases_done"

    def phases_end(self) -> Literal["fit_done"]:
        """End the last phase, and drop the data of phases."""
        for name in [*self.opened]:
            self._let_go(name)
        return "fit_done"

    def between_rounds(self) -> bool:
        """Guard of `end_cycles`: a round is complete."""
        return self.done > 0 and self.done % len(self.phases) == 0

    def abandon(self) -> None:
        """Unfreeze all frozen parameters."""
        if self.context is None:
            return
        thaw(self.context.model, self.frozen, self.asleep)
        self.frozen, self.asleep = [], []

    def parts_with_settings(self) -> Mapping[str, object]:
        return {f"phase {name!r}": phase for name, phase in self.phases.items()}

    def more_to_come(self) -> bool | None:
        return self.done + 1 < len(self.phases)

    def restore(self) -> None:
        """Make the loaders of the saved run again."""
        self._reload = None  # those given to `fit` are the present ones, as when a fit begins
        for name in self.opened:
            self._make_feeds(self.phases[name])
        if self.phase:
            self._let_work(self.phases[self.phase].optimizers)
            self._exchange_data(self.phases[self.phase], _GIVEN, self.phase)

    # -- optimizers ------------------------------------------------------------------------------

    def _begin_run(self) -> None:
        """Find mistakes in all phases now, before the first one runs."""
        context = self.context
        self._reload = None
        for phase in self.phases.values():
            check_names(context.model, phase.freeze, f"Phase({phase.name!r})")
            if phase.optimizer == "new":
                check_renewable(context)
        self.first_callbacks = captured_callbacks(context)
        alone = len([*self.outwards()]) == 1
        if alone and any(slot.made_by or slot.scheduled_by for slot in context.slots):
            # A fit that goes on begins with the first phase, and not with what the last one made.
            context.slots = read_optimizers(context.steps.configure_optimizers())
            self._let_work(None)

    def _equip_with_optimizers(self, phase: Phase) -> None:
        context = self.context
        if phase.optimizer != "keep":
            context.slots = self.make_optimizers(phase.name)
        self._let_work(phase.optimizers)
        self._set(phase)
        if phase.schedule is not None:
            for index in context.turns.everybody:
                self.schedule(context.slots[index], phase.name)

    def make_optimizers(self, name: str) -> list[OptimizerSlot]:
        """Make those of a phase, of the parameters that are not frozen."""
        phase = self.phases[name]
        if callable(phase.optimizer):
            parameters = [p for p in self.context.model.parameters() if p.requires_grad]
            slots = read_optimizers(phase.optimizer(parameters))
        else:
            slots = read_optimizers(self.context.steps.configure_optimizers())
        for slot in slots:
            slot.made_by = (self._path(), name)
        return slots

    def schedule(self, slot: OptimizerSlot, name: str) -> None:
        """Give an optimizer the scheduler of a phase in place of those that it has."""
        make = self.phases[name].schedule
        assert make is not None
        for group in slot.optimizer.param_groups:
            group.pop("initial_lr", None)  # of the scheduler before: this one begins where it is
        config = {"optimizer": slot.optimizer, "lr_scheduler": make(slot.optimizer)}
        slot.schedulers = read_optimizers(config)[0].schedulers
        slot.scheduled_by = (self._path(), name)

    def _path(self) -> str:
        *_, root = self.outwards()
        return next(path for path, loop in root.walk() if loop is self)

    def _let_work(self, only: Sequence[int] | None) -> None:
        """Choose the optimizers that work, and the one whose steps are counted."""
        context = self.context
        if only is not None and not (only and {*only} <= {*range(len(context.slots))}):
            raise SettingError(
                f"Phase({self._next_name()!r}, optimizers={only!r}): there are "
                f"{len(context.slots)} optimizers, numbered from 0. Name one of them at least."
            )
        context.use_optimizers(only=only)

    def _set(self, phase: Phase) -> None:
        for index in self.context.turns.everybody:
            for group in self.context.slots[index].optimizer.param_groups:
                for name, value in (phase.settings or {}).items():
                    if name not in group:
                        known = [one for one in group if one != "params"]
                        raise SettingError(
                            f"Phase({phase.name!r}, settings=...): the optimizer has no setting "
                            f"{name!r}. {suggest(name, known)}"
                        )
                    group[name] = value

    # -- data ------------------------------------------------------------------------------------

    def _open_data(self, phase: Phase) -> None:
        own = phase.train is not None or phase.validation is not None
        if own and phase.name not in self.opened:
            self._make_feeds(phase)
            self.opened.append(phase.name)

    def _make_feeds(self, phase: Phase) -> None:
        others = self.context.others
        if phase.train is not None:
            feed = training_feed_for(self.context, phase.train)
            others[self._key(phase.name, "train")] = [("train", feed)]
        if phase.validation is not None:
            feeds = feeds_for(self.context, phase.validation, "validation")
            others[self._key(phase.name, "validation")] = feeds

    def _exchange_data(self, phase: Phase, leaving: str, coming: str) -> None:
        """Put the present data aside under one name, and take up those under the other."""
        context, others = self.context, self.context.others
        if phase.train is not None or phase.validation is not None:
            context.reload_data, self._reload = self._reload, context.reload_data
        if phase.train is not None:
            others[self._key(leaving, "train")] = [("train", context.train)]
            ((_, context.train),) = others.pop(self._key(coming, "train"))
        if phase.validation is not None:
            others[self._key(leaving, "validation")] = context.validation
            context.validation = others.pop(self._key(coming, "validation"))

    def _let_go(self, name: str) -> None:
        """Drop the data of a phase, and end its workers."""
        if name in self.opened:
            self.opened.remove(name)
            for kind in ("train", "validation"):
                withdraw_feeds(self.context, self._key(name, kind))

    def _key(self, name: str, kind: str) -> str:
        return f"{self._path()}/{name}/{kind}"

    def _next_name(self) -> str:
        return [*self.phases][self.done % len(self.phases)]


def _with_states(cls: type[Any], phases: Sequence[Phase], cycles: object) -> type[Any]:
    """Return a subclass that has a state for each phase."""
    names = [phase.name for phase in phases]
    if not names and "transitions" in vars(cls):
        return cls  # a copy of a loop is of the same class
    for name in names:
        if (
            not name.isidentifier()
            or names.count(name) > 1
            or name in _NO_NAMES
            or hasattr(cls, name)
        ):
            raise SettingError(
                f"{cls.__name__} cannot have a phase called {name!r}: use identifiers, each for "
                "one phase, and none that is a name of the loop itself."
            )
    if not names:
        raise SettingError(f"{cls.__name__} needs phases: {cls.__name__}(Phase('name', loop)).")

    def phase_start(self: PhasesLoop) -> str:
        return cls.phase_start(self)  # type: ignore[no-any-return]

    phase_start.__doc__ = cls.phase_start.__doc__
    phase_start.__annotations__["return"] = Literal[tuple(names)]
    transitions = [
        *([name, "phase_start", name] for name in names),
        *(["fit_done", name, "phase_end"] for name in names),
        ["next_phase", "phase_end", "phase_start"],
        ["phases_done", "phase_end", "phases_end"],
    ]
    body = {"phase_start": phase_start, "transitions": transitions, "__module__": cls.__module__}
    if cycles != 1:
        transitions.append(["end_cycles", "phase_start", "phases_end", "between_rounds"])
        body["posted"] = ("end_cycles",)
    return type(cls.__name__, (cls,), {**body, "__doc__": cls.__doc__})


# -- Parts of a model that are left as they are ---------------------------------------------------


def freeze(model: nn.Module, names: Freeze) -> tuple[list[str], list[str]]:
    """Switch off gradients, and put modules into evaluation mode: nothing of them moves.

    Args:
        model: The model.
        names: Of modules, all of whose parts are meant, and of parameters.

    Returns:
        The names of the parameters and modules that were changed by it, for `thaw`.
    """
    plain = PlainNames(model)
    frozen = [n for n, one in plain.parameters() if one.requires_grad and _within(n, names)]
    asleep = [n for n, one in plain.modules() if one.training and _within(n, names)]
    _switch(model, frozen, asleep, on=False)
    return frozen, asleep


def thaw(model: nn.Module, frozen: Sequence[str], asleep: Sequence[str]) -> None:
    """Undo what `freeze` did."""
    _switch(model, frozen, asleep, on=True)


def _switch(
    model: nn.Module, parameters: Sequence[str], modules: Sequence[str], *, on: bool
) -> None:
    plain = PlainNames(model)
    for name, parameter in plain.parameters():
        if name in parameters:
            parameter.requires_grad_(on)
    for name, module in plain.modules():
        if name in modules:
            module.training = on


def check_names(model: nn.Module, names: Freeze, where: str) -> None:
    """Refuse names that the model does not have.

    Raises:
        SettingError: It has none of that name.
    """
    plain = PlainNames(model)
    known = [*(name for name, _ in plain.modules() if name), *dict(plain.parameters())]
    for name in names:
        if name not in known:
            raise SettingError(
                f"{where} is to freeze {name!r}, but {type(model).__name__} has no module or "
                f"parameter of that name. {suggest(name, known)}"
            )


def _within(name: str, names: Freeze) -> bool:
    return any(name == one or name.startswith(f"{one}.") for one in names)
