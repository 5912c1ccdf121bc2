"""A summary of a model tells its layers, and leaves no trace in it."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from statemachine_trainer import FitLoop, KFoldLoop, ModelSummary, Trainer, summary
from statemachine_trainer.callbacks.model_summary import Summary
from statemachine_trainer.loops.loop_errors import SettingError
from statemachine_trainer.testing import assert_resumable
from tests.loops.inner_kit import make_batches, make_net

FIT: dict[str, Any] = {
    "loss": nn.functional.mse_loss,
    "optimizer": partial(torch.optim.SGD, lr=0.1),
}


class Net(nn.Module):
    """Has all that a forward pass may leave a trace in."""

    calls: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.Dropout(0.5))
        self.head = nn.Linear(4, 1)
        self.body[0].requires_grad_(False)
        self.generator = torch.Generator().manual_seed(1)
        self.register_buffer("calls", torch.zeros(()), persistent=False)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        noise = torch.rand(inputs.shape, generator=self.generator) + torch.rand(inputs.shape)
        found: torch.Tensor = self.head(self.body(inputs + noise))
        return found


def test_it_tells_shapes_parameters_and_operations() -> None:
    found = summary(Net(), torch.zeros(8, 2))
    rows = {one.name: one for one in found.layers}
    assert [*rows] == ["", "body", "body.0", "body.1", "body.2", "head"]
    assert rows["body"].shape == (8, 4)
    assert (rows["body.0"].parameters, rows["body.0"].trainable) == (12, 0)
    assert rows["body.0"].flops == 2 * 8 * 2 * 4
    assert rows["head"].flops == 2 * 8 * 4
    assert (found.parameters, found.trainable) == (25, 13)
    assert found.flops == 2 * 8 * 2 * 4 + 2 * 8 * 4
    text = str(found)
    assert "25 parameters, 13 trainable, 12 frozen" in text
    assert "8 x 4" in text


def test_without_a_batch_there_are_no_shapes() -> None:
    found = summary(Net(), depth=1)
    assert [one.name for one in found.layers] == ["", "body", "head"]
    assert found.flops is None
    assert "FLOPs" not in str(found)


@pytest.mark.parametrize("training", [True, False])
def test_it_leaves_no_trace(training: bool) -> None:
    net, drawn = Net().train(training), torch.get_rng_state()
    net.body[2].eval()
    net.head.weight.grad = torch.ones(1, 4)
    own = net.generator.get_state()
    before = {name: one.clone() for name, one in net.state_dict().items()}
    summary(net, torch.zeros(8, 2))
    assert all(torch.equal(one, net.state_dict()[name]) for name, one in before.items())
    assert float(net.calls) == 0
    assert torch.equal(torch.get_rng_state(), drawn)
    assert torch.equal(net.generator.get_state(), own)
    assert [net.training, net.body[2].training, net.head.training] == [training, False, training]
    assert torch.equal(net.head.weight.grad, torch.ones(1, 4))
    assert not net.head._forward_hooks


def test_a_shared_layer_counts_once() -> None:
    layer = nn.Linear(3, 3, bias=False)
    assert summary(nn.Sequential(layer, nn.ReLU(), layer)).parameters == 9


@pytest.mark.parametrize("batch", [(torch.zeros(4, 2), torch.zeros(4, 1)), torch.zeros(4, 2)])
def test_it_prints_once_as_a_fit_begins(batch: Any) -> None:
    heard: list[Summary] = []
    told = ModelSummary(batch, echo=heard.append)
    trainer = Trainer(
        KFoldLoop(folds=2, fit=FitLoop(max_epochs=1)),
        callbacks=[told],
        progress=False,
        device="cpu",
    )
    data = torch.utils.data.TensorDataset(torch.zeros(8, 2), torch.zeros(8, 1))
    trainer.fit(make_net(), torch.utils.data.DataLoader(data, batch_size=2), **FIT)
    assert [one.flops for one in heard] == [2 * 4 * (2 * 5 + 5)]


def test_a_model_may_be_called_in_a_way_of_its_own() -> None:
    class Steps(nn.Linear):
        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            return self(batch["x"]).sum()  # type: ignore[no-any-return]

    batch = {"x": torch.zeros(4, 2)}
    with pytest.raises(SettingError, match="cannot be called with this batch"):
        summary(Steps(2, 3), batch)
    found = summary(Steps(2, 3), batch, call=lambda model, one: model.training_step(one, 0))
    assert found.flops == 2 * 4 * 2 * 3


@pytest.mark.parametrize(
    "make",
    [
        lambda: summary(nn.LazyLinear(3)),
        lambda: summary(make_net(), depth=-1),
        lambda: summary(3),  # type: ignore[arg-type]
        lambda: ModelSummary(depth=1.5),  # type: ignore[arg-type]
        lambda: ModelSummary(echo="x"),  # type: ignore[arg-type]
        lambda: summary(make_net(), call=3),  # type: ignore[arg-type]
    ],
)
def test_what_means_nothing_is_refused(make: Any) -> None:
    with pytest.raises(SettingError, match=r"summary|ModelSummary"):
        make()


def test_a_fit_with_it_resumes_anywhere() -> None:
    def make_trainer() -> Trainer:
        told = ModelSummary(torch.zeros(1, 2), echo=lambda found: None)
        trainer = Trainer(max_epochs=2, callbacks=[told], progress=False, device="cpu")
        trainer.start(make_net(), make_batches(3), **FIT)
        return trainer

    assert_resumable(make_trainer, examples=6, seed=0)
