"""A feed that reads ahead hands out the same batches, moved, and loses none to a stop or an error."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from statemachine_trainer.data import DataChanged, Feed, Prefetch
from statemachine_trainer.loops import (
    ActiveLearningLoop,
    FitLoop,
    KFoldLoop,
    Phase,
    PhasesLoop,
)
from statemachine_trainer.loops.loop_errors import SettingError
from statemachine_trainer.machine.loop import Loop
from statemachine_trainer.testing import assert_resumable
from statemachine_trainer.trainer import Trainer
from tests.data.kit import Noisy, Quiet, bits, indices, rest_of_pass, seed_all
from tests.data.resume_kit import assert_resumes
from tests.loops import fold_kit

CPU = torch.device("cpu")


class Breaking(Noisy):
    """Raises at one index for as long as the file ``broken`` is there."""

    def __init__(self, n: int, at: int, broken: Path) -> None:
        super().__init__(n)
        self.at = at
        self.broken = broken
        broken.touch()

    def __getitem__(self, index: int) -> torch.Tensor:
        if index == self.at and self.broken.exists():
            raise ValueError("a torn file")
        return super().__getitem__(index)


class Breaks:
    """Moves batches, and notes which; fails once at one of them."""

    def __init__(self, at: float | None = None, error: BaseException | None = None) -> None:
        self.at = at
        self.error = error
        self.moved: list[float] = []

    def __call__(self, batch: torch.Tensor) -> torch.Tensor:
        first = float(batch.flatten()[0])
        if first == self.at and self.error is not None:
            error, self.error = self.error, None
            raise error
        self.moved.append(first)
        return batch.clone()


def prefetch(dataset: Any, **settings: Any) -> Prefetch:
    return Prefetch(DataLoader(dataset, batch_size=1), device=CPU, **settings)


@pytest.mark.parametrize("workers", [0, 2])
def test_the_batches_are_those_of_a_feed_that_does_not_read_ahead(workers: int) -> None:
    given = []
    for ahead in (False, True):
        seed_all(0)
        loader = DataLoader(Quiet(7), batch_size=2, num_workers=workers, shuffle=True)
        feed = Prefetch(loader, device=CPU) if ahead else Feed(loader)
        feed.begin(0)
        given.append([bits(feed.next_batch()), *rest_of_pass(feed)])
        assert feed.position == 4
        feed.shutdown()
    assert given[0] == given[1]


def test_one_batch_is_read_and_moved_ahead_of_the_one_handed_out() -> None:
    dataset, move = Noisy(4), Breaks()
    feed = prefetch(dataset, move=move)
    feed.begin(0)
    assert dataset.reads == []
    feed.next_batch()
    assert feed.position == 1
    assert dataset.reads == [0, 1]
    assert move.moved == [0.0, 1.0]
    feed.next_batch()
    assert dataset.reads == [0, 1, 2]


@pytest.mark.parametrize("limit", [None, 2])
def test_a_run_that_stops_anywhere_goes_on_with_the_batch_that_was_read_ahead(
    limit: int | None,
) -> None:
    def make() -> Feed:
        loader = DataLoader(Noisy(5), batch_size=2, shuffle=True)
        return Prefetch(loader, device=CPU, move=Breaks())

    assert_resumes(make, limit=limit)


def test_a_stop_with_workers_loses_no_batch() -> None:
    def make() -> Feed:
        return Prefetch(DataLoader(Noisy(4), batch_size=2, num_workers=1), device=CPU)

    assert_resumes(make, epochs=1)


def test_an_error_of_the_data_surfaces_when_its_batch_is_asked_for(tmp_path: Path) -> None:
    feed = prefetch(Breaking(4, 2, tmp_path / "broken"))
    feed.begin(0)
    given = [bits(feed.next_batch()), bits(feed.next_batch())]
    for _ in range(2):
        with pytest.raises(ValueError, match="a torn file"):
            feed.next_batch()
        assert feed.position == 2
    (tmp_path / "broken").unlink()
    assert indices(given + rest_of_pass(feed)) == [0, 1, 2, 3]


def test_a_batch_whose_move_failed_is_moved_again_without_being_read_again() -> None:
    dataset = Noisy(3)
    feed = prefetch(dataset, move=Breaks(1.0, ValueError("no room")))
    feed.begin(0)
    given = [bits(feed.next_batch())]
    with pytest.raises(ValueError, match="no room"):
        feed.next_batch()
    assert feed.position == 1
    again = prefetch(Noisy(3), move=Breaks())
    again.load_state_dict(feed.state_dict())
    for one in (feed, again):
        assert indices(given + rest_of_pass(one)) == [0, 1, 2]
    assert dataset.reads == [0, 1, 2]


def test_an_interruption_while_the_next_batch_is_moved_loses_neither() -> None:
    feed = prefetch(Noisy(3), move=Breaks(1.0, KeyboardInterrupt()))
    feed.begin(0)
    with pytest.raises(KeyboardInterrupt):
        feed.next_batch()
    assert feed.position == 0
    again = prefetch(Noisy(3), move=Breaks())
    again.load_state_dict(feed.state_dict())
    for one in (feed, again):
        assert indices(rest_of_pass(one)) == [0, 1, 2]


def test_a_new_pass_forgets_what_was_read_ahead() -> None:
    feed = prefetch(Quiet(3))
    feed.begin(0)
    feed.next_batch()
    feed.begin(1)
    assert feed.position == 0
    assert len(rest_of_pass(feed)) == 3


def test_a_feed_that_does_not_read_ahead_refuses_a_state_with_a_batch_that_was() -> None:
    feed = prefetch(Quiet(3))
    feed.begin(0)
    feed.next_batch()
    with pytest.raises(DataChanged, match="prefetch=True"):
        Feed(DataLoader(Quiet(3), batch_size=1)).load_state_dict(feed.state_dict())


def test_a_run_may_begin_to_read_ahead_when_it_goes_on() -> None:
    feed = Feed(DataLoader(Quiet(3), batch_size=1))
    feed.begin(0)
    feed.next_batch()
    later = prefetch(Quiet(3))
    later.load_state_dict(feed.state_dict())
    assert rest_of_pass(later) == rest_of_pass(feed)


class Net(nn.Module):
    """With dropout, which draws between two batches."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Dropout(0.5), nn.Linear(4, 1))

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        loss: torch.Tensor = self.layers(batch.float()).square().mean()
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01)


