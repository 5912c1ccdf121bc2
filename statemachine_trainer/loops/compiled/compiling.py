"""Compiling a captured step together with what is done with its gradients.

What `Joint` does is traced as operations on tensors into one graph, which the compiler of torch
(Ansel et al., "PyTorch 2", ASPLOS 2024) makes into one function. It writes into the parameters, the
buffers and the state of the optimizer where they are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from operator import is_, itemgetter
from typing import Any, Literal

import torch
from torch import Tensor
from torch.fx import GraphModule

from statemachine_trainer.loops.compiled import kept, private
from statemachine_trainer.loops.compiled.binding import Binding
from statemachine_trainer.loops.compiled.compiled_errors import (
    NotCapturable,
    Stale,
    StateMissing,
    first_line,
)
from statemachine_trainer.loops.compiled.draws import check_order, keep_draws
from statemachine_trainer.loops.compiled.joint import Joint, Recipe, View
from statemachine_trainer.loops.compiled.layout import share_memory, written_by
from statemachine_trainer.snapshot.rng import isolated_rng

Backend = Literal["inductor", "eager"]


@dataclass(frozen=True)
class Options:
    """How to compile.

    Attributes:
        compiler: Settings of the compiler, `torch._inductor.config`.
        same_random: Whether random numbers are those that are drawn without a compiler.
        backend: "inductor", the compiler of torch, or "eager": the graph is run as it is.
    """

    compiler: Mapping[str, Any]
    same_random: bool
    backend: Backend


class Compiled:
    """A compiled program, callable in place of the graph of a captured step.

    Args:
        call: What was compiled.
        joint: The graph that it was compiled from.
        written: For each input, whether it is written to.
        idle: How many outputs at the end are of no use.
        copies_outputs: Whether outputs have to be copied to last.
        below_autograd: A context in which parameters may be written to.

    Attributes:
        recipe: What it does.
        scale: The scale of the gradient scaler, where the recipe has one.
        grads: The gradients that the last call found, of those that it does not update.
        verified: Whether it was compared with the step without the compiler, as far as it is to be.
        below_autograd: A context in which parameters may be written to.
        changing: The places of those inputs that are other tensors at each call.
    """

    def __init__(
        self,
        call: private.Call,
        joint: Joint,
        written: Sequence[bool],
        idle: int,
        copies_outputs: bool,
        below_autograd: Callable[[], Any],
    ) -> None:
        self.recipe = joint.recipe
        self.scale: Tensor | None = None
        self.grads: Sequence[Tensor] = ()
        self.verified = False
        self._call = call
        self.below_autograd = below_autograd
        self._tail = joint.tail
        self._unused, self._held, self._fresh = joint.unused, joint.held, joint.fresh
        self._extra = len(self._fresh) + idle
        self._direct = joint.recipe.updates and not joint.held and not self._extra
        self._copies = copies_outputs
        views = any(isinstance(one, View) for one in joint.outputs)
        self._own = [*joint.used, *joint.strays]
        places = [joint.places[id(one)] for one in self._own]
        self._own_of = _getter(places)
        # Tensors of the batch that are written to: whatever they share memory with is not known.
        self.changing = joint.changing
        self._written = [n for n in sorted(joint.changing) if written[n]]
        self._outputs = [*joint.outputs]
        order = [one for one in joint.outputs if isinstance(one, int)]
        different = order != list(range(len(order)))
        self._order = itemgetter(*order) if different else None
        self._count = joint.count
        self._places = places
        self._others = [n for n in range(joint.count) if n not in places]
        self._make_frame()
        self._direct = self._direct and not self._written and not views

    def __call__(self, *inputs: Tensor) -> Sequence[Any]:
        """Run it on the inputs of the graph; returns the outputs of the graph.

        Raises:
            Stale: The parameters among the inputs are not those that it was compiled for.
            NotCapturable: The inputs share memory that is written to.
        """
        if not all(map(is_, self._own_of(inputs), self._own)):
            raise Stale
        if not self._direct:
            # Below autograd: the parameters require gradients, and are written to.
            with self.below_autograd():
                return self._settle(self.call_on(self.arguments(inputs)), inputs)
        arguments = self._frame[:]
        for place in self._others:
            arguments[place] = inputs[place]
        outputs = self._call(arguments)
        if self._order is not None:
            outputs = self._order(outputs)
        if self._copies:  # those of a CUDA graph are written to again by the next call
            return [one.clone() for one in outputs]
        return outputs

    def arguments(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """Return all that it is called with: inputs, gradients of the window, state.

        Raises:
            Stale: As a call.
            NotCapturable: As a call.
        """
        if not all(map(is_, self._own_of(inputs), self._own)):
            raise Stale
        if self._unused and {id(one) for one in inputs}.intersection(map(id, self._unused)):
            raise Stale
        if self._written and share_memory([inputs[n] for n in self._written], inputs):
            raise NotCapturable("it writes to a part of the batch that shares memory with another")
        held: list[Any] = [parameter.grad for parameter in self._held]
        scale = () if self.scale is None else (self.scale,)
        return [*inputs, *self._unused, *held, *self._tail, *scale]

    def call_on(self, arguments: list[Tensor]) -> Sequence[Any]:
        """Run it on what `arguments` returned, or on copies of that; returns all that it does."""
        outputs = self._call(arguments)
        return [one.clone() for one in outputs] if self._copies else outputs

    def gradients_in(self, outputs: Sequence[Any]) -> list[tuple[Tensor, Tensor]]:
        """Return the gradients among the outputs, with what they belong to."""
        split = len(outputs) - self._extra
        return list(zip(self._fresh, outputs[split : split + len(self._fresh)], strict=True))

    def keep_gradients(self) -> None:
        """Add the gradients that were found to those of the parameters."""
        for parameter, grad in zip(self._fresh, self.grads, strict=True):
            if parameter.grad is None:
                parameter.grad = grad
            else:
                parameter.grad.add_(grad)
        self.grads = ()

    def bind(self, binding: Binding) -> None:
        """Write from now on into other tensors of the same layout."""
        if self.recipe.updates:
            self._tail = [*(value for _, _, value in binding.state_items()), *binding.rates]
            self._make_frame()

    def _make_frame(self) -> None:
        """Lay out what is called with; the batch is left open.

        In place of the parameters, which require gradients, stand tensors that lie where they do.
        A parameter that gets other memory is noticed by its binding.
        """
        self._frame: list[Any] = [None] * self._count + [*self._tail]
        for place, one in zip(self._places, self._own, strict=True):
            self._frame[place] = one.detach()

    def _settle(self, outputs: Sequence[Any], inputs: Sequence[Tensor]) -> Sequence[Any]:
        if self.recipe.updates:
            for parameter in self._held:
                parameter.grad = None
        split = len(outputs) - self._extra
        self.grads = outputs[split : split + len(self._fresh)]
        return [one.of(inputs) if isinstance(one, View) else outputs[one] for one in self._outputs]


def _getter(places: Sequence[int]) -> Callable[[Sequence[Any]], Sequence[Any]]:
    if len(places) > 1:
        return itemgetter(*places)
    return lambda inputs: [inputs[place] for place in places]


def compile_program(
    graph: GraphModule,
    inputs: Sequence[Tensor],
    binding: Binding,
    recipe: Recipe,
    options: Options,
) -> Compiled:
    """Compile a captured step together with what is done with its gradients.

    Args:
        graph: Of the captured step.
        inputs: What it is called with: tensors of the shapes and types that all calls have.
        binding: The optimizer and its parameters.
        recipe: What is done with the gradients.
        options: How to compile.

    Raises:
        NotCapturable: The graph cannot be traced or compiled.
        NotTraceable: The optimizer's step cannot; gradients alone can be had.
        StateMissing: The optimizer has to step once by itself.
    """
    joint = Joint(graph, inputs, binding, recipe)
    idle = 0
    recurrent = any("lstm" in str(node.target) for node in graph.graph.nodes)
    try:
        with isolated_rng(), private.quiet(), torch.no_grad():
            graph, fakes = private.trace(joint, joint.inputs, in_parts=recurrent)
            written = written_by(graph, fakes)
            joint.check_memory(written)
            call: private.Call = lambda arguments: graph(*arguments)  # noqa: E731
            if options.backend == "inductor":
                idle = keep_draws(graph) if options.same_random else 0
                settings = {"fallback_random": options.same_random, **options.compiler}
                call = _compiled(graph, fakes, joint.changing, settings)
    except (NotCapturable, StateMissing):
        raise
    except Exception as error:
        raise NotCapturable(_why(error)) from error
    joint.inputs.clear()  # among them is a batch
    graphs = joint.binding.device.type != "cpu" and options.compiler.get("triton.cudagraphs")
    below_autograd = private.surroundings().below_autograd
    return Compiled(call, joint, written, idle, bool(graphs), below_autograd)


def _compiled(
    graph: GraphModule, fakes: list[Tensor], changing: set[int], settings: Mapping[str, Any]
) -> private.Call:
    """Return a compiled graph, if possible one that an earlier process has compiled."""
    place = kept.place_of(graph, fakes, settings)
    call = None if place is None else kept.load(place)
    if call is None:
        if settings["fallback_random"]:
            check_order(graph)
        call = private.compile_graph(graph, fakes, changing, settings)
        if place is not None:
            kept.keep(call, place)
    return call


def _why(error: BaseException) -> str:
    """Say why the compiler gave up; what users meet most is that there is no C++ compiler."""
    chain: BaseException | None = error
    while chain is not None:
        if type(chain).__name__ in ("InvalidCxxCompiler", "CppCompileError"):
            return (
                "the C++ compiler that torch.compile needs does not work: install g++ or clang++, "
                f"or name one in the environment variable CXX ({first_line(chain)})"
            )
        chain = chain.__cause__ or chain.__context__
    return first_line(error)
