"""What is taken from inside of torch; the rest is in `private_disk` and `private_names`.

None of it is promised by torch. What a version has elsewhere, or no longer, is met by
`NotCapturable`, so that the run goes on without the compiler.
"""

from __future__ import annotations

import re
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from types import CodeType, FunctionType, ModuleType
from typing import Any, Final

import torch
from torch import Tensor
from torch.fx import GraphModule

from statemachine_trainer.loops import outputs
from statemachine_trainer.loops.compiled import private_names
from statemachine_trainer.loops.compiled.compiled_errors import (
    NotCapturable,
    Reached,
    first_line,
    reached,
)
from statemachine_trainer.loops.compiled.wording import reason

Call = Callable[[list[Any]], Sequence[Any]]
"""Called with a list of tensors."""

LOCK: Final = threading.RLock()
"""Held while something is captured or compiled: much of what that changes is of the process."""

_FILTERS: Final = hasattr(torch.compiler, "skip_guard_on_all_nn_modules_unsafe")
"""Whether this torch shows its guards to who compiles."""

_NO_HOOKS: Final = "EMPTY_NN_MODULE_HOOKS_DICT"
_SAVING: Final = "AUTOGRAD_SAVED_TENSORS_HOOKS"
"""A test that takes long, and that `Surroundings` makes."""

_OF_OURS: Final = (
    f"G['__import_{outputs.__name__.replace('.', '_dot_')}']",
    "G['_target']",
    "G['read_output']",
)
"""Where the functions of this library are found that are part of each step, and stay as they are."""

_GRAD: Final = re.compile(r"check_tensor\([^,]*\.grad,|\.grad, [^)]*\), type=<class 'NoneType'>")
"""A test of the gradient of something, where guards are known as text alone."""

_DYNAMO: Final = {
    "skip_nnmodule_hook_guards": _FILTERS,
    # Numbers read from tensors, and shapes that depend on them, are not for a graph.
    "capture_scalar_outputs": False,
    "capture_dynamic_output_shape_ops": False,
    # A test that Dynamo leaves out to save time: that two parameters did not become one.
    "skip_no_tensor_aliasing_guards_on_parameters": False,
    # Tensors within a dictionary or module are looked at though its keys are as they were.
    "skip_tensor_guards_with_matching_dict_tags": False,
    "skip_guards_on_constant_func_defaults": False,
    "use_recursive_dict_tags_for_guards": False,
    # Otherwise numpy's numbers would be drawn by torch.
    "use_numpy_random_stream": True,
    "suppress_errors": False,
    # What it could read all along; without these it leaves them to graphs cut in two.
    "allow_rnn": True,
    "trace_autograd_ops": True,
}


@contextmanager
def guarded() -> Iterator[None]:
    """Say of a missing part of torch that it is one.

    Raises:
        NotCapturable: Something is not where it was.
    """
    try:
        yield
    except (AttributeError, ImportError, TypeError, NameError) as error:
        raise NotCapturable(
            f"torch {torch.__version__} has not all that the compiled step takes from inside of it "
            f"({first_line(error)}). Use a version that CompiledStep is tested with, or leave the "
            "OptimizerLoop in this place"
        ) from error


# -- what is looked at in each call ---------------------------------------------------------------


@dataclass(frozen=True)
class Surroundings:
    """What decides, beside the step and the optimizer, whether a compiled call may be made.

    Attributes:
        dispatch_modes: Returns the number of active `TorchDispatchMode`s.
        module_hooks: Hooks that are called for all modules.
        step_hooks: Hooks that are called for all optimizers.
        saving: Tells of hooks on what is saved for the backward pass.
        below_autograd: A context in which parameters may be written to.
    """

    dispatch_modes: Callable[[], int]
    module_hooks: tuple[Mapping[Any, Any], ...]
    step_hooks: tuple[Mapping[Any, Any], ...]
    saving: Callable[[bool], Any]
    below_autograd: Callable[[], AbstractContextManager[Any]]

    def refused(self) -> str | None:
        """Say what keeps a compiled call from being right at present; None for nothing."""
        if self.dispatch_modes():
            return "a TorchDispatchMode is active"
        if torch.is_anomaly_enabled():
            return "torch.autograd.set_detect_anomaly is on"
        if self.saving(True) is not None:
            return "there are hooks on what is saved for the backward pass"
        return "a hook is registered for all modules" if any(self.module_hooks) else None