def make_trainer(**settings: Any) -> Trainer:
    trainer = Trainer(max_epochs=2, seed=0, prefetch=True, progress=False, device="cpu", **settings)
    trainer.start(Net(), DataLoader(Noisy(7), batch_size=2, shuffle=True))
    return trainer


@pytest.mark.parametrize("settings", [{}, {"limit_train_batches": 2}, {"max_steps": 5}], ids=str)
def test_a_training_that_reads_ahead_resumes_to_the_same_bits(settings: dict[str, Any]) -> None:
    assert_resumable(lambda: make_trainer(**settings), exhaustive=True)


def outer_loop(name: str) -> Loop:
    """A loop that brings training data of its own, or takes those of the fit apart."""
    one, two = FitLoop(max_epochs=1), FitLoop(max_epochs=1)
    if name == "phases":
        own = Phase("own", one, train=fold_kit.loader(8))
        return PhasesLoop(own, Phase("other", two), cycles=2)
    if name == "folds":
        return KFoldLoop(2, fit=one)
    return ActiveLearningLoop(fit=one, acquisition="random", first=4, query=4, budget=8)


@pytest.mark.parametrize("name", ["phases", "folds", "rounds"])
def test_data_of_phases_folds_and_rounds_are_read_ahead(name: str) -> None:
    def make() -> Trainer:
        trainer = Trainer(outer_loop(name), seed=0, prefetch=True, progress=False, device="cpu")
        trainer.start(fold_kit.Net(), fold_kit.loader())
        return trainer

    trainer, kinds = make(), []
    trainer.on("*.batch_start", lambda trainer: kinds.append(type(trainer.context.train)))
    trainer.run()
    assert set(kinds) == {Prefetch}
    assert_resumable(make)


def test_where_the_data_do_not_draw_reading_ahead_changes_no_bit_of_a_training() -> None:
    batches = [torch.randn(2, 4) for _ in range(6)]
    weights = []
    for ahead in (False, True):
        trainer = Trainer(max_epochs=2, seed=0, prefetch=ahead, progress=False, device="cpu")
        seed_all(3)
        net = Net()
        trainer.fit(net, batches)
        weights.append(bits(dict(net.state_dict())))
    assert weights[0] == weights[1]


def test_a_number_of_batches_to_read_ahead_is_refused_with_what_to_say_instead() -> None:
    with pytest.raises(SettingError, match="prefetch_factor"):
        Trainer(max_epochs=1, prefetch=2)  # type: ignore[arg-type]


@pytest.mark.gpu
def test_on_cuda_batches_arrive_whole_from_a_stream_of_their_own() -> None:
    device = torch.device("cuda")
    batches = [torch.full((1 << 20,), float(number)) for number in range(8)]
    feed = Prefetch(batches, device=device)
    feed.begin(0)
    for number in range(8):
        batch = feed.next_batch()
        assert batch.device.type == "cuda"
        assert bool((batch == number).all())


@pytest.mark.gpu
def test_on_cuda_a_training_that_reads_ahead_resumes_to_the_same_bits() -> None:
    def make() -> Trainer:
        trainer = Trainer(max_epochs=2, seed=0, prefetch=True, progress=False, device="cuda")
        loader = DataLoader(Noisy(7), batch_size=2, shuffle=True, pin_memory=True)
        trainer.start(Net(), loader)
        return trainer

    assert_resumable(make, exhaustive=True)
