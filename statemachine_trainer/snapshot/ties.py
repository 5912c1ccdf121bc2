"""What is one thing under several paths of a state, and is to be one again in the run that goes on.

A file holds a list that stands in two places twice, and a tensor and its view as two tensors. Code that changes one of
them and reads the other would go on with other numbers. So ties are noted where the state of a callback is written, and
tied again before it is loaded. What lies in the weights of the model is then a part of those of the model that goes on.

Tensors in one `state_dict` of a module are left alone: the module copies their numbers.
"""

from __future__ import annotations

import gc
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import torch

Path = list[Any]
"""The keys and indices that lead to something in a state."""

Tie = dict[str, Any]
"""`path` leads to what is the same as at the path `of`, or lies in the weight of the model with the name `weight`.

Of a tensor, `at` says where it begins, in elements of the other one, `size` and `stride` how it goes on, and `steps`
which strides the weight had.
"""

_MOST: Final = 20_000
"""Containers, tensors and arrays of one state that are looked at."""

_IDENTITIES: Final = 1 << 32
"""A key from here on may be the `id` of an object."""

_PLAIN: Final = frozenset({bool, int, float, complex, str, bytes, type(None)})
_TENSORS: Final = (torch.Tensor, torch.nn.Parameter, torch.nn.Buffer)


class Found(NamedTuple):
    """What was found in a state.

    Attributes:
        ties: What is tied again.
        apart: What shares memory, and cannot be tied again, in words.
        keyed: The paths of dicts whose keys may be identities of objects, with one of the keys.
    """

    ties: list[Tie]
    apart: list[str]
    keyed: dict[str, int]


class _Numbers(NamedTuple):
    """Where numbers lie in memory; their path, or the name of a weight; the state of a module around them."""

    begin: int
    end: int
    path: Path | str
    module: int
    itself: Any


def ties_of(state: object, weights: Callable[[], Mapping[str, torch.Tensor]]) -> Found:
    """Look for what is tied in a state.

    Args:
        state: What a `state_dict` returned.
        weights: Returns the weights of the model.
    """
    found, numbers = Found([], [], {}), []
    known: dict[int, Path] = {}
    for path, one, module in _parts(state, found.keyed):
        if (place := _in_memory(one)) is not None:
            numbers.append(_Numbers(*place, path, module, one))
        elif type(one) not in (list, dict, set):
            continue
        elif id(one) in known:
            found.ties.append({"path": path, "of": known[id(one)]})
        else:
            known[id(one)] = path
    if numbers:
        of_model = [
            _Numbers(*place, name, 0, one)
            for name, one in weights().items()
            if (place := _in_memory(one)) is not None
        ]
        _tie_numbers(of_model + numbers, found)
    return found


def tied_again(state: Any, ties: Sequence[Tie], weights: Mapping[str, torch.Tensor]) -> list[str]:
    """Tie in a state that was read what was one thing where it was written.

    Args:
        state: The state, which is changed.
        ties: As `ties_of` found them.
        weights: The weights of the model that goes on.

    Returns:
        The paths of what was not tied, in words: the numbers of its weight lie in another order in memory.
    """
    apart = []
    for tie in ties:
        first: Any = weights.get(tie["weight"]) if "weight" in tie else _at(state, tie["of"])
        if first is None:
            continue
        if "size" in tie:
            if "weight" in tie and [*first.stride()] != tie["steps"]:
                if (tie["at"], tie["size"], tie["stride"]) != (0, [*first.shape], tie["steps"]):
                    apart.append(in_words(tie["path"]))
                    continue
                first = first.detach()  # the whole weight
            else:
                begin = first.storage_offset() + tie["at"]
                first = first.detach().as_strided(tie["size"], tie["stride"], begin)
        _put(state, tie["path"], first)
    return apart


def are_identities(keys: Sequence[int]) -> bool:
    """Whether one of these numbers is the `id` of an object that is there now."""
    wanted = {*keys}
    return any(id(one) in wanted for one in gc.get_objects())


def in_words(path: Path | str) -> str:
    """Return a path as code would write it."""
    return path if isinstance(path, str) else "".join(f"[{key!r}]" for key in path) or "itself"


