"""`zero_grad`, `backward` and `step` of torch, without what torch does around them for others.

Around each of the three, torch opens a label for its profiler, goes through lists of hooks and reads
arguments that a loop never gives. Of a step of a small model that is up to a third of the time. Here
the same work is done without it, to the same bits, wherever nobody would notice. The function of torch
is called as a whole when

- a profiler of torch runs, so that its labels and the functions of torch are in the profile,
- the optimizer has hooks, or there are hooks for all optimizers,
- somebody has replaced or overridden the function, or `record_function`, which makes the labels: in a
  class, in a module of torch, in one optimizer or in one loss,
- a mode sees what is called (`TorchFunctionMode`, `TorchDispatchMode`, `torch.func`), or the loss is of
  another class than `Tensor`, or
- the function of this version of torch names something that is not known here.

So each call first looks the method up, as `optimizer.step()` does, and asks whether it is torch's own.
Nothing is kept from call to call: a replaced method may hold a model, and would hold it for ever.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from types import CodeType, FunctionType, MethodType
from typing import Any, Final

import torch
from torch import Tensor, autograd
from torch._C import _are_functorch_transforms_active
from torch.autograd import _profiler_enabled, profiler  # type: ignore[attr-defined]
from torch.nn import Parameter
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks
from torch.overrides import has_torch_function_unary
from torch.utils import _python_dispatch as dispatch

# -- What is known of torch ------------------------------------------------------------------------

# What its functions name in versions 2.7 to 2.15. One that names more does more.
_BY_ALL: Final = (
    "AssertionError RuntimeError TypeError __class__ __name__ all autograd cast hasattr isinstance len "
    "profiler record_function str torch tuple type values zip"
)
_BY_STEP: Final = (
    "Optimizer _global_optimizer_post_hooks _global_optimizer_pre_hooks _optimizer_step_code "
    "_optimizer_step_post_hooks _optimizer_step_pre_hooks chain"
)
_BY_ZERO_GRAD: Final = (
    "_foreach_zero_ _patch_step_function _zero_grad_profile_name append defaultdict defaults detach_ "
    "device dtype get grad grad_fn is_sparse list param_groups requires_grad_ zero_"
)
_BY_BACKWARD: Final = (
    "FutureWarning GradientEdge Mapping Tensor Union _C _are_functorch_transforms_active "
    "_engine_run_backward _make_grads _tensor_or_tensors_to_tuple backward dict graph "
    "handle_torch_function has_torch_function has_torch_function_unary is_tensor_like warn warnings"
)
_BY_MAKE_GRADS: Final = (
    "GradientEdge NestedTensor Size Tensor Union _calculate_shape _input_metadata append device dtype "
    "expect_true graph index is_complex is_cpp_nested_tensor is_floating_point is_nested "
    "is_nested_tensor is_same_size node numel ones ones_like output_nr preserve_format requires_grad "
    "shape size sym_eq torch.fx.experimental.symbolic_shapes torch.nested._internal.nested_tensor"
)
_BY_KEEPING_DYNAMO_OUT: Final = "getattr torch._dynamo _dynamo disable __dynamo_disable"
_BY_COUNTING: Final = "_opt_called __get__ __class__"


def _is_known(asked: Any, named: str) -> bool:
    """Tell whether a function or its code is torch's own, and names nothing but what is known of it."""
    code = getattr(asked, "__code__", asked)
    return (
        isinstance(code, CodeType)
        and code.co_filename.startswith(torch.__path__[0] + os.sep)
        and all(set(one.co_names) <= {*_BY_ALL.split(), *named.split()} for one in _within(code))
    )


def _within(code: CodeType) -> Iterator[CodeType]:
    """Yield the code of a function, and of all functions that are defined in it."""
    yield code
    for one in code.co_consts:
        if isinstance(one, CodeType):
            yield from _within(one)


def _nothing() -> None:
    """Stand for a function that is not known: torch has no such code."""


def _known_zero_grad() -> Any:
    """Return `Optimizer.zero_grad`; None if it is not known."""
    outer = inner = Optimizer.zero_grad
    if _is_known(outer, _BY_KEEPING_DYNAMO_OUT):  # a wrapper that is of no use in a loop
        inner = getattr(outer, "__wrapped__", outer)
    return outer if _is_known(inner, _BY_ZERO_GRAD) else None


def _known_wrapper() -> CodeType:
    """Return the code that torch puts around the step of each class of optimizers."""
    empty = Optimizer._optimizer_step_code
    around = Optimizer.profile_hook_step(empty)  # any function will do
    known = _is_known(empty, "") and _is_known(around, _BY_STEP)
    return (
        around.__code__ if known and around.__code__.co_freevars == ("func",) else _nothing.__code__
    )


