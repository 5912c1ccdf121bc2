"""State that a user hides is caught, and the message says where it hides."""

from __future__ import annotations

from typing import Any, Literal

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, Dataset

from statemachine_trainer.loops import BatchLoop
from statemachine_trainer.testing import HiddenState, NotRepeatable, NotResumable, assert_resumable
from statemachine_trainer.testing.specimens import Samples
from statemachine_trainer.trainer import Trainer


class Line(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return F.cross_entropy(self.layer(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def started(trainer: Trainer, model: nn.Module | None = None, data: Any = None) -> Trainer:
    samples = Samples(12, augment=True, sequences=False)
    trainer.start(model or Line(), data or DataLoader(samples, batch_size=4, shuffle=True))
    return trainer


class Skipping(BatchLoop):
    """Leaves the learning alone in every third batch; counts where no snapshot looks."""

    def __init__(self, **loops: Any) -> None:
        super().__init__(**loops)
        self._seen = 0

    def batch_split(self) -> Literal["split", "batch_complete"]:
        answer = super().batch_split()
        if answer == "split":
            self._seen += 1
            if self._seen % 3 == 0:
                self.context.split = [0 * part for part in self.context.split]
        return answer


class Declared(BatchLoop):
    """The same with a declared field."""

    seen: int = 0


def test_a_loop_that_hides_state_in_an_undeclared_attribute_is_caught() -> None:
    def make_trainer() -> Trainer:
        trainer = Trainer(max_epochs=2, progress=False)
        trainer.loop.replace(batch=Skipping())
        return started(trainer)

    with pytest.raises(NotResumable) as caught:
        assert_resumable(make_trainer, examples=5)
    message = str(caught.value)
    assert "attribute '_seen' of the loop fit.epoch.batch (Skipping) is" in message
    assert "declare it as an annotated field" in message
    assert "model.weights.layer" in message or "context.in_flight.split" in message
    assert caught.value.place is not None
    assert caught.value.place.startswith("fit.")


def test_a_callback_without_a_state_is_caught_where_it_changes_the_run() -> None:
    class Decaying:
        def __init__(self) -> None:
            self.batches = 0

        def on_batch_end(self, trainer: Trainer) -> None:
            self.batches += 1
            if self.batches == 4:
                for group in trainer.context.optimizers[0].param_groups:
                    group["lr"] *= 0.1

    def make_trainer() -> Trainer:
        return started(Trainer(max_epochs=2, progress=False, callbacks=[Decaying()]))

    with pytest.raises(NotResumable) as caught:
        assert_resumable(make_trainer, exhaustive=True)
    message = str(caught.value)
    assert "attribute 'batches' of the callback Decaying is 1 undisturbed and 0 resumed" in message
    assert "give the callback `state_dict` and `load_state_dict`" in message
    assert "context.optimizers[0].optimizer.param_groups[0].lr is 0.01" in message


def test_a_callback_that_loses_state_without_changing_the_run_is_warned_of() -> None:
    class Remembering:
        def __init__(self) -> None:
            self.losses: list[float] = []

        def on_batch_end(self, trainer: Trainer) -> None:
            self.losses.append(trainer.metrics.get("loss", 1.0))

    def make_trainer() -> Trainer:
        return started(Trainer(max_epochs=1, progress=False, callbacks=[Remembering()]))

    with pytest.warns(HiddenState, match="'losses' of the callback Remembering is .*state_dict"):
        assert_resumable(make_trainer, stops=[12])


def test_a_callback_whose_state_is_set_up_at_the_start_is_caught() -> None:
    class Preparing:
        factor = 1.0

        def on_fit_start(self) -> None:
            self.factor = 0.5

        def on_batch_end(self, trainer: Trainer) -> None:
            for group in trainer.context.optimizers[0].param_groups:
                group["lr"] *= self.factor

    def make_trainer() -> Trainer:
        return started(Trainer(max_epochs=1, progress=False, callbacks=[Preparing()]))

    with pytest.raises(
        NotResumable, match=r"'factor' of the callback Preparing is 0.5 undisturbed"
    ):
        assert_resumable(make_trainer, stops=[1])


def test_a_data_set_with_its_own_counter_is_caught() -> None:
    class Fading(Dataset[Any]):
        def __init__(self) -> None:
            self.samples = Samples(12, augment=False, sequences=False)
            self.read = 0

        def __len__(self) -> int:
            return 12

        def __getitem__(self, index: int) -> Any:
            self.read += 1
            inputs, target = self.samples[index]
            return inputs / self.read, target

    def make_trainer() -> Trainer:
        return started(Trainer(max_epochs=2, progress=False), data=DataLoader(Fading(), 4))

    with pytest.raises(NotResumable) as caught:
        assert_resumable(make_trainer, examples=10, seed=0)
    assert "attribute 'read' of the dataset of 'train' (Fading) is" in str(caught.value)
    assert "0 resumed: give it `state_dict` and `load_state_dict`" in str(caught.value)


def test_a_model_with_a_plain_counter_is_caught() -> None:
    class Warming(Line):
        steps = 0

        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            self.steps += 1
            return super().training_step(batch, batch_idx) * min(1.0, self.steps / 5)

    with pytest.raises(NotResumable, match="get_extra_state"):
        assert_resumable(lambda: started(Trainer(max_epochs=2, progress=False), Warming()), seed=0)


def test_a_function_that_closes_over_a_counter_is_caught() -> None:
    def make_trainer() -> Trainer:
        trainer = Trainer(max_epochs=2, progress=False)
        counted = {"batches": 0}

        @trainer.on("batch_end")
        def stop(trainer: Trainer) -> None:
            counted["batches"] += 1
            if counted["batches"] == 4:
                trainer.stop()

        return started(trainer)

    with pytest.raises(NotResumable, match=r"attribute 'counted' of the function .*stop is"):
        assert_resumable(make_trainer, examples=10, seed=0)


def test_the_error_names_the_signal_where_the_state_never_differs() -> None:
    times = iter(range(1000))

    def make_trainer() -> Trainer:
        trainer = Trainer(max_epochs=1, progress=False)
        late = next(times) > 1  # the third trainer, which is the first that resumes

        def listen(trainer: Trainer) -> None:
            trainer.board.signal("fit_end").emit(trainer, _moment("fit.fit_end"))

        if late:
            trainer.on("epoch_end", listen)
        return started(trainer)

    with pytest.raises(NotResumable, match=r"signal \d+ is .* undisturbed and fit.fit_end:enter"):
        assert_resumable(make_trainer, stops=[3])


def _moment(path: str) -> Any:
    from statemachine_trainer.machine.signals import Moment

    return Moment(path, "enter", "extra", path, path)


def test_a_set_up_that_no_two_runs_have_in_common_is_told_apart_from_a_resuming_that_fails() -> (
    None
):
    runs = iter(range(1000))

    def make_trainer() -> Trainer:
        model = Line()
        nn.init.constant_(model.layer.bias, float(next(runs)))
        return started(Trainer(max_epochs=1, progress=False), model)

    with pytest.raises(NotRepeatable, match=r"layer\.bias"):
        assert_resumable(make_trainer)
