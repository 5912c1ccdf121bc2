"""The compiled step: same results as the optimizer loop, resumable, and honest where it cannot."""

from __future__ import annotations

import copy
import os
import random
import shutil
import warnings
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._guards import TracingContext

from statemachine_trainer.loops import log
from statemachine_trainer.loops.compiled import CompiledStep, NotCompiled
from statemachine_trainer.loops.compiled.compiling import Backend
from statemachine_trainer.loops.loop_errors import NonFiniteLoss, SettingError
from statemachine_trainer.machine import Moment
from statemachine_trainer.testing import assert_resumable
from statemachine_trainer.trainer import Trainer
from tests.loops.inner_kit import Signals

pytestmark = pytest.mark.skipif(
    not any(map(shutil.which, (os.environ.get("CXX", "g++"), "g++", "clang++"))),
    reason="needs a C++ compiler",
)

Batch = tuple[Tensor, Tensor]

TOLERANCE = 1e-5
"""Of a weight, relative and absolute, after the few steps of a test."""


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def points(count: int, size: int = 4, seed: int = 0) -> list[Batch]:
    generator = torch.Generator().manual_seed(seed)
    return [
        (torch.randn(size, 3, generator=generator), torch.randn(size, 1, generator=generator))
        for _ in range(count)
    ]


class Line(nn.Module):
    """A small regression, whose optimizer is that of a test."""

    def __init__(self, configure: Any = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
        self.configure = configure or (lambda parameters: torch.optim.SGD(parameters, lr=0.1))

    def training_step(self, batch: Batch, batch_idx: int) -> Any:
        inputs, targets = batch
        return F.mse_loss(self.net(inputs), targets)

    def configure_optimizers(self) -> Any:
        return self.configure(self.net.parameters())


class JoinedStep(CompiledStep):
    """All of it but the compiler, which takes seconds where this takes a tenth of one."""

    def __init__(self, *, backend: Backend = "eager", **settings: Any) -> None:
        super().__init__(backend=backend, **settings)


def trainer_of(compiled: bool | type[CompiledStep], **settings: Any) -> Trainer:
    settings.setdefault("max_epochs", 2)
    trainer = Trainer(device="cpu", progress=False, **settings)
    if compiled:
        trainer.loop.replace(optimizer=JoinedStep if compiled is True else compiled)
    return trainer


def fitted(
    model: nn.Module, batches: Any, *, compiled: bool | type[CompiledStep], **settings: Any
) -> Trainer:
    trainer = trainer_of(compiled, **settings)
    torch.manual_seed(1)
    trainer.fit(model, batches)
    return trainer


def loop_of(trainer: Trainer) -> Any:
    return trainer.loop["optimizer"]


def assert_compiled(trainer: Trainer) -> None:
    """Something was captured, and nothing was given up."""
    loop = loop_of(trainer)
    assert (loop.eager, loop.apart) == (None, [])
    assert loop.graphs


def assert_close(one: nn.Module, other: nn.Module) -> None:
    for (name, mine), theirs in zip(
        one.state_dict().items(), other.state_dict().values(), strict=True
    ):
        torch.testing.assert_close(mine, theirs, rtol=TOLERANCE, atol=TOLERANCE, msg=name)


def both(
    make: Any, batches: Any, step: type[CompiledStep] = JoinedStep, **settings: Any
) -> tuple[Trainer, Trainer]:
    """Fit twins, one compiled, and compare them."""
    eager = fitted(make(), batches, compiled=False, **settings)
    compiled = fitted(make(), batches, compiled=step, **settings)
    assert_compiled(compiled)
    assert compiled.steps == eager.steps
    assert_close(compiled.model, eager.model)
    return eager, compiled


OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.1),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01, amsgrad=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01),
    "groups": lambda p: torch.optim.AdamW(_two_groups(list(p))),
}


def _two_groups(parameters: list[nn.Parameter]) -> list[dict[str, Any]]:
    return [
        {"params": parameters[:2], "lr": 0.1, "weight_decay": 0.0},
        {"params": parameters[2:]},
    ]