def _known_counter() -> CodeType:
    """Return the code that schedulers put around the step of their optimizer.

    It notes that the optimizer has stepped, so that a scheduler can warn if it steps first.
    """
    for code in _within(getattr(LRScheduler.__init__, "__code__", _nothing.__code__)):
        if code.co_freevars == ("func", "opt_ref") and _is_known(code, _BY_COUNTING):
            return code
    return _nothing.__code__


def _known_backward() -> tuple[Any, Any]:
    """Return `backward` of `Tensor` and of `torch.autograd`; (None, None) if they are not known."""
    both = Tensor.backward, autograd.backward
    known = all(_is_known(one, _BY_BACKWARD) for one in both)
    return both if known and _is_known(autograd._make_grads, _BY_MAKE_GRADS) else (None, None)


_ZERO_GRAD: Final = _known_zero_grad()
_AROUND_STEP: Final = _known_wrapper()
_AROUND_COUNTED: Final = _known_counter()
_STEP_CODE: Final = Optimizer._optimizer_step_code
_BACKWARD: Final = _known_backward()
_LABEL: Final = profiler.record_function


# -- The calls -------------------------------------------------------------------------------------

# What two of them ask alike is written out in both: they run in each batch, and a call takes longer than the question.


def clear_gradients(optimizer: Optimizer) -> None:
    """Do what `optimizer.zero_grad()` does."""
    asked = optimizer.zero_grad
    if (
        asked.__class__ is not MethodType
        or asked.__func__ is not _ZERO_GRAD
        or asked.__self__ is not optimizer
        or "_zero_grad_profile_name" not in optimizer.__dict__  # the first sets up what is missing
        or _profiler_enabled()
        or profiler._is_profiler_enabled
        or profiler.record_function is not _LABEL
        or dispatch._is_in_torch_dispatch_mode
        or has_torch_function_unary(None)  # true within a mode, whatever is asked about
    ):
        asked()
        return
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            # The gradient of a class of its own may be anything, and is read first as torch does.
            if parameter.__class__ is Parameter or parameter.grad is not None:
                parameter.grad = None


def run_backward(loss: Tensor) -> None:
    """Do what `loss.backward()` does. A loss of a training step has the shape ()."""
    of_tensor, of_autograd = _BACKWARD
    asked: Any = loss.backward
    if (
        loss.__class__ is Tensor
        and not has_torch_function_unary(loss)  # true within a mode, whatever the class
        and asked.__class__ is MethodType
        and asked.__func__ is of_tensor
        and asked.__self__ is loss
        and autograd.backward is of_autograd
        and loss.requires_grad
        and not loss.ndim
        and loss.dtype.is_floating_point
        and not profiler._is_profiler_enabled
        and not _are_functorch_transforms_active()
    ):
        ones = torch.ones_like(loss, memory_format=torch.preserve_format)
        # Asked of the module, in which torch itself replaces it at times.
        autograd._engine_run_backward(  # type: ignore[attr-defined]
            (loss,), (ones,), False, False, (), allow_unreachable=True, accumulate_grad=True
        )
    else:
        asked()


def take_step(optimizer: Optimizer) -> None:
    """Do what `optimizer.step()` does, for an optimizer that needs no closure."""
    asked: Any = optimizer.step
    around: Any = None
    if counted := asked.__class__ is FunctionType:
        around = _counted(asked, optimizer)
    elif asked.__class__ is MethodType and asked.__self__ is optimizer:
        around = asked.__func__
    if (
        around.__class__ is not FunctionType
        or around.__code__ is not _AROUND_STEP
        or _profiler_enabled()
        or profiler._is_profiler_enabled
        or profiler.record_function is not _LABEL
        or dispatch._is_in_torch_dispatch_mode
        or has_torch_function_unary(None)
        or optimizer._optimizer_step_pre_hooks
        or optimizer._optimizer_step_post_hooks
        or _global_optimizer_pre_hooks
        or _global_optimizer_post_hooks
        or type(optimizer)._optimizer_step_code is not _STEP_CODE
        or "_optimizer_step_code" in optimizer.__dict__
    ):
        asked()
        return
    if counted:
        optimizer._opt_called = True  # type: ignore[attr-defined]
    within: Any = around.__closure__
    within[0].cell_contents(optimizer)  # the step that the class defines


def _counted(asked: Any, optimizer: Optimizer) -> Any:
    """Return the step that a scheduler has wrapped, if it is one of this optimizer."""
    if asked.__code__ is not _AROUND_COUNTED:
        return None
    step, noted = asked.__closure__
    return step.cell_contents if noted.cell_contents() is optimizer else None
