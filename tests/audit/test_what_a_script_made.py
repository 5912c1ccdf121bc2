"""A run that goes on with what its script makes differently is told so; an unchanged script is told nothing."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler, Subset

from statemachine_trainer import Trainer
from statemachine_trainer.audit.settings_record import SettingsChanged
from statemachine_trainer.callbacks import Checkpoints


class Net(nn.Module):
    def __init__(self, scale: float = 1.0, rate: float = 0.1, loss: Any = None) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 1)
        self._scale = scale
        self._rate = rate
        self.loss = loss
        self.calls = 0

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        self.calls += 1
        outputs: torch.Tensor = self.layer(batch) * self._scale
        return outputs.square().mean() if self.loss is None else self.loss(outputs)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=self._rate)


class Scaling:
    def __init__(self, by: float) -> None:
        self.by = by

    def __call__(self, row: torch.Tensor) -> torch.Tensor:
        return row * self.by


class Rows(Dataset[torch.Tensor]):
    """Twelve rows, with settings of many kinds, and with what changes while they are read."""

    def __init__(self, **settings: Any) -> None:
        self.transform: Any = None
        vars(self).update(settings)
        self.made = time.time()
        self.read = 0
        self.cache: dict[int, torch.Tensor] = {}
        self.last: int | None = None

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> torch.Tensor:
        self.read += 1
        self.last = index
        row = self.cache.setdefault(index, torch.full((4,), index / 12))
        return row if self.transform is None else torch.as_tensor(self.transform(row))


class OtherRows(Rows):
    pass


class Stream(IterableDataset[torch.Tensor]):
    def __init__(self, step: int) -> None:
        self.step = step

    def __iter__(self) -> Iterator[torch.Tensor]:
        return iter([torch.full((4,), place / 12) for place in range(0, 12, self.step)])


class Order(Sampler[int]):
    def __init__(self, seed: int) -> None:
        self.seed = seed

    def __len__(self) -> int:
        return 12

    def __iter__(self) -> Iterator[int]:
        return iter(range(12))


class Clipping:
    """A callback without a state."""

    def __init__(self, most: float) -> None:
        self.most = most
        self.clipped = 0

    def on_batch_end(self, trainer: Any) -> None:
        self.clipped += 1


def fit(
    folder: Path,
    model: nn.Module,
    data: Any,
    *,
    until: int | None = None,
    receiver: Callable[..., Any] | None = None,
    every: int = 1,
    callbacks: tuple[object, ...] = (),
) -> list[str]:
    """Train, up to a batch or to the end, going on from what is there; return what was told, line by line."""
    keeping = Checkpoints(folder / "run", every=1)
    trainer = Trainer(
        max_epochs=2, device="cpu", progress=False, checkpoints=keeping, callbacks=callbacks
    )
    if receiver is not None:
        trainer.on("batch_end", receiver, every=every)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer.start(model, data, resume="auto" if keeping.store.list() else None)
        trainer.run(until=None if until is None else lambda: trainer.context.counts.batch == until)
    messages = [str(one.message) for one in caught if one.category is SettingsChanged]
    return [line.strip(" -") for text in messages for line in text.splitlines()[1:]]


def loader(data: Dataset[Any], **settings: Any) -> DataLoader[Any]:
    return DataLoader(data, batch_size=2, **settings)


def rows(**settings: Any) -> DataLoader[Any]:
    return loader(Rows(**settings))


def batches(count: int, fill: float) -> list[torch.Tensor]:
    return [*([torch.zeros(2, 4)] * (count - 1)), torch.full((2, 4), fill)]


SETTINGS: dict[str, tuple[object, object, str]] = {
    "a flag": (True, False, "was True, is False now"),
    "a number": (3, 4, "was 3, is 4 now"),
    "a path": (Path("a/b"), Path("a/c"), "was PosixPath('a/b'), is PosixPath('a/c') now"),
    "a text": ("train", "all", "was 'train', is 'all' now"),
    "a type": (torch.float32, torch.float64, "was torch.float32, is torch.float64 now"),
    "an absent value": (None, 0.5, "was None, is 0.5 now"),
    "a short list": ([1, 2], [2, 1], "was [1, 2], is [2, 1] now"),
    "a long list": ([*range(50_000)], [*range(49_999), 7], "was a list of 50000 #"),
    "a list of texts": (["a"] * 90, ["a"] * 89 + ["b"], "was a list of 90 #"),
    "a table": (dict.fromkeys(range(40), "a"), dict.fromkeys(range(40), "b"), "was a dict of 40 #"),
    "a set": ({*"abcdef"}, {*"abcdeg"}, "was a set of 6 #"),
    "a nested list": ([[1, [2]]] * 9, [[1, [3]]] * 9, "was a list of 9 #"),
    "arrays in a dict": (
        {"x": np.zeros(3)}, {"x": np.ones(3)}, "was a dict of 1 #",
    ),
    "another class": (Scaling, Clipping, "was Scaling, is Clipping now"),
    "an object of another class": (Order(1), Stream(1), "was Order, is Stream now"),
    "a list of objects": ([Scaling(1.0)], [], "was a list of 1 #"),
}  # fmt: skip


@pytest.mark.parametrize("kind", SETTINGS)
def test_another_attribute_of_a_data_set_is_told(tmp_path: Path, kind: str) -> None:
    was, now, words = SETTINGS[kind]
    assert not fit(tmp_path, Net(), rows(given=was), until=2)
    (told,) = fit(tmp_path, Net(), rows(given=now), until=3)
    assert told.startswith(f"train.dataset: given {words}")
    assert "The script's holds" in told
    assert not fit(tmp_path, Net(), rows(given=now)), "it is told once"


def scaled(row: torch.Tensor) -> torch.Tensor:
    return row * 2


def scaled_more(row: torch.Tensor) -> torch.Tensor:
    return row * 3


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


DATA: dict[str, tuple[Any, Any, str]] = {
    "batches in a list": (
        lambda: batches(6, 0.0), lambda: batches(6, 1.0), "train.loader: itself was a list of 6 #",
    ),
    "the indices of a subset": (
        lambda: loader(Subset(Rows(), [*range(6)])), lambda: loader(Subset(Rows(), [*range(6, 12)])),
        "train.dataset: indices was [0, 1, 2, 3, 4, 5], is [6, 7, 8, 9, 10, 11] now",
    ),
    "a data set inside": (
        lambda: loader(Subset(Rows(given=1), [*range(12)])),
        lambda: loader(Subset(Rows(given=2), [*range(12)])),
        "train.dataset.dataset: given was 1, is 2 now",
    ),
    "a transform": (
        lambda: rows(transform=Scaling(1.0)), lambda: rows(transform=Scaling(2.0)),
        "train.dataset.transform: by was 1.0, is 2.0 now",
    ),
    "a function": (
        lambda: rows(transform=scaled), lambda: rows(transform=scaled_more),
        "train.dataset: transform was scaled, is scaled_more now",
    ),
    "another data set": (
        rows, lambda: loader(OtherRows()), "train.dataset: itself was Rows, is OtherRows now",
    ),
    "a stream": (
        lambda: loader(Stream(1)), lambda: loader(Stream(2)), "train.dataset: step was 1, is 2 now",
    ),
    "a sampler": (
        lambda: loader(Rows(), sampler=Order(1)), lambda: loader(Rows(), sampler=Order(2)),
        "train.sampler: seed was 1, is 2 now",
    ),
    "a loader's generator": (
        lambda: loader(Rows(), shuffle=True, generator=seeded(1)),
        lambda: loader(Rows(), shuffle=True, generator=seeded(2)),
        "train.sampler.generator: the seed was 1, is 2 now. The checkpoint's holds",
    ),
    "a generator of numpy": (
        lambda: rows(draws=np.random.default_rng(1)), lambda: rows(draws=np.random.default_rng(2)),
        "train.dataset.draws: the seed was 1, is 2 now. The checkpoint's holds",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", DATA)
def test_other_data_are_told(tmp_path: Path, kind: str) -> None:
    was, now, words = DATA[kind]
    assert not fit(tmp_path, Net(), was(), until=1)
    assert not fit(tmp_path, Net(), was(), until=2)
    (told,) = fit(tmp_path, Net(), now(), until=3)
    assert told.startswith(words)


def test_another_attribute_of_the_model_is_told(tmp_path: Path) -> None:
    assert not fit(tmp_path, Net(), rows(), until=2)
    (told,) = fit(tmp_path, Net(scale=2.0), rows())
    assert told.startswith("model: _scale was 1.0, is 2.0 now")


def test_a_learning_rate_is_told_once(tmp_path: Path) -> None:
    assert not fit(tmp_path, Net(), rows(), until=2)
    (told,) = fit(tmp_path, Net(rate=0.2), rows())
    assert told.startswith("optimizer 0 (SGD), group 0: lr was 0.1, is 0.2 now")


def test_another_setting_of_a_callback_without_a_state_is_told(tmp_path: Path) -> None:
    assert not fit(tmp_path, Net(), rows(), callbacks=(Clipping(1.0),), until=2)
    (told,) = fit(tmp_path, Net(), rows(), callbacks=(Clipping(2.0),))
    assert told.startswith("callback Clipping: most was 1.0, is 2.0 now")


def listen() -> None:
    pass


def test_another_interval_of_a_receiver_is_told(tmp_path: Path) -> None:
    assert not fit(tmp_path, Net(), rows(), receiver=listen, every=2, until=2)
    (told,) = fit(tmp_path, Net(), rows(), receiver=listen, every=3)
    assert ".listen of 'batch_end': every was 2, is 3 now" in told


def with_step(step: Any) -> Net:
    """Make a model whose class has another training step, under the same name."""
    step.__qualname__ = "Net.training_step"
    step.__code__ = step.__code__.replace(co_qualname="Net.training_step")
    made = type("Net", (Net,), {"training_step": step, "__qualname__": "Net"})
    return made()  # type: ignore[no-any-return]


def first_step(self: Any, batch: Any, batch_idx: int) -> torch.Tensor:
    """Say what it does."""
    return self.layer(batch).square().mean()  # type: ignore[no-any-return]


def same_step(self: Any, batch: Any, batch_idx: int) -> torch.Tensor:
    """Say it in other words, which changes nothing."""
    # Nor does this.
    return self.layer(batch).square().mean()  # type: ignore[no-any-return]


def other_step(self: Any, batch: Any, batch_idx: int) -> torch.Tensor:
    return self.layer(batch).abs().mean()  # type: ignore[no-any-return]


def test_other_code_of_a_step_is_told_but_no_other_comment(tmp_path: Path) -> None:
    assert not fit(tmp_path, with_step(first_step), rows(), until=2)
    assert not fit(tmp_path, with_step(same_step), rows(), until=3)
    (told,) = fit(tmp_path, with_step(other_step), rows())
    assert "Net.training_step was #" in told
    assert "The script's holds; code is in no checkpoint." in told


def losing(power: int) -> Callable[[torch.Tensor], torch.Tensor]:
    def lose(outputs: torch.Tensor) -> torch.Tensor:
        return outputs.pow(power).mean()

    return lose


def test_another_variable_of_a_loss_function_is_told(tmp_path: Path) -> None:
    assert not fit(tmp_path, Net(loss=losing(2)), rows(), until=2)
    (told,) = fit(tmp_path, Net(loss=losing(4)), rows())
    assert told.startswith("model.loss: power was 2, is 4 now")


def test_what_training_changes_is_not_told(tmp_path: Path) -> None:
    model, data, callback = Net(), rows(), Clipping(1.0)
    assert not fit(tmp_path, model, data, callbacks=(callback,), until=2)
    assert not fit(tmp_path, model, data, callbacks=(callback,), until=5)
    assert not fit(tmp_path, Net(), rows(), callbacks=(Clipping(1.0),))


def test_what_differs_from_start_to_start_is_not_told(tmp_path: Path) -> None:
    def of_today(name: str, number: str) -> dict[str, Any]:
        return {
            "folder": Path(f"/tmp/tmp{name}"),
            "id": f"1b4e28ba-2fa1-11d2-883f-{number * 12}",
            "started": time.time() - 3600 * int(number),
            "title": time.strftime("run of %Y-%m-%d"),
            "draws": torch.Generator(),
            "unseeded": np.random.default_rng(),
            "lambda_": lambda: number,
            "objects": {object(), Scaling(1.0)},
        }

    assert not fit(tmp_path, Net(), rows(**of_today("abcd1234", "1")), until=2)
    told = fit(tmp_path, Net(), rows(**of_today("wxyz9876", "2")))
    assert [one for one in told if "(number)" not in one and "lambda_: number" not in one] == []


def test_what_the_compiler_of_torch_notes_on_a_function_is_not_told(tmp_path: Path) -> None:
    def compiled(mark: int) -> Callable[[torch.Tensor], torch.Tensor]:
        def same(row: torch.Tensor) -> torch.Tensor:
            return row

        same._torchdynamo_wrapper_id = mark  # type: ignore[attr-defined]
        return same

    assert not fit(tmp_path, Net(), rows(transform=compiled(1)), until=2)
    assert fit(tmp_path, Net(), rows(transform=compiled(2))) == []


def test_very_many_values_have_one_checksum(tmp_path: Path) -> None:
    def many(last: int) -> DataLoader[Any]:
        parts = [Scaling(place) for place in range(300)] * 1
        return rows(
            **{f"part_{n}": one for n, one in enumerate([*parts, *map(Scaling, [last] * 900)])}
        )

    assert not fit(tmp_path, Net(), many(1), until=2)
    assert not fit(tmp_path, Net(), many(1), until=3)
    told = fit(tmp_path, Net(), many(2))
    assert any("all further values: their number and checksum was " in one for one in told)
