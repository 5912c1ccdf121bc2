"""Compares the training data of the ranks at the first batch: each has to read a part of its own."""

from __future__ import annotations

import hashlib
import math
import types
import warnings
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import PurePath
from typing import Any, Final, cast

import numpy as np
import torch
from torch.utils.data import DataLoader, RandomSampler, SequentialSampler

from statemachine_trainer.data import Feed
from statemachine_trainer.data.mapstyle import is_map_loader
from statemachine_trainer.loops.context import Context
from statemachine_trainer.loops.loop_errors import LikelyMistake
from statemachine_trainer.loops.ranks_compared import RanksDiffer
from statemachine_trainer.machine.errors import StateMachineError, level_of_caller
from statemachine_trainer.parallel import leaves_with_paths
from statemachine_trainer.parallel.gradient_sync import averages_by_itself, first_of_each
from statemachine_trainer.parallel.ranks import Json, Ranks
from statemachine_trainer.snapshot.ranked import digest

_MOST: Final = 2000
"""Objects of a data set that are looked at."""

_SAMPLED: Final = 64
"""Elements of a container, or of a tensor, that are looked at."""

_ATOMS: Final = (
    bool,
    int,
    float,
    complex,
    str,
    bytes,
    range,
    PurePath,
    np.generic,
    torch.dtype,
    torch.device,
)
_CODE: Final = (
    type, types.FunctionType, types.BuiltinFunctionType, types.MethodType, types.ModuleType, torch.Generator,
)  # fmt: skip
"""Objects that do not say which samples a data set has."""

_ADVICE: Final = (
    "Give the loader `sampler=DistributedSampler(data)`, which deals the samples out; let a stream "
    "yield a part of its own at each rank (torch.distributed.get_rank())."
)


class SameBatches(StateMachineError):
    """All ranks of a run read the same data."""


class SameWork(LikelyMistake):
    """All ranks read the same data, and each trains its own model."""


class RandomNumbersDiffer(LikelyMistake):
    """Ranks that hold parts of the same layers draw different random numbers."""


def compare_batches(ranks: Ranks, context: Context) -> None:
    """Refuse ranks that read the same data: a sampler was forgotten. A collective.

    The first batches are compared, and what each loader reads: one with a plain sampler reads all
    of its data set, in another order at each rank perhaps.

    Ranks that hold parts of the same layers have to read the same.

    Raises:
        SameBatches: They read the same data, and their gradients are averaged.
        RanksDiffer: They hold parts of the same layers, and read different data.

    Warns:
        SameWork: They read the same batch, and their gradients are not averaged.
        RandomNumbersDiffer: They hold parts of the same layers, and draw different random numbers.
    """
    steps = context.steps
    data_ranks = steps.sync.data_ranks
    numbers = None if data_ranks is None else digest(torch.get_rng_state())
    mine: Json = [_digest_of_batch(context.batch), _read_as_a_whole(context.train), numbers]
    told = cast("list[tuple[Any, Any, Any]]", ranks.from_all(mine))
    if data_ranks is not None:
        _compare_peers(data_ranks, told)
        told = first_of_each(data_ranks, told)
        if len(told) == 1:
            return
    batches, wholes, _ = zip(*told, strict=True)
    wrappers = map(averages_by_itself, (steps.whole, *context.model.modules()))
    averages = bool(steps.sync.by) or any(wrappers)
    if _all_equal(batches):
        text = f"All {ranks.size} ranks read the same batch, so that they do the work of one. {_ADVICE}"
        if averages:
            raise SameBatches(text)
        warnings.warn(text, SameWork, stacklevel=level_of_caller())
    elif averages and _all_equal(wholes):
        name, length, _ = wholes[0]
        raise SameBatches(
            f"Each of the {ranks.size} ranks reads all {length} samples of {name!r}, in an order of its "
            f"own, so that an epoch goes over them {ranks.size} times. {_ADVICE} If each data set is a part "
            "already, let it keep its rank as an attribute, by which it is told from the others."
        )


def _compare_peers(data_ranks: list[int], told: Sequence[tuple[Any, Any, Any]]) -> None:
    """Refuse ranks that hold parts of the same layers and read different data."""
    for rank, number in enumerate(data_ranks):
        peer = data_ranks.index(number)
        size = max(data_ranks) + 1
        if told[rank][0] != told[peer][0]:
            raise RanksDiffer(
                f"Ranks {peer} and {rank} hold parts of the same layers (tensor parallelism), and read different "
                f"batches. Deal data out to the {size} ranks of the axis of data alone: DistributedSampler(dataset, "
                f'num_replicas={size}, rank=mesh["data"].get_local_rank()).'
            )
        if told[rank][2] != told[peer][2]:
            warnings.warn(
                f"Ranks {peer} and {rank} hold parts of the same layers (tensor parallelism), and draw different "
                "random numbers: dropout between these layers is another one at each. Seed them alike: "
                'torch.manual_seed(mesh["data"].get_local_rank()).',
                RandomNumbersDiffer,
                stacklevel=level_of_caller(),
            )
            return


