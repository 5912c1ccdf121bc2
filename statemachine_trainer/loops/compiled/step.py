"""The compiled step: forward, backward, clipping and the optimizer's step in one call."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, Literal

import torch

from statemachine_trainer.loops.compiled.capture import Arguments, Capture
from statemachine_trainer.loops.compiled.comparing import Trial
from statemachine_trainer.loops.compiled.compiled_errors import (
    CompiledDiffers,
    NotCapturable,
    NotCompiled,
    NotTraceable,
    Stale,
    StateMissing,
    first_line,
)
from statemachine_trainer.loops.compiled.compiling import Compiled, Options
from statemachine_trainer.loops.compiled.fused import FusedStep
from statemachine_trainer.loops.compiled.joint import Recipe
from statemachine_trainer.loops.compiled.readers import Readers
from statemachine_trainer.loops.compiled.settings import CompilingLoop, settings_of, warn
from statemachine_trainer.loops.outputs import gather
from statemachine_trainer.loops.slots import OptimizerSlot, step_schedulers
from statemachine_trainer.machine.declaration import transient
from statemachine_trainer.machine.loop import Loop
from statemachine_trainer.machine.signals import Signal
from statemachine_trainer.parallel.containers import detach

__all__ = ["CompiledStep", "NotCompiled"]

Step = Literal["stepped", "backward_done", "next_optimizer", "optimized"]

_MOST_SETTINGS: Final = 4
_MOST_STALE: Final = 8


class CompiledStep(CompilingLoop):
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

    stepped: bool = False
    """Whether the optimizer whose state `optimizer_step` is has stepped already."""

    # -- states ----------------------------------------------------------------------------------

    def compiled_step(
        self,
    ) -> Literal["stepped", "backward_done", "next_optimizer", "optimized", "uncompiled"]:
        """Do forward, backward and, at the end of a window, clipping and the optimizer's step."""
        context = self.context
        sync = context.steps.sync
        if sync.by:
            sync.share_buffers()
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
        if fused is None or not fused.is_of(slot, context.model):
            fused = self._fuse(index, slot)
        elif fused.asked != Signal.changes or fused.above is not self._parent:
            self._ask(fused)
        closes = slot.window + 1 >= self._window_size(slot)
        # The first step gives the optimizer its state.
        if not slot.steps or slot.takes_closure or fused is None:
            return self._without(fused)
        if slot.others:
            with slot.others_frozen():
                done = self._run(index, fused, closes)
        else:
            done = self._run(index, fused, closes)
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
        if self.nonfinite_loss != "ignore" and not self._is_usable(context.loss):
            return self._turn_done()
        done.keep_gradients()
        if sync.by:
            sync.average(slot.parameters)
        slot.size = self._window_size(slot)
        slot.window += 1
        return "backward_done" if closes else self._turn_done()

    def forward(self) -> Literal["forward_done", "closure", "next_optimizer", "optimized"]:
        """Call the training step without the compiler."""
        sync = self.context.steps.sync
        if not sync.by:
            return super().forward()
        with sync.aside():
            return super().forward()

    @transient
    def backward(self) -> Literal["backward_done", "next_optimizer", "optimized"]:
        """Run its backward pass."""
        context = self.context
        event = super().backward()
        if context.steps.sync.by:
            context.steps.sync.average(context.slots[context.optimizer_idx].parameters)
        return event

    def optimizer_step(self) -> Literal["next_optimizer", "optimized", "next_window", "flushed"]:
        """Count the step and step the schedulers; do the step, where it was not compiled."""
        context = self.context
        index = context.optimizer_idx
        slot = context.slots[index]
        if not self.stepped:
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
            slot.optimizer.step()  # the usual case there, in no more calls
            context.count_step(index)
            return "optimized"
        self.stepped = False
        context.count_step(index)
        if slot.schedulers:
            step_schedulers(slot, "step", slot.steps, context)
        return self._turn_done() if len(context.slots) > 1 else "optimized"

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

    def _run(self, index: int, fused: FusedStep, closes: bool) -> Compiled | Step | None:
        """Call what is compiled for this batch.

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
                program = self._program(index, fused, capture, arguments, closes)
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

    def _capture(self, fused: FusedStep, arguments: Arguments) -> Capture:
        """Capture the step.

        Raises:
            NotCapturable: It cannot be, or something unexpected happened within the compiler.
        """
        try:
            return fused.capture(arguments)
        except NotCapturable:
            raise
        except Exception as error:
            raise NotCapturable(first_line(error)) from error

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
        # Gradients have to be averaged before a step.
        alone = closes and not self.context.steps.sync.by
        updates = alone and not scaled and self.nonfinite_loss == "ignore"
        updates = updates and index not in self.apart and not fused.is_watched()
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
            except (StateMissing, NotCapturable) as error:
                if not isinstance(error, NotTraceable):
                    raise
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

    def _forget(self, fused: FusedStep, capture: Capture, program: Compiled) -> None:
        """Drop a program whose parameters are not those that the step uses now.

        Raises:
            NotCapturable: That happens again and again.
        """
        fused.binding = None
        fused.stale += 1
        if fused.stale > _MOST_STALE:
            raise NotCapturable("it uses its parameters in other places again and again")
        for key, one in list(capture.programs.items()):
            if one is program:
                del capture.programs[key]

    def _count(self, fused: FusedStep, capture: Capture, arguments: Arguments) -> None:
        """Take note of a new capture; give up where there are always more of them."""
        if capture.digest not in self.graphs:
            self.graphs.append(capture.digest)
        elif fused.has_another(capture):
            self.again += 1
        if len(self.graphs) + self.again > self.most_graphs:
            before = fused.before(capture)
            changed = None if before is None else self._changed(before, arguments)
            if changed is not None and self.again:
                self._give_up(
                    "the training step is captured again and again, which takes time, because of "
                    f"{changed}. Make a tensor of what changes"
                )
            else:
                self._give_up(
                    f"there would be more than {self.most_graphs} graphs (most_graphs), one for "
                    "each shape of a batch, or value of a Python number, that the training step "
                    "meets"
                )
        elif not arguments["takes_hiddens"] and len(self.graphs) + self.again == 1:
            following = {**arguments, "batch_idx": arguments["batch_idx"] + 1}
            changed = self._changed(capture, following)
            if changed is not None:
                self._give_up(f"what the training step reads changes with each batch: {changed}")

    def _changed(self, capture: Capture, arguments: Arguments) -> str | None:
        """Return a condition of a capture that does not hold; None if all do."""
        context = self.context
        table, context.log_table = context.log_table, self._recorder  # type: ignore[assignment]
        try:
            return capture.failing_condition(arguments)
        finally:
            context.log_table = table

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
        with sync.aside():
            event: Step = super().forward()  # type: ignore[assignment]
        if event != "forward_done":  # type: ignore[comparison-overlap]
            return event
        event = super().backward()
        if program.recipe.updates:
            self._clip(slot)
            slot.optimizer.step()
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
        if event != "stepped":
            sync.average(slot.parameters)
        return event
