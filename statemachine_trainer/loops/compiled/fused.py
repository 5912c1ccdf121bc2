"""All that is captured and compiled for one optimizer, in this process."""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from statemachine_trainer.loops.bare_calls import clear_gradients
from statemachine_trainer.loops.compiled import private
from statemachine_trainer.loops.compiled.binding import Binding
from statemachine_trainer.loops.compiled.capture import Arguments, Capture, capture
from statemachine_trainer.loops.compiled.compiled_errors import NotCapturable
from statemachine_trainer.loops.compiled.compiling import Compiled, Options, compile_program
from statemachine_trainer.loops.compiled.joint import Recipe
from statemachine_trainer.loops.context import Context
from statemachine_trainer.loops.slots import OptimizerSlot

_DTYPES: Final = {"bf16": torch.bfloat16, "fp16": torch.float16}


class FusedStep:
    """The captures of the training step and the programs made of them, for one optimizer.

    Args:
        context: What the loops of the run share.
        slot: The optimizer.
        options: How to compile.

    Attributes:
        slot: The optimizer with its schedulers.
        optimizer: The optimizer.
        model: The module that is trained.
        surroundings: What is looked at in each call besides step and optimizer.
        binding: The optimizer as the programs know it; None before the first.
        autocast: Type of device and data type of mixed precision; None for none.
        clean: Whether the parameters are known to have no gradients between two windows.
        shows_gradients: Whether somebody looks at the gradients after the backward pass.
        asked: How often receivers of signals had changed when somebody was last asked about it.
        above: The loop around this one, at that time.
        stale: How often a program met other parameters than its own.
    """

    def __init__(self, context: Context, slot: OptimizerSlot, options: Options) -> None:
        self.slot = slot
        self.optimizer = slot.optimizer
        self.model = context.model
        self.surroundings = private.surroundings()
        self._before, self._after = self.surroundings.step_hooks
        self.binding: Binding | None = None
        precision = context.precision
        self.autocast = (
            (precision.device_type, _DTYPES[precision.name]) if precision.autocasts else None
        )
        self.clean = False
        self.shows_gradients = False
        self.asked = -1
        self.above: object = None
        self.stale = 0
        self._options = options
        self._captures: list[Capture] = []
        self._one = torch.ones((), device=context.device)

    def find(self, arguments: Arguments) -> Capture | None:
        """Return the capture that holds for arguments; the one used last is tried first."""
        captures = self._captures
        for place, found in enumerate(captures):
            if found.holds(arguments) and found.watch.holds():
                if place:
                    captures.insert(0, captures.pop(place))
                return found
        return None

    def capture(self, arguments: Arguments) -> Capture:
        """Capture the training step for arguments for which no other capture holds.

        Raises:
            NotCapturable: It cannot be.
        """
        for name, module in self.model.named_modules():
            if isinstance(module, DistributedDataParallel | DataParallel | nn.SyncBatchNorm):
                raise NotCapturable(f"{name or 'the model'} is a {type(module).__name__}")
        with private.LOCK:
            made = capture(arguments, self.model)
        if self.binding is not None:  # parameters may need gradients now that needed none
            self.binding.find_nodes()
        self._captures.insert(0, made)
        return made

    def has_another(self, one: Capture) -> bool:
        """Tell whether the same graph was captured before, in this process."""
        return self.before(one) is not None

    def before(self, one: Capture) -> Capture | None:
        """Return the capture of the same graph that was made before this one."""
        others = (c for c in self._captures if c is not one and c.digest == one.digest)
        return next(others, None)

    def bind(self) -> Binding:
        """Look at the optimizer anew; programs are compiled anew where its settings are others."""
        before = self.binding
        now = self.binding = Binding(self.optimizer, self.model, before)
        if before is None:
            return now
        same_ones = before.holds_for_gradients()
        # What shares memory is looked at where a program is compiled.
        alike = before.layout == now.layout and not now.shares_memory()
        for one in self._captures:
            for key, program in list(one.programs.items()):
                if not (alike if program.recipe.updates else same_ones):
                    del one.programs[key]
                elif alike:
                    program.bind(now)
        return now

    def held(self) -> tuple[Any, ...]:
        """Tell which parameters have a gradient of the window that is open, and its layout."""
        assert self.binding is not None
        return tuple(
            None if (grad := p.grad) is None else (grad.dtype, grad.stride())
            for p in self.binding.parameters
        )

    def clear(self) -> None:
        """Let no gradient be there that belongs to no window."""
        if not self.slot.window:
            clear_gradients(self.optimizer)
            self.clean = True

    def compile(self, one: Capture, arguments: Arguments, recipe: Recipe) -> Compiled:
        """Compile a program for a capture; see `compile_program` for what it raises."""
        assert self.binding is not None
        inputs = one.inputs(arguments)
        assert one.graph is not None
        with private.LOCK:
            return compile_program(one.graph, inputs, self.binding, recipe, self._options)

    def scale(self, context: Context) -> Tensor:
        """Return the scale of the gradient scaler, without waiting for the device."""
        scaler = context.precision.scaler
        assert scaler is not None
        scaled: Tensor = scaler.scale(self._one)
        return scaled

    def is_watched(self) -> bool:
        """Tell whether somebody wants to see gradients, or to hear of the optimizer's steps."""
        known = vars(self.optimizer)
        return bool(
            self.shows_gradients
            or known.get("_optimizer_step_pre_hooks")
            or known.get("_optimizer_step_post_hooks")
            or self._before
            or self._after
        )
