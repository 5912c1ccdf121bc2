"""Where a run goes on with other data, another function of its schedule or another order, it is told."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler
from torch.utils.data import DataLoader, Dataset, Sampler, TensorDataset

from statemachine_trainer import Trainer
from statemachine_trainer.audit.settings_record import SettingsChanged
from statemachine_trainer.callbacks import Checkpoints
from statemachine_trainer.data.data_errors import DataChanged


class Net(nn.Module):
    def __init__(self, schedule: Callable[[int], float] = lambda count: 1.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(4, 1)
        self.schedule = schedule

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        outputs: torch.Tensor = self.layer(batch[0] if isinstance(batch, list) else batch)
        return outputs.square().mean()

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
        schedule = lr_scheduler.LambdaLR(optimizer, self.schedule)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class Rows(Dataset[torch.Tensor]):
    def __init__(self, inputs: torch.Tensor) -> None:
        self.inputs = inputs

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.inputs[index]


def fit(folder: Path, model: nn.Module, data: Any, *, until: int | None = None) -> list[str]:
    """Train, up to a batch or to the end, going on from what is there; return what was told."""
    keeping = Checkpoints(folder / "run", every=1)
    trainer = Trainer(max_epochs=2, device="cpu", progress=False, checkpoints=keeping)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer.start(model, data, resume="auto" if keeping.store.list() else None)
        trainer.run(until=None if until is None else lambda: trainer.context.counts.batch == until)
    return [str(one.message) for one in caught if one.category is SettingsChanged]


def rows(seed: int = 0, count: int = 8) -> DataLoader[Any]:
    generator = torch.Generator().manual_seed(seed)
    return DataLoader(Rows(torch.randn(count, 4, generator=generator)), batch_size=2, shuffle=True)


def decay(by: float) -> Callable[[int], float]:
    return lambda count: by**count


def slower(by: float, count: int) -> float:
    return by**count


@pytest.mark.parametrize(
    "was, now, words",
    [
        (lambda count: 0.9**count, lambda count: 0.5**count, r"constants \[0.9\].*constants \[0.5\]"),
        (lambda count: 0.9**count, lambda count: 0.9 ** (count + 1), "code #"),
        (decay(0.9), decay(0.5), "by=0.9, is .*by=0.5"),
        (partial(slower, 0.9), partial(slower, 0.5), "0=0.9, is .*0=0.5"),
    ],
)  # fmt: skip
def test_another_function_of_a_schedule_is_told(
    tmp_path: Path, was: Any, now: Any, words: str
) -> None:
    assert not fit(tmp_path, Net(was), rows(), until=2)
    (told,) = fit(tmp_path, Net(now), rows())
    assert "the functions of LambdaLR of optimizer 0, for Python" in told
    assert "The script's holds" in told
    with pytest.raises(AssertionError, match=words):
        raise AssertionError(told)


def test_the_same_function_made_anew_is_not_told(tmp_path: Path) -> None:
    assert not fit(tmp_path, Net(decay(0.9)), rows(), until=2)
    assert not fit(tmp_path, Net(decay(0.9)), rows())


@pytest.mark.parametrize("large", [False, True])
def test_other_data_of_the_same_length_are_told(tmp_path: Path, large: bool) -> None:
    count = 9000 if large else 8
    assert not fit(tmp_path, Net(), rows(0, count), until=2)
    (told,) = fit(tmp_path, Net(), rows(1, count), until=3)
    assert f"the content of the data train: dataset.inputs was ({count}, 4) #" in told


def test_other_tensors_of_a_tensor_data_set_are_told(tmp_path: Path) -> None:
    def data(fill: float) -> DataLoader[Any]:
        return DataLoader(TensorDataset(torch.full((8, 4), fill)), batch_size=2)

    assert not fit(tmp_path, Net(), data(1.0), until=2)
    assert not fit(tmp_path, Net(), data(1.0), until=3)
    (told,) = fit(tmp_path, Net(), data(2.0))
    assert "dataset.tensors[0] was (8, 4) #" in told


class ByWeights(Sampler[int]):
    """Gives another first batch once the weights were trained; all others are the same."""

    def __init__(self, model: Net) -> None:
        self.model = model
        self.first = model.layer.weight.detach().clone()

    def __len__(self) -> int:
        return 8

    def __iter__(self) -> Iterator[int]:
        trained = not torch.equal(self.model.layer.weight, self.first)
        return iter([*([1, 0] if trained else [0, 1]), 2, 3, 4, 5, 6, 7])


def test_an_order_that_follows_the_weights_is_refused_whatever_its_last_batch_is(
    tmp_path: Path,
) -> None:
    def data(model: Net) -> DataLoader[Any]:
        return DataLoader(Rows(torch.ones(8, 4)), batch_size=2, sampler=ByWeights(model))

    model = Net()
    fit(tmp_path, model, data(model), until=2)
    again = Net()
    with pytest.raises(DataChanged, match="or follows from what training changes"):
        fit(tmp_path, again, data(again))
