"""A learning rate and a batch size are found by short fits that leave no trace, to the bit."""

from __future__ import annotations

import random
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from statemachine_trainer import Together, Trainer, find_batch_size, find_learning_rate
from statemachine_trainer.data import BadSource
from statemachine_trainer.loops.loop_errors import SettingError
from tests.loops.inner_kit import Pair, Regression, make_batches, make_net

SGD = partial(torch.optim.SGD, lr=0.1, momentum=0.9)
FIT: dict[str, Any] = {"loss": nn.functional.mse_loss, "optimizer": SGD}
CPU: dict[str, Any] = {"device": "cpu"}


class Net(nn.Module):
    """Has all that a fit may leave a trace in; takes at most so many samples at once."""

    calls: torch.Tensor

    def __init__(self, most: int = 1000) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(
            nn.Linear(2, 4), nn.BatchNorm1d(4), nn.Dropout(0.2), nn.Linear(4, 1)
        )
        self.generator = torch.Generator().manual_seed(1)
        self.register_buffer("calls", torch.zeros(()), persistent=False)
        self.count, self.sizes, self._most = 0, list[int](), most
        self.layers[2].eval()
        self.layers[3].weight.grad = torch.ones(1, 4)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        if len(inputs) > self._most:
            raise torch.OutOfMemoryError("on purpose")
        self.calls += 1
        self.count += 1
        self.sizes.append(len(inputs))
        noise = torch.rand(inputs.shape, generator=self.generator) * 0.01
        found: torch.Tensor = self.layers(inputs + noise)
        return found


class Draws(Dataset[Any]):
    """Draws from generators of all kinds, and counts."""

    def __init__(self, count: int = 40) -> None:
        self.count = count
        self.read = 0
        self.own = np.random.default_rng(0)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Any:
        self.read += 1
        inputs = torch.tensor([random.random(), self.own.random()], dtype=torch.float32)
        return inputs + torch.rand(2), inputs.sum().reshape(1)


def loader(count: int = 40, size: int = 4) -> DataLoader[Any]:
    return DataLoader(Draws(count), size, shuffle=True, generator=torch.Generator().manual_seed(2))


def everything(net: Net, data: Any) -> list[bytes]:
    """All that may have changed, as bytes."""
    loaders = data.parts if isinstance(data, Together) else [data]
    tensors = [*net.state_dict().values(), net.calls, net.generator.get_state()]
    tensors += [torch.get_rng_state(), *(one.generator.get_state() for one in loaders)]
    tensors += [one.grad for one in net.parameters() if one.grad is not None]
    plain = [net.count, net.sizes, [one.training for one in net.modules()], random.getstate()]
    plain += [[(one.dataset.read, one.dataset.own.bit_generator.state) for one in loaders]]
    plain += [[one.grad is None for one in net.parameters()], str(np.random.get_state())]
    plain += [sorted(vars(net)), sorted(one.dataset.read for one in loaders)]
    return [one.numpy().tobytes() for one in tensors] + [repr(one).encode() for one in plain]


@pytest.mark.parametrize("several", [False, True])
def test_a_search_for_a_rate_leaves_no_trace(several: bool) -> None:
    net = Net()
    data: Any = Together([loader(), loader(8)]) if several else loader()

    def loss(output: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return nn.functional.mse_loss(output, targets)

    class First(Net):
        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            inputs, targets = batch[0] if several else batch
            return loss(self(inputs), targets)

    net = First()
    before = everything(net, data)
    found = find_learning_rate(net, data, optimizer=SGD, steps=12, accumulate=2, **CPU)
    assert len(found.rates) == 12
    assert everything(net, data) == before


def test_nor_does_one_that_fails() -> None:
    net, data = Net(most=3), loader()
    before = everything(net, data)
    with pytest.raises(torch.OutOfMemoryError):
        find_learning_rate(net, data, **FIT, **CPU)
    assert everything(net, data) == before


def test_a_fit_after_it_is_the_same_fit() -> None:
    nets = Net(), Net()
    for net, searched in zip(nets, (True, False), strict=True):
        data = loader()
        if searched:
            find_learning_rate(net, data, **FIT, steps=10, **CPU)
            find_batch_size(net, data, **FIT, **CPU)
        Trainer(max_epochs=1, progress=False, seed=1, **CPU).fit(net, data, **FIT)
    assert everything(nets[0], loader()) == everything(nets[1], loader())


def test_an_optimizer_that_was_given_keeps_its_state() -> None:
    net, data = make_net(), make_batches(4)
    optimizer = SGD(net.parameters())
    optimizer.param_groups[0]["note"] = "mine"
    Trainer(max_epochs=1, progress=False, **CPU).fit(
        net, data, loss=FIT["loss"], optimizer=optimizer
    )
    before = repr(optimizer.state_dict())
    find_learning_rate(net, data, loss=FIT["loss"], optimizer=optimizer, steps=6, **CPU)
    assert repr(optimizer.state_dict()) == before


def test_schedulers_have_no_part_in_it() -> None:
    class Scheduled(Regression):
        def configure_optimizers(self) -> Any:
            optimizer = SGD(self.parameters())
            schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=3)
            return {
                "optimizer": optimizer,
                "lr_scheduler": {"scheduler": schedule, "interval": "step"},
            }

    found = find_learning_rate(Scheduled(), make_batches(4), steps=6, **CPU)
    assert len(found.losses) == 6