def surroundings() -> Surroundings:
    """Return what is looked at in each call."""
    with guarded():
        from torch.nn.modules import module
        from torch.optim import optimizer

        return Surroundings(
            torch._C._len_torch_dispatch_stack,
            (
                module._global_forward_hooks,
                module._global_forward_pre_hooks,
                module._global_backward_hooks,
                module._global_backward_pre_hooks,
            ),
            (
                optimizer._global_optimizer_pre_hooks,
                optimizer._global_optimizer_post_hooks,
            ),
            getattr(torch._C._autograd, "_top_saved_tensors_default_hooks", _saves_by_hooks),
            torch._C._AutoDispatchBelowAutograd,
        )


def _saves_by_hooks(_: bool) -> Any:
    """Tell whether there are hooks on what is saved for the backward pass; None if not (torch 2.7)."""
    of = torch._C._autograd
    if of._saved_tensors_hooks_get_disabled_error_message() is not None:
        return None
    try:
        of._saved_tensors_hooks_disable("")  # which torch refuses where there are some
    except RuntimeError:
        return True
    finally:
        of._saved_tensors_hooks_enable()
    return None


# -- capturing ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Captured:
    """What Dynamo makes of a function.

    Attributes:
        code: Calls the graph by a name of its own, and does the rest of what the function does.
        guards: The test of arguments; kept, for it lives no longer than this.
        check: Tells whether the test holds.
        explain: Tells which part of it does not.
        graph: The graph of tensor operations; None if there are none.
        inputs: What the graph was called with.
        read: The code of all Python functions that were read.
        bare: The dictionaries of hooks of all modules that were read, as far as these are empty.
        kinds: The classes of the objects that were read, as far as they are known.
        asked: Modules and functions that were read, as far as they are known.
        cached: Whether one of these is a function whose results `functools` keeps.
        grads: Whether the gradient of a parameter was looked at.
    """

    code: CodeType
    guards: Any
    check: Callable[[dict[str, Any]], bool]
    explain: Callable[[dict[str, Any]], Any]
    graph: GraphModule | None
    inputs: Sequence[Any]
    read: Sequence[CodeType]
    bare: Sequence[Any]
    kinds: Sequence[type]
    asked: Sequence[ModuleType | FunctionType]
    cached: bool
    grads: bool


