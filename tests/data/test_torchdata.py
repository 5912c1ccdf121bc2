"""torchdata's StatefulDataLoader as it comes: its order, exact stops, no epoch lost."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.utils.data import IterableDataset, RandomSampler

from statemachine_trainer.data import Feed
from tests.data.kit import Noisy, feed_passes, plain_passes, rest_of_pass, rng_bits, seed_all
from tests.data.resume_kit import assert_resumes, run

torchdata = pytest.importorskip("torchdata.stateful_dataloader")


class Early(IterableDataset[Any]):
    """Counts; goes back to the start when it begins, unless a position was loaded."""

    def __init__(self, n: int) -> None:
        self.n = n
        self.at = 0
        self.goes_on = False

    def __iter__(self) -> Iterator[Any]:
        if not self.goes_on:
            self.at = 0
        self.goes_on = False
        while self.at < self.n:
            self.at += 1
            yield torch.tensor(self.at)

    def state_dict(self) -> dict[str, int]:
        return {"at": self.at}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.at = state["at"]
        self.goes_on = True


class Late(Early):
    """Counts; goes back to the start when it ends."""

    def __iter__(self) -> Iterator[Any]:
        while self.at < self.n:
            self.at += 1
            yield torch.tensor(self.at)
        self.at = 0


SETTINGS: dict[str, dict[str, Any]] = {
    "in order": {"batch_size": 2},
    "shuffled": {"batch_size": 2, "shuffle": True},
    "shuffled, the last dropped": {"batch_size": 2, "shuffle": True, "drop_last": True},
    "by torch's own sampler": {"batch_size": 2, "sampler": RandomSampler(range(7))},
}


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_order_and_draws_are_those_of_a_plain_loop(settings: dict[str, Any]) -> None:
    seed_all(3)
    plain = plain_passes(torchdata.StatefulDataLoader(Noisy(7), **settings), epochs=3)
    after = rng_bits()
    seed_all(3)
    fed = feed_passes(Feed(torchdata.StatefulDataLoader(Noisy(7), **settings)), epochs=3)
    assert fed == plain
    assert rng_bits() == after


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_map_style_data_resumes_anywhere(settings: dict[str, Any]) -> None:
    assert_resumes(lambda: Feed(torchdata.StatefulDataLoader(Noisy(7), **settings)), epochs=3)


def test_shuffled_data_with_workers_has_its_order_and_resumes() -> None:
    def make() -> Any:
        return torchdata.StatefulDataLoader(Noisy(7), batch_size=2, shuffle=True, num_workers=1)

    seed_all(5)
    plain = plain_passes(make(), epochs=2)
    whole = run(lambda: Feed(make(), seed_samples=False), epochs=2)
    assert whole.passes == plain
    whole = run(lambda: Feed(make()), epochs=2)
    stopped = run(lambda: Feed(make()), epochs=2, stops=[3, 5, 6, 8])
    assert stopped.passes == whole.passes
    assert stopped.generators == whole.generators


@pytest.mark.parametrize("n", [4, 5])
@pytest.mark.parametrize("kind", [Early, Late])
def test_a_stream_resumes_anywhere(kind: Any, n: int) -> None:
    assert_resumes(lambda: Feed(torchdata.StatefulDataLoader(kind(n), batch_size=2)), epochs=3)


# Where the state of its workers would repeat or lose data, the stream is read again instead.
@pytest.mark.filterwarnings("ignore::statemachine_trainer.data.ReplayWarning")
@pytest.mark.parametrize("persistent", [False, True])
@pytest.mark.parametrize("kind", [Early, Late])
def test_a_stream_read_by_workers_resumes_anywhere(kind: Any, persistent: bool) -> None:
    def make() -> Feed:
        loader = torchdata.StatefulDataLoader(
            kind(3), batch_size=2, num_workers=2, persistent_workers=persistent
        )
        return Feed(loader)

    whole = run(make, epochs=2)
    everywhere = range(whole.operations)
    for stops in (everywhere, everywhere[::2], everywhere[1::3], everywhere[7:9]):
        stopped = run(make, epochs=2, stops=stops)
        assert stopped.passes == whole.passes, f"other batches after stopping at {stops}"
        assert stopped.generators == whole.generators, f"other draws after stopping at {stops}"


def test_a_state_taken_just_after_a_pass_does_not_lose_the_next_one() -> None:
    feed = Feed(torchdata.StatefulDataLoader(Early(4), batch_size=2))
    feed.begin(0)
    whole = rest_of_pass(feed)
    later = Feed(torchdata.StatefulDataLoader(Early(4), batch_size=2))
    later.load_state_dict(feed.state_dict())
    later.begin(1)
    assert rest_of_pass(later) == whole


class Shuffling(IterableDataset[Any]):
    """Has no state but a generator, with which it shuffles each pass."""

    def __init__(self) -> None:
        self.rng = random.Random(0)

    def __iter__(self) -> Iterator[Any]:
        order = [*range(7)]
        self.rng.shuffle(order)
        yield from map(torch.tensor, order)


@pytest.mark.filterwarnings("ignore::statemachine_trainer.data.data_errors.ReplayWarning")
def test_a_stream_that_is_read_again_draws_from_its_own_generator_as_before() -> None:
    assert_resumes(lambda: Feed(torchdata.StatefulDataLoader(Shuffling(), batch_size=2)))
