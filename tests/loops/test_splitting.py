"""A batch that does not fit into memory goes in pieces: the gradients are those of the whole batch."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from statemachine_trainer.audit.settings_record import SettingsChanged
from statemachine_trainer.loops import (
    BatchLoop,
    EpochLoop,
    FitLoop,
    ManualLoop,
    OptimizerLoop,
    SplittingLoop,
    log,
)
from statemachine_trainer.loops.loop_errors import SettingError, StepOutputError
from statemachine_trainer.loops.samples import cut, why_not_cut
from statemachine_trainer.testing import assert_resumable
from statemachine_trainer.trainer import Trainer

SAMPLES = 10


class Short(nn.Module):
    """Raises when it gets more samples than fit: in the forward or in the backward pass."""

    def __init__(self, fits: int = SAMPLES, where: str = "forward", **options: Any) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(3, 4), nn.Linear(4, 1)
        self.noise = nn.Dropout(options.pop("dropout", 0.0))
        self.fits, self.where, self.sizes = fits, where, list[int]()
        self.options = options

    def short_of(self, size: int, where: str) -> None:
        if where == self.where and size > self.fits:
            raise torch.OutOfMemoryError(f"{size} samples do not fit")

    def loss(self, batch: Any) -> torch.Tensor:
        inputs, targets = batch
        size = len(inputs)
        self.sizes.append(size)
        hidden = self.noise(self.body(inputs).tanh())
        self.short_of(size, "forward")
        if hidden.requires_grad:
            hidden.register_hook(lambda gradient: self.short_of(len(gradient), "backward"))
        return nn.functional.mse_loss(self.head(hidden).squeeze(1), targets)

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        loss = self.loss(batch)
        log("loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, 3, 0.5)
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]


def batches(number: int = 6, samples: int = SAMPLES) -> list[tuple[torch.Tensor, torch.Tensor]]:
    draw = torch.Generator().manual_seed(1)
    return [
        (torch.randn(samples, 3, generator=draw), torch.randn(samples, generator=draw))
        for _ in range(number)
    ]


def trained(
    fits: int = SAMPLES,
    where: str = "forward",
    loop: Callable[[], OptimizerLoop] = lambda: OptimizerLoop(on_oom="split"),
    make: Callable[..., Short] = Short,
    **settings: Any,
) -> tuple[Short, Trainer]:
    torch.manual_seed(0)
    model = make(fits, where)
    fit = FitLoop(max_epochs=2, epoch=EpochLoop(batch=BatchLoop(optimizer=loop())))
    trainer = Trainer(fit, **settings)
    trainer.fit(model, batches())
    return model, trainer


def same(one: nn.Module, other: nn.Module) -> bool:
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    return all(torch.allclose(a, b, rtol=1e-5, atol=1e-6) for a, b in pairs)


@pytest.mark.parametrize("where", ["forward", "backward"])
@pytest.mark.parametrize(
    "fits, settings",
    [
        (1, {}),
        (3, {"accumulate": 4}),
        (4, {"clip_norm": 0.5}),
        (9, {"accumulate": 2, "clip_value": 0.1}),
    ],
)
def test_the_weights_are_those_of_a_run_with_enough_memory(
    where: str, fits: int, settings: dict[str, Any]
) -> None:
    whole, at_whole = trained(loop=lambda: OptimizerLoop(**settings))
    pieces, at_pieces = trained(fits, where, lambda: OptimizerLoop(on_oom="split", **settings))
    assert same(whole, pieces)
    assert at_pieces.context.counts.step == at_whole.context.counts.step
    assert at_pieces.metrics["loss"] == pytest.approx(at_whole.metrics["loss"], rel=1e-5)
    assert max(pieces.sizes[-6:]) <= fits


def test_what_fits_is_remembered_and_a_larger_piece_is_tried_after_some_steps() -> None:
    model, _ = trained(3, loop=lambda: SplittingLoop(try_larger=4))
    assert model.sizes[:6] == [10, 5, 3, 3, 2, 2]
    # Batches 2 to 4 at once in pieces of at most 3 samples; then pieces of 5 do not fit, and so on.
    assert model.sizes[6:18] == [3, 3, 2, 2] * 3
    assert model.sizes[18:23] == [5, 3, 3, 2, 2]


def test_when_there_is_memory_again_batches_are_whole_again() -> None:
    torch.manual_seed(0)
    model = Short(3)
    epoch = EpochLoop(batch=BatchLoop(optimizer=SplittingLoop(try_larger=1)))
    trainer = Trainer(FitLoop(max_epochs=2, epoch=epoch))
    trainer.on("epoch_end", lambda: setattr(model, "fits", SAMPLES), once=True)
    trainer.fit(model, batches())
    assert model.sizes[-3:] == [10, 10, 10]
    assert trainer.context.piece_size is None


def test_a_sample_that_does_not_fit_by_itself_surfaces_with_what_was_tried() -> None:
    with pytest.raises(torch.OutOfMemoryError, match="1 samples do not fit") as caught:
        trained(0)
    notes = "\n".join(caught.value.__notes__)
    assert "down to one sample: 10, 5, 3, 2, 1. Sample 1 of batch 1" in notes


def test_after_memory_was_made_the_same_fit_goes_on_where_it_stood() -> None:
    for where in ("forward", "backward"):
        torch.manual_seed(0)
        model = Short(0, where)
        epoch = EpochLoop(batch=BatchLoop(optimizer=OptimizerLoop(on_oom="split")))
        trainer = Trainer(FitLoop(max_epochs=2, epoch=epoch))
        with pytest.raises(torch.OutOfMemoryError):
            trainer.fit(model, batches())
        assert trainer.driver.path == "fit.epoch.batch.optimizer.forward"
        model.fits = SAMPLES
        trainer.run()
        whole, _ = trained()
        assert same(whole, model)


def test_without_the_setting_the_error_surfaces_at_once() -> None:
    with pytest.raises(torch.OutOfMemoryError) as caught:
        trained(3, loop=OptimizerLoop)
    assert "on_oom" not in "\n".join(caught.value.__notes__)


def test_where_nothing_is_short_of_memory_the_run_is_the_same_to_the_bit() -> None:
    plain, _ = trained(loop=OptimizerLoop)
    ready, _ = trained()
    pairs = zip(plain.parameters(), ready.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize(
    "words",
    [
        "DefaultCPUAllocator: can't allocate memory",
        "CUDA error: out of memory",
        "MPS backend out of memory",
        "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
    ],
)
def test_other_errors_of_missing_memory_count_too(words: str) -> None:
    class Other(Short):
        def short_of(self, size: int, where: str) -> None:
            if where == self.where and size > self.fits:
                raise RuntimeError(f"{words} 400000000 bytes")

    model, _ = trained(4, make=Other)
    assert same(trained()[0], model)


def test_an_error_around_one_of_missing_memory_counts_too() -> None:
    class Around(Short):
        def short_of(self, size: int, where: str) -> None:
            try:
                super().short_of(size, where)
            except torch.OutOfMemoryError as error:
                raise ValueError("in the first layer") from error

    model, _ = trained(4, make=Around)
    assert same(trained()[0], model)


def test_an_error_of_another_kind_surfaces() -> None:
    class Wrong(Short):
        def short_of(self, size: int, where: str) -> None:
            raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes"):
        trained(make=Wrong)


def test_a_loss_that_is_a_mean_over_something_else_counts_by_that() -> None:
    class Masked(Short):
        def loss(self, batch: Any) -> torch.Tensor:
            inputs, targets = batch
            self.sizes.append(len(inputs))
            self.short_of(len(inputs), "forward")
            kept = targets > 0
            errors = (self.head(self.body(inputs)).squeeze(1) - targets).pow(2)
            loss: torch.Tensor = (errors * kept).sum() / kept.sum().clamp(min=1)
            return loss

    def positive(batch: Any) -> int:
        return int((batch[1] > 0).sum())

    whole, _ = trained(make=Masked, loop=OptimizerLoop)
    by_weight, _ = trained(3, make=Masked, loop=lambda: SplittingLoop(weight=positive))
    by_samples, _ = trained(3, make=Masked)
    assert same(whole, by_weight)
    assert not same(whole, by_samples)


def test_the_losses_that_receivers_see_are_those_of_whole_batches() -> None:
    seen: list[list[float]] = []
    for fits in (SAMPLES, 3):
        torch.manual_seed(0)
        epoch = EpochLoop(batch=BatchLoop(optimizer=OptimizerLoop(on_oom="split")))
        trainer = Trainer(FitLoop(max_epochs=1, epoch=epoch))
        seen.append([])
        trainer.on("batch_end", lambda t: seen[-1].append(t.context.loss.item()))
        trainer.fit(Short(fits), batches())
    assert seen[1] == pytest.approx(seen[0], rel=1e-5)


def test_several_optimizers_each_go_in_pieces() -> None:
    class Two(Short):
        def training_step(self, batch: Any, batch_idx: int, optimizer_idx: int = 0) -> torch.Tensor:
            return self.loss(batch) * (1 + optimizer_idx)

        def configure_optimizers(self) -> Any:
            return [
                torch.optim.SGD(self.body.parameters(), lr=0.1),
                torch.optim.SGD(self.head.parameters(), lr=0.05),
            ]

    whole, _ = trained(make=Two, loop=OptimizerLoop)
    for where in ("forward", "backward"):
        assert same(whole, trained(3, where, make=Two)[0])


def test_the_scaler_of_fp16_scales_each_piece() -> None:
    whole, _ = trained(loop=OptimizerLoop, precision="fp16")
    pieces, _ = trained(4, "backward", precision="fp16")
    pairs = zip(whole.parameters(), pieces.parameters(), strict=True)
    assert all(torch.allclose(a, b, atol=2e-2) for a, b in pairs)


def test_splits_along_time_go_in_pieces_of_samples() -> None:
    class Sequences(Short):
        def loss(self, batch: Any) -> torch.Tensor:
            inputs = batch
            self.sizes.append(len(inputs))
            self.short_of(len(inputs), "forward")
            loss: torch.Tensor = self.head(self.body(inputs)).pow(2).mean()
            return loss

    data = [torch.randn(6, 8, 3) for _ in range(3)]

    def weights(fits: int) -> Short:
        torch.manual_seed(0)
        model = Sequences(fits)
        Trainer(max_epochs=1, split_steps=4, on_oom="split").fit(model, data)
        return model

    pieces = weights(2)
    assert same(weights(6), pieces)
    assert set(pieces.sizes) == {6, 3, 2}


def test_a_step_that_leaves_batches_out_leaves_them_out_whole() -> None:
    class Choosy(Short):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return None if batch_idx == 2 else super().training_step(batch, batch_idx)

    model, trainer = trained(3, make=Choosy)
    assert trainer.context.counts.step == 10
    assert same(trained(make=Choosy)[0], model)

    class Torn(Short):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            loss = super().training_step(batch, batch_idx)
            return None if len(self.sizes) == 5 else loss

    with pytest.raises(StepOutputError, match="leaves out a batch as a whole"):
        trained(3, make=Torn)


@pytest.mark.parametrize(
    "batch, why",
    [
        ((torch.zeros(4, 3), torch.zeros(9)), r"batch\[1\] has 9 entries"),
        ((torch.zeros(4, 3), object()), r"batch\[1\] is a object"),
        ((torch.zeros(4, 3), ["a", "b"]), r"batch\[1\] has 2 entries"),
        (torch.zeros(4, 3).to_sparse(), "sparse"),
        ([(torch.zeros(4), n) for n in range(6)], "batch has 6 entries, .* 4 samples"),
        ([{"x": torch.zeros(4), "y": torch.tensor(n)} for n in range(6)], "batch has 6 entries"),
        ((torch.zeros(4, 3), [{"id": "a"}, {"id": "b"}]), r"batch\[1\] has 2 entries"),
        ([np.zeros(4) for _ in range(6)], "batch is a list of 6 arrays of one shape"),
        ((torch.zeros(4), [np.zeros(4)] * 2), r"batch\[1\] is a list of 2 arrays of one shape"),
    ],
)
def test_a_batch_that_cannot_be_cut_surfaces_and_says_why(batch: Any, why: str) -> None:
    class Never(Short):
        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            raise torch.OutOfMemoryError("too large")

    with pytest.raises(torch.OutOfMemoryError) as caught:
        Trainer(max_epochs=1, on_oom="split").fit(Never(), [batch])
    assert re.search(why, "\n".join(caught.value.__notes__))


class OfArrays(Short):
    """Takes batches of arrays, and makes tensors of them itself."""

    def loss(self, batch: Any) -> torch.Tensor:
        assert all(isinstance(one, np.ndarray) for one in batch)
        return super().loss([torch.from_numpy(one) for one in batch])


def test_batches_of_arrays_alone_go_in_pieces() -> None:
    found = []
    for fits in (SAMPLES, 3):
        torch.manual_seed(0)
        model = OfArrays(fits)
        data = [(inputs.numpy(), targets.numpy()) for inputs, targets in batches()]
        Trainer(max_epochs=2, on_oom="split").fit(model, data)
        found.append(model)
    whole, pieces = found
    assert same(whole, pieces)
    assert max(pieces.sizes[3:]) == 3
    assert whole.sizes == [SAMPLES] * 12


class OfSamples(Short):
    """Takes lists of samples that nobody has put together, or batches."""

    def loss(self, batch: Any) -> torch.Tensor:
        if isinstance(batch, list):
            batch = [torch.stack([one[part] for one in batch]) for part in (0, 1)]
        return super().loss(batch)

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return self.loss(batch)


def test_a_shorter_list_of_samples_is_done_whole_after_others_went_in_pieces() -> None:
    """Samples of three numbers look like three samples: two of them were done as two thirds."""
    rows = [
        (torch.randn(3, generator=torch.Generator().manual_seed(n)), torch.tensor(1.0 * n))
        for n in range(5)
    ]
    found = []
    for fits in (SAMPLES, 2):
        torch.manual_seed(0)
        model = OfSamples(fits)
        Trainer(max_epochs=1, on_oom="split").fit(model, [rows[:3], rows[3:]])
        found.append(model)
    whole, pieces = found
    assert pieces.sizes == [3, 2, 1, 2]
    assert same(whole, pieces)


def test_batches_of_many_forms_are_cut() -> None:
    batch = {
        "x": torch.arange(12).view(4, 3),
        "text": ["a", "b", "c", "d"],
        "length": (1, 2, 3, 4),
        "label": [0, None, 2, None],
        "scale": torch.tensor(2.0),
        "name": "train",
        "inner": [torch.arange(4), None],
        "records": [{"id": n, "boxes": torch.zeros(n, 2)} for n in range(4)],
    }
    assert why_not_cut(batch) is None
    piece = cut(batch, 1, 3)
    assert piece["x"].tolist() == [[3, 4, 5], [6, 7, 8]]
    assert (piece["text"], piece["length"], piece["name"]) == (["b", "c"], (2, 3), "train")
    assert piece["label"] == [None, 2]
    assert (piece["scale"].item(), piece["inner"][0].tolist()) == (2.0, [1, 2])
    assert [(one["id"], len(one["boxes"])) for one in piece["records"]] == [(1, 1), (2, 2)]


@pytest.mark.parametrize(
    "loss",
    [nn.MSELoss(reduction="sum"), partial(nn.functional.mse_loss, reduction="sum")],
)
def test_a_loss_that_is_a_sum_is_refused(loss: Any) -> None:
    model = nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    trainer = Trainer(max_epochs=1, on_oom="split")
    with pytest.raises(SettingError, match=r"\(reduction='sum'\) is a sum over samples"):
        trainer.fit(model, [(torch.ones(4, 3), torch.ones(4, 1))], loss=loss, optimizer=optimizer)


def test_a_sum_within_the_model_is_told_when_a_batch_is_cut(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Summed(Short):
        def __init__(self, fits: int, where: str) -> None:
            super().__init__(fits, where)
            self.criterion = nn.MSELoss(reduction="sum")

    trained(loop=lambda: OptimizerLoop(on_oom="split"), make=Summed)
    assert "criterion" not in caplog.text
    trained(3, make=Summed)
    (told,) = [one.getMessage() for one in caplog.records if "criterion" in one.getMessage()]
    assert "criterion: MSELoss(reduction='sum') is a sum over samples" in told


def test_what_cannot_go_in_pieces_is_refused() -> None:
    class Hidden(Short):
        def training_step(self, batch: Any, batch_idx: int, hiddens: Any = None) -> Any:
            return {"loss": self.loss(batch), "hiddens": torch.zeros(1)}

    class Closure(Short):
        def configure_optimizers(self) -> Any:
            return torch.optim.LBFGS(self.parameters())

    class Manual(Short):
        automatic_optimization = False

    for make, words in ((Hidden, "hiddens"), (Closure, "evaluates the loss itself")):
        with pytest.raises(SettingError, match=words):
            trained(make=make)
    with pytest.raises(SettingError, match="on_oom='split' is for automatic"):
        trained(make=Manual)
    with pytest.raises(SettingError, match="time_dim=0"):
        Trainer(max_epochs=1, on_oom="split", split_steps=2, time_dim=0).fit(Short(), batches(1))
    with pytest.raises(SettingError, match="'skip'"):
        SplittingLoop(nonfinite_loss="skip")
    with pytest.raises(SettingError, match="on_oom"):
        OptimizerLoop(on_oom="halve")  # type: ignore[arg-type]
    with pytest.raises(SettingError, match="try_larger"):
        SplittingLoop(try_larger=0)

    class Own(OptimizerLoop):
        pass

    with pytest.raises(SettingError, match="Derive from SplittingLoop"):
        Own(on_oom="split")
    with pytest.raises(SettingError, match="Put another loop in its place"):
        OptimizerLoop().on_oom = "split"
    with pytest.raises(TypeError):
        ManualLoop(on_oom="split")  # type: ignore[call-arg]


def test_a_checkpoint_of_a_run_that_ran_out_of_memory_goes_on_in_pieces(tmp_path: Any) -> None:
    def run(fits: int, **settings: Any) -> Short:
        torch.manual_seed(0)
        model = Short(fits)
        trainer = Trainer(max_epochs=2, checkpoints=tmp_path, **settings)
        trainer.fit(model, batches(), resume="auto")
        return model

    class Late(Short):
        def loss(self, batch: Any) -> torch.Tensor:
            if len(self.sizes) == 8:
                self.fits = 4
            return super().loss(batch)

    torch.manual_seed(0)
    with pytest.raises(torch.OutOfMemoryError):
        Trainer(max_epochs=2, checkpoints=tmp_path).fit(Late(), batches())
    with pytest.warns(SettingsChanged, match="model was Late, is Short now"):
        model = run(4, on_oom="split")
    assert same(trained()[0], model)


@pytest.mark.slow
@pytest.mark.parametrize("where, settings", [("forward", {"accumulate": 2}), ("backward", {})])
def test_stopped_at_any_boundary_in_the_middle_of_pieces_it_ends_with_the_same_bits(
    where: str, settings: dict[str, Any]
) -> None:
    def make() -> Trainer:
        torch.manual_seed(0)
        model = Short(2, where, dropout=0.3)
        step = SplittingLoop(try_larger=1, **settings)
        trainer = Trainer(FitLoop(max_epochs=1, epoch=EpochLoop(batch=BatchLoop(optimizer=step))))
        data = DataLoader(TensorDataset(torch.randn(10, 3), torch.randn(10)), 5, shuffle=True)
        trainer.start(model, data)
        return trainer

    assert_resumable(make)


def test_the_graph_shows_the_edge_for_missing_memory() -> None:
    text = Trainer(max_epochs=1, on_oom="split").graph().to_mermaid()
    assert "OutOfMemoryError (error) [can_be_smaller]" in text.replace("\\", "").replace(
        "#95;", "_"
    )
    assert "smaller" not in Trainer(max_epochs=1).graph().to_mermaid()


REAL = """
import resource
import torch
from torch import nn
from statemachine_trainer.loops import log
from statemachine_trainer.trainer import Trainer

torch.set_num_threads(1)
GIB = 2**30


class Large(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight, self.sizes = nn.Parameter(torch.ones(())), []

    def training_step(self, batch, batch_idx):
        self.sizes.append(len(batch))
        large = batch.view(-1, 1) * self.weight * torch.ones(GIB // 16)  # 256 MiB a sample
        return large.mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


model = Large()
trainer = Trainer(max_epochs=1, on_oom="split", progress=False)
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
trainer.on("fit_start", lambda: resource.setrlimit(resource.RLIMIT_AS, (used + 3 * GIB, -1)))
trainer.fit(model, [torch.ones(16)])
assert model.sizes[0] == 16 and len(model.sizes) > 2, model.sizes
assert abs(model.weight.item() - 0.9) < 1e-5, model.weight
print("in pieces of", model.sizes)
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits the memory of a process")
def test_a_process_that_really_has_no_more_memory_goes_on_in_pieces() -> None:
    done = subprocess.run([sys.executable, "-c", REAL], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "in pieces of [16, " in done.stdout
