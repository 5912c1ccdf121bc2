"""The ensemble of a k-fold run scores what the average of its models answers, however the step asks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from statemachine_trainer import FitLoop, KFoldLoop, Trainer, log
from statemachine_trainer.loops.recipes.answers import EnsembleUnclear, average

FOLDS = 3
INPUTS = torch.randn(12, 4, generator=torch.Generator().manual_seed(1))
CLASSES = INPUTS[:, :3].argmax(1)
YES = (INPUTS[:, :1] > 0).float()
TEST = torch.randn(10, 4, generator=torch.Generator().manual_seed(2))
TEST_CLASSES, TEST_YES = TEST[:, :3].argmax(1), (TEST[:, :1] > 0).float()

Score = Callable[["Net", Tensor], Tensor]
"""Makes the score of the outputs of a batch of ten."""


class Net(nn.Module):
    """Two layers and a scale; its training moves all of them."""

    def __init__(self, score: Score, width: int = 3) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(4, 5), nn.Tanh())
        self.head = nn.Linear(5, width)
        self.scale = nn.Parameter(torch.ones(()))
        self.criterion = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 0.5]))
        self.score = score

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.head(self.encoder(inputs)) * self.scale
        return outputs

    def training_step(self, batch: list[Tensor]) -> Tensor:
        width = self.head.out_features
        targets = batch[1] if width == 3 else batch[2].expand(-1, width)
        outputs = Net.forward(self, batch[0])
        loss = F.cross_entropy if width == 3 else F.binary_cross_entropy_with_logits
        return loss(outputs, targets)

    def test_step(self, batch: list[Tensor]) -> None:
        log("score", self.score(self, batch[0]))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=0.1)


def run(
    score: Score, *, width: int = 3, kind: type[Net] = Net, **settings: Any
) -> tuple[float, Net, KFoldLoop]:
    torch.manual_seed(0)
    model = kind(score, width)
    test = DataLoader(TensorDataset(TEST), batch_size=10)
    loop = KFoldLoop(FOLDS, fit=FitLoop(max_epochs=2), test_data=test, **settings)
    data = TensorDataset(INPUTS, CLASSES, YES)
    # Folds are scored by the same step, on fewer samples: there it may be anything.
    model.score = lambda model, inputs: (
        score(model, inputs) if len(inputs) == 10 else torch.zeros(())
    )
    trainer = Trainer(loop, progress=False, device="cpu")
    found = trainer.fit(model, DataLoader(data, batch_size=4))["score/ensemble"]
    return found, model, loop


def outputs(model: Net, loop: KFoldLoop) -> Tensor:
    found = []
    for fold in range(FOLDS):
        loop.load(fold)
        found.append(model(TEST).detach())
    return torch.stack(found)


def of_parts(model: Net, inputs: Tensor) -> Tensor:
    return model.head(model.encoder(inputs)) * model.scale  # type: ignore[no-any-return]


def chopped(model: Net, inputs: Tensor) -> Tensor:
    hidden = model.encoder(inputs).unsqueeze(0).flatten(0, 1)
    return F.linear(hidden.tanh().atanh(), model.head.weight, model.head.bias) * model.scale


@pytest.mark.parametrize(
    "score",
    [
        lambda model, inputs: F.cross_entropy(model(inputs), TEST_CLASSES),
        lambda model, inputs: F.cross_entropy(of_parts(model, inputs), TEST_CLASSES),
        lambda model, inputs: F.cross_entropy(chopped(model, inputs), TEST_CLASSES),
        lambda model, inputs: F.cross_entropy(model.forward(inputs), TEST_CLASSES),
        lambda model, inputs: F.nll_loss(F.log_softmax(model(inputs), 1), TEST_CLASSES),
        lambda model, inputs: F.nll_loss(model(inputs).softmax(dim=-1).log(), TEST_CLASSES),
    ],
    ids=["model", "parts", "parameters", "forward", "log_softmax", "softmax"],
)
def test_classes_are_averaged_as_probabilities_whatever_the_step_calls(score: Score) -> None:
    found, model, loop = run(score)
    mean = outputs(model, loop).softmax(2).mean(0)
    assert found == pytest.approx(F.nll_loss(mean.log(), TEST_CLASSES).item(), abs=1e-5)


def test_a_loss_that_has_state_of_its_own_is_no_part_of_the_ensemble() -> None:
    found, model, loop = run(lambda model, inputs: model.criterion(model(inputs), TEST_CLASSES))
    mean = outputs(model, loop).softmax(2).mean(0)
    weight = model.criterion.weight
    assert found == pytest.approx(F.nll_loss(mean.log(), TEST_CLASSES, weight).item(), abs=1e-5)


@pytest.mark.parametrize("width", [1, 2])
def test_logits_of_yes_or_no_are_averaged_as_probabilities(width: int) -> None:
    targets = TEST_YES.expand(-1, width)
    found, model, loop = run(
        lambda model, inputs: F.binary_cross_entropy_with_logits(model(inputs), targets),
        width=width,
    )
    mean = outputs(model, loop).sigmoid().mean(0)
    assert found == pytest.approx(F.binary_cross_entropy(mean, targets).item(), abs=1e-5)


def test_numbers_are_averaged_as_they_are() -> None:
    found, model, loop = run(lambda m, inputs: F.l1_loss(TEST_YES, m(inputs)), width=1)
    assert found == pytest.approx(
        F.l1_loss(outputs(model, loop).mean(0), TEST_YES).item(), abs=1e-5
    )


def test_an_accuracy_is_that_of_the_averaged_probabilities() -> None:
    found, model, loop = run(lambda m, inputs: (m(inputs).argmax(1) == TEST_CLASSES).float().mean())
    mean = outputs(model, loop).softmax(2).mean(0)
    assert found == pytest.approx((mean.argmax(1) == TEST_CLASSES).float().mean().item())


class Pair(Net):
    def forward(self, inputs: Tensor) -> Any:
        return {"out": (super().forward(inputs), "name")}


def test_containers_of_outputs_are_averaged_part_by_part() -> None:
    def score(model: Net, inputs: Tensor) -> Tensor:
        logits, names = model(inputs)["out"]
        hidden = model.encoder(inputs)
        assert names == "name"
        assert (len(hidden), hidden.shape) == (10, (10, 5))
        return F.cross_entropy(logits, TEST_CLASSES)

    found, model, loop = run(score, kind=Pair)
    every = []
    for fold in range(FOLDS):
        loop.load(fold)
        every.append(Net.forward(model, TEST).detach())
    mean = torch.stack(every).softmax(2).mean(0)
    assert found == pytest.approx(F.nll_loss(mean.log(), TEST_CLASSES).item(), abs=1e-5)


@pytest.mark.parametrize(
    "score",
    [
        lambda model, inputs: (model(inputs)[:, :1] - TEST_YES).pow(2).mean(),
        lambda model, inputs: (model(inputs)[:, 0] > 0).float().mean(),
        lambda model, inputs: torch.zeros(()).add_(model(inputs).mean()),
        lambda model, inputs: F.cross_entropy(
            model.head(model.encoder(inputs).softmax(1)), TEST_CLASSES
        ),
    ],
    ids=["a loss by hand", "a threshold", "a write into another", "an average on the way"],
)
def test_a_use_that_does_not_say_how_to_average_is_refused(score: Score) -> None:
    with pytest.raises(EnsembleUnclear, match=r"Net\.test_step: .*KFoldLoop\(ensemble=.*'vote'"):
        run(score)


def test_a_loss_by_hand_is_right_where_the_user_says_what_is_averaged() -> None:
    def score(model: Net, inputs: Tensor) -> Tensor:
        outputs: Tensor = model(inputs)
        return (outputs - TEST_YES).pow(2).mean()

    found, model, loop = run(score, width=1, ensemble="plain")
    right = (outputs(model, loop).mean(0) - TEST_YES).pow(2).mean()
    assert found == pytest.approx(right.item(), abs=1e-5)


def test_an_average_that_the_user_chose_is_not_taken_of_parts() -> None:
    def score(model: Net, inputs: Tensor) -> Tensor:
        return (of_parts(model, inputs) - TEST_YES).pow(2).mean()

    once = r"KFoldLoop\(ensemble='plain'\) combines .*Call the layers once, as a whole"
    with pytest.raises(EnsembleUnclear, match=rf"^Net\.test_step uses a parameter .*{once}"):
        run(score, width=1, ensemble="plain")
    with pytest.raises(EnsembleUnclear, match=r"averaged to another part of the model.*<lambda>"):
        run(lambda m, inputs: m.head(m.encoder(inputs).relu()).mean(), ensemble=lambda o: o.mean(0))


@pytest.mark.parametrize("ensemble", ["sigmoid", "vote"])
def test_one_logit_may_be_averaged_or_put_to_the_vote(ensemble: str) -> None:
    found, model, loop = run(
        lambda m, inputs: ((m(inputs) > 0).float() == TEST_YES).float().mean(),
        width=1,
        ensemble=ensemble,
    )
    every = outputs(model, loop)
    share = every.sigmoid().mean(0) if ensemble == "sigmoid" else (every > 0).float().mean(0)
    right = ((share > 0.5).float() == TEST_YES).float().mean().item()
    assert found == pytest.approx(right)


def test_votes_of_pixels_lie_where_the_classes_are() -> None:
    from statemachine_trainer.loops.recipes.ensemble import combiner

    logits = torch.zeros(3, 2, 4, 5, 5)
    logits[:, :, 2] = 1.0
    vote = combiner("vote")
    assert vote is not None
    assert vote(logits).shape == (2, 4, 5, 5)
    assert (vote(logits).argmax(1) == 2).all()


def test_averages_of_half_precision_are_taken_in_more() -> None:
    seen = []

    def score(model: Net, inputs: Tensor) -> Tensor:
        probabilities = model(inputs).bfloat16().softmax(1)
        seen.append(probabilities.dtype)
        return F.nll_loss(probabilities.log(), TEST_CLASSES)

    run(score)
    assert seen == [torch.float32]


@pytest.mark.parametrize("shift", [-200.0, 0.0, 200.0])
def test_averages_of_large_logits_are_finite(shift: float) -> None:
    stacked = torch.tensor([[shift], [shift + 1]])
    assert average(stacked, "sigmoid").isfinite().all()
    assert average(torch.stack([stacked, stacked]), "softmax", 1).isfinite().all()


def test_the_model_is_as_it_was_when_the_ensemble_is_done() -> None:
    _, model, _ = run(lambda m, inputs: F.cross_entropy(m(inputs), TEST_CLASSES))
    assert not any({"forward", "update"} & vars(one).keys() for one in model.modules())
    assert type(model(TEST)) is Tensor


def test_a_metric_object_gets_what_it_understands() -> None:
    torchmetrics = pytest.importorskip("torchmetrics")

    class WithMetric(Net):
        def __init__(self, score: Score, width: int) -> None:
            super().__init__(score, width)
            self.accuracy = torchmetrics.Accuracy(task="multiclass", num_classes=3)

        def test_step(self, batch: list[Tensor]) -> None:
            targets = TEST_CLASSES if len(batch[0]) == 10 else batch[1]
            self.accuracy(self(batch[0]), targets)
            log("score", self.accuracy)

    found, model, loop = run(lambda m, inputs: torch.zeros(()), kind=WithMetric)
    mean = outputs(model, loop).softmax(2).mean(0)
    assert found == pytest.approx((mean.argmax(1) == TEST_CLASSES).float().mean().item())


def test_a_lightning_module_is_asked_in_the_same_way() -> None:
    pytest.importorskip("lightning")
    import lightning as L

    from statemachine_trainer.integrations import lightning

    class Module(L.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))

        def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
            return F.cross_entropy(self.layers(batch[0]), batch[1])

        def test_step(self, batch: list[Tensor], batch_idx: int) -> None:
            self.log("score", F.cross_entropy(self.layers(batch[0]), batch[1]))

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.Adam(self.parameters(), lr=0.1)

    torch.manual_seed(0)
    module = Module()
    test = DataLoader(TensorDataset(TEST, TEST_CLASSES), batch_size=10)
    loop = KFoldLoop(FOLDS, fit=FitLoop(max_epochs=2), test_data=test)
    train = DataLoader(TensorDataset(INPUTS, CLASSES), batch_size=4)
    trainer = Trainer(loop, progress=False, device="cpu")
    found = trainer.fit(lightning.module(module), train)["score/ensemble"]
    every = []
    for fold in range(FOLDS):
        loop.load(fold)
        every.append(module.layers(TEST).detach())
    mean = torch.stack(every).softmax(2).mean(0)
    assert found == pytest.approx(F.nll_loss(mean.log(), TEST_CLASSES).item(), abs=1e-5)
