"""Validation over several loaders: their order, names, limits and metrics."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from statemachine_trainer.data.data_errors import EmptyLoader
from statemachine_trainer.loops.loop_errors import MetricConflict
from statemachine_trainer.loops.metrics.log import log
from statemachine_trainer.snapshot import decode, encode
from tests.loops.outer_kit import Model, Unsized, make_trainer, numbered


class Several(Model):
    """Notes which loader each batch came from."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[int, int, int]] = []

    def validation_step(  # type: ignore[override]
        self, batch: torch.Tensor, batch_idx: int, dataloader_idx: int
    ) -> Any:
        self.seen.append((dataloader_idx, batch_idx, int(batch[0, 0])))
        log("value", batch.mean())


def test_loaders_are_evaluated_one_after_the_other_with_their_numbers() -> None:
    trainer, model = make_trainer(), Several()
    trainer.fit(model, numbered(1), {"clean": numbered(2), "noisy": numbered(3, start=7)})
    assert model.seen == [(0, 0, 0), (0, 1, 1), (1, 0, 7), (1, 1, 8), (1, 2, 9)]


def test_each_loader_has_metrics_under_its_name() -> None:
    trainer = make_trainer()
    metrics = trainer.fit(
        Several(), numbered(1), {"clean": numbered(2), "noisy": numbered(3, start=7)}
    )
    assert metrics == {"value/clean": 0.5, "value/noisy": 8.0}


def test_loaders_without_names_are_numbered() -> None:
    loaders = [lambda: numbered(2), lambda: numbered(3, start=7)]
    metrics = make_trainer().fit(Several(), numbered(1), loaders)
    assert metrics == {"value/0": 0.5, "value/1": 8.0}


def test_a_single_loader_needs_no_name() -> None:
    assert make_trainer().fit(Several(), numbered(1), {"clean": numbered(2)}) == {"value": 0.5}


def test_a_test_over_several_loaders_names_them_alike() -> None:
    found = make_trainer().test(Model(), [lambda: numbered(2), lambda: numbered(3)])
    assert found == {"test_value/0": 0.5, "test_value/1": 1.0}


def test_the_limit_holds_for_each_loader() -> None:
    trainer, model = make_trainer(limit_validation_batches=0.5), Several()
    trainer.fit(model, numbered(1), {"a": numbered(2), "b": numbered(4)})
    assert [(loader, idx) for loader, idx, _ in model.seen] == [(0, 0), (1, 0), (1, 1)]


def test_loaders_of_unknown_length_may_stand_among_them() -> None:
    trainer, model = make_trainer(max_epochs=2), Several()
    trainer.fit(model, numbered(1), {"a": Unsized(numbered(2)), "b": numbered(1)})
    assert [(loader, idx) for loader, idx, _ in model.seen] == [(0, 0), (0, 1), (1, 0)] * 2


def test_what_is_logged_when_all_are_done_bears_no_name_of_a_loader() -> None:
    trainer = make_trainer()
    trainer.on("validation_end", lambda t: log("total", 1.0))
    metrics = trainer.fit(Several(), numbered(1), {"a": numbered(1), "b": numbered(1)})
    assert metrics == {"value/a": 0.0, "value/b": 0.0, "total": 1.0}


def test_training_metrics_bear_no_name_of_a_loader_after_a_validation() -> None:
    class Logging(Several):
        def training_step(self, batch: torch.Tensor, batch_idx: int) -> Any:
            log("number", batch.mean())
            return super().training_step(batch, batch_idx)

    trainer = make_trainer(validate_every=1)
    trainer.fit(Logging(), numbered(2), {"a": numbered(1), "b": numbered(1)})
    assert trainer.context.train_metrics.compute() == {"number": 0.5}


def test_an_empty_loader_among_them_is_named_before_the_fit_begins() -> None:
    trainer, model = make_trainer(), Several()
    with pytest.raises(EmptyLoader, match="'noisy'"):
        trainer.fit(model, numbered(1), {"clean": numbered(1), "noisy": []})
    assert model.trained == []


def test_an_empty_loader_of_unknown_length_stops_validation_until_it_is_mended() -> None:
    noisy = Unsized([])
    trainer, model = make_trainer(), Several()
    with pytest.raises(EmptyLoader, match="'noisy'"):
        trainer.fit(model, numbered(1), {"clean": numbered(1), "noisy": noisy})
    assert trainer.path == "fit.epoch.validation.validation_fetch"
    noisy.batches = numbered(2)
    trainer.run()
    assert model.seen == [(0, 0, 0), (1, 0, 0), (1, 1, 1)]


class Total:
    """A metric object of one's own: the sum of the batches, and how many there were."""

    sum: float = 0.0
    count: int = 0

    def update(self, batch: torch.Tensor) -> None:
        self.sum, self.count = self.sum + float(batch.mean()), self.count + 1

    def compute(self) -> dict[str, float]:
        return {"mean": self.sum / self.count, "batches": float(self.count)}

    def reset(self) -> None:
        self.sum, self.count = 0.0, 0


class Objects(Model):
    def __init__(self) -> None:
        super().__init__()
        self.total = Total()
        self.in_training = False

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        if self.in_training:
            self.total.update(batch)
            log("total", self.total)
        loss: torch.Tensor = super().training_step(batch, batch_idx)
        return loss

    def validation_step(self, batch: torch.Tensor, batch_idx: int) -> Any:
        self.total.update(batch)
        log("total", self.total)


def test_one_metric_object_has_a_value_of_its_own_for_each_loader() -> None:
    metrics = make_trainer(max_epochs=2).fit(
        Objects(), numbered(1), {"clean": numbered(2), "noisy": numbered(3, start=7)}
    )
    assert metrics == {
        "total/clean/mean": 0.5,
        "total/clean/batches": 2.0,
        "total/noisy/mean": 8.0,
        "total/noisy/batches": 3.0,
    }


def test_its_values_are_kept_where_a_run_stops_between_two_loaders() -> None:
    def begun() -> Any:
        trainer, model = make_trainer(sanity_batches=0), Objects()
        data = {"clean": numbered(2), "noisy": numbered(3, start=7)}
        trainer.start(model, numbered(1), data)
        return trainer

    trainer = begun()
    trainer.run(until=lambda trainer: trainer.context.dataloader_idx == 1)
    state = decode(*encode(trainer.state_dict()))
    resumed = begun()
    resumed.load_state_dict(state)
    for one in (trainer, resumed):
        one.run()
        assert one.metrics["total/clean/mean"] == 0.5
        assert one.metrics["total/noisy/batches"] == 3.0


def test_one_metric_object_for_training_and_validation_is_refused() -> None:
    model = Objects()
    model.in_training = True
    with pytest.raises(MetricConflict, match=r"in training and in validation.*Make two objects"):
        make_trainer().fit(model, numbered(2), numbered(2))
