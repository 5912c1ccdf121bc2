"""Comparing states to the bit: as one digest, or place by place."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator, Mapping, Set
from typing import Any, Final

import numpy as np
import torch

from statemachine_trainer.callbacks.monitor import READINGS
from statemachine_trainer.snapshot.tensor_file import bytes_of

Leaf = tuple[str, bytes, object]
"""Where a value lies, its bytes, and the value."""

_CLOCKS = ("seconds", "seconds_in_epoch")
_BY_TEXT: Final = frozenset({int, str, bool, type(None)})
_PLAIN: Final = _BY_TEXT | {float, bytes, torch.Tensor}


def comparable(state: dict[str, Any]) -> dict[str, Any]:
    """Return the state of a trainer without what two runs need not have in common.

    That is what tells the time; and gradients that an optimizer has stepped with, which may still be
    there or not.
    """
    context = state["context"]
    counts = _timeless(context["counts"])
    machine = state["machine"]
    loops = {
        path: {**loop, "fields": {n: _timeless(value) for n, value in loop["fields"].items()}}
        for path, loop in machine["loops"].items()
    }
    model = context["model"]
    if not context["manual"]:
        waiting = {
            name
            for slot in context["optimizers"]
            for group in slot["parameters"]
            for name in group
            if slot["window"]
        }
        grads = {name: grad for name, grad in model["grads"].items() if name in waiting}
        model = {**model, "grads": grads}
    return {
        **state,
        "machine": {**machine, "loops": loops},
        "context": {**context, "counts": counts, "model": model},
    }


def _timeless(value: Any) -> Any:
    """Leave the clocks out of counters, wherever a loop keeps a copy of them."""
    if not isinstance(value, dict):
        return value
    return {name: one for name, one in value.items() if name not in _CLOCKS}


def digest(tree: object) -> str:
    """Return a digest of all values of a tree, their types and their places."""
    found = hashlib.blake2b(digest_size=16)
    for path, content, _ in leaves(tree):
        found.update(struct.pack("<qq", len(path), len(content)))
        found.update(path.encode())
        found.update(content)
    return found.hexdigest()


def differences(expected: object, found: object) -> list[str]:
    """Say what differs between two trees, in the order of the first one; empty if nothing does.

    Numbers are compared by their bits: NaN equals NaN, and 0.0 is not -0.0.
    """
    ours = {path: (content, value) for path, content, value in leaves(expected)}
    theirs = {path: (content, value) for path, content, value in leaves(found)}
    told = []
    for path in dict.fromkeys([*ours, *theirs]):
        if path not in theirs:
            told.append(f"{path} is {shown(ours[path][1])} undisturbed, and is not there resumed")
        elif path not in ours:
            told.append(f"{path} is {shown(theirs[path][1])} resumed, and is not there undisturbed")
        elif ours[path][0] != theirs[path][0]:
            told.append(f"{path} {_apart(ours[path][1], theirs[path][1])}")
    return told


def leaves(tree: object, path: str = "") -> Iterator[Leaf]:
    """Yield every value of a tree that is no container, depth first; empty containers too."""
    if type(tree) in _PLAIN:  # nearly all are, and this is quick to tell
        yield path, _bytes(tree), tree
    elif isinstance(tree, Mapping):
        yield path, f"{len(tree)} keys".encode(), f"a dict of {len(tree)}"
        for key, one in tree.items():
            if key not in READINGS:  # of the clock and the memory: two equal runs differ there
                yield from leaves(one, _below(path, key))
    elif isinstance(tree, list | tuple):
        kind = "list" if isinstance(tree, list) else "tuple"
        yield path, f"{kind} {len(tree)}".encode(), f"a {kind} of {len(tree)}"
        for index, one in enumerate(tree):
            yield from leaves(one, f"{path}[{index}]")
    elif isinstance(tree, Set):
        items = sorted(map(repr, tree))
        yield path, repr(items).encode(), tree
    else:
        yield path, _bytes(tree), tree


def shown(value: object) -> str:
    """Return a value in a few words."""
    if isinstance(value, torch.Tensor):
        if value.numel() <= 4:
            return f"{value.detach().cpu().tolist()}"
        return f"a tensor of shape {tuple(value.shape)} and {value.dtype}"
    text = str(value) if isinstance(value, str) and value.startswith("a ") else repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _below(path: str, key: object) -> str:
    if isinstance(key, str) and key.replace("_", "a").isalnum():
        return f"{path}.{key}" if path else key
    return f"{path}[{key!r}]"


def _bytes(value: object) -> bytes:
    """Return the type and the bits of a value."""
    if isinstance(value, torch.Tensor):
        return _tensor_bytes(value)
    if type(value) in _BY_TEXT:
        return f"{type(value).__name__} {value!r}".encode()
    if isinstance(value, np.ndarray | np.generic):
        return f"numpy {value.dtype} {value.shape} ".encode() + value.tobytes()
    if isinstance(value, float):
        return b"float " + struct.pack("<d", value)
    if isinstance(value, bytes):
        return b"bytes " + value
    return f"{type(value).__name__} {value!r}".encode()


def _tensor_bytes(value: torch.Tensor) -> bytes:
    plain = value.detach().cpu().contiguous()
    head = f"tensor {value.dtype} {tuple(value.shape)} ".encode()
    return head + bytes(bytes_of(plain))


def _apart(expected: object, found: object) -> str:
    """Say how two values differ."""
    if isinstance(expected, torch.Tensor) and isinstance(found, torch.Tensor):
        return _tensors_apart(expected, found)
    return f"is {shown(expected)} undisturbed and {shown(found)} resumed"


def _tensors_apart(expected: torch.Tensor, found: torch.Tensor) -> str:
    if (expected.shape, expected.dtype) != (found.shape, found.dtype):
        return f"is {shown(expected)} undisturbed and {shown(found)} resumed"
    ours, theirs = expected.detach().cpu().reshape(-1), found.detach().cpu().reshape(-1)
    if ours.numel() <= 4:
        return f"is {shown(expected)} undisturbed and {shown(found)} resumed"
    apart = ours != theirs
    text = f"differs in {int(apart.sum())} of {ours.numel()} elements"
    if not ours.dtype.is_floating_point or not apart.any():
        return text
    largest = (ours.double() - theirs.double()).abs().max().item()
    return f"{text}, by {largest:.3g} at most"