# -- the same as the optimizer loop ---------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", ["momentum", "adamw"])
def test_the_compiler_changes_nothing_but_the_last_digits(name: str) -> None:
    class Everything(Line):
        def __init__(self) -> None:
            super().__init__(OPTIMIZERS[name])
            self.net.insert(0, nn.BatchNorm1d(3))
            self.net.append(nn.Dropout(0.2))

        def training_step(self, batch: Batch, batch_idx: int) -> Any:
            loss = super().training_step(batch, batch_idx)
            log("loss", loss)
            return loss

    eager, compiled = both(Everything, points(7), CompiledStep, accumulate=3, clip_norm=0.5)
    assert compiled.steps == 6
    assert compiled.metrics == pytest.approx(eager.metrics, rel=1e-5)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_weights_and_optimizer_state_are_those_of_the_optimizer_loop(name: str) -> None:
    eager, compiled = both(lambda: Line(OPTIMIZERS[name]), points(6))
    ours, theirs = (t.context.optimizers[0].state_dict() for t in (compiled, eager))
    assert ours["param_groups"] == theirs["param_groups"]
    assert ours["state"].keys() == theirs["state"].keys()
    for number, state in theirs["state"].items():
        assert ours["state"][number].keys() == state.keys()
        for key, value in state.items():
            mine = ours["state"][number][key]
            if value is None:
                assert mine is None
            else:
                assert (mine.dtype, mine.shape) == (value.dtype, value.shape)
                torch.testing.assert_close(mine, value, rtol=TOLERANCE, atol=TOLERANCE)


@pytest.mark.parametrize("settings", [{"clip_norm": 0.1}, {"clip_value": 0.01}], ids=str)
def test_gradients_are_clipped(settings: dict[str, Any]) -> None:
    _, compiled = both(Line, points(4), **settings)
    unclipped = fitted(Line(), points(4), compiled=False)
    with pytest.raises(AssertionError):
        assert_close(compiled.model, unclipped.model)


def test_an_accumulation_window_is_closed_by_one_call_and_the_last_one_by_its_size() -> None:
    _, compiled = both(Line, points(7), accumulate=3, clip_norm=0.5)
    assert compiled.steps == 6


def test_dropout_draws_the_numbers_of_the_optimizer_loop() -> None:
    class Dropping(Line):
        def __init__(self) -> None:
            super().__init__()
            self.net.append(nn.Dropout(0.5))

    both(Dropping, points(5))


def test_batch_norm_keeps_its_statistics() -> None:
    class Normed(Line):
        def __init__(self) -> None:
            super().__init__()
            self.net.insert(1, nn.BatchNorm1d(4))

    _, compiled = both(Normed, points(5))
    assert compiled.model.net[1].num_batches_tracked == 10  # type: ignore[union-attr, index]


def test_numbers_that_a_step_draws_in_python_are_those_of_the_optimizer_loop() -> None:
    class Noisy(Line):
        def training_step(self, batch: Batch, batch_idx: int) -> Any:
            return super().training_step(batch, batch_idx) * (1 + random.random())

    runs = []
    for compiled in (False, True):
        random.seed(3)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NotCompiled)
            runs.append((fitted(Noisy(), points(4), compiled=compiled), random.random()))
    assert runs[0][1] == runs[1][1]
    assert_close(runs[1][0].model, runs[0][0].model)


def test_a_copy_of_the_loop_compiles_for_itself() -> None:
    trainer = fitted(Line(), points(3), compiled=True)
    assert copy.deepcopy(loop_of(trainer))._fused == {}


def test_what_a_step_logs_and_returns_comes_out_of_the_call() -> None:
    class Logging(Line):
        def training_step(self, batch: Batch, batch_idx: int) -> Any:
            loss = super().training_step(batch, batch_idx)
            log("loss", loss)
            log("twice", loss * 2, reduce="max")
            log("constant", 3.0)
            self.last = loss
            return {"loss": loss, "count": 4}

    outputs: list[Any] = []

    def keep(trainer: Trainer, moment: Moment) -> None:
        outputs.append(trainer.context.output)

    trainer = trainer_of(True)
    trainer.on("optimizer_step", keep)
    model = Logging()
    trainer.fit(model, points(4))
    assert_compiled(trainer)
    plain = fitted(Logging(), points(4), compiled=False)
    assert trainer.metrics == pytest.approx(plain.metrics, rel=1e-5)
    assert list(trainer.metrics) == ["loss", "twice", "constant"]
    assert [one["count"] for one in outputs] == [4] * 8
    assert not outputs[-1]["loss"].requires_grad
    assert torch.equal(model.last, outputs[-1]["loss"])


