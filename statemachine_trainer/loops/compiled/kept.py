"""Compiled programs on disk, for the processes that come later: a resumed run compiles nothing.

The compiler of torch keeps what it made on disk, too; but to find it, it has to be loaded, and to
take the graph through its first passes, which takes longer than a short run. Here the graph itself,
as it was traced, is the key, with all else that the compiler looks at. What is kept is the library
that it made, which is loaded without the compiler.

So it goes on the CPU, for graphs of operations of torch alone.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor
from torch.fx import GraphModule

from statemachine_trainer.loops.compiled import private_disk
from statemachine_trainer.loops.compiled.private import Call

_FORMAT: Final = "1"
"""Changes where the key or the libraries do."""

_NAMESPACES: Final = ("aten", "prims")


def place_of(
    graph: GraphModule, inputs: Sequence[Tensor], settings: Mapping[str, Any]
) -> Path | None:
    """Return the file in which a compiled graph is kept, be it there or not.

    Args:
        graph: As it is given to the compiler.
        inputs: What it was traced with.
        settings: Of the compiler.

    Returns:
        The file; None for a graph that is not kept.
    """
    if any(one.device.type != "cpu" for one in inputs) or not _is_plain(graph):
        return None
    folder, configured = private_disk.compiler_settings(settings)
    if folder is None or " at 0x" in configured:  # a function of the user's, which may change
        return None
    parts = [
        _FORMAT,
        graph.code,
        *(f"{one.shape} {one.stride()} {one.storage_offset()} {one.dtype}" for one in inputs),
        configured,
        *_environment(),
    ]
    key = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:40]
    return Path(folder) / "statemachine_trainer" / f"{key}.so"


def load(place: Path) -> Call | None:
    """Return the program that is kept in a file; None if there is none that can be used."""
    try:
        with place.open("rb") as file:
            # As little as the compiler does, but not what another user left in a public folder.
            if hasattr(os, "getuid") and os.fstat(file.fileno()).st_uid != os.getuid():
                return None
    except OSError:
        return None
    return private_disk.load_library(str(place))


def keep(call: Call, place: Path) -> None:
    """Keep a program for later processes. That it cannot be is no mistake."""
    library = private_disk.library_of(call)
    if library is None:
        return
    with suppress(OSError):
        place.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=place.parent)
        os.close(handle)
        copy = Path(name)
        try:
            shutil.copyfile(library, copy)
            copy.replace(place)  # whoever loads it sees all of it
        except OSError:
            copy.unlink()


def _is_plain(graph: GraphModule) -> bool:
    """Tell whether the text of a graph says all of it."""
    return all(
        node.op in ("placeholder", "output")
        or (node.op == "call_function" and _is_known(node.target))
        for node in graph.graph.nodes
    )


def _is_known(target: Any) -> bool:
    if isinstance(target, torch._ops.OpOverload):
        return target.namespace in _NAMESPACES
    return getattr(target, "__module__", None) in ("_operator", "operator")


def _environment() -> list[str]:
    """Return what else decides about the code that the compiler makes."""
    return [
        sys.version,
        platform.platform(),
        *private_disk.versions(),
        *private_disk.processor(),
        str(torch.get_num_threads()),
        str(torch.are_deterministic_algorithms_enabled()),
        str(torch.is_deterministic_algorithms_warn_only_enabled()),
        torch.get_float32_matmul_precision(),
        str(torch.backends.mkldnn.enabled),
        *(f"{name}={value}" for name, value in sorted(os.environ.items()) if _matters(name)),
    ]


def _matters(name: str) -> bool:
    return name.startswith(("ATEN_", "OMP_", "KMP_", "MKL_", "DNNL_", "ONEDNN_"))
