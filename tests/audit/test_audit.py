"""What a fit holds, and what it cannot, is known before its first batch."""

from __future__ import annotations

import functools
import itertools
import random
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler
from torch.utils.data import ConcatDataset, DataLoader, Dataset

from statemachine_trainer import Trainer
from statemachine_trainer.audit.report import NotHeld
from statemachine_trainer.loops.loop_errors import NothingToDo, UnknownArgument
from statemachine_trainer.machine.errors import NotStarted
from statemachine_trainer.snapshot import Unwritable
from statemachine_trainer.testing import assert_resumable


class Noisy(Dataset[torch.Tensor]):
    def __init__(self, **more: Any) -> None:
        self.rng = np.random.default_rng(0)
        self.__dict__.update(more)

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.tensor([self.rng.random()], dtype=torch.float32)


class Net(nn.Module):
    """Drops inputs by a generator of its own; `steps` counts the training steps."""

    def __init__(self, schedule: Callable[[Any], Any] | None = None) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1)
        self.schedule = schedule
        self.inside = {"rng": random.Random(7)}
        self.steps = 0

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        self.steps += 1
        outputs: torch.Tensor = self.layer(batch) * self.inside["rng"].random()
        return outputs.square().mean()

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
        if self.schedule is None:
            return optimizer
        return {"optimizer": optimizer, "lr_scheduler": self.schedule(optimizer)}


class Shaking:
    """A callback that shakes the weights by a generator that it makes at its first batch."""

    def __init__(self) -> None:
        self.rng: Any = None

    def on_batch_end(self, trainer: Trainer) -> None:
        if self.rng is None:
            self.rng = torch.Generator().manual_seed(3)
        shake(trainer, float(torch.rand((), generator=self.rng)))


def shake(trainer: Trainer, by: float) -> None:
    with torch.no_grad():
        for parameter in trainer.model.parameters():
            parameter.add_(by, alpha=0.01)


def shaking() -> Callable[..., None]:
    """A receiver with a generator in its closure."""
    rng = random.Random(5)

    def receive(trainer: Trainer, moment: Any) -> None:
        shake(trainer, rng.random())

    return receive


def shaking_by_partial() -> Callable[..., None]:
    def receive(rng: Any, trainer: Trainer, moment: Any) -> None:
        shake(trainer, rng.random())

    return functools.partial(receive, np.random.RandomState(5))


def make(data: Any = None, model: nn.Module | None = None, **settings: Any) -> Trainer:
    torch.manual_seed(0)
    trainer = Trainer(max_epochs=2, progress=False, callbacks=[Shaking()], device="cpu", **settings)
    trainer.on("batch_end", shaking())
    trainer.on("fetch", shaking_by_partial())
    trainer.start(
        model or Net(), DataLoader(ConcatDataset([Noisy(), Noisy()]), 4) if data is None else data
    )
    return trainer


def test_generators_in_model_callbacks_closures_partials_and_data_go_on_together() -> None:
    report = assert_resumable(make, exhaustive=True)
    assert len(report.tried) == report.possible


def test_random_decisions_of_a_schedule_are_held() -> None:
    def schedule(optimizer: Any) -> Any:
        rng = random.Random(1)
        return lr_scheduler.LambdaLR(optimizer, lambda count: rng.random())

    report = assert_resumable(lambda: make(model=Net(schedule)), examples=5, seed=0)
    assert report.runs == 5


def test_the_list_names_each_with_its_path_and_what_becomes_of_it() -> None:
    trainer = make(DataLoader(Noisy(), 2, num_workers=1))
    paths = [(one.verdict, one.path) for one in trainer.audit().items]
    assert sorted(paths, reverse=True) == [
        ("reseeded", "train.dataset.rng"),
        ("held", "receiver shaking_by_partial.<locals>.receive(0)"),
        ("held", "receiver shaking.<locals>.receive(rng)"),
        ("held", "model.inside['rng']"),
    ]
    assert str(trainer.audit()).splitlines()[-1].startswith("3 held, 1 reseeded, 0 not held; ")


