"""The optimizer steps of a whole fit are known before its first."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import torch
from torch.optim.lr_scheduler import OneCycleLR

from statemachine_trainer import FitLoop, KFoldLoop, Phase, PhasesLoop, Trainer, log, warmup
from statemachine_trainer.loops.loop_errors import SettingError
from statemachine_trainer.loops.total import UnknownTotal
from statemachine_trainer.machine.errors import NotStarted
from statemachine_trainer.testing import assert_resumable
from tests.loops.inner_kit import Regression, make_batches, make_net, make_trainer

SGD = partial(torch.optim.SGD, lr=0.1)
MSE = torch.nn.functional.mse_loss


class Asking(Regression):
    """Asks for the total as it makes its optimizer."""

    def configure_optimizers(self, total_steps: int) -> Any:  # type: ignore[override]
        self.totals = [*getattr(self, "totals", []), total_steps]
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
        scheduler = OneCycleLR(optimizer, 0.1, total_steps=total_steps)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }

    def test_step(self, batch: Any) -> None:
        log("score", 1.0)


@pytest.mark.parametrize(
    "settings",
    [
        {"max_epochs": 3},
        {"max_epochs": 3, "accumulate": 2},
        {"max_epochs": 3, "accumulate": {0: 1, 1: 3}},
        {"max_epochs": 3, "limit_train_batches": 3, "accumulate": 2},
        {"max_epochs": 3, "max_steps": 7},
        {"max_steps": 7},
        {"max_epochs": 9, "max_batches": 12, "accumulate": 2},
        {"max_batches": 12},
    ],
    ids=str,
)
def test_it_is_what_the_fit_then_makes(settings: dict[str, Any]) -> None:
    trainer, model = Trainer(**settings, progress=False, device="cpu"), Asking()
    trainer.fit(model, make_batches(5))
    assert model.totals == [trainer.steps] == [trainer.total_steps]


def test_a_function_that_makes_the_loader_is_called_once() -> None:
    calls: list[int] = []

    def loader() -> Any:
        calls.append(1)
        return make_batches(5)

    model = Asking()
    make_trainer(max_epochs=2).fit(model, loader)
    assert (model.totals, len(calls)) == ([10], 1)


def test_each_fold_has_its_own() -> None:
    model = Asking()
    data = torch.utils.data.TensorDataset(
        *(torch.cat(x) for x in zip(*make_batches(3), strict=True))
    )
    loader = torch.utils.data.DataLoader(data, batch_size=1)
    folds = KFoldLoop(2, fit=FitLoop(max_epochs=1, sanity_batches=0))
    trainer = Trainer(folds, progress=False, device="cpu")
    trainer.fit(model, loader)
    samples = len(data)
    assert model.totals == [samples, samples // 2, samples // 2, samples]


def test_of_several_phases_it_is_known_in_each() -> None:
    phases = [
        Phase(name, FitLoop(max_epochs=n, sanity_batches=0)) for name, n in (("a", 1), ("b", 2))
    ]
    trainer = Trainer(PhasesLoop(*phases), progress=False, device="cpu")
    totals: list[int] = []
    trainer.on("*.epoch_start", lambda trainer: totals.append(trainer.total_steps))
    trainer.fit(Regression(), make_batches(5))
    assert totals == [5, 10, 10]
    with pytest.raises(UnknownTotal, match="several fits"):
        Trainer(PhasesLoop(*phases), progress=False).fit(Asking(), make_batches(5))


@pytest.mark.parametrize(
    "settings, data, why",
    [
        ({"max_time": 60}, make_batches(2), "only max_time"),
        ({"max_epochs": 2}, None, "does not tell how many batches"),
        ({"max_epochs": 2, "split_steps": 1}, make_batches(2), "split along time"),
        ({"max_steps": 2, "count_steps_of": "all"}, make_batches(2), "steps of all"),
    ],
)
def test_where_it_cannot_be_known_it_says_why(
    settings: dict[str, Any], data: Any, why: str
) -> None:
    class Endless:
        def __iter__(self) -> Iterator[Any]:
            return iter(make_batches(2))

    trainer = Trainer(**settings, progress=False, device="cpu")
    with pytest.raises(UnknownTotal, match=why):
        trainer.fit(Asking(), Endless() if data is None else data)


def test_before_a_fit_there_is_none() -> None:
    with pytest.raises(NotStarted, match="No fit was begun"):
        _ = Trainer(max_epochs=1).total_steps


# -- warm-up ---------------------------------------------------------------------------------------


def rates(scheduler: warmup, total: int = 10) -> list[float]:
    optimizer = SGD(make_net().parameters())
    made = scheduler(optimizer, total)
    found = []
    for _ in range(total + 1):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        made.step()
    return found


@pytest.mark.parametrize("then, end", [("cosine", 0.0), ("linear", 0.0), ("constant", 0.1)])
@pytest.mark.parametrize("steps", [4, 0.4])
def test_the_rate_rises_and_then_falls(then: Any, end: float, steps: float) -> None:
    found = rates(warmup(steps, then=then, start=0.1))
    assert found[0] == pytest.approx(0.01)
    assert max(found) == pytest.approx(found[4]) == pytest.approx(0.1)
    assert found[:5] == sorted(found[:5])
    assert found[4:] == sorted(found[4:], reverse=True)
    assert found[-1] == pytest.approx(end, abs=1e-9)


def test_where_it_ends_may_be_said() -> None:
    assert rates(warmup(2, end=0.1))[-1] == pytest.approx(0.01)
    assert rates(warmup(2, "linear", end=0.1))[-1] == pytest.approx(0.01)


@pytest.mark.parametrize(
    "settings",
    [{"steps": 0}, {"steps": 1.5}, {"steps": 2, "then": "cos"}, {"steps": 2, "start": 2}],
)
def test_a_warm_up_that_means_nothing_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(SettingError, match="warmup"):
        warmup(**settings)
    with pytest.raises(SettingError, match="leaves nothing of a fit of 3 steps"):
        rates(warmup(5), total=3)


def test_a_warm_up_resumes_anywhere() -> None:
    def make() -> Trainer:
        trainer = make_trainer(max_epochs=2)
        trainer.start(make_net(), make_batches(3), loss=MSE, optimizer=SGD, scheduler=warmup(2))
        return trainer

    assert_resumable(make, examples=8, seed=0)
