"""Compiling a captured step together with what is done with its gradients.

What `Joint` does is traced as operations on tensors into one graph, which the compiler of torch
(Ansel et al., "PyTorch 2", ASPLOS 2024) makes into one function. It writes into the parameters, the
buffers and the state of the optimizer where they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.fx import GraphModule

from statemachine_trainer.loops.compiled.binding import Binding
from statemachine_trainer.loops.compiled.capture import NotCapturable, quiet
from statemachine_trainer.loops.compiled.joint import Joint, Recipe, StateMissing, first_line
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

    Attributes:
        recipe: What it does.
        scale: The scale of the gradient scaler, where the recipe has one.
        grads: The gradients that the last call found, where the recipe does not update.
    """

    def __init__(
        self, call: Callable[[list[Any]], Sequence[Any]], joint: Joint, copies_outputs: bool
    ) -> None:
        self.recipe = joint.recipe
        self.scale: Tensor | None = None
        self.grads: Sequence[Tensor] = ()
        self._call = call
        self._tail = joint.tail
        self._unused, self._held, self._fresh = joint.unused, joint.held, joint.fresh
        self._direct = joint.recipe.updates and not joint.held
        self._copies = copies_outputs

    def __call__(self, *inputs: Tensor) -> Sequence[Any]:
        """Run it on the inputs of the graph; returns the outputs of the graph."""
        # Below autograd: the parameters require gradients, and are written to.
        with torch._C._AutoDispatchBelowAutograd():
            if self._direct:
                outputs = self._call([*inputs, *self._tail])
            else:
                held = [parameter.grad for parameter in self._held]
                scale = () if self.scale is None else (self.scale,)
                outputs = self._call([*inputs, *self._unused, *held, *self._tail, *scale])
            if self._copies:  # those of a CUDA graph are written to again by the next call
                outputs = [one.clone() for one in outputs]
        if self._direct:
            return outputs
        return self._settle(outputs)

    def bind(self, binding: Binding) -> None:
        """Write from now on into other tensors of the same layout."""
        if self.recipe.updates:
            self._tail = [*(value for _, _, value in binding.state_items()), *binding.rates]

    def keep_gradients(self) -> None:
        """Add the gradients that were found to those of the parameters."""
        for parameter, grad in zip(self._fresh, self.grads, strict=True):
            if parameter.grad is None:
                parameter.grad = grad
            else:
                parameter.grad.add_(grad)
        self.grads = ()

    def _settle(self, outputs: Sequence[Any]) -> Sequence[Any]:
        if self.recipe.updates:
            for parameter in self._held:
                parameter.grad = None
            return outputs
        split = len(outputs) - len(self._fresh)
        self.grads = outputs[split:]
        return outputs[:split]


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
    from torch._inductor import config

    joint = Joint(graph, inputs, binding, recipe)
    with ExitStack() as stack:
        stack.enter_context(isolated_rng())
        stack.enter_context(quiet())
        stack.enter_context(torch.no_grad())
        patches = {"fallback_random": options.same_random, **options.compiler}
        stack.enter_context(config.patch(patches))
        try:
            graph, fakes = _trace(joint)
            compiles = options.backend == "inductor"
            call = _compile(graph, fakes, joint) if compiles else _as_it_is(graph)
        except (NotCapturable, StateMissing):
            raise
        except Exception as error:
            raise NotCapturable(_why(error)) from error
    joint.inputs.clear()  # among them is a batch
    graphs = joint.binding.device.type != "cpu" and options.compiler.get("triton.cudagraphs")
    return Compiled(call, joint, bool(graphs))


def _trace(joint: Joint) -> tuple[GraphModule, list[Tensor]]:
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.experimental.proxy_tensor import make_fx
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

    # All shapes are static; without an environment for others the cache of the compiler is unused.
    mode = FakeTensorMode(shape_env=ShapeEnv(), allow_non_fake_inputs=True)
    fakes: list[Tensor] = [
        mode.from_tensor(one.detach(), static_shapes=True) for one in joint.inputs
    ]
    with _as_if_compiling(), mode:
        return make_fx(joint)(*fakes), fakes


def _as_it_is(graph: GraphModule) -> Callable[[list[Any]], Sequence[Any]]:
    return lambda arguments: graph(*arguments)


def _compile(
    graph: GraphModule, fakes: list[Tensor], joint: Joint
) -> Callable[[list[Any]], Sequence[Any]]:
    import torch._functorch.config
    from torch._guards import TracingContext
    from torch._inductor.compile_fx import compile_fx, compile_fx_inner

    direct: list[Callable[[list[Any]], Sequence[Any]]] = []
    batch = _of_the_batch(joint)

    def inner(lowered: GraphModule, examples: Sequence[Any], **settings: Any) -> Any:
        # What lies where it lay at the last call need not be copied for a CUDA graph.
        settings["static_input_idxs"] = [n for n in range(len(examples)) if n not in batch]
        made = compile_fx_inner(lowered, examples, **settings)
        context = TracingContext.try_get()
        meta = None if context is None else context.fw_metadata
        # Without aliases and mutations that it has to see to, the code around it can be left out.
        if (
            meta is not None
            and len(examples) == len(fakes)
            and not meta.num_outputs_aliased
            and not meta.num_mutated_inp_runtime_indices
            and not meta.is_rng_op_functionalized
        ):
            direct.append(made)
        return made

    with torch._functorch.config.patch(enable_autograd_cache=False):
        around = compile_fx(graph, fakes, inner_compile=inner)
    if direct:
        made = direct[0]
        return getattr(made, "current_callable", None) or made
    run: Callable[..., Sequence[Any]] = around  # type: ignore[assignment]
    return lambda arguments: run(*arguments)


def _of_the_batch(joint: Joint) -> set[int]:
    """Return the places of those inputs that are other tensors at each call."""
    stays = {id(p) for p in joint.binding.parameters} | joint.binding.buffers
    return {n for n, one in enumerate(joint.inputs[: joint.count]) if id(one) not in stays}


@contextmanager
def _as_if_compiling() -> Iterator[None]:
    """Let optimizers compute on tensors where they would read numbers from them."""
    before = torch.compiler._is_compiling_flag
    torch.compiler._is_compiling_flag = True
    try:
        yield
    finally:
        torch.compiler._is_compiling_flag = before


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