def _parts(state: object, keyed: dict[str, int]) -> Iterator[tuple[Path, Any, int]]:
    """Yield all that is no plain value, with its path and the identity of the state of a module around it."""
    left: list[tuple[Path, Any, int]] = [([], state, 0)]
    for _ in range(_MOST):
        if not left:
            return
        path, one, module = left.pop()
        kind = type(one)
        yield path, one, module
        if kind is dict or kind is OrderedDict:
            if kind is OrderedDict and hasattr(one, "_metadata"):
                module = id(one)
            keys = {*map(type, one)}
            if int in keys and (wide := max(k for k in one if type(k) is int)) >= _IDENTITIES:
                keyed[in_words(path)] = wide
            inside = one.items()
        elif kind is list or kind is tuple:
            inside = enumerate(one)
        else:
            continue
        if len(path) < 20:
            left += [
                ([*path, key], value, module)
                for key, value in reversed([*inside])
                if type(value) not in _PLAIN
            ]


def _in_memory(one: Any) -> tuple[int, int] | None:
    """Return from where to where the elements of a tensor or an array lie; None of anything else."""
    if type(one) is np.ndarray:
        if not one.size or one.dtype.hasobject:
            return None
        begin = one.__array_interface__["data"][0]
        steps = [(n - 1) * step for n, step in zip(one.shape, one.strides, strict=True)]
        return begin + sum(min(0, step) for step in steps), begin + one.itemsize + sum(
            max(0, step) for step in steps
        )
    if type(one) not in _TENSORS or one.layout is not torch.strided or not one.numel():
        return None
    begin = one.data_ptr()
    if not begin:
        return None
    last = sum((n - 1) * step for n, step in zip(one.shape, one.stride(), strict=True))
    return begin, begin + (1 + last) * one.element_size()


def _tie_numbers(numbers: list[_Numbers], found: Found) -> None:
    """Tie tensors that overlap to the first of them, which is the one of the model, or the widest."""
    first: _Numbers | None = None
    in_turn = {id(one): turn for turn, one in enumerate(numbers)}
    ties: list[tuple[int, Tie]] = []
    apart: list[tuple[list[int], str]] = []
    for one in sorted(numbers, key=lambda one: (one.begin, type(one.path) is not str, -one.end)):
        if first is None or one.begin >= first.end:
            first = one
            continue
        if isinstance(one.path, str) or one.itself is first.itself:
            continue  # weights are tied as the script ties them; one object is one again
        if one.module and one.module == first.module:
            continue
        turn = in_turn[id(one)]
        if one.end > first.end or not _can_be_tied(one, first):
            turns = sorted([in_turn[id(first)], turn])
            names = [in_words(numbers[each].path) for each in turns]
            apart.append((turns, " and ".join(names)))
            first = first if first.end >= one.end else one
            continue
        tie: Tie = {"path": one.path, "weight" if isinstance(first.path, str) else "of": first.path}
        tie["at"] = (one.begin - first.begin) // one.itself.element_size()
        tie["size"], tie["stride"] = [*one.itself.shape], [*one.itself.stride()]
        if isinstance(first.path, str):
            tie["steps"] = [*first.itself.stride()]
        ties.append((turn, tie))
    # Where things lie in memory differs from process to process.
    found.ties.extend(tie for _, tie in sorted(ties, key=lambda each: each[0]))
    found.apart.extend(words for _, words in sorted(apart))


def _can_be_tied(one: _Numbers, first: _Numbers) -> bool:
    if not (isinstance(one.itself, torch.Tensor) and isinstance(first.itself, torch.Tensor)):
        return False
    # One with gaps, such as a column, is read without them.
    dense = first.end - first.begin == first.itself.numel() * first.itself.element_size()
    same = one.itself.dtype == first.itself.dtype and one.itself.device == first.itself.device
    return dense and same


def _at(state: Any, path: Path) -> Any:
    for key in path:
        try:
            state = state[key]
        except (KeyError, IndexError, TypeError):
            return None
    return state


def _put(state: Any, path: Path, thing: Any) -> None:
    """Put something at a path, if that is there. Tuples on the way are made anew."""
    holder = _at(state, path[:-1]) if path else None
    if isinstance(holder, list | dict):
        holder[path[-1]] = thing
    elif type(holder) is tuple:
        place = path[-1]
        _put(state, path[:-1], (*holder[:place], thing, *holder[place + 1 :]))