def test_mixed_precision_computes_as_the_optimizer_loop_does() -> None:
    eager = fitted(Line(), points(4), compiled=False, precision="bf16")
    compiled = fitted(Line(), points(4), compiled=True, precision="bf16")
    assert_compiled(compiled)
    for mine, theirs in zip(compiled.model.parameters(), eager.model.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0.02, atol=0.02)  # bfloat16 has 8 bits


def test_several_optimizers_have_a_call_each() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.one, self.two = nn.Linear(3, 1), nn.Linear(3, 1)

        def training_step(self, batch: Batch, batch_idx: int, optimizer_idx: int) -> Any:
            inputs, targets = batch
            own, other = (self.one, self.two) if optimizer_idx == 0 else (self.two, self.one)
            return F.mse_loss(own(inputs), targets) + (own(inputs) - other(inputs)).abs().mean()

        def configure_optimizers(self) -> Any:
            return [torch.optim.SGD(n.parameters(), lr=0.1) for n in (self.one, self.two)]

    _, compiled = both(Two, points(3))
    assert [slot.steps for slot in compiled.context.slots] == [6, 6]


def test_hiddens_go_on_to_the_next_split() -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.mix, self.head = nn.Linear(3, 3), nn.Linear(3, 1)

        def training_step(self, batch: Batch, batch_idx: int, hiddens: Any) -> dict[str, Tensor]:
            inputs, targets = batch
            state = torch.zeros(inputs.shape[0], 3) if hiddens is None else hiddens
            for time in range(inputs.shape[1]):
                state = torch.tanh(self.mix(state) + inputs[:, time])
            return {"loss": F.mse_loss(self.head(state), targets[:, -1]), "hiddens": state}

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    generator = torch.Generator().manual_seed(0)
    batches = [
        (torch.randn(2, 6, 3, generator=generator), torch.randn(2, 6, 1, generator=generator))
        for _ in range(3)
    ]
    both(Recurrent, batches, split_steps=2)


# -- learning rates, shapes and settings ----------------------------------------------------------


def test_a_learning_rate_that_changes_with_each_step_compiles_nothing_anew() -> None:
    def configure(parameters: Any) -> Any:
        optimizer = torch.optim.AdamW(parameters, lr=0.1)
        scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }

    eager, compiled = both(lambda: Line(configure), points(8))
    rates = [t.context.optimizers[0].param_groups[0]["lr"] for t in (eager, compiled)]
    assert rates[0] == rates[1] == pytest.approx(0.1 * 0.9**16)
    (capture,) = loop_of(compiled)._fused[0]._captures
    assert len(capture.programs) == 1


def test_a_smaller_last_batch_has_a_graph_of_its_own() -> None:
    batches = [*points(3), *points(1, size=2)]
    _, compiled = both(Line, batches)
    assert len(loop_of(compiled).graphs) == 2


def test_an_optimizer_whose_settings_keep_changing_steps_outside_of_the_call() -> None:
    def configure(parameters: Any) -> Any:
        optimizer = torch.optim.SGD(parameters, lr=0.1, momentum=0.9)
        scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=20)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }

    with pytest.warns(NotCompiled, match="settings keep changing"):
        compiled = fitted(Line(configure), points(8), compiled=True)
    assert loop_of(compiled).apart == [0]
    assert loop_of(compiled).eager is None
    (capture,) = loop_of(compiled)._fused[0]._captures
    assert len(capture.programs) == 1  # gradients alone do not depend on the settings
    assert_close(compiled.model, fitted(Line(configure), points(8), compiled=False).model)


