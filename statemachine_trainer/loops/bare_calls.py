"""`zero_grad`, `backward` and `step` of torch, without what torch does around them for others.

Around each of the three, torch opens a label for its profiler, goes through lists of hooks and reads
arguments that a loop never gives. Of a step of a small model that is up to a third of the time. Here
the same work is done without it, to the same bits, wherever nobody would notice. The function of torch
is called as a whole when

- a profiler of torch runs, so that its labels are in the profile,
- the optimizer has hooks, or there are hooks for all optimizers,
- somebody has replaced or overridden the function, in a class or in one optimizer,
- tensors are told apart by their class or by a mode (`__torch_function__`, `torch.func`), or
- the function of this version of torch names something that is not known here.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from functools import lru_cache
from types import CodeType, FunctionType
from typing import Any, Final

import torch
from torch import Tensor
from torch._C import _are_functorch_transforms_active
from torch.autograd import _profiler_enabled, profiler  # type: ignore[attr-defined]
from torch.autograd.graph import _engine_run_backward
from torch.optim import Optimizer
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks
from torch.overrides import has_torch_function_unary

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
    "device dtype get grad grad_fn is_sparse param_groups requires_grad_ zero_"
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


def _is_known(function: Any, named: str) -> bool:
    """Tell whether a function is torch's own, and names nothing but what it was known to name."""
    code = getattr(function, "__code__", None)
    return (
        isinstance(code, CodeType)
        and code.co_filename.startswith(torch.__path__[0])
        and set(code.co_names) <= {*_BY_ALL.split(), *named.split()}
    )


def _known_zero_grad() -> Any:
    """Return `Optimizer.zero_grad`; None if it is not known."""
    outer = inner = Optimizer.zero_grad
    if _is_known(outer, _BY_KEEPING_DYNAMO_OUT):  # a wrapper that is of no use in a loop
        inner = getattr(outer, "__wrapped__", outer)
    return outer if _is_known(inner, _BY_ZERO_GRAD) else None


def _known_wrapper() -> CodeType | None:
    """Return the code that torch puts around the step of each class of optimizers; None if not known."""
    around = Optimizer.profile_hook_step(Optimizer._optimizer_step_code)  # any function will do
    known = _is_known(around, _BY_STEP) and around.__code__.co_freevars == ("func",)
    return around.__code__ if known else None


def _known_backward() -> tuple[Any, Any]:
    """Return `backward` of `Tensor` and of `torch.autograd`; (None, None) if they are not known."""
    both = Tensor.backward, torch.autograd.backward
    known = all(_is_known(one, _BY_BACKWARD) for one in both)
    return both if known and _is_known(torch.autograd._make_grads, _BY_MAKE_GRADS) else (None, None)


_ZERO_GRAD: Final = _known_zero_grad()
_AROUND_STEP: Final = _known_wrapper()
_STEP_CODE: Final = Optimizer._optimizer_step_code
_BACKWARD: Final = _known_backward()


# -- The calls -------------------------------------------------------------------------------------


def clear_gradients(optimizer: Optimizer) -> None:
    """Do what `optimizer.zero_grad()` does."""
    own = optimizer.__dict__
    if (
        type(optimizer).zero_grad is not _ZERO_GRAD
        or "zero_grad" in own
        or "_zero_grad_profile_name" not in own  # the first `zero_grad` sets up what is missing
        or _profiler_enabled()
        or profiler._is_profiler_enabled
    ):
        optimizer.zero_grad()
        return
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = None


def run_backward(loss: Tensor) -> None:
    """Do what `loss.backward()` does. A loss of a training step has the shape ()."""
    of_tensor, of_autograd = _BACKWARD
    if (
        Tensor.backward is of_tensor
        and torch.autograd.backward is of_autograd
        and loss.__class__ is Tensor
        and loss.requires_grad
        and not loss.ndim
        and loss.is_floating_point()
        and not has_torch_function_unary(loss)  # true within a mode, whatever the class
        and not _are_functorch_transforms_active()
    ):
        ones = torch.ones_like(loss, memory_format=torch.preserve_format)
        _engine_run_backward(
            (loss,), (ones,), False, False, (), allow_unreachable=True, accumulate_grad=True
        )
    else:
        loss.backward()


def take_step(optimizer: Optimizer) -> None:
    """Do what `optimizer.step()` does, for an optimizer that needs no closure."""
    of_class = type(optimizer).step
    inner = _within(of_class) if of_class.__class__ is FunctionType else None
    own = optimizer.__dict__.get("step")
    if (
        inner is None
        or (own is not None and not _only_counts(optimizer, own, of_class))
        or _profiler_enabled()
        or profiler._is_profiler_enabled
        or optimizer._optimizer_step_pre_hooks
        or optimizer._optimizer_step_post_hooks
        or _global_optimizer_pre_hooks
        or _global_optimizer_post_hooks
        or type(optimizer)._optimizer_step_code is not _STEP_CODE
    ):
        optimizer.step()
        return
    if own is not None:
        optimizer._opt_called = True  # type: ignore[attr-defined]
    inner(optimizer)


@lru_cache(maxsize=64)
def _within(step_of_class: Any) -> Callable[[Optimizer], object] | None:
    """Return the step that a class defines, from within torch's wrapper; None if that is not around it."""
    if step_of_class.__code__ is not _AROUND_STEP:
        return None
    inner: Callable[[Optimizer], object] = step_of_class.__closure__[0].cell_contents
    return inner


def _only_counts(optimizer: Optimizer, own: Any, of_class: Any) -> bool:
    """Tell whether the step of one optimizer is that of its class, in the wrapper of a scheduler.

    The wrapper notes that the optimizer has stepped, so that a scheduler can warn if it steps first.
    """
    if own.__class__ is not FunctionType:
        return False
    noted, called = _counting(own)
    return called is of_class and noted() is optimizer


@lru_cache(maxsize=64)
def _counting(own: Any) -> tuple[Callable[[], Any], Any]:
    """Return what tells the optimizer that a scheduler's wrapper notes, and the step that it calls."""
    if not _is_known(own, _BY_COUNTING) or own.__code__.co_freevars != ("func", "opt_ref"):
        return weakref.ref(_STEP_CODE), None
    called, noted = (cell.cell_contents for cell in own.__closure__ or ())
    return noted, called
