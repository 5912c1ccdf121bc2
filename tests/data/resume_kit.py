"""Runs that stop and go on: the same operations with and without stops, and what they leave."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from statemachine_trainer.data import END, Feed
from statemachine_trainer.snapshot.codec import decode, encode
from statemachine_trainer.snapshot.rng import restore_rng, rng_state
from tests.data.kit import bits, model_draws, rng_bits, seed_all

MakeFeed = Callable[[], Feed]
_PLAIN = (type(None), bool, int, float, str, bytes, torch.Tensor, np.ndarray)


@dataclass
class Run:
    """What a run gave, by pass, and the generators at its end."""

    passes: list[list[Any]] = field(default_factory=list)
    operations: int = 0
    generators: Any = None
    feed: Feed | None = None


def run(
    make: MakeFeed,
    epochs: int,
    *,
    stops: Collection[int] = (),
    limit: int | None = None,
    remake: MakeFeed | None = None,
) -> Run:
    """Read some passes; before each operation numbered in ``stops``, go on in a new feed instead.

    An operation is the beginning of a pass or asking for a batch.
    """
    seed_all(5)
    done = Run()
    feed = make()

    def boundary() -> None:
        nonlocal feed
        if done.operations in stops:
            feed = swapped(feed, remake or make)
        done.operations += 1

    for epoch in range(epochs):
        boundary()
        feed.begin(epoch)
        done.passes.append([])
        while True:
            boundary()
            if feed.position == limit or (batch := feed.next_batch()) is END:
                break
            done.passes[-1].append(bits(batch))
            model_draws()
    boundary()
    done.generators = rng_bits()
    feed.shutdown()
    done.feed = feed
    return done


def swapped(feed: Feed, make: MakeFeed) -> Feed:
    """A new feed, standing where the old one stands, as in a new process."""
    generators = rng_state()
    undisturbed = rng_bits()
    state = feed.state_dict()
    assert rng_bits() == undisturbed, "taking the state moved a generator"
    assert_plain(state)
    written = decode(*encode(state))
    assert isinstance(written, dict)
    state = written
    feed.shutdown()
    seed_all(999)
    fresh = make()
    scrambled = rng_bits()
    fresh.load_state_dict(state)
    assert rng_bits() == scrambled, "loading the state moved a generator"
    again = fresh.state_dict()
    assert bits(again) == bits(state), "a state that was loaded is not the state that is taken"
    restore_rng(generators)
    return fresh


def assert_plain(tree: Any) -> None:
    if isinstance(tree, dict):
        assert all(isinstance(key, str) for key in tree)
        for value in tree.values():
            assert_plain(value)
    elif isinstance(tree, (list, tuple)):
        for value in tree:
            assert_plain(value)
    else:
        assert type(tree) in _PLAIN, type(tree)


def assert_resumes(make: MakeFeed, epochs: int = 2, *, limit: int | None = None) -> None:
    """Stopping anywhere, once, changes nothing; nor does stopping everywhere."""
    whole = run(make, epochs, limit=limit)
    for stops in ([*range(whole.operations)], *([at] for at in range(whole.operations))):
        stopped = run(make, epochs, stops=stops, limit=limit)
        assert stopped.passes == whole.passes, f"other batches after stopping at {stops}"
        assert stopped.generators == whole.generators, f"other draws after stopping at {stops}"