def test_parameters_added_on_the_way_get_their_state_from_a_step_without_the_compiler() -> None:
    class Growing(Line):
        def __init__(self) -> None:
            super().__init__(OPTIMIZERS["adamw"])
            self.late = nn.Parameter(torch.ones(()))

        def training_step(self, batch: Batch, batch_idx: int) -> Any:
            return super().training_step(batch, batch_idx) * self.late.square()

    runs = []
    for compiled in (False, True):
        trainer = trainer_of(compiled, max_epochs=1)
        model = Growing()

        def grow(trainer: Trainer, moment: Moment) -> None:
            if trainer.steps == 3:
                late = trainer.model.late
                trainer.context.optimizers[0].add_param_group({"params": [late]})

        trainer.on("batch_end", grow)
        signals = Signals(trainer, "forward")
        trainer.fit(model, points(7))
        runs.append((model, signals.fired))
    assert_close(runs[1][0], runs[0][0])
    assert runs[1][1] == ["forward"] * 2  # the first step of all, and the first with the new one


def test_an_optimizer_that_reads_numbers_steps_outside_of_the_call() -> None:
    class Halving(torch.optim.SGD):
        @torch.no_grad()
        def step(self, closure: Any = None) -> Any:
            for parameter in self.param_groups[0]["params"]:
                if parameter.grad.abs().max().item() > 0:
                    parameter.sub_(0.05 * parameter.grad)

    def make() -> Line:
        return Line(lambda parameters: Halving(parameters, lr=0.1))

    with pytest.warns(NotCompiled, match="Halving steps outside of the compiled call"):
        compiled = fitted(make(), points(4), compiled=True)
    assert loop_of(compiled).eager is None
    assert_close(compiled.model, fitted(make(), points(4), compiled=False).model)


def test_hooks_of_an_optimizer_are_called() -> None:
    heard: list[int] = []

    def configure(parameters: Any) -> Any:
        optimizer = torch.optim.SGD(parameters, lr=0.1)
        optimizer.register_step_post_hook(lambda *_: heard.append(1))
        return optimizer

    compiled = fitted(Line(configure), points(3), compiled=True)
    assert len(heard) == compiled.steps == 6
    assert_close(compiled.model, fitted(Line(), points(3), compiled=False).model)


def test_fp16_is_scaled_and_stepped_by_the_scaler() -> None:
    eager = fitted(Line(), points(3), compiled=False, precision="fp16")
    compiled = fitted(Line(), points(3), compiled=True, precision="fp16")
    assert compiled.steps == eager.steps == 6
    for mine, theirs in zip(compiled.model.parameters(), eager.model.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0.01, atol=0.01)


def test_a_loss_that_is_not_finite_is_left_out_or_refused() -> None:
    batches = points(4)
    batches[2][0][0, 0] = float("nan")
    compiled = fitted(Line(), batches, compiled=True, nonfinite_loss="skip")
    eager = fitted(Line(), batches, compiled=False, nonfinite_loss="skip")
    assert compiled.steps == eager.steps == 6
    assert_close(compiled.model, eager.model)
    with pytest.raises(NonFiniteLoss):
        fitted(Line(), batches, compiled=True, nonfinite_loss="raise")


# -- signals and boundaries -----------------------------------------------------------------------


def test_signals_of_the_step_are_those_of_the_optimizer_loop() -> None:
    fired = {}
    for compiled in (False, True):
        trainer = trainer_of(compiled, accumulate=2)
        signals = Signals(trainer, "optimizer", "optimizer_step", "optimizer_step:exit")
        trainer.fit(Line(), points(5))
        fired[compiled] = signals.fired
    assert fired[True] == fired[False]


def test_a_batch_takes_two_states() -> None:
    trainer = trainer_of(True, max_epochs=1)
    signals = Signals(
        trainer, "compiled_step", "optimizer_step", "forward", "backward", "batch_end"
    )
    trainer.fit(Line(), points(2))
    first = ["compiled_step", "forward", "backward", "optimizer_step", "batch_end"]
    assert signals.fired == [*first, "compiled_step", "optimizer_step", "batch_end"]


def _resumable(step: type[CompiledStep]) -> Trainer:
    class Everything(Line):
        def __init__(self) -> None:
            super().__init__(OPTIMIZERS["adamw"])
            self.net.insert(0, nn.BatchNorm1d(3))
            self.net.append(nn.Dropout(0.2))

        def training_step(self, batch: Batch, batch_idx: int) -> Any:
            loss = super().training_step(batch, batch_idx)
            log("loss", loss)
            return loss

    trainer = Trainer(device="cpu", progress=False, max_epochs=1, seed=0, accumulate=2)
    trainer.loop.replace(optimizer=step)
    trainer.start(Everything(), points(3))
    return trainer


