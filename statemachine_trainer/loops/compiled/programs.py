"""What is captured and compiled for the batches of a run: found, made, counted, and dropped where it is stale."""

from __future__ import annotations

from typing import Final

from statemachine_trainer.loops.compiled.capture import Arguments, Capture
from statemachine_trainer.loops.compiled.compiled_errors import (
    NotCapturable,
    NotTraceable,
    StateMissing,
    first_line,
)
from statemachine_trainer.loops.compiled.compiling import Compiled
from statemachine_trainer.loops.compiled.fused import FusedStep
from statemachine_trainer.loops.compiled.joint import Recipe
from statemachine_trainer.loops.compiled.settings import CompilingLoop

_MOST_SETTINGS: Final = 4
_MOST_STALE: Final = 8


class ProgramsLoop(CompilingLoop):
    """Base of `CompiledStep`, which has the states; see there."""

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
        size: int,
    ) -> Compiled:
        """Return the program that does what is to be done; compile it where it is the first time.

        `size` is that of the window of accumulation.
        """
        scaled = self.context.precision.scaler is not None
        # Gradients have to be averaged before a step.
        window = fused.slot.window
        alone = window + 1 >= size and not self.context.steps.sync.by
        updates = alone and not scaled and self.nonfinite_loss == "ignore"
        updates = updates and index not in self.apart and not fused.is_watched()
        binding = fused.binding
        if binding is None or not (binding.holds() if updates else binding.holds_for_gradients()):
            self._bind(index, fused)
            updates = updates and index not in self.apart
        held = fused.held() if updates and window else ()
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
                return self._program(index, fused, capture, arguments, size)
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