@pytest.mark.filterwarnings("ignore::statemachine_trainer.loops.mistakes.NothingLearned")
def test_a_model_that_never_steps_is_told() -> None:
    class Nothing(Regression):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return None

    with pytest.raises(SettingError, match="made no optimizer step"):
        find_learning_rate(Nothing(), make_batches(4), steps=5, **CPU)


def test_the_suggestion_is_where_the_loss_falls_fastest() -> None:
    torch.manual_seed(0)
    inputs = torch.randn(64, 2)
    data = DataLoader(TensorDataset(inputs, inputs.sum(1, keepdim=True) * 3), 8)
    found = find_learning_rate(
        nn.Linear(2, 1), data, loss=FIT["loss"], optimizer=partial(torch.optim.SGD, lr=1.0),
        lowest=1e-5, highest=100.0, **CPU,
    )  # fmt: skip
    assert found.suggestion is not None
    assert 1e-3 < found.suggestion < 1.0
    assert len(found.losses) < 100, "it stops where the loss diverges"
    assert found.rates[0] == 1e-5
    pytest.importorskip("matplotlib")
    assert found.plot().axes[0].get_xscale() == "log"


def test_a_loss_that_never_falls_suggests_nothing() -> None:
    found = find_learning_rate(
        make_net(),
        make_batches(2),
        optimizer=SGD,
        steps=5,
        loss=lambda out, _: out.sum() * 0,
        **CPU,
    )
    assert found.suggestion is None


@pytest.mark.parametrize("most, size", [(13, 13), (1, 1), (1000, 40), (40, 40), (39, 39)])
def test_the_largest_batch_that_fits_is_found(most: int, size: int) -> None:
    class Plain(nn.Linear):
        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            if len(inputs) > most:
                raise torch.OutOfMemoryError("on purpose")
            return super().forward(inputs)

    data, net = loader(), Plain(2, 1)
    weight, drawn = net.weight.detach().clone(), torch.get_rng_state()
    assert find_batch_size(net, data, **FIT, **CPU, start=1) == size
    assert torch.equal(net.weight, weight)
    assert torch.equal(torch.get_rng_state(), drawn)
    assert data.dataset.read == 0  # type: ignore[attr-defined]


def test_other_errors_are_no_lack_of_memory() -> None:
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        find_batch_size(nn.Linear(7, 1), loader(), **FIT, **CPU)


@pytest.mark.parametrize(
    "search",
    [
        lambda **more: find_learning_rate(make_net(), make_batches(2), **FIT, **CPU, **more),
        lambda **more: find_batch_size(make_net(), loader(), **FIT, **CPU, **more),
    ],
    ids=["rate", "size"],
)
@pytest.mark.parametrize(
    "settings", [{"steps": 0}, {"max_epochs": 3}, {"checkpoints": "x"}, {"acumulate": 2}]
)
def test_settings_that_mean_nothing_are_refused(search: Any, settings: dict[str, Any]) -> None:
    with pytest.raises(SettingError, match=r"steps|max_epochs|checkpoints|accumulate"):
        search(**settings)


@pytest.mark.parametrize(
    "settings",
    [
        {"lowest": 0}, {"lowest": 2.0, "highest": 1.0}, {"steps": 3}, {"diverged": 1},
        {"highest": float("nan")},
    ],
)  # fmt: skip
def test_rates_out_of_range_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(SettingError, match="find_learning_rate"):
        find_learning_rate(make_net(), make_batches(2), **FIT, **CPU, **settings)


def test_what_cannot_be_searched_is_refused() -> None:
    with pytest.raises(SettingError, match="2 optimizers"):
        find_learning_rate(Pair(lambda one, two: [one, two]), make_batches(4), **CPU)
    manual = make_net()
    manual.automatic_optimization = False  # type: ignore[assignment]
    with pytest.raises(SettingError, match="optimizes by hand"):
        find_learning_rate(manual, make_batches(4), **FIT, **CPU)
    with pytest.raises(SettingError, match="read only once"):
        find_learning_rate(make_net(), iter(make_batches(4)), **FIT, **CPU)
    with pytest.raises(SettingError, match="lazy layers"):
        find_learning_rate(nn.LazyLinear(1), make_batches(4), **FIT, **CPU)
    with pytest.raises(SettingError, match="does not fit"):
        find_batch_size(Net(most=3), loader(), **FIT, **CPU, start=4)
    with pytest.raises(SettingError, match="use a size up to 40"):
        find_batch_size(Net(), loader(), **FIT, **CPU, start=41)
    with pytest.raises(SettingError, match="give a DataLoader"):
        find_batch_size(Net(), make_batches(4), **FIT, **CPU)  # type: ignore[arg-type]
    odd = DataLoader(Draws(4), batch_sampler=[[0, 1], [2, 3]])
    with pytest.raises(BadSource, match="chooses the batches"):
        find_batch_size(Net(), odd, **FIT, **CPU)