@pytest.mark.slow
def test_a_run_stopped_at_any_boundary_goes_on_to_the_same_bits() -> None:
    report = assert_resumable(lambda: _resumable(JoinedStep), exhaustive=True)
    assert report.runs >= 20


@pytest.mark.slow
def test_a_compiled_run_goes_on_to_the_same_bits_too() -> None:
    assert_resumable(lambda: _resumable(CompiledStep), examples=3, seed=0)


def test_a_run_that_was_given_up_goes_on_without_the_compiler() -> None:
    def make() -> Trainer:
        class Printing(Line):
            def training_step(self, batch: Batch, batch_idx: int) -> Any:
                loss = super().training_step(batch, batch_idx)
                return loss if loss.item() > 0 else None

        trainer = trainer_of(True, max_epochs=1)
        trainer.start(Printing(), points(3))
        return trainer

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotCompiled)
        assert_resumable(make, exhaustive=True)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_nothing_of_a_batch_is_kept_beyond_it(accumulate: int) -> None:
    alive: list[weakref.ref[Tensor]] = []
    left: list[int] = []

    def batches() -> Iterator[Batch]:
        for inputs, targets in points(6):
            batch = inputs.clone(), targets.clone()
            alive.extend(map(weakref.ref, batch))
            yield batch

    trainer = trainer_of(True, max_epochs=1, accumulate=accumulate)
    trainer.on("batch_end:exit", lambda: left.append(sum(one() is not None for one in alive)))
    trainer.fit(Line(), batches)
    assert_compiled(trainer)
    assert max(left[2:]) <= 2  # those of the batch that the iterator itself still holds


# -- what cannot be captured ----------------------------------------------------------------------


def test_a_step_that_reads_a_number_is_named_and_done_by_the_optimizer_loop() -> None:
    class Reading(Line):
        def training_step(self, batch: Batch, batch_idx: int) -> Any:
            loss = super().training_step(batch, batch_idx)
            return loss / 2 if loss.item() > 100 else loss

    with pytest.warns(NotCompiled, match=r"tensor, in .*test_compiled\.py") as told:
        compiled = fitted(Reading(), points(4), compiled=True)
    assert told[0].filename == __file__
    assert "  " not in str(told[0].message)
    eager = fitted(Reading(), points(4), compiled=False)
    assert loop_of(compiled).eager is not None
    for mine, theirs in zip(compiled.model.parameters(), eager.model.parameters(), strict=True):
        assert torch.equal(mine, theirs)


@torch.library.custom_op("test_compiled::stubborn", mutates_args=())
def stubborn(inputs: torch.Tensor) -> torch.Tensor:
    return inputs.clone()


@stubborn.register_fake
def _(inputs: torch.Tensor) -> torch.Tensor:
    if TracingContext.try_get() is None:  # Dynamo has had its shape; the joint graph asks again
        raise NotImplementedError("no shape for it")
    return torch.empty_like(inputs)


def test_an_operation_that_cannot_be_differentiated_is_named_with_its_line() -> None:
    class Stubborn(Line):
        def training_step(self, batch: Batch, batch_idx: int) -> Any:
            return super().training_step(batch, batch_idx) + stubborn(batch[0]).mean() * 0

    said = (
        r"cannot be captured: the operation 'stubborn.*' in .*test_compiled\.py\", line \d+, in "
        r"training_step cannot be traced .*no shape for it\)\. Write it another way"
    )
    with pytest.warns(NotCompiled, match=said):
        compiled = fitted(Stubborn(), points(4), compiled=True)
    assert_close(compiled.model, fitted(Line(), points(4), compiled=False).model)


def test_a_step_that_reads_the_number_of_the_batch_is_given_up_after_one() -> None:
    class Numbered(Line):
        def training_step(self, batch: Batch, batch_idx: int) -> Any:
            return super().training_step(batch, batch_idx) * (1 + batch_idx)

    with pytest.warns(NotCompiled, match="changes with each batch.*batch_idx"):
        compiled = fitted(Numbered(), points(4), compiled=True)
    assert len(loop_of(compiled).graphs) == 1
    assert_close(compiled.model, fitted(Numbered(), points(4), compiled=False).model)


