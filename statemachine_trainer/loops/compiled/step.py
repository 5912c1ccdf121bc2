"""The compiled step: forward, backward, clipping and the optimizer's step in one call."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch

from statemachine_trainer.loops.bare_calls import take_step
from statemachine_trainer.loops.compiled.capture import Arguments, Capture
from statemachine_trainer.loops.compiled.comparing import Trial
from statemachine_trainer.loops.compiled.compiled_errors import (
    CompiledDiffers,
    NotCapturable,
    NotCompiled,
    Stale,
    StateMissing,
    first_line,
)
from statemachine_trainer.loops.compiled.compiling import Compiled, Options
from statemachine_trainer.loops.compiled.fused import FusedStep
from statemachine_trainer.loops.compiled.programs import ProgramsLoop
from statemachine_trainer.loops.compiled.readers import Readers
from statemachine_trainer.loops.compiled.settings import settings_of, warn
from statemachine_trainer.loops.outputs import gather
from statemachine_trainer.loops.slots import OptimizerSlot, step_schedulers
from statemachine_trainer.machine.fields import RUN, field
from statemachine_trainer.machine.loop import Loop
from statemachine_trainer.machine.signals import Signal
from statemachine_trainer.parallel.containers import detach

__all__ = ["CompiledStep", "NotCompiled"]

Step = Literal["stepped", "backward_done", "next_optimizer", "optimized"]


class CompiledStep(ProgramsLoop):
    """Takes the place of `OptimizerLoop`: the whole step is one compiled call.

        trainer.loop.replace(optimizer=CompiledStep)

    The first step of each optimizer is done without the compiler, which gives the optimizer its
    state. Then the training step is captured, once for each shape of a batch, and compiled together
    with its gradients, the clipping and the optimizer's own code. The optimizer keeps its state, the
    model its parameters: both are written to where they are.

    What cannot be captured is done as in `OptimizerLoop`, with the same results, and a warning says
    what it was: all of it, or the step of an optimizer alone. Done so from the beginning: steps of
    optimizers that evaluate the loss themselves, or have hooks; with fp16 or a check of the loss,
    the optimizer steps outside of the compiled call. LightningModules, and models that optimize by
    hand, are trained by the loops that they have without it.

    Within `DistributedDataParallel` forward and backward pass are compiled. Then the trainer averages the gradients
    itself, in one exchange, and the optimizer steps outside of the compiled call.

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
        verify: When to compare with the step without the compiler: "first", in the first call of
            each program; n, also in every n-th step; None, never. The compared step is done without
            the compiler, and the compiled one on copies of parameters, state and batch.
        differs: What to do where the two differ by more than rounding: "warn" and go on without the
            compiler, or "raise".

    Raises:
        SettingError: A setting out of its range.
        CompiledDiffers: As told by `differs`.

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

    # Not reset when the loop is entered, as `turn`: that would cost time in every batch.
    stepped: bool = field(False, scope=RUN)
    """Whether the optimizer whose state `optimizer_step` is has stepped already."""

    # -- states ----------------------------------------------------------------------------------

    def compiled_step(
        self,
    ) -> Literal["stepped", "backward_done", "next_optimizer", "optimized", "uncompiled"]:
        """Do forward, backward and, at the end of a window, clipping and the optimizer's step."""
        context = self.context
        sync = context.steps.sync
        if sync.by:
            # One rank may compile this step and another one not, so the loop averages in both cases.
            context.steps.apart = True
            sync.share_buffers()
        # An event from outside may have ended the last turn before its step was counted.
        self.stepped = False
        if self.eager is not None:
            return "uncompiled"
        slots = context.slots
        if len(slots) > 1:
            self._take_turn()
        else:
            context.optimizer_idx = 0
        index = context.optimizer_idx
        slot = slots[index]
        fused = self._fused.get(index)
        if (
            fused is None
            or fused.slot is not slot
            or fused.optimizer is not slot.optimizer
            or fused.model is not context.model
        ):
            fused = self._fuse(index, slot)
        elif fused.asked != Signal.changes or fused.above is not self._parent:
            self._ask(fused)
        size = self._window_size(slot)
        # The first step gives the optimizer its state.
        if not slot.steps or slot.takes_closure or fused is None:
            return self._without(fused)
        if slot.others:
            with slot.others_frozen():
                done = self._run(index, fused, size)
        else:
            done = self._run(index, fused, size)
        if done is None:
            return self._without(fused)
        if isinstance(done, str):
            return done
        if context.outputs is not None:
            gather(context)
        if done.recipe.updates:
            if done.grads:
                done.keep_gradients()
            self.stepped = True
            return "stepped"
        assert context.loss is not None
        if self.nonfinite_loss != "ignore":
            # With "skip" the ranks agree on it.
            usable = self._is_usable if self.nonfinite_loss == "skip" else self._is_finite
            if not usable(context.loss):
                return self._turn_done()
        done.keep_gradients()
        if sync.by:
            sync.average(slot.parameters)
        slot.size = size
        slot.window += 1
        return "backward_done" if slot.window >= size else self._turn_done()

    def optimizer_step(self) -> Literal["next_optimizer", "optimized", "next_window", "flushed"]:
        """Count the step and step the schedulers; do the step, where it was not compiled."""
        context = self.context
        index = context.optimizer_idx
        slot = context.slots[index]
        if self.stepped and not context.flushing:
            self.stepped = False
            context.count_step(index)
            if slot.schedulers:
                step_schedulers(slot, "step", slot.steps, context)
            return self._turn_done() if len(context.slots) > 1 else "optimized"
        if self._fused:
            for fused in self._fused.values():
                fused.clean = False
        if (
            self.eager is None
            or context.flushing
            or len(context.slots) > 1
            or slot.takes_closure
            or slot.schedulers
            or self.clip_norm is not None
            or self.clip_value is not None
            or context.precision.scaler is not None
        ):
            return super().optimizer_step()
        take_step(slot.optimizer)  # the usual case there, in no more calls
        context.count_step(index)
        return "optimized"

    # -- without the compiler, with several ranks -------------------------------------------------

    def _call_step(self) -> bool:
        sync = self.context.steps.sync
        # An optimizer that evaluates the loss itself is the same at all ranks, and never compiled.
        if not sync.by or self.context.slots[self.context.optimizer_idx].takes_closure:
            return super()._call_step()
        with sync.aside():
            return super()._call_step()

    def _leave_out(self) -> torch.Tensor | None:
        context = self.context
        sync = context.steps.sync
        if not sync.by or context.slots[context.optimizer_idx].takes_closure:
            return super()._leave_out()
        sync.check_none_averages()  # which others do after each of their backward passes
        return None

    def _propagate(self, slot: OptimizerSlot) -> None:
        super()._propagate(slot)
        if self.context.steps.sync.by:
            self.context.steps.sync.average(slot.parameters)

    # -- what other loops ask ----------------------------------------------------------------------

    def steps_aside(self, why: str) -> bool:
        warn(f"Nothing is compiled: {why}, so its own loop trains it and not CompiledStep.")
        return True

    def why_whole(self) -> str | None:
        return f"is a {type(self).__name__}, which compiles whole parameters. Use OptimizerLoop."

    # -- the compiled call -----------------------------------------------------------------------

    def _fuse(self, index: int, slot: OptimizerSlot) -> FusedStep | None:
        context = self.context
        context.steps.sync.check_aside(
            f"{type(self).__name__} compiles the step", "use OptimizerLoop in its place"
        )
        try:
            options = {**settings_of(self.mode, context.device), **self.options}
            fused = FusedStep(context, slot, Options(options, self.same_random, self.backend))
        except NotCapturable as error:
            if self.eager is None:
                self._give_up(str(error))
            return None
        self._readers = Readers()  # another run may have had others
        self._ask(fused)
        self._fused[index] = fused
        return fused

    def _ask(self, fused: FusedStep) -> None:
        """Ask who reads gradients, also those who are subscribed later."""
        fused.asked, fused.above = Signal.changes, self._parent
        schedulers = (one.scheduler for one in fused.slot.schedulers)
        fused.shows_gradients = self._readers.ask(self._around(), self.context.trainer, schedulers)

    def _around(self) -> Iterator[Loop]:
        above = self._parent
        while above is not None:
            yield above
            above = above._parent

    def _without(self, fused: FusedStep | None) -> Literal["uncompiled"]:
        if fused is not None:
            fused.clean = False
        return "uncompiled"

    def _run(self, index: int, fused: FusedStep, size: int) -> Compiled | Step | None:
        """Call what is compiled for this batch, in a window of `size` backward passes.

        Returns:
            What was called, and what the step returned is in the context then; None where nothing
            can be; an event where the step was done without the compiler, to compare the two.
        """
        context = self.context
        table = context.log_table
        steps = context.steps
        arguments: Arguments = {
            "training": steps.bare,
            "split": context.split,
            "batch_idx": context.batch_idx,
            "takes_hiddens": steps.takes_hiddens,
            "autocast": fused.autocast,
            "logs_to": context,
        }
        if self._recorder.entries:
            self._recorder.entries.clear()
        context.log_table = self._recorder  # type: ignore[assignment]
        try:
            refused = fused.surroundings.refused()
            if refused is not None:
                raise NotCapturable(refused)
            capture = fused.find(arguments) or self._capture(fused, arguments)
            if capture.graph is None:
                return None
            while True:
                program = self._program(index, fused, capture, arguments, size)
                # A pass that keeps its gradients would add to those that a receiver has set.
                if not (fused.clean and (fused.slot.window or program.recipe.updates)):
                    fused.clear()
                if program.recipe.scaled:
                    program.scale = fused.scale(context)
                try:
                    if not program.verified or (self._often and self._is_due(fused)):
                        trial = self._try(index, fused, capture, program, arguments)
                        if trial is not None:
                            break
                    trial = None
                    context.loss, hiddens, context.output = capture.replay(program, arguments)
                    break
                except Stale:
                    self._forget(fused, capture, program)
        except StateMissing:
            return None
        except NotCapturable as error:
            self._give_up(f"the training step cannot be captured: {error}")
            return None
        finally:
            context.log_table = table
        if trial is not None:
            self._recorder.entries.clear()
            event = self._compare(fused, program, trial)
        else:
            if hiddens is not None:
                context.keep_hiddens(detach(hiddens))
            if self._recorder.entries:
                self._recorder.write_to(table)
        if not capture.counted:
            capture.counted = True
            self._count(fused, capture, arguments)
        return program if trial is None else event

    # -- comparing -------------------------------------------------------------------------------

    def _is_due(self, fused: FusedStep) -> bool:
        return self._often and fused.slot.steps % self.verify == 0  # type: ignore[operator]

    def _try(
        self,
        index: int,
        fused: FusedStep,
        capture: Capture,
        program: Compiled,
        arguments: Arguments,
    ) -> Trial | None:
        """Run a program on copies, if it is to be compared.

        Raises:
            Stale: It is not for these parameters.
            NotCapturable: It cannot be run.
        """
        binding = fused.binding
        assert binding is not None
        known = f"{index} {capture.digest} {program.recipe}"
        if self.verify is None or (known in self.compared and not self._is_due(fused)):
            program.verified = True
            return None
        model = fused.model
        names = {id(one): name for name, one in (*model.named_parameters(), *model.named_buffers())}
        inputs = capture.inputs(arguments)
        program.verified = True
        try:
            trial = Trial(program, inputs, binding, names, same_random=self.same_random)
        except torch.OutOfMemoryError:
            warn(
                "The compiled step is not compared with the OptimizerLoop: there is too little memory."
            )
            return None
        except Exception as error:  # the real step is done without it
            raise NotCapturable(f"what was compiled cannot be run ({first_line(error)})") from error
        if known not in self.compared:
            self.compared.append(known)
        return trial

    def _compare(self, fused: FusedStep, program: Compiled, trial: Trial) -> Step:
        """Do the step without the compiler, and compare it with what the program came to.

        Raises:
            CompiledDiffers: They differ, and that is to be an error.
        """
        slot, sync = fused.slot, self.context.steps.sync
        event: Step = super().forward()  # type: ignore[assignment]
        if event != "forward_done":  # type: ignore[comparison-overlap]
            return event
        super()._propagate(slot)  # the gradients are compared before they are averaged
        slot.window += 1
        event = "backward_done" if self._is_full(slot) else self._turn_done()
        if program.recipe.updates:
            self._clip(slot)
            take_step(slot.optimizer)
            self.stepped = True
            event = "stepped"
        found = trial.difference()
        if program.recipe.updates:
            fused.clean = False
        self.difference = max(found.largest, self.difference or 0.0)
        if found.is_wrong:
            what = f"the compiled step does not do what the step does: {found}"
            if self.differs == "raise":
                raise CompiledDiffers(
                    f"{what[0].upper()}{what[1:]}. Use OptimizerLoop in this place."
                )
            self._give_up(what)
        if sync.by and event != "stepped":
            sync.average(slot.parameters)
        return event
