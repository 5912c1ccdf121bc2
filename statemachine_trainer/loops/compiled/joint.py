"""Forward pass, backward pass, clipping and the optimizer's step as one function of tensors.

The graph of a training step is run and differentiated, and the optimizer's own `step` is called on
tensors that stand in for its parameters and its state: traced, all of it becomes one graph.
"""

from __future__ import annotations

import inspect
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.optim import Optimizer

from statemachine_trainer.loops.compiled.binding import Binding
from statemachine_trainer.loops.compiled.capture import NotCapturable, take_out_mark

_FORM: Final = {"foreach": True, "fused": False, "capturable": True}
"""How an optimizer is asked to compute: on tensors alone, none of them read as a number."""


class StateMissing(Exception):
    """The optimizer has no state yet for a parameter that it is to update."""


class NotTraceable(NotCapturable):
    """An optimizer whose step cannot become part of a graph."""


@dataclass(frozen=True)
class Recipe:
    """What a program does besides the forward pass.

    Attributes:
        size: Backward passes in a window: the loss is divided by it.
        clip_norm: Largest 2-norm of the gradients.
        clip_value: Largest absolute value of a gradient.
        updates: Whether the optimizer steps; otherwise the gradients are handed out.
        held: For each parameter, whether it brings a gradient of this window to the update; empty
            for none.
        scaled: Whether the loss is multiplied by the scale of a gradient scaler.
    """

    size: int = 1
    clip_norm: float | None = None
    clip_value: float | None = None
    updates: bool = True
    held: tuple[bool, ...] = ()
    scaled: bool = False


class Joint:
    """The graph of a program, before it is compiled.

    Args:
        graph: Of the captured step.
        inputs: What it is called with.
        binding: The optimizer and its parameters.
        recipe: What is done with the gradients.
    """

    def __init__(
        self, graph: GraphModule, inputs: Sequence[Tensor], binding: Binding, recipe: Recipe
    ) -> None:
        self.graph, self.loss = take_out_mark(graph)
        self.binding, self.recipe = binding, recipe
        places = {id(one): place for place, one in enumerate(inputs)}
        held = recipe.held or (False,) * len(binding.parameters)
        self.held = [p for p, has in zip(binding.parameters, held, strict=True) if has]
        # Those that the step uses, then those of which only a gradient is left of earlier steps.
        self.used = [
            p for p in binding.parameters if id(p) in places and p.requires_grad and _floats(p)
        ]
        self.places = [places[id(p)] for p in self.used]
        self.unused = [p for p in self.held if id(p) not in places]
        self.states = binding.state_items() if recipe.updates else []
        self.count = len(inputs)
        self.tail = [value for _, _, value in self.states]
        if recipe.updates:
            self.tail += binding.rates
        self.inputs: list[Tensor] = [
            *inputs,
            *self.unused,
            *(p.grad for p in self.held if p.grad is not None),
            *self.tail,
            *([torch.ones((), device=binding.device)] if recipe.scaled else ()),
        ]
        self.fresh: list[nn.Parameter] = []
        """Parameters whose gradients come out of the program, found while it is traced."""

    def __call__(self, *arguments: Tensor) -> tuple[Any, ...]:
        """Do all of it on the arguments: called once, to be traced."""
        left = iter(arguments)
        inputs = [next(left) for _ in range(self.count)]
        stand_ins = {p: inputs[place] for p, place in zip(self.used, self.places, strict=True)}
        stand_ins.update((p, next(left)) for p in self.unused)
        grads: dict[nn.Parameter, Tensor] = {p: next(left) for p in self.held}
        states: dict[nn.Parameter, dict[str, Any]] = {}
        for parameter, key, _ in self.states:
            states.setdefault(parameter, {})[key] = next(left)
        rates = [next(left) for _ in self.binding.rates] if self.recipe.updates else []
        outputs, new = self._differentiate(inputs, next(left) if self.recipe.scaled else None)
        with torch.no_grad():
            fresh = self._gather(grads, new)
            if self.recipe.updates:
                self._update(stand_ins, grads, states, rates)
                fresh = []
        return (*outputs, *fresh)

    def _differentiate(
        self, inputs: list[Tensor], scale: Tensor | None
    ) -> tuple[list[Any], list[Tensor | None]]:
        """Run the captured graph; return its outputs, cut off, and the gradients of the loss."""
        with torch.enable_grad():
            leaves = [inputs[place].detach().requires_grad_() for place in self.places]
            for place, leaf in zip(self.places, leaves, strict=True):
                inputs[place] = leaf
            outputs = _Interpreter(self.graph, self.loss).outputs_and_loss(inputs)
            loss = outputs.pop()
            if not loss.requires_grad:
                raise NotCapturable("the loss does not depend on the parameters of this optimizer")
            if self.recipe.size > 1:
                loss = loss / self.recipe.size
            if scale is not None:
                loss = loss * scale.to(loss.dtype)
            found = torch.autograd.grad(loss.reshape(()), leaves, allow_unused=True)
        kept = [_apart(one, inputs) if isinstance(one, Tensor) else one for one in outputs]
        return kept, list(found)

    def _gather(
        self, grads: dict[nn.Parameter, Tensor], new: Sequence[Tensor | None]
    ) -> list[Tensor]:
        """Add the new gradients to those of the window; return the new ones."""
        fresh = []
        for parameter, grad in zip(self.used, new, strict=True):
            if grad is not None:
                held = grads.get(parameter)
                grads[parameter] = grad if held is None else held + grad
                fresh.append(grad)
                self.fresh.append(parameter)
        return fresh

    def _update(
        self,
        stand_ins: Mapping[nn.Parameter, Tensor],
        grads: Mapping[nn.Parameter, Tensor],
        states: Mapping[nn.Parameter, dict[str, Any]],
        rates: Sequence[Tensor],
    ) -> None:
        """Clip, and let the optimizer's own code step a copy of itself that has the stand-ins."""
        for parameter, grad in grads.items():
            stand_ins[parameter].grad = grad
        stepped = [stand_ins[parameter] for parameter in grads]
        try:
            if self.recipe.clip_norm is not None:
                nn.utils.clip_grad_norm_(stepped, self.recipe.clip_norm)
            if self.recipe.clip_value is not None:
                nn.utils.clip_grad_value_(stepped, self.recipe.clip_value)
            self._step(stand_ins, {p: states.get(p, {}) for p in grads}, rates)
        finally:
            for one in stepped:
                one.grad = None

    def _step(
        self,
        stand_ins: Mapping[nn.Parameter, Tensor],
        states: Mapping[nn.Parameter, dict[str, Any]],
        rates: Sequence[Tensor],
    ) -> None:
        optimizer = self.binding.optimizer
        double = copy(optimizer)
        groups = zip(optimizer.param_groups, rates, strict=True)
        double.param_groups = [_group_like(group, stand_ins, rate) for group, rate in groups]
        double.state = defaultdict(dict)
        for parameter, tensors in states.items():
            widened = {k: _widened(k, v) for k, v in tensors.items()}
            double.state[stand_ins[parameter]] = {**optimizer.state.get(parameter, {}), **widened}
        before = [_constants(group) for group in double.param_groups]
        plain: Callable[[Optimizer], object] = inspect.unwrap(type(optimizer).step)
        try:
            plain(double)
        except Exception as error:
            raise NotTraceable(f"its step cannot be traced: {first_line(error)}") from error
        if [_constants(group) for group in double.param_groups] != before:
            raise NotTraceable("its step changes numbers in its parameter groups")
        for parameter, tensors in states.items():
            now = double.state[stand_ins[parameter]]
            _write_back(optimizer.state.get(parameter, {}), tensors, now)


