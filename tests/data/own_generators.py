"""Data sets that keep a generator of their own, each in another place."""

from __future__ import annotations

import functools
import itertools
import operator
import random
import weakref
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch.utils.data import (
    BatchSampler,
    ChainDataset,
    ConcatDataset,
    DataLoader,
    Dataset,
    IterableDataset,
    Sampler,
    StackDataset,
    Subset,
)

Draw = Callable[[], float]


class Noisy(Dataset[torch.Tensor]):
    """Adds to each sample what `draw` draws."""

    def __init__(self, draw: Any, size: int = 6) -> None:
        self.draw = draw
        self.size = size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.tensor([index + self.draw()], dtype=torch.float64)


class Holder:
    """A callable with a generator as an attribute."""

    def __init__(self, generator: Any) -> None:
        self.generator = generator

    def __call__(self) -> float:
        return draw_from(self.generator)


class Slotted:
    """One in a slot."""

    __slots__ = ("generator",)

    def __init__(self, generator: Any) -> None:
        self.generator = generator

    def __call__(self) -> float:
        return draw_from(self.generator)


@dataclass
class Record:
    """One in a dataclass, in a dict, in a list."""

    inside: dict[str, Any] = field(default_factory=dict)

    def __call__(self) -> float:
        return sum(draw_from(one) for one in self.inside["generators"])


class Pair(NamedTuple):
    """Two generators by name."""

    one: Any
    other: Any


class Compose:
    """A chain of steps, as image libraries have it."""

    def __init__(self, *steps: Any) -> None:
        self.transforms = [*steps]

    def __call__(self) -> float:
        return sum(float(one()) for one in self.transforms)


class Lazy:
    """Makes its generator at the first draw."""

    def __init__(self) -> None:
        self.generator: Any = None

    def __call__(self) -> float:
        if self.generator is None:
            self.generator = np.random.default_rng(7)
        return float(self.generator.random())


class LazyByName(dict[str, Any]):
    """Makes a generator for each name, and is a dict itself."""

    def __call__(self) -> float:
        if "noise" not in self:
            self["noise"] = random.Random(8)
        return float(self["noise"].random())


class OfClass:
    """The class has the generator."""

    shared: ClassVar[random.Random] = random.Random(0)

    def __call__(self) -> float:
        return self.shared.random()


class Behind:
    """A property and `__getattr__`, which nobody may call, stand before the generator."""

    def __init__(self) -> None:
        self._inside = random.Random(5)

    @property
    def forbidden(self) -> Any:
        raise AssertionError("a property was called")

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"__getattr__ was called for {name!r}")

    def __call__(self) -> float:
        return self._inside.random()


def draw_from(generator: Any) -> float:
    """Draw a number from a generator of any kind."""
    if isinstance(generator, torch.Generator):
        return float(torch.rand((), generator=generator))
    if isinstance(generator, np.random.BitGenerator):
        return float(generator.random_raw() % 1000)
    if isinstance(generator, np.random.RandomState | np.random.Generator):
        return float(generator.normal())
    return float(generator.gauss(0.0, 1.0))


def closure() -> Draw:
    """A function with the generator in its closure."""
    generator = random.Random(1)

    def draw() -> float:
        return generator.random()

    return draw


def default() -> Draw:
    """A function with the generator as the default of an argument."""

    def draw(generator: random.Random = random.Random(2)) -> float:  # noqa: B008
        return generator.random()

    return draw


def keyword_default() -> Draw:
    """The same for an argument by name."""

    def draw(*, generator: Any = np.random.RandomState(2)) -> float:  # noqa: B008
        return draw_from(generator)

    return draw


NOISE = random.Random(6)


def of_module() -> float:
    """Draw from a global of this module."""
    return NOISE.random()


def through_a_helper() -> float:
    """Draw by a function that draws from the global."""
    return of_module()


def of_class() -> Draw:
    """Draw from the class, as a fresh process finds it."""
    OfClass.shared = random.Random(0)
    return OfClass()


def fresh_global(draw: Draw) -> Draw:
    """Return a function that draws from the global, as a fresh process finds it."""
    NOISE.seed(6)
    return draw


