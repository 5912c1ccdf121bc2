"""Models of Hugging Face, and those that look like them: `model(**batch).loss`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from statemachine_trainer import Trainer
from statemachine_trainer.loops.loop_errors import ModelError
from statemachine_trainer.testing import assert_resumable


@dataclass
class Output:
    loss: Tensor | None
    logits: Tensor


class LookAlike(nn.Module):
    """Called with keywords, it answers with logits, and with a loss if it gets labels."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(32, 8)
        self.head = nn.Sequential(nn.Dropout(0.1), nn.Linear(8, 2))

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> Output:
        embedded = self.embedding(input_ids)
        if attention_mask is not None:
            embedded = embedded * attention_mask[..., None]
        logits = self.head(embedded.mean(1))
        return Output(None if labels is None else F.cross_entropy(logits, labels), logits)


class Sentences(Dataset[dict[str, Tensor]]):
    def __len__(self) -> int:
        return 24

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(index)
        ids = torch.randint(32, (6,), generator=generator)
        return {
            "input_ids": ids,
            "attention_mask": torch.ones(6, dtype=torch.long),
            "labels": ids[0] % 2,
        }


def loader(*, shuffle: bool = True) -> DataLoader[dict[str, Tensor]]:
    return DataLoader(Sentences(), batch_size=8, shuffle=shuffle)


def trainer(**settings: Any) -> Trainer:
    return Trainer(device="cpu", progress=False, **settings)


def tiny_bert() -> nn.Module:
    transformers = pytest.importorskip("transformers", reason="needs the package `transformers`")
    torch.manual_seed(0)
    settings = transformers.BertConfig(
        vocab_size=32, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=16, num_labels=2,
    )  # fmt: skip
    model: nn.Module = transformers.BertForSequenceClassification(settings)
    return model


def plain_loop(model: nn.Module, epochs: int) -> dict[str, Tensor]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    torch.manual_seed(1)
    model.train()
    data = loader()
    for _ in range(epochs):
        for batch in data:
            loss = model(**batch).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return dict(model.state_dict())


@pytest.mark.parametrize("make", [LookAlike, tiny_bert])
def test_a_model_that_finds_its_own_loss_trains_as_in_a_plain_loop(
    make: Callable[[], nn.Module],
) -> None:
    expected = plain_loop(make(), epochs=2)
    model = make()
    torch.manual_seed(1)
    one = trainer(max_epochs=2)
    found = one.fit(model, loader(), optimizer=lambda p: torch.optim.AdamW(p, lr=0.01))
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, expected[name]), name
    assert set(found) == {"loss"}
    assert set(one.validate(model, loader())) == {"val_loss"}
    assert set(one.test(model, loader())) == {"test_loss"}


@pytest.mark.parametrize("make", [LookAlike, tiny_bert])
def test_a_prediction_is_what_the_model_answers(make: Callable[[], nn.Module]) -> None:
    answers = trainer(max_epochs=1).predict(make(), loader(shuffle=False))
    assert [answer.logits.shape for answer in answers] == [(8, 2)] * 3


def test_without_labels_the_error_says_what_is_missing() -> None:
    batches = [{"input_ids": torch.zeros(2, 6, dtype=torch.long)}]
    model = LookAlike()
    with pytest.raises(ModelError, match=r"without a loss.*\['input_ids'\].*'labels'"):
        trainer(max_epochs=1).fit(
            model, batches, optimizer=torch.optim.SGD(model.parameters(), 0.1)
        )


def test_batches_that_are_no_dicts_are_refused_with_a_way_out() -> None:
    model = LookAlike()
    with pytest.raises(ModelError, match=r"has no training_step.*batch is a Tensor.*`loss=`"):
        trainer(max_epochs=1).fit(
            model, [torch.zeros(2, 6)], optimizer=torch.optim.SGD(model.parameters(), 0.1)
        )


def make_trainer() -> Trainer:
    torch.manual_seed(1)
    model = LookAlike()
    one = trainer(max_epochs=2)
    one.start(model, loader(), loader(), optimizer=torch.optim.Adam(model.parameters(), 0.01))
    return one


def test_such_a_fit_can_be_resumed() -> None:
    assert_resumable(make_trainer, examples=5)


def smoothed(output: Output, labels: Tensor) -> Tensor:
    assert output.loss is None  # the labels are not handed to the model
    return F.cross_entropy(output.logits, labels, label_smoothing=0.1)


def test_a_loss_beside_such_a_model_gets_its_output_and_the_labels() -> None:
    def accuracy(logits: Tensor, labels: Tensor) -> Tensor:
        return (logits.argmax(1) == labels).float().mean()

    model = LookAlike()
    one = trainer(max_epochs=1)
    found = one.fit(
        model, loader(), loader(), loss=smoothed, metrics=accuracy,
        optimizer=torch.optim.AdamW(model.parameters(), lr=0.01),
    )  # fmt: skip
    assert set(found) == {"loss", "accuracy", "val_loss", "val_accuracy"}
    assert [answer.logits.shape for answer in one.predict(model, loader(shuffle=False))] == [
        (8, 2)
    ] * 3


class TakesADict(nn.Module):
    """Takes any keyword, and its input by its place."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)

    def forward(self, inputs: dict[str, Tensor], **more: Any) -> Any:
        assert not more
        return self.layer(inputs["x"])


@pytest.mark.filterwarnings("ignore:The mean of 'loss' is weighted")
def test_a_model_that_takes_a_dict_as_its_input_gets_it_whole() -> None:
    batch = ({"x": torch.ones(4, 2), "labels": torch.ones(4)}, torch.zeros(4, dtype=torch.long))
    model = TakesADict()
    one = trainer(max_epochs=1)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    found = one.fit(model, [batch], loss=F.cross_entropy, optimizer=optimizer)
    assert set(found) == {"loss"}
