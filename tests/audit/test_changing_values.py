"""Plain values that change between two checkpoints are told once, if what they were decides what they become."""

from __future__ import annotations

import random
import time
import warnings
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, Sampler, Subset, WeightedRandomSampler

from statemachine_trainer import Trainer
from statemachine_trainer.audit.report import NotHeld
from statemachine_trainer.callbacks import Checkpoints

Changes = Callable[[Any, torch.Tensor], object]


class Net(nn.Module):
    """A model whose attributes `change` sets at each step."""

    def __init__(self, change: Changes | None = None, **attributes: Any) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.change = change
        for name, value in attributes.items():
            setattr(self, name, value)

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        if self.change is not None:
            self.change(self, batch)
        outputs: torch.Tensor = self.layer(batch)
        return outputs.pow(2).mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01)


class Samples(Dataset[torch.Tensor]):
    """Six samples, and attributes that `change` sets as one is read."""

    def __init__(
        self, change: Callable[[Any, int], object] | None = None, **attributes: Any
    ) -> None:
        self.inputs = torch.ones(6, 4)
        self.change = change
        vars(self).update(attributes)

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> torch.Tensor:
        if self.change is not None:
            self.change(self, index)
        return self.inputs[index].clone()


def told(folder: Path, model: nn.Module, data: Any = None, receiver: Any = None) -> list[str]:
    """Return the lines of the warnings of a fit that writes a checkpoint after each batch."""
    keeping = Checkpoints(folder / "run", every=1)
    trainer = Trainer(
        max_epochs=2, device="cpu", progress=False, checkpoints=keeping,
        callbacks=[] if receiver is None or callable(receiver) else [receiver],
    )  # fmt: skip
    if callable(receiver):
        trainer.on("batch_end", receiver)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer.fit(model, data or [torch.ones(2, 4)] * 3)
    texts = [str(one.message) for one in caught if one.category is NotHeld]
    return [line.strip() for text in texts for line in text.splitlines()[1:]]


def count(model: Any, batch: torch.Tensor) -> bool:
    model.seen += 1
    return bool(model.seen > 3)


def average(model: Any, batch: torch.Tensor) -> bool:
    model.mean = 0.9 * model.mean + 0.1 * float(batch.sum())
    return bool(model.mean > 3)


def center(model: Any, batch: torch.Tensor) -> bool:
    model.center = 0.9 * model.center + batch.mean(0)
    return bool(model.center.sum() > 3)


def fill(model: Any, batch: torch.Tensor) -> list[float]:
    model.queue.append(float(batch.sum()))
    return sorted(model.queue)


def use_last(model: Any, batch: torch.Tensor) -> torch.Tensor:
    before = model.last
    model.last = batch.mean(0) + float(before.sum())
    return torch.as_tensor(before)


def by_name(model: Any, batch: torch.Tensor) -> bool:
    model.layer.calls = getattr(model.layer, "calls", 0) + 1
    return bool(model.layer.calls > 3)


def count_by_key(model: Any, batch: torch.Tensor) -> None:
    model.counts["batches"] += 1


def count_by_computed_name(model: Any, batch: torch.Tensor) -> None:
    name = "seen"
    setattr(model, name, getattr(model, name) + 1)


def count_past_setattr(model: Any, batch: torch.Tensor) -> bool:
    object.__setattr__(model, "seen", model.seen + 1)
    return bool(model.seen > 3)


def turn(model: Any, batch: torch.Tensor) -> object:
    model.turns.move_to_end(next(iter(model.turns)))
    return next(iter(model.turns.values()))


class Waiting:
    step = 1


class Working:
    step = 2


def go_to_work(model: Any, batch: torch.Tensor) -> int:
    model.worker.__class__ = Working
    return int(model.worker.step)


TABLE = {"count": count}


def count_by_table(model: Any, batch: torch.Tensor) -> bool:
    return TABLE["count"](model, batch)


@pytest.mark.parametrize(
    "model, name",
    [
        (Net(count, seen=0), "seen"),
        (Net(count_by_computed_name, seen=0), "seen"),
        (Net(count_past_setattr, seen=0), "seen"),
        (Net(count_by_table, seen=0), "seen"),
        (Net(average, mean=0.0), "mean"),
        (Net(center, center=torch.zeros(4)), "center"),
        (Net(lambda model, batch: model.center.add_(1), center=torch.zeros(4)), "center"),
        (Net(lambda model, batch: model.large.add_(1), large=torch.zeros(300, 300)), "large"),
        (Net(lambda model, batch: np.add(model.sums, 1, out=model.sums), sums=np.zeros(3)), "sums"),
        (Net(fill, queue=deque(maxlen=9)), "queue"),
        (Net(count_by_key, counts={"batches": 0}), "counts"),
        (Net(use_last, last=torch.zeros(4)), "last"),
        (Net(turn, turns=OrderedDict(first=1, second=2)), "turns"),
    ],
)  # fmt: skip
def test_an_attribute_of_the_model_that_goes_on_from_what_it_was_is_told(
    tmp_path: Path, model: Net, name: str
) -> None:
    (line,) = told(tmp_path, model)
    assert line.startswith(f"attribute '{name}' of the module at the top of the model (Net), from ")
    assert "buffer" in line


