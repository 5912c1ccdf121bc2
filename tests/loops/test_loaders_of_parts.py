"""A part of the data (of a fold, a round) is loaded as the whole is, or it is refused."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    RandomSampler,
    Sampler,
    SequentialSampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from statemachine_trainer import ActiveLearningLoop, FitLoop, KFoldLoop, Phase, PhasesLoop, Trainer
from statemachine_trainer.data import BadSource, reloaded

WHOLE = TensorDataset(torch.randn(12, 2), torch.arange(12) % 3)
PART = Subset(WHOLE, range(8))


def shape(loader: DataLoader[Any]) -> tuple[int, int]:
    """Batches of a pass, and samples."""
    sizes = [len(batch[0]) for batch in loader]
    return len(sizes), sum(sizes)


@pytest.mark.parametrize(
    "settings, expected",
    [
        ({"batch_size": 3}, (3, 8)),
        ({"batch_size": 3, "drop_last": True}, (2, 6)),
        ({"batch_size": 3, "sampler": RandomSampler(WHOLE)}, (3, 8)),
        ({"batch_size": 3, "sampler": RandomSampler(WHOLE, num_samples=5)}, (2, 5)),
        (
            {"batch_size": 4, "sampler": RandomSampler(WHOLE, replacement=True, num_samples=20)},
            (5, 20),
        ),
        ({"batch_sampler": BatchSampler(RandomSampler(WHOLE), 3, drop_last=True)}, (2, 6)),
        ({"batch_sampler": BatchSampler(SequentialSampler(WHOLE), 5, drop_last=False)}, (2, 8)),
    ],
)
def test_how_samples_are_drawn_is_taken_over(
    settings: dict[str, Any], expected: tuple[int, int]
) -> None:
    assert shape(reloaded(DataLoader(WHOLE, **settings), PART)) == expected


def test_replacement_and_the_generator_of_a_sampler_are_taken_over() -> None:
    own = torch.Generator()
    sampler = RandomSampler(WHOLE, replacement=True, num_samples=50, generator=own)
    made: Any = reloaded(DataLoader(WHOLE, batch_size=5, sampler=sampler), PART).sampler
    assert (made.replacement, made.generator is own) == (True, True)
    assert {*made} <= {*range(8)}


def test_to_evaluate_a_part_it_is_read_whole_and_in_order_however_the_whole_is_drawn() -> None:
    weighted = WeightedRandomSampler([1.0] * 12, 12)
    for settings in (
        {"batch_size": 3, "sampler": weighted},
        {"batch_sampler": BatchSampler(RandomSampler(WHOLE), 3, drop_last=True)},
    ):
        made = reloaded(DataLoader(WHOLE, **settings), PART, evaluate=True)
        read = torch.cat([batch[0] for batch in made])
        assert torch.equal(read, WHOLE.tensors[0][:8])


class Chosen(Sampler[list[int]]):
    def __iter__(self) -> Iterator[list[int]]:
        return iter([[0, 1], [2]])


class Own(DataLoader[Any]):
    def __iter__(self) -> Any:
        return iter([1, 2])


@pytest.mark.parametrize(
    "loader, said",
    [
        (lambda: DataLoader(WHOLE, sampler=WeightedRandomSampler([1.0] * 12, 12)), "Weighted"),
        (lambda: DataLoader(WHOLE, sampler=SubsetRandomSampler(range(4))), "SubsetRandom"),
        (lambda: DataLoader(WHOLE, batch_sampler=Chosen()), "Chosen chooses the batches"),
        (lambda: DataLoader(WHOLE, sampler=RandomSampler(range(4))), "chooses of 4 samples"),
        (lambda: DataLoader(WHOLE, sampler=SequentialSampler(range(4))), "chooses of 4 samples"),
        (lambda: Own(WHOLE), "a Own, which makes batches in its own way"),
        (
            lambda: DataLoader(
                WHOLE, batch_sampler=BatchSampler(SubsetRandomSampler(range(4)), 2, False)
            ),
            "SubsetRandomSampler chooses the samples",
        ),
    ],
)
def test_what_knows_the_whole_only_is_refused(loader: Any, said: str) -> None:
    with pytest.raises(BadSource, match=rf"{said}.*make_loader="):
        reloaded(loader(), PART)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.layer(inputs)
        return outputs

    def training_step(self, batch: list[Tensor]) -> Tensor:
        return F.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch: list[Tensor]) -> None: ...

    def test_step(self, batch: list[Tensor]) -> None: ...

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def with_worker() -> DataLoader[Any]:
    return DataLoader(WHOLE, batch_size=4, num_workers=1, persistent_workers=True)


@pytest.mark.parametrize(
    "loop, states",
    [
        (lambda: KFoldLoop(2, fit=FitLoop(max_epochs=1)), ("fold_start",)),
        (
            lambda: KFoldLoop(2, fit=FitLoop(max_epochs=1), test_data=with_worker()),
            ("fold_start", "ensemble_start"),
        ),
        (
            lambda: ActiveLearningLoop(first=4, query=4, rounds=2, fit=FitLoop(max_epochs=1)),
            ("round_start", "learning_end"),
        ),
        (
            lambda: PhasesLoop(
                Phase("one", FitLoop(max_epochs=1), train=with_worker()),
                Phase("two", FitLoop(max_epochs=1), train=with_worker(), validation=with_worker()),
            ),
            ("phase_start", "phases_end"),
        ),
    ],
    ids=["folds", "ensemble", "rounds", "phases"],
)
def test_workers_end_with_the_part_that_began_them(loop: Any, states: tuple[str, ...]) -> None:
    torch.manual_seed(0)
    before = len(multiprocessing.active_children())
    trainer = Trainer(loop(), progress=False, device="cpu")
    seen: list[int] = []
    for state in states:
        trainer.on(state, lambda: seen.append(len(multiprocessing.active_children())))
    given = with_worker() if not isinstance(trainer.loop, PhasesLoop) else [[*WHOLE.tensors]]
    trainer.fit(Net(), given)
    assert {*seen, len(multiprocessing.active_children())} == {before}