def run_dynamo(function: FunctionType, arguments: Mapping[str, Any]) -> Captured:
    """Let Dynamo capture a function, by calling it up to its graph.

    Args:
        function: With a code object of its own: Dynamo keeps what it knows with it.
        arguments: By name.

    Raises:
        NotCapturable: It cannot be captured; the message says what, and where it stands.
    """
    with guarded():
        from torch._dynamo import config, exc, utils
        from torch._dynamo.eval_frame import _debug_get_cache_entry_list as entries_of
        from torch._dynamo.symbolic_convert import InstructionTranslator
        from torch._guards import TracingContext

        if torch._C._len_torch_dispatch_stack():  # the step would be run, and not be captured
            raise NotCapturable("a TorchDispatchMode is active")
        if config.disable:
            raise NotCapturable("torch.compile is switched off (TORCHDYNAMO_DISABLE)")
        patch = config.patch(
            {name: value for name, value in _DYNAMO.items() if hasattr(config, name)}
        )
    graphs: list[GraphModule] = []
    read: list[CodeType] = []
    inputs: list[Any] = []
    bare: list[Any] = []
    kinds: dict[type, None] = {}
    asked: list[ModuleType | FunctionType] = []
    constants: list[str] = []
    seen: list[Any] = []
    # Dynamo says only once in a process that it looks through `functools.lru_cache`.
    said: Any = getattr(utils, "warn_once_cache", set())
    said.difference_update([text for text in said if "lru_cache" in text])

    def backend(graph: GraphModule, _inputs: Sequence[Any]) -> Any:
        # Refused before it is called: that would draw from generators of the user's own.
        if InstructionTranslator.current_tx().output.random_calls:
            raise NotCapturable("it draws random numbers in Python")
        graphs.append(graph)
        read.extend(getattr(TracingContext.try_get(), "traced_code", None) or ())
        return reached

    def keep(guards: Sequence[Any]) -> list[bool]:
        # Dynamo leaves out the test that a module has no hooks: `Watch` makes it.
        bare.extend(one.value for one in guards if one.guard_type == _NO_HOOKS)
        seen.extend(one for one in guards if one.name.endswith(".grad"))
        kinds.update(
            (one.value if isinstance(one.value, type) else type(one.value), None) for one in guards
        )
        asked.extend(one.value for one in guards if type(one.value) in (ModuleType, FunctionType))
        return [one.guard_type != _SAVING and not one.name.startswith(_OF_OURS) for one in guards]

    options: Any = {"guard_filter_fn": keep} if _FILTERS else None
    compiled = torch.compile(
        function, backend=backend, fullgraph=True, dynamic=False, options=options
    )
    try:
        with patch, private_names.noting(read, kinds, asked, constants):
            compiled(**arguments)
    except Reached as stopped:
        inputs = stopped.inputs
    except exc.TorchDynamoException as error:
        refused = getattr(error, "inner_exception", None)
        if isinstance(refused, NotCapturable):
            raise refused from error
        raise NotCapturable(reason(error)) from error
    if constants:
        raise NotCapturable(
            f"it reads {constants[0]}, and torch {torch.__version__} does not look whether that changes. Keep it in "
            "an attribute of the model, or use a later torch"
        )
    with guarded():
        entries = entries_of(function.__code__)
        if not entries:
            raise NotCapturable("torch.compile did nothing to it")
        guards = entries[0].guard_manager.root
        check, explain = guards.check, guards.check_verbose
        return Captured(
            code=entries[0].code,
            guards=guards,
            check=check,
            explain=explain,
            graph=graphs[0] if graphs else None,
            inputs=inputs,
            read=read,
            bare=bare,
            kinds=[*kinds],
            asked=asked,
            cached=any("lru_cache" in text for text in said),
            grads=any(one.value is None or isinstance(one.value, Tensor) for one in seen)
            or (not _FILTERS and bool(_GRAD.search(str(entries[0].guard_manager)))),
        )