def test_an_object_that_becomes_one_of_another_class_is_told(tmp_path: Path) -> None:
    def second(model: Any, batch: torch.Tensor) -> int:
        return go_to_work(model, batch) if model.layer.bias.grad is not None else 0

    (line,) = told(tmp_path, Net(second, worker=Waiting()))
    assert line.startswith(
        "attribute 'worker' of the module at the top of the model (Net), from a Waiting to a Working: "
    )


def test_an_attribute_that_a_user_sets_on_a_layer_of_torch_is_told(tmp_path: Path) -> None:
    (line,) = told(tmp_path, Net(by_name))
    assert line.startswith("attribute 'calls' of the module layer (Linear), from 1 to 2")


class Shifting(Sampler[int]):
    def __init__(self) -> None:
        self.passes = 0

    def __len__(self) -> int:
        return 6

    def __iter__(self) -> Iterator[int]:
        self.passes += 1
        return iter([(one + self.passes) % 6 for one in range(6)])


class Following(Shifting):
    """Its passes follow from the epoch."""

    def set_epoch(self, epoch: int) -> None:
        self.passes = epoch


def read(dataset: Any, index: int) -> bool:
    dataset.reads += 1
    return bool(dataset.reads > 3)


def shuffle(dataset: Any, index: int) -> int:
    random.shuffle(dataset.order)
    return int(dataset.order[index])


def test_a_sampler_and_a_data_set_that_count_are_told(tmp_path: Path) -> None:
    data = DataLoader(Samples(read, reads=0), batch_size=2, sampler=Shifting())
    (reads, passes) = sorted(told(tmp_path, Net(), data), key=lambda line: "sampler" in line)
    assert reads.startswith("attribute 'reads' of the dataset of 'train' (Samples), from ")
    assert passes.startswith("attribute 'passes' of the sampler of 'train' (Shifting), from 1 to 2")


@pytest.mark.parametrize(
    "samples, name",
    [
        (Samples(shuffle, order=[*range(50)]), "order"),
        (Samples(lambda dataset, index: dataset.inputs.mul_(1.5)), "inputs"),
    ],
)
def test_data_that_are_changed_in_place_are_told(tmp_path: Path, samples: Any, name: str) -> None:
    (line,) = told(tmp_path, Net(), DataLoader(samples, batch_size=2))
    assert line.startswith(f"attribute '{name}' of the dataset of 'train'")


class Counting:
    """A callback that counts, and has no state."""

    def __init__(self) -> None:
        self.count = 0

    def on_batch_end(self) -> bool:
        self.count += 1
        return self.count > 3