def weak() -> Draw:
    """Hold the generator weakly in one place and strongly in another."""
    generator = random.Random(9)
    draw = Compose(functools.partial(lambda one: one().random(), weakref.ref(generator)))
    draw.kept = generator  # type: ignore[attr-defined]
    return draw


def shared_bits() -> Draw:
    """Two generators that draw from one bit generator."""
    bits = np.random.PCG64(4)
    return Compose(Holder(np.random.Generator(bits)), Holder(np.random.Generator(bits)))


def shared() -> Draw:
    """One generator in two places."""
    one = random.Random(4)
    return Compose(Holder(one), Holder(one))


class Picture(torch.Tensor):
    """A tensor with a class of its own, on which attributes can be set."""


class Row(np.ndarray[Any, Any]):
    """An array with a class of its own, on which attributes can be set."""


def beside_numbers(numbers: Any) -> Draw:
    """Draw from a generator that was set on a tensor or an array."""
    numbers.generator = random.Random(3)
    return functools.partial(lambda one: float(one.generator.random()), numbers)


def kept_error() -> Draw:
    """Draw from what an exception was made of."""
    return functools.partial(
        lambda error: float(error.args[0].random()), KeyError(random.Random(3))
    )


def static_method() -> Draw:
    """Hold a static method in an attribute of an object."""
    method = staticmethod(closure())
    return functools.partial(lambda record: float(record.inside["one"]()), Record({"one": method}))


def factory() -> Draw:
    """Draw what a dict has not yet."""
    made: defaultdict[int, float] = defaultdict(closure())
    return functools.partial(lambda inside: float(inside[len(inside)]), made)


def default_without_parameter() -> Draw:
    """A function that looks for its default itself."""

    def draw(*_: Any) -> float:
        assert draw.__defaults__ is not None
        return float(draw.__defaults__[0].random())

    draw.__defaults__ = (random.Random(3),)
    return draw


def array_of_records() -> Draw:
    """A field of an array of records."""
    array = np.array([(1, random.Random(3))], dtype=[("number", int), ("generator", object)])
    return functools.partial(lambda one: float(one["generator"][0].random()), array)


PLACES: dict[str, Callable[[], Draw]] = {
    "attribute": lambda: Holder(np.random.default_rng(0)),
    "slot": lambda: Slotted(random.Random(0)),
    "dataclass, dict and list": lambda: Record(
        {"generators": [torch.Generator().manual_seed(0), np.random.RandomState(0)]}
    ),
    "nested transforms": lambda: Compose(Compose(Holder(random.Random(3)), lambda: 1.0)),
    "deque": lambda: Record({"generators": deque([random.Random(3)])}),
    "tuple": lambda: Record({"generators": (random.Random(3), np.random.PCG64(1))}),
    "set of one": lambda: Record({"generators": {random.Random(3)}}),
    "partial": lambda: functools.partial(draw_from, random.Random(3)),
    "partial by name": lambda: functools.partial(draw_from, generator=np.random.default_rng(2)),
    "bound method": lambda: Holder(random.Random(3)).__call__,
    "bound builtin": lambda: random.Random(3).random,
    "bound builtin of numpy": lambda: np.random.default_rng(3).random,
    "closure": closure,
    "default": default,
    "keyword default": keyword_default,
    "global": lambda: fresh_global(of_module),
    "global of a helper": lambda: fresh_global(through_a_helper),
    "class attribute": of_class,
    "weak reference": weak,
    "behind a property": Behind,
    "shared": shared,
    "shared bits": shared_bits,
    "appears later": Lazy,
    "appears later in a dict": LazyByName,
    "read-only dict": lambda: Record(
        {"generators": MappingProxyType({"rng": random.Random(3)}).values()}
    ),
    "method caller": lambda: functools.partial(
        operator.methodcaller("__call__"), Holder(random.Random(3))
    ),
    "cached function": lambda: functools.lru_cache(maxsize=0)(closure()),
    "named tuple": lambda: Record({"generators": Pair(random.Random(1), random.Random(2))}),
    "philox": lambda: Holder(np.random.Generator(np.random.Philox(5))),
    "sfc": lambda: Holder(np.random.Generator(np.random.SFC64(5))),
    "tensor of a class of its own": lambda: beside_numbers(torch.zeros(1).as_subclass(Picture)),
    "array of a class of its own": lambda: beside_numbers(np.zeros(1).view(Row)),
    "slice": lambda: functools.partial(lambda one: one.start.random(), slice(random.Random(3), 1)),
    "kept error": kept_error,
    "static method in an attribute": static_method,
    "factory of a dict": factory,
    "default without a parameter": default_without_parameter,
    "array of records": array_of_records,
    "mersenne": lambda: Holder(np.random.Generator(np.random.MT19937(5))),
}


