"""A model in `DistributedDataParallel`, called so that the wrapper notices; one rank is enough to see."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from statemachine_trainer import Trainer, parallel
from statemachine_trainer.callbacks import Checkpoints
from statemachine_trainer.loops.loop_errors import SettingError
from statemachine_trainer.parallel import UnsupportedWrapper
from statemachine_trainer.parallel.buckets import lay_out_buckets
from statemachine_trainer.parallel.gradient_sync import Ddp, sync_of
from statemachine_trainer.parallel.ranks import Ranks


class Task(nn.Module):
    """Its step calls the model twice, and its `forward` takes one argument."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 1)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.layer(inputs)
        return out

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        loss: torch.Tensor = (self(batch) - self(-batch)).square().mean()
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.fixture
def group(tmp_path: Path) -> Iterator[None]:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


@pytest.mark.usefixtures("group")
class TestThroughTheWrapper:
    def seen(self, wrapper: DistributedDataParallel) -> list[int]:
        calls: list[int] = []
        wrapper.register_forward_hook(lambda *_: calls.append(1))
        return calls

    def test_a_step_goes_through_its_forward_once_and_may_call_the_model(self) -> None:
        model = Task()
        wrapper = DistributedDataParallel(model)
        calls, batch = self.seen(wrapper), torch.ones(3, 2)
        wrapped = Ddp(wrapper)
        loss = wrapped.through(model.training_step)(batch, 0)
        assert torch.equal(loss, model.training_step(batch, 0))
        assert calls == [1]
        assert "forward" not in vars(model)

    def test_a_forward_that_the_model_was_given_is_there_again(self) -> None:
        def own(inputs: torch.Tensor) -> torch.Tensor:
            return inputs.sum()

        model = Task()
        model.forward = own  # type: ignore[method-assign]
        wrapped = Ddp(DistributedDataParallel(model))
        wrapped.through(lambda: model(torch.ones(2)))()
        assert model.forward is own

    def test_a_step_that_raises_leaves_the_forward_as_it_was(self) -> None:
        model = Task()
        wrapped = Ddp(DistributedDataParallel(model))

        def fail() -> None:
            raise ValueError("no")

        with pytest.raises(ValueError, match="no"):
            wrapped.through(fail)()
        assert "forward" not in vars(model)

    def test_training_steps_of_all_kinds_go_through_it_and_evaluations_do_not(self) -> None:
        batches = [torch.ones(3, 2)] * 4
        pairs = [(one, one[:, :1]) for one in batches]
        for more, data in (
            ({}, batches),
            ({"loss": nn.MSELoss(), "optimizer": torch.optim.SGD}, pairs),
        ):
            model: nn.Module = Task() if not more else nn.Linear(2, 1)
            wrapper = DistributedDataParallel(model)
            calls = self.seen(wrapper)
            trainer = Trainer(max_epochs=1, device="cpu", progress=False)
            trainer.fit(wrapper, data, pairs if more else None, **more)  # type: ignore[arg-type]
            assert len(calls) == len(batches)
            assert trainer.model is model

    def test_buckets_are_laid_out_without_a_trace(self) -> None:
        class Parts(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.words = nn.Embedding(5, 2, sparse=True)
                self.norm = nn.BatchNorm1d(2)
                self.wave = nn.Parameter(torch.ones(2, dtype=torch.complex64))
                self.nothing = nn.Parameter(torch.empty(0))
                self.frozen = nn.Parameter(torch.ones(2))

            def forward(self) -> None:
                raise AssertionError("no code of the model is called")

        model = Parts()
        wrapper = DistributedDataParallel(model)
        model.frozen.requires_grad_(False)
        model.norm.weight.grad = torch.full((2,), 3.0)
        before = {name: value.clone() for name, value in model.state_dict().items()}
        drawn, seen = torch.get_rng_state(), self.seen(wrapper)
        lay_out_buckets(wrapper)
        assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
        assert torch.equal(torch.get_rng_state(), drawn)
        assert seen == []
        gradients = {name: one.grad for name, one in model.named_parameters()}
        kept = gradients.pop("norm.weight")
        assert kept is not None
        assert kept.tolist() == [3.0, 3.0]
        assert set(gradients.values()) == {None}
        assert not model.frozen.requires_grad
        assert wrapper.module is model

    @pytest.mark.parametrize("wrap", [parallel.ddp, parallel.fsdp])
    def test_a_group_of_one_needs_no_wrapper(self, wrap: Callable[[nn.Module], nn.Module]) -> None:
        model = Task()
        assert wrap(model) is model

    def test_a_process_group_of_one_has_no_ranks(self) -> None:
        assert Ranks.here() is None


def test_any_other_model_is_not_wrapped() -> None:
    assert not sync_of(nn.DataParallel(nn.Linear(2, 1))).by


@pytest.mark.parametrize("wrap", [parallel.ddp, parallel.fsdp])
def test_one_process_needs_no_wrapper(wrap: Callable[[nn.Module], nn.Module]) -> None:
    model = Task()
    assert wrap(model) is model


@pytest.mark.parametrize("wrap", [parallel.ddp, parallel.fsdp])
def test_what_is_no_module_is_refused(wrap: Callable[[Any], Any]) -> None:
    with pytest.raises(UnsupportedWrapper, match="this is a NoneType"):
        wrap(None)


def test_processes_that_nothing_brings_together_do_not_share_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    given: dict[str, Any] = {"max_epochs": 1, "device": "cpu", "progress": False}
    trainer = Trainer(checkpoints=Checkpoints(tmp_path / "run"), **given)
    with pytest.raises(SettingError, match="init_process_group"):
        trainer.fit(Task(), [torch.ones(3, 2)])
    assert not (tmp_path / "run").exists()