@contextmanager
def quiet() -> Iterator[None]:
    """Silence what the compiler says about its own code: no warning of it is the user's to heed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def teach(name: str, mark: str, function: Callable[..., Any], reading: Callable[..., Any]) -> None:
    """Define an operation that does nothing, and tell Dynamo how to read a function.

    Args:
        name: Namespace of the operation.
        mark: The operation.
        function: What Dynamo cannot read.
        reading: What it reads in its place.
    """
    with guarded():
        library = torch.library.Library(name, "DEF")
        library.define(f"{mark}(Tensor {mark}) -> Tensor")
        library.impl(mark, torch.clone, "CompositeImplicitAutograd")
        _kept.append(library)  # what it defines lives as long as it does
        torch.compiler.substitute_in_graph(function, skip_signature_check=True)(reading)


_kept: list[Any] = []


def break_graph() -> None:
    """Within what Dynamo reads: keep it from reading further."""
    import torch._dynamo

    torch._dynamo.graph_break()


# -- tracing and compiling ------------------------------------------------------------------------


def trace(
    function: Callable[..., Any], inputs: Sequence[Tensor], *, in_parts: bool = False
) -> tuple[GraphModule, list[Tensor]]:
    """Trace a function of tensors as operations.

    Args:
        function: The function.
        inputs: What it is called with.
        in_parts: Whether what the library for this processor does in one piece is traced in parts:
            the pieces keep things for the backward pass that no graph can hand on.

    Returns:
        The graph, and the tensors that stood in for the inputs.
    """
    with guarded():
        from torch._subclasses.fake_tensor import FakeTensorMode
        from torch.fx.experimental.proxy_tensor import make_fx
        from torch.fx.experimental.symbolic_shapes import ShapeEnv

        # All shapes are static; without an environment for others the cache of the compiler is
        # unused. A tensor that is no input would be frozen as it is now: none is allowed.
        mode = FakeTensorMode(shape_env=ShapeEnv(), allow_non_fake_inputs=False)
        fakes: list[Tensor] = [mode.from_tensor(x.detach(), static_shapes=True) for x in inputs]
        thread = _as_if_compiling()
        pieces = torch.backends.mkldnn.flags(enabled=False) if in_parts else nullcontext()
    with thread, mode, pieces:
        return make_fx(function)(*fakes), fakes


class _OnlyHere:
    """True in the thread that made it: torch has one flag for all threads."""

    def __init__(self, elsewhere: Any) -> None:
        self._thread = threading.get_ident()
        self._elsewhere = elsewhere

    def __bool__(self) -> bool:
        return threading.get_ident() == self._thread or bool(self._elsewhere)


@contextmanager
def _as_if_compiling() -> Iterator[None]:
    """Let optimizers compute on tensors where they would read numbers from them."""
    with guarded():
        before = torch.compiler._is_compiling_flag
    torch.compiler._is_compiling_flag = _OnlyHere(before)  # type: ignore[assignment]
    try:
        yield
    finally:
        torch.compiler._is_compiling_flag = before


def compile_graph(
    graph: GraphModule, fakes: list[Tensor], changing: set[int], settings: Mapping[str, Any]
) -> Call:
    """Compile a graph by Inductor.

    Args:
        graph: Of operations on tensors.
        fakes: What it was traced with.
        changing: The places of those inputs that are other tensors at each call.
        settings: Of the compiler.
    """
    with guarded():
        import torch._functorch.config
        from torch._guards import TracingContext
        from torch._inductor import config
        from torch._inductor.compile_fx import compile_fx, compile_fx_inner

    direct: list[Call] = []

    def inner(lowered: GraphModule, examples: Sequence[Any], **options: Any) -> Any:
        # What lies where it lay at the last call need not be copied for a CUDA graph.
        options["static_input_idxs"] = [n for n in range(len(examples)) if n not in changing]
        made = compile_fx_inner(lowered, examples, **options)
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

    with guarded():
        stack = ExitStack()
        stack.enter_context(torch._functorch.config.patch(enable_autograd_cache=False))
        stack.enter_context(config.patch(dict(settings)))
    with stack:
        around = compile_fx(graph, fakes, inner_compile=inner)
    if direct:
        made = direct[0]
        return getattr(made, "current_callable", None) or made
    run: Callable[..., Sequence[Any]] = around  # type: ignore[assignment]
    return lambda arguments: run(*arguments)


def keeps_order_of_draws() -> bool:
    """Tell whether the compiler of this torch draws random numbers in the order of the graph."""
    try:
        from torch._inductor.fx_passes import post_grad
    except ImportError:
        return False
    return hasattr(post_grad, "_chain_random_ops_for_ordering")


def settings_of_mode(mode: str) -> dict[str, Any]:
    """Return the settings of the compiler for a mode of `torch.compile`."""
    with guarded():
        from torch._inductor import list_mode_options

        return dict(list_mode_options(mode))
