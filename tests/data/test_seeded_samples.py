"""What a sample draws follows from (seed, epoch, index): not from workers, nor from the past."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, RandomSampler, get_worker_info

from statemachine_trainer.data import BadSetting, Feed, NotExact
from statemachine_trainer.data.seeding import Order, SeededFetch, sample_seed
from statemachine_trainer.snapshot.search import Search
from tests.counting import calls_in, counting_calls
from tests.data.kit import Noisy, bits, feed_passes, rest_of_pass, rng_bits, seed_all
from tests.data.resume_kit import run


def _read(workers: int, dataset: Dataset[Any] | None = None, **settings: Any) -> list[list[Any]]:
    seed_all(4)
    seeded = settings.pop("seed_samples", True)
    loader = DataLoader(
        dataset or Noisy(7), batch_size=2, shuffle=True, num_workers=workers, **settings
    )
    feed = Feed(loader, seed_samples=seeded)
    passes = feed_passes(feed, epochs=2)
    feed.shutdown()
    return [*passes, rng_bits()]


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_any_number_of_workers_gives_the_same_data() -> None:
    alone = _read(0)
    assert _read(1) == alone
    assert _read(2, prefetch_factor=1) == alone
    assert _read(3) == alone
    assert _read(2, persistent_workers=True) == alone


def test_one_epoch_differs_from_the_next_with_persistent_workers_too() -> None:
    class Draw(Dataset[Any]):
        def __len__(self) -> int:
            return 2

        def __getitem__(self, index: int) -> torch.Tensor:
            return torch.rand(2)

    feed = Feed(DataLoader(Draw(), num_workers=1, persistent_workers=True))
    first, second = feed_passes(feed, epochs=2)
    feed.shutdown()
    assert {*first}.isdisjoint(second)


def test_the_model_s_draws_do_not_depend_on_what_the_data_draws() -> None:
    feed = Feed(DataLoader(Noisy(4)), seed_samples=True)
    feed.begin(0)
    feed.next_batch()
    before = rng_bits()
    feed.next_batch()
    assert rng_bits() == before


def test_an_index_given_twice_in_a_pass_draws_other_numbers_the_second_time() -> None:
    feed = Feed(DataLoader(Noisy(2), sampler=[1, 1, 1]), seed_samples=True)
    feed.begin(0)
    first, second, third = rest_of_pass(feed)
    assert len({first, second, third}) == 3


def test_collating_may_draw_too() -> None:
    def mix(samples: list[torch.Tensor]) -> torch.Tensor:
        return torch.stack(samples) * torch.rand(())

    assert _read(0, collate_fn=mix) == _read(2, collate_fn=mix)


def test_data_sets_that_read_many_at_once_are_seeded_by_the_batch() -> None:
    class AtOnce(Noisy):
        def __getitems__(self, indices: list[int]) -> list[torch.Tensor]:
            return [self[index] for index in indices]

    assert _read(0, AtOnce(7)) == _read(2, AtOnce(7))


def test_a_single_index_is_seeded_like_a_batch() -> None:
    def read(workers: int) -> Any:
        loader = DataLoader(Noisy(4), batch_size=None, num_workers=workers)
        return feed_passes(Feed(loader, seed_samples=True), epochs=1)

    assert read(0) == read(1)


def test_a_run_may_change_its_number_of_workers_on_the_way() -> None:
    def with_workers(workers: int) -> Callable[[], Feed]:
        def make() -> Feed:
            loader = DataLoader(Noisy(7), batch_size=2, shuffle=True, num_workers=workers)
            return Feed(loader, seed_samples=True)

        return make

    whole = run(with_workers(0), epochs=2)
    changed = run(with_workers(2), epochs=2, stops=[3, 7], remake=with_workers(0))
    assert changed.passes == whole.passes
    assert changed.generators == whole.generators


def test_samples_stay_seeded_if_a_run_goes_on_without_workers() -> None:
    def with_workers(workers: int) -> Callable[[], Feed]:
        return lambda: Feed(DataLoader(Noisy(6), batch_size=2, shuffle=True, num_workers=workers))

    whole = run(with_workers(1), epochs=2)
    changed = run(with_workers(1), epochs=2, stops=[2], remake=with_workers(0))
    assert changed.passes == whole.passes


def test_going_on_with_workers_warns_if_samples_were_not_seeded() -> None:
    state = Feed(DataLoader(Noisy(6))).state_dict()
    feed = Feed(DataLoader(Noisy(6), num_workers=1))
    with pytest.warns(NotExact, match="not seeded one by one .* and are so now"):
        feed.load_state_dict(state)


def test_the_seed_is_part_of_the_state() -> None:
    first = Feed(DataLoader(Noisy(3)), seed=7, seed_samples=True)
    first.begin(0)
    first.next_batch()
    second = Feed(DataLoader(Noisy(3)), seed=8, seed_samples=True)
    second.load_state_dict(first.state_dict())
    assert bits(second.next_batch()) == bits(first.next_batch())


def test_worker_init_fn_sees_the_user_s_own_data_set() -> None:
    class Configured(Noisy):
        offset = 0.0

        def __getitem__(self, index: int) -> torch.Tensor:
            return torch.tensor(index + self.offset)

    def configure(worker: int) -> None:
        info = get_worker_info()
        assert info is not None
        info.dataset.offset = 10.0  # type: ignore[attr-defined]

    loader = DataLoader(Configured(2), num_workers=1, worker_init_fn=configure)
    assert feed_passes(Feed(loader), epochs=1) == [
        [bits(torch.tensor([10.0])), bits(torch.tensor([11.0]))]
    ]


def test_a_batch_costs_no_more_where_the_data_set_holds_more_objects() -> None:
    def calls(size: int) -> int:
        data = Noisy(7)
        data.parts = [Noisy(index) for index in range(size)]  # type: ignore[attr-defined]
        fetch = SeededFetch(data, list, batched=True, seed=0)
        order = Order(0, [0, 1], [0] * 2)

        for _ in range(18):  # 36 reads, after the last of which until the 64th it looks around
            fetch[order]
        return calls_in(lambda: fetch[order])

    assert calls(300) == calls(3)


def test_seeds_are_the_same_for_all_kinds_of_numbers_and_differ_otherwise() -> None:
    one = sample_seed(0, 1, 2)
    assert one == sample_seed(0, 1, np.int64(2)) == sample_seed(0, 1, torch.tensor(2))
    others = [sample_seed(1, 1, 2), sample_seed(0, 2, 2), sample_seed(0, 1, 3)]
    assert len({one, *others, sample_seed(0, 1, 2, repeat=1), sample_seed(0, 1, "2")}) == 6


def test_unseeded_workers_differ_after_each_resume_but_keep_their_order() -> None:
    def make() -> Feed:
        loader = DataLoader(Noisy(6), batch_size=2, shuffle=True, num_workers=1)
        return Feed(loader, seed_samples=False)

    whole = run(make, epochs=1)
    stopped = run(make, epochs=1, stops=[2])
    assert stopped.passes != whole.passes
    assert [batch[1] for batch in stopped.passes[0]] == [batch[1] for batch in whole.passes[0]]
    assert stopped.generators == whole.generators


def test_seeding_samples_of_what_is_not_map_style_is_refused() -> None:
    with pytest.raises(BadSetting, match="'valid' is a list"):
        Feed([1, 2], seed_samples=True, name="valid")


def test_replacement_with_workers_gives_what_it_gives_without() -> None:
    def read(workers: int) -> Any:
        random.seed(0)
        torch.manual_seed(0)
        sampler = RandomSampler(range(4), replacement=True, num_samples=9)
        loader = DataLoader(Noisy(4), batch_size=2, sampler=sampler, num_workers=workers)
        return feed_passes(Feed(loader, seed_samples=True), epochs=1)

    assert read(0) == read(1)


class _Readied(Dataset[Any]):
    generator: random.Random | None = None

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> torch.Tensor:
        assert self.generator is not None
        return torch.tensor(self.generator.random() + torch.rand(()).item())


def _make_generator(_worker: int) -> None:
    info = get_worker_info()
    assert info is not None
    dataset: Any = info.dataset
    dataset.generator = random.Random()


def test_a_generator_that_each_worker_makes_before_it_reads_is_seeded_from_the_first_sample_on() -> (
    None
):
    def read(workers: int) -> list[list[Any]]:
        return _read(workers, _Readied(), worker_init_fn=_make_generator)

    assert read(1) == read(1) == read(2)


def test_a_worker_that_gets_ready_leaves_the_generators_as_they_are() -> None:
    fetch = SeededFetch(Noisy(4), torch.stack, batched=True, seed=3)
    before = rng_bits()
    fetch.get_ready()
    assert rng_bits() == before


class _Anything:
    def __len__(self) -> int:
        return 4

    def __iter__(self) -> Any:
        return iter(range(4))


def test_the_data_are_walked_once_before_the_first_index_of_a_pass() -> None:
    def walks(sampler: Any) -> int:
        feed = Feed(DataLoader(Noisy(4), sampler=sampler))
        feed.begin(0)
        seen: Counter[str] = Counter()
        with counting_calls(seen):
            feed.next_batch()
        return seen[f"{Search.__module__}.Search.__init__"]

    assert walks(RandomSampler(range(4))) == 1
    assert walks(_Anything()) == 2  # its iterator may make generators