class Held(Counting):
    def state_dict(self) -> dict[str, Any]:
        return {"count": self.count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.count = state["count"]


class Mirroring:
    """A callback that keeps what is counted elsewhere."""

    def __init__(self) -> None:
        self.step = 0

    def on_batch_end(self, trainer: Trainer) -> None:
        self.step = trainer.context.counts.step


def counting() -> Callable[[Trainer], None]:
    count = 0

    def receive(trainer: Trainer) -> None:
        nonlocal count
        count += 1
        if count > 3:
            trainer.stop()

    return receive


def collecting(trainer: Trainer, seen: list[int] = []) -> int:  # noqa: B006
    seen.append(trainer.steps)
    return sum(seen)


@pytest.mark.parametrize(
    "receiver, line",
    [
        (Counting(), "attribute 'count' of the callback Counting, from 1 to 2: "),
        (counting(), "attribute 'count' of the function counting.<locals>.receive, from 1 to 2: "),
        (collecting, "attribute 'seen' of the function collecting, from a list of 1 to a list of 2: "),
    ],
)  # fmt: skip
def test_a_callback_and_the_variables_of_a_function_are_told(
    tmp_path: Path, receiver: Any, line: str
) -> None:
    (found,) = told(tmp_path, Net(), receiver=receiver)
    assert found.startswith(line)


def note(model: Any, batch: torch.Tensor) -> None:
    model.last = model.layer(batch).detach()
    model.sizes = [len(batch), float(model.last.sum())]
    model.loss = float(model.last.sum())


def make_once(model: Any, batch: torch.Tensor) -> None:
    if model.mask is None:
        model.mask = torch.ones_like(batch)
        model.made = True


def measure(model: Any, batch: torch.Tensor) -> float:
    took = time.perf_counter() - float(model.began)
    model.began = time.perf_counter()
    return took


def collect(model: Any, batch: torch.Tensor) -> None:
    model.outputs.append(batch)
    model.outputs.clear()


def record(model: Any, batch: torch.Tensor) -> None:
    model.losses.append(float(batch.sum()))
    model.reads += 1


def lay_by(dataset: Any, index: int) -> None:
    dataset.cache[index] = dataset.inputs[index]


class WithBuffer(Net):
    def __init__(self) -> None:
        super().__init__(lambda model, batch: model.total.add_(1))
        self.register_buffer("total", torch.zeros(()))
        self.alias = self.total
        self.weights = [*self.parameters()]


class WithState(Net):
    def get_extra_state(self) -> dict[str, Any]:
        return {"seen": self.seen}

    def set_extra_state(self, state: Any) -> None:
        self.seen = state["seen"]


@pytest.fixture
def _up_for_hours(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the clock that counts from the start of the machine be past what other numbers usually are."""
    plain = time.perf_counter
    monkeypatch.setattr(time, "perf_counter", lambda: plain() + 10_000)


@pytest.mark.usefixtures("_up_for_hours")
@pytest.mark.parametrize(
    "model",
    [
        Net(note, last=None, sizes=[], loss=0.0),
        Net(make_once, mask=None, made=False),
        Net(collect, outputs=[]),
        Net(measure, began=0.0),
        Net(record, losses=[], reads=0),
        WithBuffer(),
        WithState(count, seen=0),
    ],
)
def test_what_is_set_anew_made_once_only_recorded_or_held_is_not_told(
    tmp_path: Path, model: Net
) -> None:
    assert not told(tmp_path, model)


@pytest.mark.parametrize("receiver", [Held(), Mirroring()])
def test_callbacks_with_a_state_or_with_what_others_count_are_not_told(
    tmp_path: Path, receiver: Any
) -> None:
    assert not told(tmp_path, Net(), receiver=receiver)


def test_a_cache_and_a_sampler_that_follows_the_epoch_are_not_told(tmp_path: Path) -> None:
    data = DataLoader(Samples(lay_by, cache={}), batch_size=2, sampler=Following())
    assert not told(tmp_path, Net(), data)


def test_a_list_that_a_function_fills_for_a_person_is_not_told(tmp_path: Path) -> None:
    losses: list[int] = []
    assert not told(tmp_path, Net(), receiver=lambda trainer: losses.append(trainer.steps))
    assert len(losses) == 6


def test_without_checkpoints_nothing_is_told() -> None:
    trainer = Trainer(max_epochs=2, device="cpu", progress=False)
    trainer.fit(Net(count, seen=0), [torch.ones(2, 4)] * 3)
    assert trainer.steps == 6


class Momentum(torch.optim.SGD):
    """Keeps its own averages by the identity of the parameters, and no checkpoint has them."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, lr=0.01)
        self.averages = {id(one): torch.zeros(4) for one in self.param_groups[0]["params"]}

    def step(self, closure: Any = None) -> Any:
        for average in self.averages.values():
            average.mul_(0.9).add_(1)
        return super().step(closure)


def test_a_tensor_that_is_changed_by_another_name_is_told_by_its_container(tmp_path: Path) -> None:
    model = Net()
    model.configure_optimizers = lambda: Momentum(model.parameters())  # type: ignore[method-assign]
    (line,) = told(tmp_path, model)
    assert line.startswith("attribute 'averages' of optimizer Momentum, from a Tensor (4,)")


def test_an_iterator_that_appears_on_the_way_is_told(tmp_path: Path) -> None:
    def begin(model: Any, batch: torch.Tensor) -> None:
        model.others = model.others or iter(DataLoader([1, 2]))  # type: ignore[arg-type]

    (line,) = told(tmp_path, Net(begin, others=None))
    assert line.startswith(
        "model.others, which was made on the way, is the iterator of a DataLoader: "
    )


def test_a_scaler_of_one_s_own_is_told(tmp_path: Path) -> None:
    def grow(model: Any, batch: torch.Tensor) -> None:
        model.scaler.update(model.scaler.get_scale() * 2)

    scaler = torch.amp.GradScaler("cpu")
    scaler.scale(torch.ones(1))
    (line,) = told(tmp_path, Net(grow, scaler=scaler))
    assert line.startswith("the state of model.scaler (GradScaler), from #")
    assert "get_extra_state" in line


def test_the_weights_of_a_sampler_of_torch_are_told(tmp_path: Path) -> None:
    sampler = WeightedRandomSampler([1.0] * 6, 6)
    loader = DataLoader(Samples(), batch_size=2, sampler=sampler)
    (line,) = told(tmp_path, Net(), loader, lambda trainer: sampler.weights.add_(1))
    assert line.startswith("train.sampler.weights, from a Tensor (6,) to a Tensor (6,): something")


def test_other_indices_of_a_subset_are_told(tmp_path: Path) -> None:
    part = Subset(Samples(), [0, 1, 2, 3])

    def turn(trainer: Trainer) -> None:
        part.indices = [*part.indices[1:], part.indices[0]]

    (line,) = told(tmp_path, Net(), DataLoader(part, batch_size=2), turn)
    assert line.startswith("train.dataset.indices, from [0, 1, 2, 3] to [1, 2, 3, 0]: ") or (
        line.startswith("train.dataset.indices, from a list of 4 to a list of 4: ")
    )
    assert "lambda epoch" in line