class Stream(IterableDataset[torch.Tensor]):
    """A stream of noisy samples."""

    def __init__(self, draw: Draw) -> None:
        self.source = Noisy(draw)

    def __iter__(self) -> Iterator[torch.Tensor]:
        return map(self.source.__getitem__, range(len(self.source)))


class Picky(Sampler[int]):
    """A sampler whose order is drawn from a generator in a dict."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.inside = {"generator": np.random.default_rng(11)}

    def __len__(self) -> int:
        return self.size

    def __iter__(self) -> Iterator[int]:
        return iter(self.inside["generator"].permutation(self.size).tolist())


class Collate:
    """A collate function with a generator."""

    def __init__(self) -> None:
        self.generator = torch.Generator().manual_seed(5)

    def __call__(self, samples: list[torch.Tensor]) -> torch.Tensor:
        return torch.stack(samples) + torch.rand((), generator=self.generator)


class Batches:
    """Batches by number, each with noise."""

    def __init__(self) -> None:
        self.noise = [random.Random(1)]

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> torch.Tensor:
        if index >= 4:
            raise IndexError(index)
        return torch.tensor([index + self.noise[0].random()], dtype=torch.float64)


def two() -> list[Noisy]:
    """Two data sets with a generator each."""
    return [Noisy(Holder(random.Random(n)), 4) for n in range(2)]


class Pairs(Dataset[torch.Tensor]):
    """A data set around another one, under a name of its own."""

    def __init__(self, base: Any) -> None:
        self.base = base

    def __len__(self) -> int:
        return len(self.base)

    def __getitem__(self, index: int) -> torch.Tensor:
        sample = self.base[index]
        return sample[0] if isinstance(sample, tuple) else sample  # type: ignore[no-any-return]


LOADERS: dict[str, Callable[[], Any]] = {
    "ConcatDataset": lambda: DataLoader(ConcatDataset(two()), 3, shuffle=True),
    "Subset of ConcatDataset": lambda: DataLoader(
        Subset(Subset(ConcatDataset(two()), range(7)), [6, 1, 3, 5]), 2
    ),
    "StackDataset": lambda: DataLoader(Pairs(StackDataset(*two())), 2),
    "a wrapper of one's own": lambda: DataLoader(Pairs(Pairs(two()[0])), 2),
    "sampler": lambda: DataLoader(Noisy(lambda: 0.0), 2, sampler=Picky(6)),
    "batch sampler": lambda: DataLoader(
        Noisy(lambda: 0.0), batch_sampler=BatchSampler(Picky(6), 2, drop_last=False)
    ),
    "sampler and data share one": lambda: _sharing(),
    "collate function": lambda: DataLoader(Noisy(lambda: 0.0), 2, collate_fn=Collate()),
    "IterableDataset": lambda: DataLoader(Stream(Holder(random.Random(3))), batch_size=2),
    "ChainDataset": lambda: DataLoader(
        ChainDataset([Stream(Holder(random.Random(n))) for n in range(2)]), batch_size=3
    ),
    "batches by number": Batches,
}


def _sharing() -> DataLoader[torch.Tensor]:
    sampler = Picky(6)
    return DataLoader(Noisy(Holder(sampler.inside["generator"])), 2, sampler=sampler)


def endless() -> Iterator[int]:
    """An iterator, which nobody can write down."""
    return itertools.count()
