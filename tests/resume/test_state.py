"""What the state of a run holds beyond the obvious, and what it refuses."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.ao.quantization import FakeQuantize, MovingAveragePerChannelMinMaxObserver
from torch.optim.lr_scheduler import ConstantLR, LRScheduler, MultiStepLR, SequentialLR
from torch.utils.data import DataLoader

from statemachine_trainer.machine.errors import StateMismatch
from statemachine_trainer.snapshot import Unwritable
from statemachine_trainer.snapshot.modules import load_module_weights, module_state
from statemachine_trainer.snapshot.snapshot_errors import SnapshotMismatch
from statemachine_trainer.snapshot.written import Written
from statemachine_trainer.testing import NotReady, assert_resumable
from statemachine_trainer.trainer import Trainer
from tests.resume.kit import Counted, boundaries, net, one_by_one, sgd, started


def quiet(**settings: Any) -> Trainer:
    return Trainer(progress=False, **{"max_epochs": 1, **settings})


def resumed(make_trainer: Any, state: Any) -> Trainer:
    trainer: Trainer = make_trainer()
    trainer.load_state_dict(Written.of(state).tree())
    return trainer


def test_a_generator_of_the_models_own_goes_on() -> None:
    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 3)
            self.generator = torch.Generator().manual_seed(5)

        def training_step(self, batch: Any) -> torch.Tensor:
            noise = torch.randn(batch[0].shape, generator=self.generator)
            return F.cross_entropy(self.layer(batch[0] + noise), batch[1])

        def configure_optimizers(self) -> Any:
            return sgd(self)

    one_by_one(lambda: started(quiet(), Noisy()), "forward", "batch_end")


def test_a_buffer_that_is_in_no_state_dict_is_kept_also_when_it_changes_its_shape() -> None:
    class Growing(nn.Module):
        seen: torch.Tensor

        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 3)
            self.register_buffer("seen", torch.zeros(1), persistent=False)

        def training_step(self, batch: Any) -> torch.Tensor:
            self.seen = torch.cat([self.seen, batch[0].mean().reshape(1)])
            return F.cross_entropy(self.layer(batch[0]) * self.seen.sum(), batch[1])

        def configure_optimizers(self) -> Any:
            return sgd(self)

    one_by_one(lambda: started(quiet(), Growing()), "fetch", "batch_end")


def test_the_gradients_of_a_sparse_embedding_are_kept_within_a_window() -> None:
    class Words(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words = nn.Embedding(8, 3, sparse=True)

        def training_step(self, batch: Any) -> torch.Tensor:
            return F.cross_entropy(self.words(batch[1]), batch[1])

        def configure_optimizers(self) -> Any:
            return torch.optim.SparseAdam(self.parameters(), lr=0.1)

    def make_trainer() -> Trainer:
        return started(quiet(accumulate=2), Words())

    report = assert_resumable(make_trainer, exhaustive=True)
    assert report.unwritable == 0


def test_a_scheduler_with_milestones_is_written_and_goes_on() -> None:
    def configure(model: Any) -> Any:
        optimizer = sgd(model)
        parts = [ConstantLR(optimizer, 0.5), MultiStepLR(optimizer, [1, 1, 3])]
        whole = SequentialLR(optimizer, parts, milestones=[2])
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": whole, "interval": "step"}}

    one_by_one(lambda: started(quiet(max_epochs=2), net(configure)), "fetch")


def test_an_optimizer_keeps_state_in_more_bits_than_its_parameters_have() -> None:
    class Exact(torch.optim.SGD):
        """Keeps what rounding to bfloat16 takes away, for the next step."""

        def step(self, closure: Any = None) -> Any:
            for group in self.param_groups:
                for p in group["params"]:
                    whole = self.state[p].setdefault("whole", p.detach().float())
                    whole -= group["lr"] * p.grad.float()
                    with torch.no_grad():
                        p.copy_(whole)

    class Half(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 3, dtype=torch.bfloat16)

        def training_step(self, batch: Any) -> torch.Tensor:
            return F.cross_entropy(self.layer(batch[0].bfloat16()).float(), batch[1])

        def configure_optimizers(self) -> Any:
            return Exact(self.parameters(), lr=0.01)

    one_by_one(lambda: started(quiet(max_epochs=2), Half()), "fetch")


def test_a_callback_that_is_a_module_is_part_of_the_state() -> None:
    class Average(nn.Module):
        mean: torch.Tensor

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("mean", torch.zeros(3))

        def on_batch_end(self, trainer: Trainer) -> None:
            bias = trainer.model.get_parameter("head.bias").detach()
            self.mean = 0.9 * self.mean + 0.1 * bias

    one_by_one(lambda: started(quiet(callbacks=[Average()])), "fetch")


def test_a_receiver_that_reads_gradients_at_the_end_of_a_batch_finds_them() -> None:
    def make_trainer() -> Trainer:
        trainer = started(quiet())

        def halve(trainer: Trainer) -> None:
            gradient = trainer.model.get_parameter("head.bias").grad
            assert gradient is not None
            with torch.no_grad():
                trainer.model.get_parameter("head.bias").sub_(gradient)

        trainer.on("batch_end", halve)
        return trainer

    one_by_one(make_trainer, "batch_split", "batch_end", "fetch")


def test_a_batch_and_its_only_split_are_written_once() -> None:
    trainer = started(quiet())
    trainer.run("forward")
    document = Written.of(trainer.state_dict())
    assert sum("in_flight" in name for name in document.tensors) == 2


def test_going_on_does_not_change_a_state_that_was_taken() -> None:
    validation = DataLoader(Counted(4, []), batch_size=2)
    trainer = started(quiet(gather_outputs=True, validate_every=1), validation=validation)
    trainer.run("batch_end")
    state = trainer.state_dict()
    outputs, results = (
        len(state["context"]["in_flight"]["outputs"]),
        dict(state["context"]["plain"]["results"]),
    )
    trainer.run()
    assert len(state["context"]["in_flight"]["outputs"]) == outputs
    assert state["context"]["plain"]["results"] == results


def test_a_fit_that_was_resumed_at_its_end_goes_on_as_one_that_was_not() -> None:
    def make_trainer(epochs: int = 1) -> Trainer:
        return started(quiet(max_epochs=epochs, seed=4))

    whole = make_trainer()
    whole.run()
    later = resumed(make_trainer, whole.state_dict())
    assert later.path is None
    for trainer in (whole, later):
        torch.manual_seed(8)
        trainer.loop.max_epochs = 2
        trainer.fit()
    ours, theirs = whole.model.state_dict(), later.model.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_other_parameters_in_an_optimizer_are_named() -> None:
    def make_trainer(*, reverse: bool = False) -> Trainer:
        def configure(model: Any) -> Any:
            parts = [*model.parameters()]
            return torch.optim.SGD(parts[::-1] if reverse else parts, lr=0.1)

        return started(quiet(), net(configure))

    state = make_trainer().state_dict()
    with pytest.raises(SnapshotMismatch, match=r"'body.0.weight' as parameter 0 of group 0, here"):
        resumed(lambda: make_trainer(reverse=True), state)


def test_another_optimizer_is_named() -> None:
    state = started(quiet()).state_dict()
    other = net(lambda model: torch.optim.Adam(model.parameters()))
    with pytest.raises(SnapshotMismatch, match="number 0 was SGD, here it is Adam"):
        resumed(lambda: started(quiet(), other), state)


def test_another_model_is_named() -> None:
    class Wider(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Linear(4, 7)

        training_step = None

        def configure_optimizers(self) -> Any:
            return sgd(self)

    state = started(quiet()).state_dict()
    wider = Wider()
    wider.training_step = lambda batch: wider.body(batch[0]).sum()  # type: ignore[assignment]
    with pytest.raises(SnapshotMismatch, match=r"another model than this Wider: 'body.0.bias' is"):
        resumed(lambda: started(quiet(), wider), state)


def test_observers_of_quantization_take_the_shapes_that_they_had() -> None:
    class Quantized(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 3)
            self.observer = FakeQuantize(
                MovingAveragePerChannelMinMaxObserver,
                quant_min=-128,
                quant_max=127,
                dtype=torch.qint8,
                qscheme=torch.per_channel_symmetric,
            )

        def training_step(self, batch: Any) -> torch.Tensor:
            weight = self.observer(self.layer.weight)
            return F.cross_entropy(F.linear(batch[0], weight, self.layer.bias), batch[1])

        def configure_optimizers(self) -> Any:
            return sgd(self)

    one_by_one(lambda: started(quiet(max_epochs=2), Quantized()), "fetch", "batch_end")


def test_layers_that_take_their_shape_from_the_first_batch_are_saved_before_and_after_it() -> None:
    class Lazy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.LazyLinear(5)
            self.norm = nn.LazyBatchNorm1d()
            self.head = nn.LazyLinear(3)

        def training_step(self, batch: Any) -> torch.Tensor:
            return F.cross_entropy(self.head(self.norm(self.body(batch[0]))), batch[1])

        def configure_optimizers(self) -> Any:
            return torch.optim.Adam(self.parameters(), lr=0.1)

    one_by_one(lambda: started(quiet(seed=1), Lazy()), "fit_start", "fetch", "batch_end")


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(3, 4)
        self.head = nn.Linear(4, 3, bias=False)
        self.head.weight = self.words.weight

    def training_step(self, batch: Any) -> torch.Tensor:
        return F.cross_entropy(self.head(self.words(batch[1])), batch[1])

    def configure_optimizers(self) -> Any:
        return sgd(self.words)


def test_a_tied_weight_is_written_once_and_stays_tied() -> None:
    def make_trainer() -> Trainer:
        return started(quiet(), Tied())

    document = Written.of(make_trainer().state_dict())
    assert sum("weight" in name for name in document.tensors) == 1
    one_by_one(make_trainer, "fetch", "batch_end")


def test_a_weight_that_the_run_has_untied_does_not_go_into_a_tied_one() -> None:
    model = Tied()
    trainer = started(quiet(), model)
    trainer.run(until="batch_end")
    model.head.weight = nn.Parameter(model.words.weight.detach().clone())
    trainer.run(until="batch_end")
    other = Tied()
    before = other.head.weight.detach().clone()
    with pytest.raises(SnapshotMismatch, match=r"'words\.weight' and 'head\.weight' are one"):
        resumed(lambda: started(quiet(), other), trainer.state_dict())
    assert torch.equal(other.head.weight, before)


class Conjugated(nn.Module):
    """Has buffers that read the same memory as other numbers."""

    def __init__(self, number: complex) -> None:
        super().__init__()
        self.line = nn.Linear(2, 1)
        numbers = torch.full((2,), number)
        self.register_buffer("plain", numbers)
        self.register_buffer("conjugated", numbers.conj())
        self.register_buffer("imaginary", numbers.imag)
        self.register_buffer("negative", numbers.conj().imag)


def test_numbers_and_their_conjugates_in_one_memory_are_two_tensors() -> None:
    other = Conjugated(5j)
    load_module_weights(other, module_state(Conjugated(1 + 2j), grads=False)["weights"])
    found = {name: one.tolist() for name, one in other.named_buffers()}
    assert found == {
        "plain": [1 + 2j] * 2,
        "conjugated": [1 - 2j] * 2,
        "imaginary": [2.0] * 2,
        "negative": [-2.0] * 2,
    }


@pytest.mark.parametrize("change", [torch.Tensor.to_sparse, lambda one: one.to("meta")])
def test_weights_of_another_kind_than_tied_ones_are_told(change: Any) -> None:
    model = Tied()
    saved = {name: change(one.detach()) for name, one in model.state_dict().items()}
    saved["head.weight"] = change(model.head.weight.detach() + 1)
    with pytest.raises(SnapshotMismatch):
        load_module_weights(model, saved)


class Warmup(LRScheduler):
    """Holds the scheduler that follows it, as such classes do."""

    def __init__(self, optimizer: torch.optim.Optimizer, after: LRScheduler) -> None:
        self.after = [after]
        self.owner = optimizer
        super().__init__(optimizer)

    def get_lr(self) -> list[float | torch.Tensor]:
        if self.last_epoch >= 2:
            return [float(one) for one in self.after[0].get_last_lr()]
        return [float(one) * (self.last_epoch + 1) / 2 for one in self.base_lrs]

    def step(self, epoch: int | None = None) -> None:
        if self.last_epoch >= 2:
            self.after[0].step()
        super().step()


def warming_up(model: Any) -> Any:
    optimizer = sgd(model)
    scheduler = Warmup(optimizer, MultiStepLR(optimizer, [1, 2]))
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


@pytest.mark.parametrize("precision", ["32", "fp16"])
def test_a_scheduler_that_holds_another_one_goes_on(precision: str) -> None:
    one_by_one(lambda: started(quiet(max_epochs=2, precision=precision), net(warming_up)), "fetch")


def test_a_scheduler_that_holds_something_else_than_it_did_is_refused() -> None:
    def other(model: Any) -> Any:
        optimizer = sgd(model)
        scheduler = Warmup(optimizer, ConstantLR(optimizer))
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }

    state = started(quiet(), net(warming_up)).state_dict()
    with pytest.raises(SnapshotMismatch, match="held a MultiStepLR"):
        resumed(lambda: started(quiet(), net(other)), state)


def test_what_no_checkpoint_could_hold_is_refused_before_training_begins(tmp_path: Any) -> None:
    class Guessing(MultiStepLR):
        def __init__(self, optimizer: torch.optim.Optimizer) -> None:
            self.guess = lambda: 0.1
            super().__init__(optimizer, [1])

    def configure(model: Any) -> Any:
        optimizer = sgd(model)
        return [optimizer], [Guessing(optimizer)]

    with pytest.raises(Unwritable, match=r"schedulers\[0\].guess"):
        started(quiet(checkpoints=tmp_path / "run"), net(configure))
    assert not [*tmp_path.rglob("*.json")]
    started(quiet(), net(configure))


class Scaled(nn.Module):
    """Loads in a way of its own: takes a scale of any shape, and does without one."""

    scale: torch.Tensor

    def __init__(self, size: int, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.register_buffer("scale", torch.ones(size, dtype=dtype))

    def _load_from_state_dict(self, state: Any, prefix: str, *rest: Any) -> None:
        scale = state.setdefault(f"{prefix}scale", self.scale)
        self.scale = torch.ones_like(scale, dtype=self.scale.dtype)
        super()._load_from_state_dict(state, prefix, *rest)


def test_what_a_module_takes_that_loads_in_its_own_way_is_taken() -> None:
    model = nn.Sequential(nn.Linear(2, 2), Scaled(1))
    weights = nn.Sequential(nn.Linear(2, 2), Scaled(3)).state_dict()
    load_module_weights(model, weights)
    assert model.state_dict()["1.scale"].shape == (3,)


def test_what_such_a_module_would_round_is_refused() -> None:
    weights = Scaled(1, torch.float64).state_dict()
    with pytest.raises(SnapshotMismatch, match=r"'scale' is torch.float64, here torch.float32"):
        load_module_weights(Scaled(1), weights)


def test_a_model_that_is_refused_keeps_its_weights() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    weights = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(3)).state_dict()
    with pytest.raises(SnapshotMismatch, match=r"'1.bias' has shape \(3,\), here \(2,\)"):
        load_module_weights(model, weights)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_another_loop_tree_is_named() -> None:
    state = started(quiet()).state_dict()
    state["machine"]["loops"]["fit.epoch"]["fields"]["surplus"] = 1
    with pytest.raises(StateMismatch, match="surplus"):
        resumed(lambda: started(quiet()), state)


def test_another_number_of_validation_loaders_is_named() -> None:
    data = DataLoader(Counted(4, []), batch_size=2)
    state = started(quiet(), validation=data).state_dict()
    with pytest.raises(SnapshotMismatch, match="1 validation loaders, this run 2"):
        resumed(lambda: started(quiet(), validation=[data, data]), state)


def test_a_scheduler_without_a_state_is_refused_with_its_place() -> None:
    class Bare:
        def step(self) -> None: ...

    def configure(model: Any) -> Any:
        return {"optimizer": sgd(model), "lr_scheduler": Bare()}

    with pytest.raises(Unwritable, match=r"optimizers\[0\].schedulers\[0\].*Bare.*state_dict"):
        started(quiet(), net(configure)).state_dict()


def test_a_run_with_checkpoints_is_resumed_without_them(tmp_path: Any) -> None:
    first = started(quiet(checkpoints=tmp_path / "run"))
    first.run("batch_end")
    later = started(quiet())
    later.load_state_dict(Written.of(first.state_dict()).tree())
    assert later.path == first.path


def test_make_trainer_must_start_the_fit_and_not_run_it() -> None:
    with pytest.raises(NotReady, match=r"Call .trainer.start\(model, data\)"):
        assert_resumable(lambda: quiet())

    def run_to_the_end() -> Trainer:
        trainer = started(quiet())
        trainer.run()
        return trainer

    with pytest.raises(NotReady, match=r"in the place of .trainer.fit"):
        assert_resumable(run_to_the_end)


def test_a_run_cannot_be_stopped_where_nothing_can_be_written_down() -> None:
    def make_trainer() -> Trainer:
        return started(quiet())

    transient = [n for n, one in enumerate(boundaries(make_trainer)) if one.transient]
    with pytest.raises(ValueError, match="cannot be stopped at boundary"):
        assert_resumable(make_trainer, stops=transient[:1])
