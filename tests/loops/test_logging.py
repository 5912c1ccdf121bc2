"""`log`: where it writes, how values are weighted, and that nothing waits for a device."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torchmetrics
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from statemachine_trainer.loops.metrics.log import NotLogging, log, log_dict
from tests.loops.outer_kit import Model, make_trainer, numbered


class Uneven(nn.Module):
    """Logs the mean of each batch; batches are of different sizes."""

    def __init__(self, **settings: Any) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.settings = settings

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> Any:
        log("number", batch.mean(), **self.settings)
        return self.weight * batch.mean()

    def validation_step(self, batch: torch.Tensor, batch_idx: int) -> None:
        log_dict({"value": batch.mean(), "twice": 2 * batch.mean()}, **self.settings)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


UNEVEN = [torch.zeros(3, 1), torch.ones(1, 1)]


def test_means_are_weighted_by_batch_size() -> None:
    metrics = make_trainer().fit(Uneven(), UNEVEN, UNEVEN)
    assert metrics == {"number": 0.25, "value": 0.25, "twice": 0.5}


def test_a_batch_size_that_is_given_is_the_weight() -> None:
    assert make_trainer().fit(Uneven(batch_size=1), UNEVEN) == {"number": 0.5}


@pytest.mark.parametrize(
    "reduce, expected", [("sum", 1.0), ("max", 1.0), ("min", 0.0), ("last", 1.0)]
)
def test_other_reductions_have_names(reduce: str, expected: float) -> None:
    assert make_trainer().fit(Uneven(reduce=reduce), UNEVEN) == {"number": expected}


def test_a_model_without_a_method_log_is_lent_one_while_it_runs() -> None:
    class Lent(Model):
        def training_step(self, batch: torch.Tensor, batch_idx: int) -> Any:
            self.log("number", batch.mean())  # type: ignore[operator]
            return super().training_step(batch, batch_idx)

    model = Lent()
    assert make_trainer().fit(model, numbered(3)) == {"number": 1.0}
    assert not hasattr(model, "log")


def test_a_models_own_log_is_left_alone() -> None:
    class Own(Model):
        def log(self, name: str, value: Any) -> None:
            logged.append(name)

        def training_step(self, batch: torch.Tensor, batch_idx: int) -> Any:
            self.log("number", batch.mean())
            return super().training_step(batch, batch_idx)

    logged: list[str] = []
    assert make_trainer().fit(Own(), numbered(1)) == {}
    assert logged == ["number"]


def test_logging_outside_of_a_run_is_an_error_that_says_so() -> None:
    with pytest.raises(NotLogging, match="outside of fit, validate, test or predict"):
        log("number", 1.0)


def test_receivers_may_log_too() -> None:
    trainer = make_trainer()
    trainer.on("batch_end", lambda trainer: log("steps", trainer.steps, reduce="last"))
    assert trainer.fit(Model(), numbered(3)) == {"steps": 3.0}


def test_metric_objects_are_computed_over_the_pass_and_reset_for_the_next() -> None:
    class Measured(Model):
        def __init__(self) -> None:
            super().__init__()
            self.worst = torchmetrics.MaxMetric()

        def validation_step(self, batch: torch.Tensor, batch_idx: int) -> None:
            self.worst.update(batch.max() - 10 * trainer.epoch)
            log("worst", self.worst)

    trainer = make_trainer(max_epochs=2)
    ends: list[float] = []
    trainer.on("epoch_end", lambda trainer: ends.append(trainer.metrics["worst"]))
    trainer.fit(Measured(), numbered(1), numbered(4))
    assert ends == [3.0, -7.0]


def test_a_metric_object_used_after_its_pass_does_not_change_what_is_known() -> None:
    class Measured(Model):
        def __init__(self) -> None:
            super().__init__()
            self.worst = torchmetrics.MaxMetric()

        def validation_step(self, batch: torch.Tensor, batch_idx: int) -> None:
            self.worst.update(batch.max())
            log("worst", self.worst)

    trainer, model = make_trainer(), Measured()
    trainer.fit(model, numbered(1), numbered(4))
    model.worst.update(99.0)
    assert trainer.metrics["worst"] == 3.0


class Synchronisations(TorchDispatchMode):
    """Counts what reads a tensor's value on the host."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            self.count += 1
        return func(*args, **(kwargs or {}))


def test_a_step_that_logs_nothing_reads_no_tensor_on_the_host() -> None:
    class Silent(Model):
        def training_step(self, batch: torch.Tensor, batch_idx: int) -> Any:
            return self.layer(batch).mean()

    trainer = make_trainer()
    trainer.start(Silent(), numbered(4), numbered(2))
    with Synchronisations() as watched:
        trainer.run(until="drain")
    assert watched.count == 0


def test_values_on_another_device_are_accumulated_there() -> None:
    """A tensor on "meta" has no value: reading it, as a synchronisation would, is an error."""

    class Remote(Model):
        def training_step(self, batch: torch.Tensor, batch_idx: int) -> Any:
            log("remote", torch.ones((), device="meta"))
            return super().training_step(batch, batch_idx)

    trainer, model = make_trainer(), Remote()
    trainer.start(model, numbered(4))
    trainer.run(until="drain")
    assert len(model.trained) == 4
