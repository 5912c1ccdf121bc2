"""Several loaders read as one: together, in turns and mixed, each where it stood when a run goes on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, RandomSampler, TensorDataset

from statemachine_trainer import InTurns, Mixture, Together, Trainer
from statemachine_trainer.data import (
    END,
    BadSetting,
    BadSource,
    DataChanged,
    Feed,
    SeveralLoaders,
    as_loader,
)
from statemachine_trainer.testing import assert_resumable

A, B = ["a0", "a1", "a2", "a3"], ["b0", "b1"]


def passes(loader: Any, count: int = 1) -> list[Any]:
    feed, found = Feed(as_loader(loader)), []
    for epoch in range(count):
        feed.begin(epoch)
        found += [*iter(feed.next_batch, END)]
    return found


class Stream(IterableDataset[int]):
    """Nobody knows how long it is."""

    def __init__(self, items: list[Any]) -> None:
        self.items = items

    def __iter__(self) -> Iterator[Any]:
        return iter(self.items)


def stream(items: list[Any]) -> DataLoader[Any]:
    return DataLoader(Stream(items), batch_size=None)


# -- in which order --------------------------------------------------------------------------------

LONGEST = [("a0", "b0"), ("a1", "b1"), ("a2", "b0"), ("a3", "b1")]


@pytest.mark.parametrize("kind", [list, stream])
def test_together_the_shorter_loader_begins_anew(kind: Callable[[Any], Any]) -> None:
    found = passes({"one": kind(A), "two": kind(B)})
    assert [(one["one"], one["two"]) for one in found] == LONGEST
    assert [tuple(one) for one in passes(Together([kind(A), kind(B)]))] == LONGEST


@pytest.mark.parametrize("kind", [list, stream])
def test_together_until_the_shortest_is_zip(kind: Callable[[Any], Any]) -> None:
    found = passes(Together([kind(A), kind(B)], until="shortest"))
    assert found == [["a0", "b0"], ["a1", "b1"]]


@pytest.mark.parametrize("kind", [list, stream])
def test_in_turns_each_has_its_batch_until_all_have_ended(kind: Callable[[Any], Any]) -> None:
    assert passes(InTurns([kind(A), kind(B)])) == ["a0", "b0", "a1", "b1", "a2", "a3"]
    named = passes(InTurns({"x": kind(B), "y": kind(["c"])}, named=True))
    assert named == [("x", "b0"), ("y", "c"), ("x", "b1")]


def test_a_mixture_draws_by_its_weights_and_ends_after_its_batches() -> None:
    loader = Mixture({"x": A, "y": B}, {"x": 3, "y": 1}, batches=2000, named=True)
    found = Counter(name for name, _ in passes(loader))
    assert found.total() == 2000
    assert abs(found["x"] - 1500) < 100
    assert len(passes(Mixture([A, B]))) == 6


def test_a_mixture_draws_the_same_again_and_other_loaders_in_other_epochs() -> None:
    first, second = (passes(Mixture([A, B], seed=1), count=2) for _ in range(2))
    assert first == second
    assert [one[0] for one in first[:6]] != [one[0] for one in first[6:]]
    assert first != passes(Mixture([A, B], seed=2), count=2)


def test_a_weight_of_zero_is_never_drawn() -> None:
    assert set(passes(Mixture([A, B], [0, 1], batches=50))) == {*B}


def test_how_long_a_pass_is_is_known_where_it_can_be() -> None:
    lengths = [Feed(as_loader(one)).length for one in ({"a": A, "b": B}, InTurns([A, B]))]
    assert lengths == [4, 6]
    assert Feed(as_loader({"a": lambda: A, "b": B})).length == 4
    assert Feed(as_loader([*A])).length == 4
    assert Feed(Together([stream(A), B])).length is None


def test_a_loader_that_begins_anew_shuffles_anew_and_hears_of_a_pass_of_its_own() -> None:
    heard: list[int] = []

    class Heard(RandomSampler):
        def set_epoch(self, epoch: int) -> None:
            heard.append(epoch)

    data = TensorDataset(torch.arange(6))
    short = DataLoader(data, batch_size=6, sampler=Heard(data))
    torch.manual_seed(0)
    found = [one["short"][0].tolist() for one in passes({"long": A, "short": short}, count=2)]
    assert len({*map(tuple, found)}) > 4
    assert [*dict.fromkeys(heard)] == [*range(8)]


def test_nothing_is_read_beyond_the_end() -> None:
    class Counting(Dataset[int]):
        read = 0

        def __len__(self) -> int:
            return 4

        def __getitem__(self, index: int) -> int:
            self.read += 1
            return index

    data = Counting()
    passes(Together([DataLoader(data), B], until="shortest"))
    assert data.read == 2


def test_an_error_in_one_loader_loses_no_batch_of_the_others() -> None:
    class Fails(Dataset[int]):
        fails = True

        def __len__(self) -> int:
            return 2

        def __getitem__(self, index: int) -> int:
            if index == 1 and self.fails:
                self.fails = False
                raise OSError("the disk")
            return index

    feed = Feed(Together([A, DataLoader(Fails(), batch_size=None)], until="shortest"))
    feed.begin(0)
    assert feed.next_batch() == ["a0", 0]
    with pytest.raises(OSError, match="the disk"):
        feed.next_batch()
    state = feed.state_dict()
    assert feed.next_batch() == ["a1", 1]
    later = Feed(Together([A, DataLoader(Fails(), batch_size=None)], until="shortest"))
    later.load_state_dict(state)
    with pytest.raises(OSError, match="the disk"):
        later.next_batch()
    assert later.next_batch() == ["a1", 1]


# -- in training -----------------------------------------------------------------------------------


class Samples(Dataset[torch.Tensor]):
    """Draws from a generator of its own and from the global ones."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.generator = np.random.default_rng(count)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> torch.Tensor:
        drawn = torch.rand(3) + float(self.generator.random()) + index
        return drawn.float()