class _Interpreter(torch.fx.Interpreter):
    """Runs a graph and returns, last of the outputs, the value of one of its nodes."""

    def __init__(self, graph: GraphModule, wanted: torch.fx.Node) -> None:
        super().__init__(graph)
        self.extra_traceback = False  # it would go into the text of the error
        self._wanted = wanted
        self._found: Any = None

    def outputs_and_loss(self, inputs: Sequence[Any]) -> list[Any]:
        outputs = self.run(*inputs)
        return [*outputs, self._found]

    def run_node(self, n: torch.fx.Node) -> Any:
        try:
            value = super().run_node(n)
        except Exception as error:
            raise NotCapturable(
                f"{_said(n)} cannot be traced together with its gradients ({first_line(error)}). "
                "Write it another way, or leave the OptimizerLoop in this place"
            ) from error
        if n is self._wanted:
            self._found = value
        return value


def _group_like(
    group: Mapping[str, Any], stand_ins: Mapping[nn.Parameter, Tensor], rate: Tensor
) -> dict[str, Any]:
    """Copy a group of parameters, with their stand-ins; those without one have no gradient."""
    parameters = [stand_ins[p] for p in group["params"] if p in stand_ins]
    form = {name: value for name, value in _FORM.items() if name in group}
    return {**group, **form, "params": parameters, "lr": rate}


def _constants(group: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in group.items() if key not in ("params", "lr")}


def _widened(key: str, value: Tensor) -> Tensor:
    """Count steps in 64 bits, in which the numbers would be that are read from them."""
    narrow = key == "step" and value.dim() == 0 and value.dtype == torch.float32
    return value.double() if narrow and value.device.type != "mps" else value


def _write_back(real: Mapping[str, Any], tensors: Mapping[str, Tensor], now: Any) -> None:
    """Write the new state into the tensors of the old.

    Raises:
        StateMissing: There are new tensors.
        NotTraceable: A number changed, which would be the same in every step.
    """
    for key, value in now.items():
        if key in tensors:
            place = tensors[key]
            if value is not place:
                if not isinstance(value, Tensor) or value.shape != place.shape:
                    raise NotTraceable(f"its step puts another thing in the place of {key!r}")
                place.copy_(value)
        elif isinstance(value, Tensor):
            raise StateMissing
        elif key not in real or (real[key] is not value and real[key] != value):
            raise NotTraceable(f"its step keeps {key!r} as a number, not as a tensor")


def _apart(output: Tensor, inputs: Sequence[Tensor]) -> Tensor:
    """Cut an output off from the graph of the loss, and from inputs that it is a view of."""
    own = output.detach()
    shared = any(one.untyped_storage()._cdata == own.untyped_storage()._cdata for one in inputs)
    return own.clone() if shared else own


def _floats(parameter: Tensor) -> bool:
    return parameter.is_floating_point() or parameter.is_complex()


def _said(node: torch.fx.Node) -> str:
    """Name an operation, and the line of the user's code that it comes from."""
    target = node.target
    name = target if isinstance(target, str) else getattr(target, "__name__", str(target))
    lines = [one.strip() for one in (node.stack_trace or "").splitlines()]
    places = [place for place in lines if place.startswith("File ") and "/torch/" not in place]
    where = f" in {places[-1].removeprefix('File ')}" if places else ""
    return f"the operation {name!r}{where}"


def first_line(error: BaseException) -> str:
    """Shorten an error to a line."""
    text = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
