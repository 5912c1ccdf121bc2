"""Forward pass, backward pass, clipping and the optimizer's step as one function of tensors.

The graph of a training step is run and differentiated, and the optimizer's own `step` is called on
tensors that stand in for its parameters and its state: traced, all of it becomes one graph.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from statemachine_trainer.loops.compiled.binding import Binding
from statemachine_trainer.loops.compiled.capture import take_out_mark
from statemachine_trainer.loops.compiled.compiled_errors import (
    NotCapturable,
    NotTraceable,
    StateMissing,
    first_line,
)
from statemachine_trainer.loops.compiled.layout import (
    as_accumulated,
    overlapping,
    overlaps_itself,
    storage_of,
)

_FORM: Final = {"foreach": True, "fused": False, "capturable": True}
"""How an optimizer is asked to compute: on tensors alone, none of them read as a number."""


@dataclass(frozen=True)
class Recipe:
    """What a program does besides the forward pass.

    Attributes:
        size: Backward passes in a window: the loss is divided by it.
        clip_norm: Largest 2-norm of the gradients.
        clip_value: Largest absolute value of a gradient.
        updates: Whether the optimizer steps; otherwise the gradients are handed out.
        held: For each parameter, the layout of the gradient of this window that it brings to the
            update, None for none; empty if no parameter has one.
        scaled: Whether the loss is multiplied by the scale of a gradient scaler.
    """

    size: int = 1
    clip_norm: float | None = None
    clip_value: float | None = None
    updates: bool = True
    held: tuple[Any, ...] = ()
    scaled: bool = False


@dataclass(frozen=True)
class View:
    """A part of an input, which an output of the graph is.

    Attributes:
        place: Of the input.
        shape: Of the output.
        stride: Of the output.
        offset: Of the output, in elements of the input's storage.
    """

    place: int
    shape: Sequence[int]
    stride: Sequence[int]
    offset: int

    def of(self, inputs: Sequence[Tensor]) -> Tensor:
        """Return the part of these inputs."""
        whole = inputs[self.place]
        if not whole.requires_grad and whole.shape == self.shape and whole.stride() == self.stride:
            return whole
        return whole.detach().as_strided(self.shape, self.stride, self.offset)


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
        self.places = {id(one): place for place, one in enumerate(inputs)}
        if len(self.places) < len(inputs):
            raise NotCapturable("one tensor comes to it by two ways")
        held = recipe.held or (None,) * len(binding.parameters)
        self.held = [p for p, has in zip(binding.parameters, held, strict=True) if has]
        # Those that the step uses, then those of which only a gradient is left of earlier steps.
        known = {id(p) for p in binding.parameters}
        self.used = [p for p in binding.parameters if id(p) in self.places and p.requires_grad]
        self.unused = [p for p in self.held if id(p) not in self.places]
        # What no optimizer has is given its gradient too.
        self.strays = [p for p in inputs if p.requires_grad and id(p) not in known]
        if not all(p.is_leaf for p in self.strays):
            raise NotCapturable("it goes on with a tensor of an earlier step that has a gradient")
        stays = {id(p) for p in binding.parameters} | binding.buffers | {id(p) for p in self.strays}
        self.changing = {n for n, one in enumerate(inputs) if id(one) not in stays}
        """The places of those inputs that are other tensors at each call."""
        self.states = binding.state_items() if recipe.updates else []
        if recipe.updates and binding.code.refused is not None:
            raise NotTraceable(binding.code.refused)
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
        self.fresh: list[Tensor] = []
        """Whose gradients come out of the program, found while it is traced."""
        self.outputs: list[int | View] = []
        """For each output of the graph, its place in those of the program, or what it is part of."""

    def check_memory(self, written: Sequence[bool]) -> None:
        """Refuse tensors that share memory, where one of them is written to.

        Args:
            written: For each input, whether it is.

        Raises:
            NotCapturable: There are two.
        """
        for place, one in enumerate(self.inputs):
            if written[place] and overlaps_itself(one):
                raise NotCapturable(f"{self._named(place)} lies in its own memory several times")
        for one_place, other in overlapping(self.inputs):
            if written[one_place] or written[other]:
                raise NotCapturable(
                    f"{self._named(one_place)} and {self._named(other)} share memory, and one of "
                    "them is written to"
                )

    def _named(self, place: int) -> str:
        one = self.inputs[place]
        kind = "a parameter" if isinstance(one, nn.Parameter) else "a tensor"
        return f"{kind} of shape {tuple(one.shape)}"

    def __call__(self, *arguments: Tensor) -> tuple[Any, ...]:
        """Do all of it on the arguments: called once, to be traced."""
        left = iter(arguments)
        inputs = [next(left) for _ in range(self.count)]
        unused = {p: next(left) for p in self.unused}
        grads: dict[nn.Parameter, Tensor] = {p: next(left) for p in self.held}
        states: dict[nn.Parameter, dict[str, Any]] = {}
        for parameter, key, _ in self.states:
            states.setdefault(parameter, {})[key] = next(left)
        rates = [next(left) for _ in self.binding.rates] if self.recipe.updates else []
        scale = next(left) if self.recipe.scaled else None
        real = [*inputs, *unused.values(), *grads.values()]
        outputs, new, found = self._differentiate(inputs, scale)
        owned = (p for p in (*self.used, *self.held) if p not in unused)
        stand_ins = {p: real[self.places[id(p)]] for p in owned}
        with torch.no_grad():
            fresh = self._gather(grads, new, real)
            if self.recipe.updates:
                self._update({**stand_ins, **unused}, grads, states, rates)
                fresh = []
                self.fresh.clear()
            for stray, grad in zip(self.strays, found, strict=True):
                if grad is not None:
                    fresh.append(as_accumulated(grad, stray, {storage_of(one) for one in real}))
                    self.fresh.append(stray)
        return (*outputs, *fresh)

    def _differentiate(
        self, inputs: list[Tensor], scale: Tensor | None
    ) -> tuple[list[Any], list[Tensor | None], list[Tensor | None]]:
        """Run the captured graph.

        Returns:
            Its outputs, cut off; the gradients of the parameters; those of the strays.
        """
        real = [*inputs]
        wanted = [self.places[id(one)] for one in (*self.used, *self.strays)]
        with torch.enable_grad():
            leaves = [inputs[place].detach().requires_grad_() for place in wanted]
            for place, leaf in zip(wanted, leaves, strict=True):
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
        kept: list[Any] = []
        places: dict[int, int] = {}
        self.outputs.clear()
        for one in outputs:
            own = one.detach() if isinstance(one, Tensor) else one
            view = _view_of(own, real) if isinstance(own, Tensor) else None
            if view is not None:
                self.outputs.append(view)
                continue
            if id(one) not in places:
                places[id(one)] = len(kept)
                kept.append(own)
            self.outputs.append(places[id(one)])
        count = len(self.used)
        return kept, list(found[:count]), list(found[count:])

    def _gather(
        self,
        grads: dict[nn.Parameter, Tensor],
        new: Sequence[Tensor | None],
        real: Sequence[Tensor],
    ) -> list[Tensor]:
        """Add the new gradients to those of the window; return the new ones."""
        taken = {storage_of(one) for one in real}
        # Clipping writes to them.
        grads.update((p, grad.clone()) for p, grad in [*grads.items()])
        fresh = []
        for parameter, grad in zip(self.used, new, strict=True):
            if grad is not None:
                held = grads.get(parameter)
                grad = as_accumulated(grad, parameter, taken)
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
        double = object.__new__(type(optimizer))
        vars(double).update(vars(optimizer))
        groups = zip(optimizer.param_groups, rates, strict=True)
        double.param_groups = [_group_like(group, stand_ins, rate) for group, rate in groups]
        double.state = defaultdict(dict)
        for parameter, tensors in states.items():
            widened = {k: _widened(k, v) for k, v in tensors.items()}
            double.state[stand_ins[parameter]] = {**optimizer.state.get(parameter, {}), **widened}
        before = deepcopy([_constants(group) for group in double.param_groups])
        owned = [*stand_ins.values(), *(v for tensors in states.values() for v in tensors.values())]
        places = [storage_of(one) for one in owned]
        try:
            self.binding.code.run(double)
        except NotTraceable:
            raise
        except Exception as error:
            raise NotTraceable(f"its step cannot be traced: {first_line(error)}") from error
        if [_constants(group) for group in double.param_groups] != before:
            raise NotTraceable("its step changes numbers in its parameter groups")
        if [storage_of(one) for one in owned] != places:
            raise NotTraceable("its step gives tensors other memory (`.data = ...`)")
        if len(double.state) > len(states) or any(stand_ins[p] not in double.state for p in states):
            raise NotTraceable("its step keeps a state that belongs to none of its parameters")
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
    if not isinstance(now, dict) or not real.keys() <= now.keys():
        raise NotTraceable("its step forgets a part of its state")
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


def _view_of(output: Tensor, inputs: Sequence[Tensor]) -> View | None:
    """Tell which part of which input an output is; None if it has memory of its own."""
    for place, one in enumerate(inputs):
        if storage_of(one) == storage_of(output):
            if one.dtype != output.dtype or output.is_conj() or output.is_neg():
                raise NotCapturable("it hands out an input in another form. Hand out a copy")
            return View(place, output.shape, output.stride(), int(output.storage_offset()))
    return None


def _said(node: torch.fx.Node) -> str:
    """Name an operation, and the line of the user's code that it comes from."""
    target = node.target
    name = target if isinstance(target, str) else getattr(target, "__name__", str(target))
    lines = [one.strip() for one in (node.stack_trace or "").splitlines()]
    places = [place for place in lines if place.startswith("File ") and "/torch/" not in place]
    where = f" in {places[-1].removeprefix('File ')}" if places else ""
    return f"the operation {name!r}{where}"