class Net(nn.Module):
    """Trains on a batch of whatever structure."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(3, 1)

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        parts = batch.values() if isinstance(batch, dict) else batch
        parts = [one for one in parts if one.ndim == 2] if not torch.is_tensor(batch) else [batch]
        loss: torch.Tensor = torch.stack(
            [self.layer(one / 10).square().mean() for one in parts]
        ).sum()
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=0.05)


def loaders() -> dict[str, Any]:
    return {
        "long": DataLoader(Samples(7), batch_size=2, shuffle=True),
        "short": DataLoader(Samples(3), batch_size=2, shuffle=True),
        "list": [torch.ones(1, 3), torch.zeros(1, 3)],
    }


def together() -> Any:
    return loaders()


def until_shortest() -> SeveralLoaders:
    return Together(loaders(), until="shortest")


def in_turns() -> SeveralLoaders:
    return InTurns(loaders())


def mixture() -> SeveralLoaders:
    return Mixture(loaders(), [2, 1, 1], batches=5)


def with_a_stream() -> Any:
    return {"stream": stream([torch.ones(1, 3)] * 3), "short": loaders()["short"]}


def start(make: Callable[[], Any], **settings: Any) -> Trainer:
    trainer = Trainer(max_epochs=2, progress=False, device="cpu", **settings)
    trainer.start(Net(), make())
    return trainer


@pytest.mark.filterwarnings("ignore::statemachine_trainer.data.ReplayWarning")
@pytest.mark.parametrize("prefetch", [False, True])
@pytest.mark.parametrize("make", [together, until_shortest, in_turns, mixture, with_a_stream])
def test_every_boundary_resumes_to_the_same_bits(make: Callable[[], Any], prefetch: bool) -> None:
    assert_resumable(
        lambda: start(make, prefetch=prefetch), examples=12, seed=3, fresh_process=False
    )


def test_one_that_is_seeded_by_sample_resumes_too() -> None:
    def make() -> Any:
        return {name: loader for name, loader in loaders().items() if name != "list"}

    assert_resumable(lambda: start(make, seed_samples=True, seed=5), examples=8, seed=1)


def test_samples_of_the_same_index_in_two_loaders_draw_other_numbers() -> None:
    class Noise(Dataset[torch.Tensor]):
        def __len__(self) -> int:
            return 2

        def __getitem__(self, index: int) -> torch.Tensor:
            return torch.rand(3)

    feed = Feed(Together([DataLoader(Noise()), DataLoader(Noise())]), seed_samples=True)
    feed.begin(0)
    first, second = feed.next_batch()
    assert not torch.equal(first, second)


def test_the_audit_names_the_generators_of_each_loader() -> None:
    found = str(start(together).audit())
    assert "train/long.dataset.generator" in found
    assert "train/short.dataset.generator" in found


def test_a_checkpoint_of_other_loaders_is_refused(tmp_path: Path) -> None:
    first = start(together, checkpoints=tmp_path)
    first.run(until="batch_end")
    first.checkpoint()
    later = Trainer(max_epochs=2, progress=False, device="cpu")
    others = {f"{name}!": loader for name, loader in loaders().items()}
    with pytest.raises(DataChanged, match="has the loaders"):
        later.fit(Net(), others, resume=tmp_path)


# -- what cannot be meant --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: Together(A, until="middle"), "until='middle'"),  # type: ignore[arg-type]
        (lambda: Together([]), "give a dict or a list of loaders"),
        (lambda: Together(3), "give a dict or a list of loaders"),  # type: ignore[arg-type]
        (lambda: InTurns([A], named="yes"), "named='yes'"),  # type: ignore[arg-type]
        (lambda: Mixture([A, B], [1]), "a number from 0 for each of the 2"),
        (lambda: Mixture([A, B], [0, 0]), "not 0 for all"),
        (lambda: Mixture([A, B], [1, -1]), "a number from 0"),
        (lambda: Mixture({"x": A, "y": B}, {"x": 1, "z": 1}), "name each loader once: x, y"),
        (lambda: Mixture([A, B], batches=0), "batches=0"),
        (lambda: Mixture([A, B], seed="x"), "seed='x'"),  # type: ignore[arg-type]
        (lambda: passes(Mixture([stream(A), B])), "how long a pass is"),
        (lambda: iter(Together([A, B])), "is read by a trainer"),
        (lambda: passes({"train": A, "test": B}), "parts of a data set"),
        (lambda: passes({"x": torch.ones(3)}), "bare Tensor"),
        (lambda: passes([stream(A), stream(B)]), "give a dict of them"),
    ],
)
def test_what_cannot_be_meant_is_refused(make: Callable[[], Any], message: str) -> None:
    with pytest.raises((BadSetting, BadSource), match=message):
        make()
