"""What is taken from inside of torch to keep compiled programs on disk.

None of it is promised by torch. Where something is missing, nothing is kept.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any, Final

import torch

from statemachine_trainer.loops.compiled.private import Call

_ENTRY: Final = "inductor_entry_cpp"
_READY: Final = "_TORCHINDUCTOR_PYOBJECT_TENSOR_DATA_PTR"
"""Where the libraries of the compiler look for a function of torch."""


def compiler_settings(settings: Mapping[str, Any]) -> tuple[str | None, str]:
    """Return the folder in which the compiler keeps things, and all of its settings as text.

    Args:
        settings: Of the compiler; others are as they are configured.

    Returns:
        None as the folder if nothing is to be kept, or that is not known.
    """
    try:
        from torch._functorch import config as functorch
        from torch._inductor import config
        from torch._inductor.runtime.cache_dir_utils import cache_dir

        with config.patch(dict(settings)):
            if config.force_disable_caches or not config.fx_graph_cache:
                return None, ""
            parts = [config.save_config_portable(), functorch.save_config_portable()]
            passes = [getattr(config, name, None) for name in _PASSES]
    except (AttributeError, ImportError, TypeError):
        return None, ""
    return (None, "") if any(passes) else (cache_dir(), repr([sorted(x.items()) for x in parts]))


_PASSES: Final = (
    "post_grad_custom_pre_pass", "post_grad_custom_post_pass", "joint_custom_pre_pass",
    "joint_custom_post_pass", "pre_grad_custom_pass", "_pre_fusion_custom_pass",
    "_post_fusion_custom_pass",
)  # fmt: skip
"""Settings by which users change graphs; their text does not say what they do."""


def versions() -> list[str]:
    """Return what tells this torch from all others."""
    return [torch.__version__, str(torch.version.git_version)]


def processor() -> list[str]:
    """Return what tells the kind of this processor."""
    flags = ""
    try:
        with Path("/proc/cpuinfo").open(encoding="utf-8") as file:
            flags = next((line for line in file if line.startswith(("flags", "Features"))), "")
    except OSError:
        pass
    return [torch.backends.cpu.get_cpu_capability(), flags]


def library_of(call: Call) -> str | None:
    """Return the file of the library that a compiled program is; None if it is more than that."""
    cells: Sequence[Any] = getattr(call, "__closure__", None) or ()
    names = set(getattr(getattr(call, "__code__", None), "co_names", ()))
    if len(cells) != 1 or not names <= _WRAPPING:
        return None
    entry = cells[0].cell_contents
    module = getattr(entry, "__self__", None)
    path = getattr(module, "__file__", None)
    return path if getattr(entry, "__name__", None) == _ENTRY and path else None


_WRAPPING: Final = {
    "isinstance", "torch", "Tensor", "tensor", "_C", "_aoti", "clear",
    "unsafe_alloc_void_ptrs_from_tensors", "alloc_tensors_by_stealing_from_void_ptrs",
}  # fmt: skip
"""What the compiler's function around a library names, if it does what that below does."""


def load_library(path: str) -> Call | None:
    """Load a library of the compiler, and return its program; None if this torch cannot."""
    try:
        handles = torch._C._aoti.unsafe_alloc_void_ptrs_from_tensors
        tensors = torch._C._aoti.alloc_tensors_by_stealing_from_void_ptrs
        function = torch._C._dynamo.guards._torchinductor_pyobject_tensor_data_ptr  # type: ignore[attr-defined]
        spec = spec_from_file_location(f"{Path(path).stem}.{_ENTRY}", path)
        if spec is None or spec.loader is None:
            return None
        os.environ[_READY] = str(function)
        module = module_from_spec(spec)
        spec.loader.exec_module(module)
        entry = getattr(module, _ENTRY)
    except (AttributeError, ImportError, OSError):
        return None

    def call(arguments: list[Any]) -> Sequence[Any]:
        given = handles(arguments)
        arguments.clear()
        return tensors(entry(given))

    return call
