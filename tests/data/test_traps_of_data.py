"""Ways in which other trainers lost, repeated or changed data over a stop."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

from statemachine_trainer.data import END, Feed
from tests.counting import calls_in
from tests.data.kit import (
    Noisy,
    Quiet,
    bits,
    feed_passes,
    indices,
    rest_of_pass,
    rng_bits,
    seed_all,
)
from tests.data.resume_kit import assert_resumes, run


def test_trap_01_prefetched_batches_do_not_count_as_given(tmp_path: Path) -> None:
    def make(log: Path) -> Feed:
        return Feed(DataLoader(Noisy(12, log), batch_size=2, num_workers=2, prefetch_factor=2))

    feed = make(tmp_path / "first")
    feed.begin(0)
    given = [bits(feed.next_batch())]
    assert feed.position == 1
    state = feed.state_dict()
    feed.shutdown()
    assert state["position"] == 1
    later = make(tmp_path / "second")
    later.load_state_dict(state)
    assert indices(given + rest_of_pass(later)) == [*range(12)]
    # What was given is not read again; what was only prefetched is.
    assert {"0", "1"}.isdisjoint((tmp_path / "second").read_text().split())


def test_trap_07_a_shuffled_pass_goes_on_with_what_it_has_not_seen() -> None:
    datasets: list[Noisy] = []

    def make() -> Feed:
        datasets.append(Noisy(23))
        return Feed(DataLoader(datasets[-1], batch_size=1, shuffle=True))

    whole = run(make, epochs=2)
    for at in range(whole.operations):
        datasets.clear()
        stopped = run(make, epochs=2, stops=[at])
        assert stopped.passes == whole.passes
        read = Counter(index for dataset in datasets for index in dataset.reads)
        assert read == dict.fromkeys(range(23), 2)


def test_trap_08_what_is_drawn_after_a_stop_does_not_repeat_what_was_drawn_before() -> None:
    make: Callable[[], Feed] = lambda: Feed(DataLoader(Noisy(6), batch_size=1))  # noqa: E731
    stopped = run(make, epochs=2, stops=range(14))
    batches = [batch for batches in stopped.passes for batch in batches]
    assert len({*batches}) == 12


@pytest.mark.parametrize("seeded", [None, True])
def test_trap_10_a_data_set_that_draws_is_exact_after_a_stop_at_any_batch(
    seeded: bool | None,
) -> None:
    assert_resumes(
        lambda: Feed(DataLoader(Noisy(23), batch_size=3, shuffle=True), seed_samples=seeded)
    )


@pytest.mark.parametrize("kind", ["plain", "torchdata"])
def test_trap_12_asking_for_the_length_first_leaves_the_state_alone(kind: str) -> None:
    loader: Any = DataLoader
    if kind == "torchdata":
        loader = pytest.importorskip("torchdata.stateful_dataloader").StatefulDataLoader

    def make() -> Feed:
        return Feed(loader(Noisy(8), batch_size=2, shuffle=True))

    def measured() -> Feed:
        feed = make()
        before = rng_bits()
        assert feed.length == 4
        assert rng_bits() == before
        return feed

    whole = run(make, epochs=2)
    stopped = run(measured, epochs=2, stops=range(whole.operations))
    assert stopped.passes == whole.passes
    assert stopped.generators == whole.generators


def test_trap_13_persistent_workers_draw_anew_in_every_epoch() -> None:
    loader = DataLoader(Noisy(4), num_workers=1, persistent_workers=True)
    feed = Feed(loader)
    first, second = feed_passes(feed, epochs=2)
    feed.shutdown()
    assert indices(first) == indices(second)
    assert {*first}.isdisjoint(second)


def test_trap_13_another_number_of_workers_gives_the_same_data() -> None:
    def read(workers: int) -> list[list[Any]]:
        seed_all(1)
        loader = DataLoader(Noisy(9), batch_size=2, shuffle=True, num_workers=workers)
        return feed_passes(Feed(loader, seed_samples=True), epochs=2)

    assert read(0) == read(2)


def test_reading_by_a_feed_takes_no_more_python_calls_than_a_plain_loop() -> None:
    torch.manual_seed(0)
    loader = DataLoader(Quiet(640), batch_size=32, shuffle=True)
    plain = iter(loader)
    next(plain)
    feed = Feed(loader)
    feed.begin(0)
    feed.next_batch()
    assert calls_in(feed.next_batch) <= calls_in(lambda: next(plain))
    assert feed.next_batch() is not END