def test_a_model_and_data_are_audited_without_training() -> None:
    trainer, model = Trainer(max_epochs=1, progress=False), Net()
    found = trainer.audit(model, DataLoader(Noisy(calls=itertools.count()), 2))
    assert found.of("not held")[0].path == "train.dataset.calls"
    assert model.steps == 0


def test_an_audit_starts_nothing_and_leaves_folder_generators_and_optimizer_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def data() -> DataLoader[torch.Tensor]:
        torch.rand(()), random.random(), noise.rng.random()
        return DataLoader(noise, 2)

    noise, model = Noisy(calls=itertools.count()), Net()
    folder = tmp_path / "run"
    _trainer(folder).fit(Net(), DataLoader(Noisy(), 2))
    trainer, optimizer = _trainer(folder), torch.optim.SGD(model.parameters(), lr=0.1)
    files = _stamps(folder)
    before = _everything_random(model, noise), repr(optimizer), {*vars(optimizer)}
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        found = trainer.audit(
            model, data, optimizer=optimizer, scheduler=lambda one: lr_scheduler.LambdaLR(one, abs)
        )
    assert found.of("not held")[0].path == "train.dataset.calls"
    assert (_everything_random(model, noise), repr(optimizer), {*vars(optimizer)}) == before
    assert _stamps(folder) == files
    assert (told, *capsys.readouterr()) == ([], "", "")
    assert (trainer.path, model.steps) == (None, 0)
    with pytest.raises(NotStarted):
        trainer.run()


def _trainer(folder: Path, **more: Any) -> Trainer:
    return Trainer(max_epochs=1, progress=False, device="cpu", checkpoints=folder, **more)


def _stamps(folder: Path) -> dict[Path, tuple[int, int]]:
    """Return size and time of change of each file: reading one leaves both."""
    return {one: (one.stat().st_size, one.stat().st_mtime_ns) for one in folder.rglob("*")}


def _everything_random(model: Net, noise: Noisy) -> list[str]:
    own = model.inside["rng"].getstate(), noise.rng.bit_generator.state
    return [repr(one) for one in (torch.get_rng_state().tolist(), random.getstate(), *own)]


def test_an_audit_works_before_amid_and_after_a_fit_and_changes_none() -> None:
    def loss_of(looks: bool) -> float:
        trainer = make()
        other = (Net(), DataLoader(Noisy(calls=itertools.count()), 2))
        for until in ("batch_end", "epoch_end", None):
            if looks:
                assert len(trainer.audit(*other).of("not held")) == 1
                assert trainer.audit().of("not held") == []
            trainer.run(until)
        return float(trainer.model.layer.weight.detach())  # type: ignore[union-attr, operator]

    assert loss_of(looks=True) == loss_of(looks=False)


def test_an_audit_of_an_optimizer_that_is_made_of_the_number_of_steps_leaves_that_number() -> None:
    def schedule(optimizer: Any, total_steps: int) -> Any:
        return lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=total_steps)

    trainer = Trainer(max_epochs=3, progress=False)
    plain: dict[str, Any] = {
        "loss": nn.MSELoss(),
        "optimizer": lambda parameters: torch.optim.SGD(parameters, lr=0.1),
        "scheduler": schedule,
    }
    assert trainer.audit(nn.Linear(1, 1), [(torch.ones(1, 1),) * 2], **plain).items == []
    with pytest.raises(NotStarted):
        print(trainer.total_steps)


@pytest.mark.parametrize("name", ["resume", "optimiser"])
def test_an_audit_refuses_arguments_that_it_does_not_have(name: str) -> None:
    given: Any = {name: "auto"}
    with pytest.raises(UnknownArgument, match=rf"audit\(\) has no argument '{name}'"):
        Trainer(progress=False).audit(Net(), [torch.ones(1)], **given)


def test_an_audit_of_data_alone_asks_for_the_model() -> None:
    with pytest.raises(NothingToDo, match=r"audit\(model, loader\)"):
        Trainer(progress=False).audit(train=[torch.ones(1)])


