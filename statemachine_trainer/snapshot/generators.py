"""Random number generators as objects: their state, read, put back, and seeded."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping
from typing import Any, Final, cast

import numpy as np
import torch

Generator = (
    torch.Generator
    | random.Random
    | np.random.Generator
    | np.random.RandomState
    | np.random.BitGenerator
    | np.random.SeedSequence
)

GENERATORS: Final = (
    torch.Generator,
    random.Random,
    np.random.Generator,
    np.random.RandomState,
    np.random.BitGenerator,
    np.random.SeedSequence,
)

_SEEDS: Final = "seed_seq"
"""Key of the sequence of seeds, in the state of a generator of numpy: it counts what was spawned."""

_BITS: Final = ("PCG64", "PCG64DXSM", "MT19937", "Philox", "SFC64")


def is_global(generator: Generator) -> bool:
    """Whether a generator is one of the global ones, which `rng_state` writes down."""
    if generator is random._inst or generator is torch.default_generator:
        return True
    if isinstance(generator, np.random.RandomState | np.random.BitGenerator):
        shared = np.random.mtrand._rand
        return generator is shared or generator is shared._bit_generator
    return isinstance(generator, torch.Generator) and any(
        generator is one for one in torch.cuda.default_generators
    )


def identity_of(generator: Generator) -> int:
    """Return a number that two generators share if a draw from one moves the other."""
    if isinstance(generator, np.random.Generator):
        return id(np.random.Generator.bit_generator.__get__(generator))
    return id(generator)


def kind_of(generator: Generator) -> str:
    """Return the name of the class, and of the bit generator inside."""
    if isinstance(generator, np.random.Generator):
        return f"numpy.Generator({type(generator.bit_generator).__name__})"
    if isinstance(generator, np.random.RandomState):
        return f"numpy.RandomState({type(generator._bit_generator).__name__})"
    if isinstance(generator, np.random.BitGenerator | np.random.SeedSequence):
        return f"numpy.{type(generator).__name__}"
    if isinstance(generator, torch.Generator):
        return f"torch.Generator({generator.device.type})"
    return "random.Random" if type(generator) is random.Random else type(generator).__qualname__


def state_of(generator: Generator) -> Any:
    """Return the state of a generator as a plain tree."""
    if isinstance(generator, torch.Generator):
        return generator.get_state()
    if isinstance(generator, random.Random):
        version, words, gauss = random.Random.getstate(generator)
        return [version, torch.tensor(words, dtype=torch.int64), gauss]
    if isinstance(generator, np.random.RandomState):
        return generator.get_state(legacy=False)
    if isinstance(generator, np.random.SeedSequence):
        return _state_of_sequence(generator)
    bits = generator.bit_generator if isinstance(generator, np.random.Generator) else generator
    state = dict(bits.state)
    if isinstance(sequence := _sequence_of(bits), np.random.SeedSequence):
        state[_SEEDS] = _state_of_sequence(sequence)
    return state


def put(generator: Generator, state: Any) -> None:
    """Put a generator where `state_of` found it.

    Raises:
        ValueError, TypeError: The state is of another kind of generator.
    """
    if isinstance(generator, torch.Generator):
        generator.set_state(state)
    elif isinstance(generator, random.Random):
        version, words, gauss = state
        random.Random.setstate(generator, (version, tuple(words.tolist()), gauss))
    elif isinstance(generator, np.random.RandomState):
        generator.set_state(state)
    elif isinstance(generator, np.random.SeedSequence):
        _put_sequence(generator, state)
    else:
        bits = generator.bit_generator if isinstance(generator, np.random.Generator) else generator
        bits.state = {key: value for key, value in state.items() if key != _SEEDS}
        sequence = _sequence_of(bits)
        # Earlier versions did not write it.
        if _SEEDS in state and isinstance(sequence, np.random.SeedSequence):
            _put_sequence(sequence, state[_SEEDS])


def _sequence_of(bits: np.random.BitGenerator) -> object:
    """Return that from which a generator was seeded, and from which it spawns others."""
    return getattr(bits, "seed_seq", getattr(bits, "_seed_seq", None))


def _state_of_sequence(sequence: np.random.SeedSequence) -> dict[str, Any]:
    entropy = sequence.entropy
    plain = entropy is None or isinstance(entropy, int)
    return {
        "entropy": entropy if plain else [int(one) for one in np.ravel(cast(Any, entropy))],
        "spawn_key": [int(one) for one in sequence.spawn_key],
        "pool_size": int(sequence.pool_size),
        "n_children_spawned": int(sequence.n_children_spawned),
    }


def _sequence(state: Mapping[str, Any]) -> np.random.SeedSequence:
    return np.random.SeedSequence(
        state["entropy"],
        spawn_key=tuple(state["spawn_key"]),
        pool_size=state["pool_size"],
        n_children_spawned=state["n_children_spawned"],
    )


def _put_sequence(sequence: np.random.SeedSequence, state: Mapping[str, Any]) -> None:
    """Make a sequence that of a state, as unpickling does: its attributes cannot be set."""
    there: Any = _sequence(state)
    here: Any = sequence
    here.__setstate__(there.__reduce__()[2])


def make(kind: str, state: Any) -> Generator | None:
    """Make a generator of a kind, in a state; None if it is of a class that is not known here."""
    name, _, inside = kind.removesuffix(")").partition("(")
    made: Generator
    if name == "random.Random":
        made = random.Random()
    elif name == "numpy.SeedSequence":
        made = np.random.SeedSequence(0)
    elif name == "torch.Generator":
        try:
            made = torch.Generator(inside)
        except RuntimeError:  # there is no such device
            return None
    else:
        bits = inside or name.removeprefix("numpy.")
        if not name.startswith("numpy.") or bits not in _BITS:
            return None
        inner: np.random.BitGenerator = getattr(np.random, bits)()
        wrap = {"numpy.Generator": np.random.Generator, "numpy.RandomState": np.random.RandomState}
        made = wrap[name](inner) if name in wrap else inner
    put(made, state)
    return made


def seed(generator: Generator, content: bytes) -> None:
    """Seed a generator with bytes; the same bytes give the same draws on every machine."""
    digest = hashlib.blake2b(content, digest_size=32).digest()
    if isinstance(generator, torch.Generator):
        generator.manual_seed(int.from_bytes(digest[:7], "little"))
        return
    if isinstance(generator, random.Random):
        random.Random.seed(generator, digest)
        return
    if isinstance(generator, np.random.SeedSequence):
        fresh_seeds = np.random.SeedSequence(int.from_bytes(digest, "little"))
        _put_sequence(generator, _state_of_sequence(fresh_seeds))
        return
    bits: Any = generator
    if isinstance(generator, np.random.Generator):
        bits = generator.bit_generator
    elif isinstance(generator, np.random.RandomState):
        bits = generator._bit_generator
    fresh: Any = type(bits)(int.from_bytes(digest, "little"))
    if isinstance(generator, np.random.RandomState):
        # `has_gauss` and `gauss` are the generator's own: a normal number kept for the next call.
        was: Any = generator.get_state(legacy=False)
        generator.set_state({**was, **fresh.state, "has_gauss": 0, "gauss": 0.0})
        return
    bits.state = fresh.state