def test_a_step_that_counts_in_python_is_given_up_after_one() -> None:
    class Counting(Line):
        calls = 0

        def training_step(self, batch: Batch, batch_idx: int) -> Any:
            self.calls += 1
            return super().training_step(batch, batch_idx)

    with pytest.warns(NotCompiled, match="calls"):
        compiled = fitted(Counting(), points(4), compiled=True)
    assert compiled.model.calls == 8
    assert_close(compiled.model, fitted(Line(), points(4), compiled=False).model)


def test_there_are_so_many_graphs_and_no_more() -> None:
    batches = [(torch.randn(n, 3), torch.randn(n, 1)) for n in (2, 3, 4, 5)]
    trainer = trainer_of(False, max_epochs=1)
    trainer.loop["optimizer"] = JoinedStep(most_graphs=1)
    with pytest.warns(NotCompiled, match="more than 1 graphs"):
        trainer.fit(Line(), batches)
    assert trainer.steps == 4


def test_a_batch_that_is_left_out_is_left_out() -> None:
    class Choosy(Line):
        def training_step(self, batch: Batch, batch_idx: int) -> Any:
            return None if batch[0].shape[0] < 3 else super().training_step(batch, batch_idx)

    _, compiled = both(Choosy, [*points(2), *points(1, size=2), *points(1)])
    assert compiled.steps == 6


def test_without_a_c_compiler_the_message_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from torch._inductor import config

    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(config.cpp, "cxx", ("/nowhere/g++",))
    with pytest.warns(NotCompiled, match=r"install g\+\+"):
        compiled = fitted(Line(), points(3), compiled=CompiledStep)
    assert_close(compiled.model, fitted(Line(), points(3), compiled=False).model)


def test_closures_are_evaluated_by_the_optimizer_loop() -> None:
    def make() -> Line:
        return Line(lambda parameters: torch.optim.LBFGS(parameters, lr=0.1))

    compiled = fitted(make(), points(2), compiled=True)
    eager = fitted(make(), points(2), compiled=False)
    for mine, theirs in zip(compiled.model.parameters(), eager.model.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_a_model_that_optimizes_by_hand_is_trained_by_its_own_loop_and_that_is_told() -> None:
    class ByHand(Line):
        automatic_optimization = False

        def training_step(self, batch: Batch, batch_idx: int, optimizers: Any = None) -> None:
            (optimizer,) = optimizers
            optimizer.zero_grad()
            super().training_step(batch, batch_idx).backward()
            optimizer.step()

    with pytest.warns(NotCompiled, match="Nothing is compiled: ByHand optimizes by hand"):
        trainer = fitted(ByHand(), points(2), compiled=True)
    assert trainer.steps == 4
    fitted_again = trainer_of(False, max_epochs=2)
    fitted_again.fit(ByHand(), points(2))
    assert_close(trainer.model, fitted_again.model)


def test_a_mode_that_nobody_knows_is_refused() -> None:
    with pytest.raises(SettingError, match="mode"):
        CompiledStep(mode="fastest")  # type: ignore[arg-type]


def test_the_class_takes_over_the_settings_of_the_loop_that_it_replaces() -> None:
    trainer = trainer_of(True, accumulate=3, clip_norm=0.5)
    loop = loop_of(trainer)
    assert (loop.accumulate, loop.clip_norm, loop.mode) == (3, 0.5, "default")


@pytest.mark.gpu
def test_cuda_graphs_give_the_same_weights() -> None:
    trainers = []
    for loop in (None, CompiledStep(mode="reduce-overhead")):
        trainer = Trainer(device="cuda", progress=False, max_epochs=4)
        if loop is not None:
            trainer.loop["optimizer"] = loop
        trainer.fit(Line(OPTIMIZERS["adamw"]), points(5))
        trainers.append(trainer)
    assert_compiled(trainers[1])
    assert_close(trainers[1].model.cpu(), trainers[0].model.cpu())