def test_there_is_nothing_to_audit_before_a_start() -> None:
    with pytest.raises(NotStarted, match=r"audit\(model, data\)"):
        Trainer(progress=False).audit()


def test_workers_that_are_not_seeded_are_told(tmp_path: Path) -> None:
    with pytest.warns(NotHeld, match=r"train\.dataset\.rng .*seed_samples=True"):
        make(
            DataLoader(Noisy(), 2, num_workers=1), seed_samples=False, checkpoints=tmp_path / "run"
        )


def test_all_that_cannot_be_held_is_told_once_when_the_fit_starts(tmp_path: Path) -> None:
    data = DataLoader(Noisy(calls=itertools.count(), lock=[threading.Lock()]), 2)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer = make(data, checkpoints=tmp_path / "run")
        before = len(caught)
        trainer.run()
    assert before == len(caught) == 1
    assert caught[0].category is NotHeld
    assert caught[0].filename == __file__
    text = str(caught[0].message)
    assert "train.dataset.calls is an iterator (count): " in text
    assert "train.dataset.lock[0] is a lock: " in text


def test_without_checkpoints_nothing_is_told() -> None:
    make(DataLoader(Noisy(calls=itertools.count()), 2)).run()


def test_nothing_is_told_of_a_lazy_layer_which_is_saved_as_such(tmp_path: Path) -> None:
    class Lazy(Net):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.LazyLinear(1)

    trainer = Trainer(max_epochs=1, progress=False, checkpoints=tmp_path / "run")
    trainer.start(Lazy(), DataLoader(Noisy(), 2))
    trainer.checkpoint()
    trainer.run()


class Guessing(lr_scheduler.LRScheduler):
    """A scheduler that holds a function."""

    def __init__(self, optimizer: Any) -> None:
        self.guess = lambda: 0.1
        super().__init__(optimizer)

    def get_lr(self) -> Any:
        return self.base_lrs


class Stateless:
    """A scheduler that cannot say where it stands."""

    def __init__(self, optimizer: Any) -> None:
        self.optimizer = optimizer

    def step(self) -> None:
        pass


@pytest.mark.parametrize("schedule", [Guessing, Stateless])
def test_a_scheduler_that_cannot_be_saved_is_refused_before_the_first_batch(
    schedule: Any, tmp_path: Path
) -> None:
    model = Net(schedule)
    with pytest.raises(Unwritable, match=r"context\.optimizers\[0\]\.schedulers\[0\]"):
        make(model=model, checkpoints=tmp_path / "run")
    assert model.steps == 0


def test_a_callback_with_a_state_that_cannot_be_written_is_refused_at_the_start(
    tmp_path: Path,
) -> None:
    class Odd(Shaking):
        def state_dict(self) -> dict[str, Any]:
            return {"it": object()}

        def load_state_dict(self, state: dict[str, Any]) -> None:
            raise AssertionError("nobody loads it")

    trainer = Trainer(max_epochs=1, progress=False, callbacks=[Odd()], checkpoints=tmp_path / "run")
    with pytest.raises(Unwritable, match=r"callbacks\[0\]\.state\.it"):
        trainer.start(Net(), DataLoader(Noisy(), 2))


def test_states_of_earlier_versions_have_no_generators_of_callbacks() -> None:
    trainer = make()
    state = trainer.state_dict()
    del state["generators"]
    state["context"]["generators"] = {}
    make().load_state_dict(state)


def test_generators_of_the_model_are_read_by_the_names_of_earlier_versions() -> None:
    class Old(Net):
        layer: Any

        def __init__(self) -> None:
            super().__init__()
            self.rng = random.Random(1)
            self.layer.rng = torch.Generator()

    model = Old()
    trainer = make(model=model)
    state = trainer.state_dict()
    rng = random.Random(2)
    version, words, gauss = rng.getstate()
    state["context"]["generators"] = {
        ".rng": [version, torch.tensor(words, dtype=torch.int64), gauss],
        "layer.rng": torch.Generator().manual_seed(9).get_state(),
    }
    trainer.load_state_dict(state)
    assert model.rng.random() == rng.random()
    assert model.layer.rng.initial_seed() == 9
