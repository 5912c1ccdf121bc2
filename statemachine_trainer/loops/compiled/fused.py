"""All that is captured and compiled for one optimizer, in this process."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.optim import Optimizer
from torch.optim import optimizer as torch_optimizer

from statemachine_trainer.loops.compiled.binding import Binding
from statemachine_trainer.loops.compiled.capture import Arguments, Capture, NotCapturable, capture
from statemachine_trainer.loops.compiled.joint import Recipe
from statemachine_trainer.loops.compiled.program import Compiled, Options, compile_program
from statemachine_trainer.loops.context import Context
from statemachine_trainer.loops.optimizers import OptimizerSlot

_DTYPES: Final = {"bf16": torch.bfloat16, "fp16": torch.float16}


class FusedStep:
    """The captures of the training step and the programs made of them, for one optimizer.

    Args:
        context: What the loops of the run share.
        slot: The optimizer.
        options: How to compile.

    Attributes:
        slot: The optimizer with its schedulers.
        binding: The optimizer as the programs know it; None before the first.
        autocast: Type of device and data type of mixed precision; None for none.
        clean: Whether the parameters are known to have no gradients between two windows.
        captured_again: How often a graph was captured that was known.
    """

    def __init__(self, context: Context, slot: OptimizerSlot, options: Options) -> None:
        self.slot = slot
        self.binding: Binding | None = None
        precision = context.precision
        self.autocast = (
            (precision.device_type, _DTYPES[precision.name]) if precision.autocasts else None
        )
        self.clean = False
        self.captured_again = 0
        self._model = context.model
        self._options = options
        self._captures: list[Capture] = []
        self._one = torch.ones((), device=context.device)

    def find(self, arguments: Arguments) -> Capture | None:
        """Return the capture that holds for arguments; the one used last is tried first."""
        captures = self._captures
        for place, found in enumerate(captures):
            if found.holds(arguments):
                if place:
                    captures.insert(0, captures.pop(place))
                return found
        return None

    def capture(self, arguments: Arguments, context: Context) -> Capture:
        """Capture the training step for arguments for which no other capture holds.

        Raises:
            NotCapturable: It cannot be.
        """
        check_model(self._model, self.slot.optimizer)
        made = capture(arguments, context)
        self.captured_again += any(made.digest == one.digest for one in self._captures)
        self._captures.insert(0, made)
        return made

    def before(self, one: Capture) -> Capture:
        """Return the capture of the same graph that was made before this one."""
        return next(c for c in self._captures if c is not one and c.digest == one.digest)

    def bind(self) -> Binding:
        """Look at the optimizer anew; programs are compiled anew where its settings are others."""
        before = self.binding
        now = self.binding = Binding(self.slot.optimizer, self._model)
        if before is None:
            return now
        alike, same_ones = before.layout == now.layout, before.holds_for_gradients()
        for one in self._captures:
            for key, program in list(one.programs.items()):
                if not (alike if program.recipe.updates else same_ones):
                    del one.programs[key]
                elif alike:
                    program.bind(now)
        return now

    def held(self) -> tuple[bool, ...]:
        """Tell which parameters have a gradient of the window that is open."""
        assert self.binding is not None
        return tuple(p.grad is not None for p in self.binding.parameters)

    def clear(self) -> None:
        """Let no gradient be there that belongs to no window."""
        if not self.slot.window:
            self.slot.optimizer.zero_grad()
            self.clean = True

    def compile(self, one: Capture, arguments: Arguments, recipe: Recipe) -> Compiled:
        """Compile a program for a capture; see `compile_program` for what it raises."""
        assert self.binding is not None
        inputs = one.inputs(arguments)
        assert one.graph is not None
        return compile_program(one.graph, inputs, self.binding, recipe, self._options)

    def scale(self, context: Context) -> Tensor:
        """Return the scale of the gradient scaler, without waiting for the device."""
        scaler = context.precision.scaler
        assert scaler is not None
        scaled: Tensor = scaler.scale(self._one)
        return scaled


def has_hooks(optimizer: Optimizer) -> bool:
    """Tell whether somebody wants to hear of the optimizer's steps."""
    known: Mapping[str, Any] = vars(optimizer)
    return bool(
        known.get("_optimizer_step_pre_hooks")
        or known.get("_optimizer_step_post_hooks")
        or torch_optimizer._global_optimizer_pre_hooks
        or torch_optimizer._global_optimizer_post_hooks
    )


def check_model(model: nn.Module, optimizer: Optimizer) -> None:
    """Refuse what would be left out without a word if gradients were found by a compiled program.

    Raises:
        NotCapturable: There is something of the kind.
    """
    for name, module in model.named_modules():
        if isinstance(module, DistributedDataParallel | DataParallel):
            raise NotCapturable(f"{name or 'the model'} is a {type(module).__name__}")
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if type(parameter) not in (nn.Parameter, Tensor):
                raise NotCapturable(f"a parameter is a {type(parameter).__name__}")
            if parameter._backward_hooks or parameter._post_accumulate_grad_hooks:
                raise NotCapturable("a parameter has a hook on its gradient")
