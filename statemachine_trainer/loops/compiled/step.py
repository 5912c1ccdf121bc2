"""The compiled step: forward, backward, clipping and the optimizer's step in one call."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any, Final, Literal

import torch

from statemachine_trainer.loops.compiled.capture import (
    Arguments,
    Capture,
    LogRecorder,
    NotCapturable,
    failing_condition,
)
from statemachine_trainer.loops.compiled.fused import FusedStep, has_hooks
from statemachine_trainer.loops.compiled.joint import NotTraceable, Recipe, StateMissing
from statemachine_trainer.loops.compiled.program import Backend, Compiled, Options
from statemachine_trainer.loops.loop_errors import SettingError
from statemachine_trainer.loops.optimizer import NonFinite, OptimizerLoop
from statemachine_trainer.loops.optimizers import OptimizerSlot, step_schedulers
from statemachine_trainer.loops.outputs import gather
from statemachine_trainer.loops.settings_checks import flags, refuse, whole_number
from statemachine_trainer.machine.errors import level_of_caller
from statemachine_trainer.machine.fields import RUN, field
from statemachine_trainer.parallel.containers import detach

Mode = Literal["default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"]

_MODES: Final = ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")
_MOST_SETTINGS: Final = 4
_MOST_TIMES: Final = 8


class NotCompiled(UserWarning):
    """A step, or a part of it, is done without the compiler; the text says why."""


class CompiledStep(OptimizerLoop):
    """Takes the place of `OptimizerLoop`: the whole step is one compiled call.

        trainer.loop.replace(optimizer=CompiledStep)

    The first step of each optimizer is done without the compiler, which gives the optimizer its
    state. Then the training step is captured, once for each shape of a batch, and compiled together
    with its gradients, the clipping and the optimizer's own code. The optimizer keeps its state, the
    model its parameters: both are written to where they are.

    What cannot be captured is done as in `OptimizerLoop`, with the same results, and a warning says
    what it was: all of it, or the step of an optimizer alone. Done so from the beginning: steps of
    optimizers that evaluate the loss themselves, or have hooks; with fp16 or a check of the loss,
    the optimizer steps outside of the compiled call.

    Args:
        accumulate: Backward passes per step, as are the next three, see `OptimizerLoop`.
        clip_norm: Largest 2-norm of the gradients of an optimizer.
        clip_value: Largest absolute value of a gradient.
        nonfinite_loss: What to do with a NaN or infinite loss.
        mode: As for `torch.compile`; "reduce-overhead" is for CUDA graphs.
        options: Settings of the compiler, as for `torch.compile`.
        backend: "inductor", the compiler of torch; or "eager", which captures and joins all the same
            and runs the graph as it is. It needs no C++ compiler, and shows whether a difference
            comes from the compiler.
        same_random: Draw the random numbers (of dropout, say) that are drawn without the compiler.
            False lets the compiler draw others, faster.
        most_graphs: So many graphs are captured; after that the compiler is given up.

    Raises:
        SettingError: A setting out of its range; a model that has a loop of its own.

    Warns:
        NotCompiled: Something is done without the compiler.
    """

    initial = "compiled_step"
    transitions = (  # type: ignore[assignment]
        # event              source            destination
        ["stepped", "compiled_step", "optimizer_step"],
        ["backward_done", "compiled_step", "optimizer_step"],
        ["next_optimizer", "compiled_step", "compiled_step"],
        ["uncompiled", "compiled_step", "forward"],
        ["forward_done", "forward", "backward"],
        ["closure", "forward", "optimizer_step"],
        ["next_optimizer", "forward", "compiled_step"],
        ["backward_done", "backward", "optimizer_step"],
        ["next_optimizer", "backward", "compiled_step"],
        ["next_optimizer", "optimizer_step", "compiled_step"],
        ["next_window", "optimizer_step", "optimizer_step"],
    )

    stepped: bool = False
    """Whether the optimizer whose state `optimizer_step` is has stepped already."""

    eager: str | None = field(None, scope=RUN)
    """Why nothing is compiled any more."""

    apart: list[int] = field(factory=list, scope=RUN)
    """The optimizers whose step is not part of the compiled call."""

    graphs: list[str] = field(factory=list, scope=RUN)
    """What was captured in this run, also by the processes before this one."""

    settings: dict[int, list[str]] = field(factory=dict, scope=RUN)
    """The settings that the groups of each optimizer have had."""

    def __init__(
        self,
        *,
        accumulate: int | Mapping[int, int] = 1,
        clip_norm: float | None = None,
        clip_value: float | None = None,
        nonfinite_loss: NonFinite = "ignore",
        mode: Mode = "default",
        options: Mapping[str, Any] | None = None,
        backend: Backend = "inductor",
        same_random: bool = True,
        most_graphs: int = 16,
    ) -> None:
        super().__init__(
            accumulate=accumulate,
            clip_norm=clip_norm,
            clip_value=clip_value,
            nonfinite_loss=nonfinite_loss,
        )
        if mode not in _MODES:
            raise SettingError(f"CompiledStep(mode={mode!r}): use one of {', '.join(_MODES)}.")
        self.mode = mode
        if backend not in ("inductor", "eager"):
            raise SettingError(f"CompiledStep(backend={backend!r}): use 'inductor' or 'eager'.")
        self.backend: Backend = backend
        if not isinstance(options or {}, Mapping):
            refuse(self, "options", options, "give a dict, as for torch.compile.")
        flags(self, same_random=same_random)
        self.options = dict(options or {})
        self.same_random = same_random
        self.most_graphs = whole_number(self, "most_graphs", most_graphs, 1)
        self._fused: dict[int, FusedStep] = {}
        self._recorder = LogRecorder()

    def __getstate__(self) -> dict[str, Any]:
        """Copies compile for themselves."""
        return {**super().__getstate__(), "_fused": {}}

    # -- states ----------------------------------------------------------------------------------

    def compiled_step(
        self,
    ) -> Literal["stepped", "backward_done", "next_optimizer", "optimized", "uncompiled"]:
        """Do forward, backward and, at the end of a window, clipping and the optimizer's step."""
        context = self.context
        slots = context.slots
        if len(slots) > 1:
            self._take_turn()
        else:
            context.optimizer_idx = 0
        index = context.optimizer_idx
        slot = slots[index]
        fused = self._fused.get(index)
        if fused is None or fused.slot is not slot:
            fused = self._fuse(index, slot)
        closes = slot.window + 1 >= self._window_size(slot)
        # The first step gives the optimizer its state.
        compiles = self.eager is None and slot.steps and not slot.takes_closure
        program = self._run(index, fused, closes) if compiles else None
        if program is None:
            fused.clean = False
            return "uncompiled"
        if context.outputs is not None:
            gather(context)
        if program.recipe.updates:
            self.stepped = True
            return "stepped"
        assert context.loss is not None
        if self.nonfinite_loss != "ignore" and not self._is_finite(context.loss):
            return self._turn_done()
        program.keep_gradients()
        slot.size = self._window_size(slot)
        slot.window += 1
        return "backward_done" if closes else self._turn_done()

    def optimizer_step(self) -> Literal["next_optimizer", "optimized", "next_window", "flushed"]:
        """Count the step and step the schedulers; do the step, where it was not compiled."""
        context = self.context
        index = context.optimizer_idx
        if not self.stepped:
            for fused in self._fused.values():
                fused.clean = False
            return super().optimizer_step()
        self.stepped = False
        slot = context.slots[index]
        context.count_step(index)
        if slot.schedulers:
            step_schedulers(slot, "step", slot.steps, context)
        return self._turn_done() if len(context.slots) > 1 else "optimized"

    def why_alone(self) -> str | None:
        return (
            f"is a {type(self).__name__}, whose compiled call averages no gradients. Use OptimizerLoop "
            "with several ranks."
        )

    # -- the compiled call -----------------------------------------------------------------------

    def _fuse(self, index: int, slot: OptimizerSlot) -> FusedStep:
        context = self.context
        for what, there in (
            ("optimizes by hand", context.steps.by_hand),
            ("is of another library, whose hooks would not be called", context.steps.foreign),
        ):
            if there:
                raise SettingError(
                    f"{type(context.model).__name__} {what}; CompiledStep is for other models. "
                    "Leave the OptimizerLoop in its place."
                )
        options = {**_settings_of(self.mode, context.device), **self.options}
        fused = FusedStep(context, slot, Options(options, self.same_random, self.backend))
        self._fused[index] = fused
        return fused

    def _run(self, index: int, fused: FusedStep, closes: bool) -> Compiled | None:
        """Call what is compiled for this batch; None where nothing can be.

        What the step returned is in the context then.
        """
        context = self.context
        table = context.log_table
        steps = context.steps
        arguments: Arguments = {
            "training": steps.training,
            "split": context.split,
            "batch_idx": context.batch_idx,
            "takes_hiddens": steps.takes_hiddens,
            "autocast": fused.autocast,
        }
        context.log_table = self._recorder  # type: ignore[assignment]
        try:
            capture = fused.find(arguments) or fused.capture(arguments, context)
            if capture.graph is None:
                return None
            program = self._program(index, fused, capture, arguments, closes)
            if not fused.clean:
                fused.clear()
            if program.recipe.scaled:
                program.scale = fused.scale(context)
            context.loss, hiddens, context.output = capture.replay(program, arguments)
        except StateMissing:
            return None
        except NotCapturable as error:
            self._give_up(f"the training step cannot be captured: {error}")
            return None
        finally:
            context.log_table = table
        if hiddens is not None:
            context.keep_hiddens(detach(hiddens))
        if self._recorder.entries:
            self._recorder.write_to(table)
        if not capture.counted:
            capture.counted = True
            self._count(fused, capture, arguments)
        return program

    def _program(
        self,
        index: int,
        fused: FusedStep,
        capture: Capture,
        arguments: Arguments,
        closes: bool,
    ) -> Compiled:
        """Return the program that does what is to be done; compile it where it is the first time."""
        scaled = self.context.precision.scaler is not None
        updates = closes and not scaled and self.nonfinite_loss == "ignore"
        updates = updates and index not in self.apart and not has_hooks(fused.slot.optimizer)
        binding = fused.binding
        if binding is None or not (binding.holds() if updates else binding.holds_for_gradients()):
            self._bind(index, fused)
            updates = updates and index not in self.apart
        size = self._window_size(fused.slot)
        held = fused.held() if updates and fused.slot.window else ()
        # In the order of the fields of a recipe.
        key = (size, self.clip_norm, self.clip_value, updates, held, scaled)
        program: Compiled | None = capture.programs.get(key)
        if program is None:
            try:
                program = fused.compile(capture, arguments, Recipe(*key))
            except NotTraceable as error:
                kind = type(fused.slot.optimizer).__name__
                self._set_apart(index, f"{kind} steps outside of the compiled call: {error}")
                return self._program(index, fused, capture, arguments, closes)
            capture.programs[key] = program
        return program

    def _bind(self, index: int, fused: FusedStep) -> None:
        """Look at the optimizer anew. Settings that change all the time are not for compiling."""
        text = fused.bind().settings
        had = self.settings.setdefault(index, [])
        if text in had[-1:]:
            return
        had.append(text)
        if len(had) > _MOST_SETTINGS and index not in self.apart:
            self._set_apart(
                index,
                f"{type(fused.slot.optimizer).__name__} steps outside of the compiled call: its "
                f"settings keep changing, from {had[-2]} to {had[-1]}. Only learning rates may, "
                "without being compiled anew",
            )

    def _count(self, fused: FusedStep, capture: Capture, arguments: Arguments) -> None:
        """Take note of a new capture; give up where there are always more of them."""
        if fused.captured_again == _MOST_TIMES:
            _warn(
                "The training step is captured again and again, which takes time, because of "
                f"{self._changed(fused.before(capture), arguments)}. Make a tensor of what changes."
            )
        if capture.digest in self.graphs:
            return
        self.graphs.append(capture.digest)
        if len(self.graphs) > self.most_graphs:
            self._give_up(
                f"there would be more than {self.most_graphs} graphs (most_graphs), one for each "
                "shape of a batch, or value of a Python number, that the training step meets"
            )
        elif not arguments["takes_hiddens"]:
            following = {**arguments, "batch_idx": arguments["batch_idx"] + 1}
            changed = self._changed(capture, following)
            if changed is not None:
                self._give_up(f"what the training step reads changes with each batch: {changed}")

    def _changed(self, capture: Capture, arguments: Arguments) -> str | None:
        """Return a condition of a capture that does not hold; None if all do."""
        context = self.context
        table, context.log_table = context.log_table, self._recorder  # type: ignore[assignment]
        try:
            return failing_condition(capture, arguments)
        finally:
            context.log_table = table

    # -- going without ---------------------------------------------------------------------------

    def _give_up(self, why: str) -> None:
        self.eager = why
        _warn(f"CompiledStep does as OptimizerLoop from here on: {why}.")

    def _set_apart(self, index: int, why: str) -> None:
        self.apart.append(index)
        _warn(f"{why}.")


def _warn(text: str) -> None:
    warnings.warn(" ".join(text.split()), NotCompiled, stacklevel=level_of_caller())


def _settings_of(mode: Mode, device: torch.device) -> dict[str, Any]:
    """Return the settings of the compiler for a mode."""
    # What the settings of the user leave open. On the CPU the calls between kernels are compiled
    # too; shapes were looked at already.
    settings: dict[str, Any] = {"size_asserts": False, "cpp_wrapper": device.type == "cpu"}
    if mode != "default":
        from torch._inductor import list_mode_options

        settings.update(list_mode_options(mode))
    return settings
