"""Models, adapters and data sets of Hugging Face, beside what its own trainer does with them."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, SequentialSampler

from statemachine_trainer import Trainer
from statemachine_trainer.testing import assert_resumable
from tests.integrations.test_huggingface import Sentences, loader

transformers = pytest.importorskip("transformers", reason="needs the extra `huggingface`")


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """The libraries warn of each other."""
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", module=r"(transformers|accelerate|peft|datasets|torch|multiprocess|dill)\."
        )
        yield


def bert(dropout: float = 0.0) -> Any:
    torch.manual_seed(0)
    return transformers.BertForSequenceClassification(
        transformers.BertConfig(
            vocab_size=32,
            hidden_size=8,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=16,
            max_position_embeddings=16,
            num_labels=2,
            hidden_dropout_prob=dropout,
            attention_probs_dropout_prob=dropout,
        )
    )


def gpt() -> Any:
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=32, n_positions=16, n_embd=8, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0
    )
    return transformers.GPT2LMHeadModel(config)


def ours(**settings: Any) -> Trainer:
    return Trainer(device="cpu", progress=False, **settings)


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: one.clone() for name, one in model.state_dict().items()}


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


def fit_in_transformers(model: Any, folder: Path, **arguments: Any) -> dict[str, Tensor]:
    class InOrder(transformers.Trainer):  # type: ignore[misc, name-defined]
        def _get_train_sampler(self, *_: Any) -> Any:
            return SequentialSampler(Sentences())

    settings = transformers.TrainingArguments(
        str(folder), use_cpu=True, report_to=[], disable_tqdm=True, save_strategy="no",
        logging_strategy="no", per_device_train_batch_size=8, num_train_epochs=2,
        dataloader_pin_memory=False, **arguments,
    )  # fmt: skip
    InOrder(model, settings, train_dataset=Sentences()).train()
    return weights_of(model)


def groups(model: nn.Module) -> Any:
    """Weight decay as their trainer gives it: none for biases and normalization."""
    plain = {n for n, _ in model.named_parameters() if n.endswith("bias") or "LayerNorm" in n}
    named = list(model.named_parameters())
    return [
        {"params": [p for n, p in named if n not in plain], "weight_decay": 0.01},
        {"params": [p for n, p in named if n in plain], "weight_decay": 0.0},
    ]


def linear(optimizer: Any, total_steps: int) -> Any:
    return transformers.get_linear_schedule_with_warmup(optimizer, 2, total_steps)


def optimizer_of(model: nn.Module) -> Any:
    return torch.optim.AdamW(groups(model), lr=0.01)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_weights_are_those_of_their_trainer(smoothing: float, tmp_path: Path) -> None:
    expected = fit_in_transformers(
        bert(), tmp_path, learning_rate=0.01, weight_decay=0.01, warmup_steps=2,
        lr_scheduler_type="linear", label_smoothing_factor=smoothing, optim="adamw_torch",
    )  # fmt: skip
    from transformers.trainer_pt_utils import LabelSmoother

    model = bert()
    ours(max_epochs=2, clip_norm=1.0).fit(
        model,
        loader(shuffle=False),
        loss=LabelSmoother(smoothing) if smoothing else None,
        optimizer=optimizer_of(model),
        scheduler=linear,
    )
    found = weights_of(model)
    assert expected.keys() == found.keys()
    for name, weight in expected.items():
        torch.testing.assert_close(found[name], weight, rtol=1e-5, atol=1e-7, msg=name)


def test_a_loss_gets_the_output_and_the_labels_and_metrics_the_logits() -> None:
    torchmetrics = pytest.importorskip("torchmetrics")
    seen: list[tuple[bool, int]] = []

    def loss(output: Any, labels: Tensor) -> Tensor:
        seen.append((output.loss is None, len(labels)))
        return F.cross_entropy(output.logits, labels, label_smoothing=0.1)

    model = bert()
    one = ours(max_epochs=1)
    accuracy = torchmetrics.Accuracy("multiclass", num_classes=2)
    found = one.fit(
        model,
        loader(),
        loader(),
        loss=loss,
        optimizer=optimizer_of(model),
        metrics={"acc": accuracy},
    )
    assert set(seen) == {(True, 8)}
    assert set(found) == {"loss", "acc", "val_loss", "val_acc"}
    (first, *_) = one.predict(model, loader(shuffle=False))
    assert first.logits.shape == (8, 2)


def test_a_model_of_language_finds_its_own_loss() -> None:
    model = gpt()

    def collate(samples: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        ids = torch.stack([one["input_ids"] for one in samples])
        return {"input_ids": ids, "labels": ids}

    data = DataLoader(Sentences(), batch_size=8, collate_fn=collate)
    expected, copy = gpt(), weights_of(model)
    optimizer = torch.optim.SGD(expected.parameters(), lr=0.1)
    torch.manual_seed(1)
    expected.train()
    for batch in data:
        optimizer.zero_grad()
        expected(**batch).loss.backward()
        optimizer.step()
    torch.manual_seed(1)
    ours(max_epochs=1).fit(model, data, optimizer=torch.optim.SGD(model.parameters(), lr=0.1))
    assert_same(weights_of(expected), weights_of(model))
    assert any(not torch.equal(one, copy[name]) for name, one in weights_of(model).items())


def adapted() -> Any:
    peft = pytest.importorskip("peft", reason="needs the extra `huggingface`")
    config = peft.LoraConfig(
        task_type="SEQ_CLS", r=2, lora_dropout=0.1, target_modules=["query", "value"]
    )
    model = bert(dropout=0.1)
    torch.manual_seed(1)
    return peft.get_peft_model(model, config)


def test_an_adapter_learns_and_the_rest_stays() -> None:
    model = adapted()
    before = weights_of(model)
    trained = [p for p in model.parameters() if p.requires_grad]
    ours(max_epochs=1).fit(model, loader(), optimizer=torch.optim.AdamW(trained, lr=0.1))
    changed = {n for n, one in weights_of(model).items() if not torch.equal(one, before[n])}
    assert changed
    assert all("lora_" in name or "classifier" in name for name in changed)


def datasets_loader() -> Any:
    datasets = pytest.importorskip("datasets", reason="needs the extra `huggingface`")
    rows = [Sentences()[index] for index in range(24)]
    made = {name: [row[name].tolist() for row in rows] for name in rows[0]}
    return DataLoader(
        datasets.Dataset.from_dict(made).with_format("torch"), batch_size=8, shuffle=True
    )


def started(make: Callable[[], Any], data: Callable[[], Any]) -> Callable[[], Trainer]:
    def made() -> Trainer:
        model = make()
        torch.manual_seed(2)
        one = ours(max_epochs=2, accumulate=2)
        trained = [p for p in model.parameters() if p.requires_grad]
        one.start(model, data(), optimizer=torch.optim.AdamW(trained, lr=0.01))
        return one

    return made


@pytest.mark.parametrize("data", [loader, datasets_loader])
def test_a_fit_with_an_adapter_can_be_resumed(data: Callable[[], Any]) -> None:
    assert_resumable(started(adapted, data), examples=1, fresh_process=False)


def test_the_code_of_the_page_runs() -> None:
    page = (Path(__file__).parents[2] / "docs" / "huggingface.md").read_text()
    names: dict[str, Any] = {}
    for block in re.findall(r"```python\n(.*?)```", page, flags=re.S):
        exec(
            block.replace('"runs/bert"', "None")
            .replace(', resume="auto"', "")
            .replace('resume="auto",', ""),
            names,
        )
    data = [*loader(shuffle=False)]
    model = bert()
    assert set(names["train"](model, data, data)) == {"loss", "val_loss"}
    one, optimizer = ours(max_epochs=1), optimizer_of(model)
    found = names["train_smoothed"](one, model, data, data, optimizer)
    assert set(found) == {"loss", "acc", "val_loss", "val_acc"}
    assert "loss" in ours(max_epochs=1).fit(names["Distilled"](bert(), bert()), data)
    assert "loss" in names["train_adapter"](ours(max_epochs=1), adapted(), data)
