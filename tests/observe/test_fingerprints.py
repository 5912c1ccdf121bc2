"""Fingerprints: they change nothing, are the same after any stop, and stay small."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from statemachine_trainer import Checkpoints, FitLoop, Trainer, every
from statemachine_trainer.audit.report import NotHeld
from statemachine_trainer.intervals import IntervalError
from statemachine_trainer.loops.loop_errors import SettingError
from statemachine_trainer.machine.errors import StateMachineError
from statemachine_trainer.observe.difference import compare_looks
from statemachine_trainer.observe.fingerprint_file import (
    BadFingerprints,
    Look,
    Taken,
    read_fingerprints,
    root_of,
)
from statemachine_trainer.observe.fingerprint_writer import FingerprintWriter
from statemachine_trainer.run_record import FINGERPRINTS
from tests.loops.test_custom import Plain
from tests.observe.printed import Net, loader, read, train


def places(folder: Path) -> list[tuple[str, int, int]]:
    return [(one.place, one.batch, one.step) for one in read(folder).looks]


def weights(trainer: Trainer) -> list[torch.Tensor]:
    return [*trainer.model.state_dict().values()]


# -- what they are -----------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [{}, {"accumulate": 3}, {"clip_norm": 0.1}], ids=str)
def test_a_run_has_the_same_bits_with_and_without_them(
    tmp_path: Path, settings: dict[str, Any]
) -> None:
    with_them = train(tmp_path / "a", **settings)
    drawn = torch.rand(3)
    without = train(tmp_path / "b", fingerprints=None, **settings)
    assert all(map(torch.equal, weights(with_them), weights(without)))
    assert torch.equal(torch.rand(3), drawn)
    assert read_fingerprints(tmp_path / "b") is None


def test_the_first_batch_after_each_interval_is_looked_at_and_each_checkpoint(
    tmp_path: Path,
) -> None:
    train(tmp_path, fingerprints=every(4, "step"))
    assert places(tmp_path) == [
        ("batch_start", 0, 0),
        ("batch_end", 1, 1),
        ("batch_start", 4, 4),
        ("batch_end", 5, 5),
        ("checkpoint", 6, 6),
        ("batch_start", 8, 8),
        ("batch_end", 9, 9),
        ("checkpoint", 12, 12),
        ("checkpoint", 12, 12),  # that of the end
    ]


def test_with_accumulation_a_step_is_looked_at_once(tmp_path: Path) -> None:
    train(tmp_path, accumulate=3, checkpoints=Checkpoints(tmp_path, at_end=False))
    starts = [one for one in places(tmp_path) if one[0] == "batch_start"]
    assert starts == [("batch_start", 3 * step, step) for step in range(4)]


def test_every_epoch_means_its_first_batch(tmp_path: Path) -> None:
    train(tmp_path, fingerprints="1 epoch")
    assert [one[1] for one in places(tmp_path) if one[0] == "batch_start"] == [0, 6]


def test_each_tensor_has_its_name(tmp_path: Path) -> None:
    train(tmp_path)
    found = read(tmp_path)
    end = next(one for one in found.looks if one.place == "batch_end")
    layouts = found.taken(end).layouts
    assert ("layers.3.weight", "float32 (2, 8)") in layouts["gradients"]
    assert {"generators", "buffers", "loss", "gradients", "weights"} == layouts.keys()
    start = found.taken(found.looks[2]).layouts
    assert "exp_avg of layers.0.bias" in dict(start["optimizer"])
    assert "lr" in dict(start["optimizer"])
    assert dict(start["batch"]) == {"batch[0]": "float32 (4, 5)", "batch[1]": "int64 (4,)"}


def test_loops_without_batches_of_ours_are_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        trainer = Trainer(
            FitLoop(max_epochs=1, epoch=Plain()),
            run=tmp_path,
            fingerprints=1,
            device="cpu",
            progress=False,
        )
        trainer.fit(Net(), loader())
    assert "fingerprints are taken at checkpoints alone" in caplog.text


@pytest.mark.parametrize("value", [every(30, "second"), every(10, "sample"), 0.5, "1min"])
def test_an_interval_that_two_runs_do_not_share_is_refused(tmp_path: Path, value: object) -> None:
    with pytest.raises(SettingError, match="same places"):
        Trainer(fingerprints=value, run=tmp_path)


def test_something_that_is_no_interval_is_refused(tmp_path: Path) -> None:
    with pytest.raises(IntervalError, match="fingerprints="):
        Trainer(fingerprints=[], run=tmp_path)


def test_they_need_a_folder() -> None:
    with pytest.raises(SettingError, match="needs a folder"):
        Trainer(fingerprints=every(1, "step"))


# -- stops -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [1, 3, 4, 6, 8, 11])
def test_after_a_stop_anywhere_they_are_those_of_a_run_that_was_not_stopped(
    tmp_path: Path, batch: int
) -> None:
    train(tmp_path / "whole")
    folder = tmp_path / "stopped"
    checkpoints = Checkpoints(folder, every=every(3, "batch"))
    # It goes on for a while after its last checkpoint, which is lost.
    train(
        folder,
        checkpoints=checkpoints,
        until=lambda trainer, moment: trainer.context.counts.batch == batch,
    )
    train(folder, resume="auto", checkpoints=Checkpoints(folder, every=every(3, "batch")))
    whole, stopped = read(tmp_path / "whole"), read(folder)
    assert compare_looks(whole, stopped).parting is None
    batches = [
        [(one.place, one.batch) for one in each.looks if one.place != "checkpoint"]
        for each in (whole, stopped)
    ]
    assert batches[1] == batches[0]


def test_a_rewind_takes_out_what_will_be_looked_at_again(tmp_path: Path) -> None:
    trainer = Trainer(
        max_epochs=1, seed=1, device="cpu", progress=False, run=tmp_path, fingerprints=1
    )
    torch.manual_seed(0)
    trainer.start(Net(), loader())
    trainer.remember(last=50)
    trainer.run(until=lambda trainer, moment: trainer.steps == 4)
    trainer.rewind(12)
    trainer.run()
    assert [one[1] for one in places(tmp_path) if one[0] == "batch_start"] == [*range(6)]


def test_a_run_that_begins_anew_begins_new_ones(tmp_path: Path) -> None:
    train(tmp_path)
    first = places(tmp_path)
    torch.manual_seed(0)
    trainer = Trainer(
        max_epochs=2, seed=1, device="cpu", progress=False, checkpoints=tmp_path, fingerprints=1
    )
    trainer.fit(Net(), loader(), restart=True)
    assert places(tmp_path) == first
    assert places(tmp_path / "earlier-1") == first


# -- the file ----------------------------------------------------------------------------------------


def taken(batch: int, place: Any = "batch_start", leaves: int = 100) -> Taken:
    layout = tuple((f"weight {index}", "float32 (1,)") for index in range(leaves))
    digests = bytes(8 * leaves)
    roots = {"weights": root_of(layout, digests)}
    name = f"step-{batch}" if place == "checkpoint" else ""
    return Taken(
        Look(place, "fit", 0, batch, batch, roots, name=name),
        {"weights": layout},
        {"weights": digests},
    )


def test_a_file_that_grows_drops_every_second_look(tmp_path: Path) -> None:
    writer = FingerprintWriter(tmp_path, {}, most=40_000)
    writer.begin()
    for batch in range(400):
        writer.add(taken(batch))
        writer.add(taken(batch + 1, "batch_end"))
        if batch % 10 == 9:
            writer.add(taken(batch + 1, "checkpoint"))
        assert (tmp_path / FINGERPRINTS).stat().st_size <= 40_000 + 2_000
    writer.close()
    looks = read(tmp_path).looks
    starts = {one.batch for one in looks if one.place == "batch_start"}
    assert 0 in starts
    assert max(starts) == 399
    assert {one.batch - 1 for one in looks if one.place == "batch_end"} == starts
    assert any(one.name == "step-400" for one in looks)


def test_a_look_that_is_cut_short_is_left_out(tmp_path: Path) -> None:
    train(tmp_path)
    path, whole = tmp_path / FINGERPRINTS, places(tmp_path)
    data = path.read_bytes()
    for cut in (1, 9, 200):
        path.write_bytes(data[:-cut])
        assert places(tmp_path) == whole[:-1]


def test_any_damage_is_told_as_what_it_is(tmp_path: Path) -> None:
    train(tmp_path, max_epochs=1)
    path = tmp_path / FINGERPRINTS
    data = path.read_bytes()
    for at in range(0, len(data), 41):
        hurt = bytearray(data)
        hurt[at] ^= 1 << at % 8
        path.write_bytes(hurt)
        try:
            found = read(tmp_path)
            for one in found.looks:
                found.taken(one)
        except BadFingerprints:
            continue


def no_file(path: Path) -> None:
    path.mkdir()


def pipe(path: Path) -> None:
    os.mkfifo(path)


def link(path: Path) -> None:
    (path.parent / "precious").write_text("keep me")
    path.symlink_to(path.parent / "precious")


def text(path: Path) -> None:
    path.write_text("hello " * 1000)


def nothing(path: Path) -> None:
    path.write_bytes(b"")


def long_block(path: Path) -> None:
    path.write_bytes(b"smt-prints1\nK\xff\xff\xff\x7f\x00\x00\x00\x00" + bytes(100))


@pytest.mark.parametrize("make", [no_file, pipe, link, text, nothing])
def test_something_else_in_its_place_is_told_and_waits_for_nothing(
    tmp_path: Path, make: Callable[[Path], None]
) -> None:
    make(tmp_path / FINGERPRINTS)
    with pytest.raises(BadFingerprints, match=FINGERPRINTS):
        read_fingerprints(tmp_path)


def test_a_length_that_is_not_there_takes_no_memory(tmp_path: Path) -> None:
    long_block(tmp_path / FINGERPRINTS)
    assert read(tmp_path).looks == []


@pytest.mark.parametrize("make", [pipe, link, text, nothing, long_block])
def test_a_run_goes_on_whatever_stands_in_its_place(
    tmp_path: Path, make: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    train(tmp_path, max_epochs=1)
    (tmp_path / FINGERPRINTS).unlink()
    make(tmp_path / FINGERPRINTS)
    with caplog.at_level(logging.WARNING):
        resumed = train(tmp_path, resume="auto")
    whole = train(tmp_path.with_name(f"{tmp_path.name}-whole"))
    assert all(map(torch.equal, weights(resumed), weights(whole)))
    assert [one[1] for one in places(tmp_path) if one[0] == "batch_start"] == [*range(6, 12)]


def test_a_run_goes_on_without_them_where_they_cannot_be_written(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / FINGERPRINTS).mkdir()
    (tmp_path / FINGERPRINTS / "mine").write_text("keep me")
    with caplog.at_level(logging.WARNING):
        train(tmp_path, max_epochs=1)
    assert "cannot be written" in caplog.text
    assert (tmp_path / FINGERPRINTS / "mine").read_text() == "keep me"


def test_damage_is_an_error_of_ours() -> None:
    assert issubclass(BadFingerprints, StateMachineError)


class Resizing(Net):
    """Has tensors whose memory grows in each step, as the observers of quantization have."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(3))
        self.values = torch.zeros(3)

    seen: torch.Tensor

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        for one in (self.seen, self.values):
            one.resize_(len(one) + 2).zero_()
        return super().training_step(batch, batch_idx)


def test_tensors_that_were_looked_at_may_still_be_given_more_memory(tmp_path: Path) -> None:
    model = Resizing()
    trainer = Trainer(
        max_epochs=1,
        checkpoints=Checkpoints(tmp_path, every=1),
        fingerprints=every(1, "step"),
        progress=False,
    )
    with pytest.warns(NotHeld, match="attribute 'values'"):
        trainer.fit(model, loader())
    assert len(model.values) == len(model.seen) == 3 + 2 * trainer.steps
    assert read(tmp_path).looks


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
def test_a_batch_with_rows_of_several_lengths_is_trained_and_has_no_digest_for_them(
    tmp_path: Path,
) -> None:
    rows = torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])
    train(tmp_path, data=[(torch.ones(4, 5), torch.zeros(4).long(), rows)], max_epochs=1)
    found = read_fingerprints(tmp_path)
    assert found is not None
    layouts = found.taken(found.looks[0]).layouts
    described = dict(layouts["batch"])
    assert [*described.values()] == ["float32 (4, 5)", "int64 (4,)", "?"]