def _all_equal(values: Sequence[Any]) -> bool:
    return values[0] is not None and all(one == values[0] for one in values)


def _digest_of_batch(batch: Any) -> str | None:
    """Return a digest of a batch; None if all its values are equal, so that it identifies nothing."""
    found, telling = hashlib.sha256(), False
    for path, leaf in leaves_with_paths(batch):
        if isinstance(leaf, torch.Tensor) and leaf.layout is torch.strided and leaf.numel():
            found.update(f"{path} {digest(leaf)}".encode())
            telling = telling or bool((leaf != leaf.reshape(-1)[0]).any())
        elif isinstance(leaf, str | int | float):
            found.update(f"{path} {leaf!r}".encode())
    return found.hexdigest() if telling else None


# -- What a loader reads ---------------------------------------------------------------------------


def _read_as_a_whole(feed: Feed) -> Json:
    """Return name, length and a digest of a data set that its loader reads as a whole; None if there is none.

    Only samplers of torch are known to do so that go through a data set once.
    """
    for name, one in feed.parts.items():
        loader: Any = one.loader
        if not isinstance(loader, DataLoader) or not is_map_loader(loader):
            continue
        sampler: Any = getattr(loader.batch_sampler, "sampler", loader.sampler)
        whole = type(sampler) is SequentialSampler or (
            type(sampler) is RandomSampler and not sampler.replacement
        )
        data: Any = loader.dataset
        if whole and len(sampler) >= len(data) > 1:
            found = fingerprint(data)
            return None if found is None else [name, len(data), found]
    return None


def fingerprint(data: object) -> str | None:
    """Return a digest of what a data set holds, by samples of it; None if something in it cannot be seen.

    No code of the data set runs, and nothing is read from files: a part that a rank has for its own
    differs in its indices, names or numbers.
    """
    found = hashlib.sha256()
    try:
        for number, text in enumerate(_facts(data, set())):
            if number == _MOST:
                return None
            found.update(text.encode(errors="replace"))
    except _Unseen:
        return None
    return found.hexdigest()


class _Unseen(Exception):
    """An object whose content cannot be read without its help."""


def _facts(value: object, seen: set[int]) -> Iterator[str]:
    yield type(value).__qualname__
    if value is None or isinstance(value, _ATOMS):
        yield repr(value)
    elif isinstance(value, _CODE) or id(value) in seen:
        return
    else:
        seen.add(id(value))
        if isinstance(value, torch.Tensor | np.ndarray):
            yield from _numbers(value)
        else:
            for part in _parts(value):
                yield from _facts(part, seen)


def _parts(value: object) -> Iterator[object]:
    contains = isinstance(value, dict | list | tuple)
    if isinstance(value, dict):
        yield len(value)
        for pair in islice(dict.items(value), _SAMPLED):
            yield from pair
    elif isinstance(value, list | tuple):
        yield len(value)
        yield from value[:: max(1, len(value) // _SAMPLED)][:_SAMPLED]
    slots = [name for kind in type(value).__mro__ for name in _slots_of(kind)]
    if not contains and not slots and not hasattr(value, "__dict__"):
        raise _Unseen
    for pair in getattr(value, "__dict__", {}).items():
        yield from pair
    for name in slots:
        yield getattr(value, name, None)
    for kind in type(value).__mro__:  # what the class has for all of its objects, such as the rank
        if not kind.__module__.startswith(("torch.", "builtins")):
            yield from (one for one in vars(kind).values() if isinstance(one, _ATOMS))


def _slots_of(kind: type) -> Sequence[str]:
    found: str | Sequence[str] = vars(kind).get("__slots__", ())
    names = (found,) if isinstance(found, str) else tuple(found)
    return [name for name in names if name not in ("__dict__", "__weakref__")]


def _numbers(value: torch.Tensor | np.ndarray[Any, Any]) -> Iterator[str]:
    """Yield kind and shape of an array, and some of its elements, in order."""
    yield f"{value.dtype} {tuple(value.shape)}"
    if isinstance(value, torch.Tensor):
        seen = value.layout is torch.strided and not value.is_meta
    else:
        seen = not value.dtype.hasobject
    if not seen:
        raise _Unseen
    shape = tuple(value.shape)
    size = math.prod(shape)
    for place in range(0, size, max(1, size // _SAMPLED)):
        yield repr(value[tuple(map(int, np.unravel_index(place, shape))) if shape else ()].item())
