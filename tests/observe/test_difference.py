"""Two runs laid side by side: what was set otherwise, and where they part."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from typer.testing import CliRunner

from statemachine_trainer import Trainer, compare_runs, every
from statemachine_trainer.cli import app
from statemachine_trainer.observe.difference import Difference, Parting
from statemachine_trainer.observe.run import NoRun
from tests.observe.printed import Net, at_step, loader, train

Change = Callable[[Trainer], object]


def parting(found: Difference) -> Parting:
    assert found.parting is not None
    return found.parting


def nudge_gradient(trainer: Trainer) -> None:
    """Let one gradient of this backward pass be another one, in its last bits."""
    weight = cast(Any, trainer.model).layers[3].weight
    handle = weight.register_hook(lambda gradient: gradient * (1 + 1e-6))
    trainer.on("optimizer.optimizer_step", lambda: handle.remove(), once=True)


def nudge_weight(trainer: Trainer) -> None:
    with torch.no_grad():
        cast(Any, trainer.model).layers[0].bias[3] += 1e-6


def nudge_buffer(trainer: Trainer) -> None:
    cast(Any, trainer.model).layers[1].num_batches_tracked += 1


def nudge_batch(trainer: Trainer) -> None:
    trainer.context.batch[0][2, 3] += 1e-6


def change_rate(trainer: Trainer) -> None:
    trainer.context.slots[0].optimizer.param_groups[0]["lr"] = 0.1


def draw(trainer: Trainer) -> None:
    torch.rand(1)


CASES: list[tuple[Change, str, str, str]] = [
    # what is done in the forward pass of step 5, the phase, the kind and the name of what differs
    (nudge_gradient, "backward", "gradients", "layers.3.weight"),
    (nudge_buffer, "forward", "buffers", "layers.1.num_batches_tracked"),
    (draw, "forward", "generators", "torch"),
    (change_rate, "optimizer step", "weights", "layers.0.weight"),
]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a look at each step."""
    folder = tmp_path_factory.mktemp("plain")
    train(folder)
    return folder


@pytest.mark.parametrize("action, phase, kind, name", CASES, ids=[one[0].__name__ for one in CASES])
def test_runs_part_at_the_very_tensor_that_was_changed(
    plain: Path, tmp_path: Path, action: Change, phase: str, kind: str, name: str
) -> None:
    train(tmp_path, change=at_step(5, action))
    found = parting(compare_runs(plain, tmp_path))
    assert (found.look.at_work, found.phase, found.kind) == (5, phase, kind)
    assert found.names[0] == name
    assert not found.between
    assert found.equal_before == ["batch", "generators", "weights", "buffers", "optimizer"]
    assert found.before is not None
    assert (found.before.place, found.before.at_work) == ("batch_start", 5)


BETWEEN: list[tuple[Change, str, str]] = [
    (nudge_weight, "weights", "layers.0.bias"),
    (nudge_batch, "batch", "batch[0]"),
    (change_rate, "optimizer", "lr"),
]


@pytest.mark.parametrize("action, kind, name", BETWEEN, ids=[one[0].__name__ for one in BETWEEN])
def test_what_was_changed_between_two_batches_is_seen_before_the_step(
    plain: Path, tmp_path: Path, action: Change, kind: str, name: str
) -> None:
    def before_the_batch(trainer: Trainer) -> None:
        if trainer.context.counts.batch == 7:
            action(trainer)

    train(tmp_path, change=lambda trainer: trainer.on("batch_start", before_the_batch))
    found = parting(compare_runs(plain, tmp_path))
    assert (found.look.batch, found.phase, found.kind) == (7, "before the step", kind)
    assert found.names == [name]
    assert not found.also


def test_parameters_in_another_order_are_named_though_each_is_equal(
    plain: Path, tmp_path: Path
) -> None:
    def reorder(trainer: Trainer) -> None:
        held = cast(Any, trainer.model).layers[0]._parameters
        held["weight"] = held.pop("weight")

    train(tmp_path, change=at_step(5, reorder))
    found = parting(compare_runs(plain, tmp_path))
    assert found.look.at_work == 5
    assert found.names == [f"layers.0.{one} (in another place)" for one in ("weight", "bias")]


def test_the_words_say_what_was_equal(plain: Path, tmp_path: Path) -> None:
    train(tmp_path, change=at_step(5, nudge_gradient))
    found = compare_runs(plain, tmp_path)
    assert str(parting(found)) == (
        "step 5 (batch 5, epoch 1), backward: gradient of layers.3.weight; batch, generators, weights, "
        "buffers and optimizer before it were equal, and generators, buffers and loss after it"
    )
    assert "they part at step 5" in str(found)


def test_runs_that_are_the_same_do_not_part(plain: Path, tmp_path: Path) -> None:
    train(tmp_path)
    found = compare_runs(plain, tmp_path)
    assert found.parting is None
    assert [found.settings, found.versions, found.hardware, found.data] == [{}, {}, {}, {}]
    assert "equal at 27 places, up to" in str(found)


def test_with_longer_intervals_they_part_somewhere_between_two_looks(
    plain: Path, tmp_path: Path
) -> None:
    train(tmp_path, change=at_step(6, nudge_gradient), fingerprints=every(4, "step"))
    found = compare_runs(plain, tmp_path)
    assert parting(found).between
    assert parting(found).before is not None
    assert "they part after the end of step 5 (batch 5, epoch 1), where all was equal" in str(found)


def test_other_settings_are_named_with_both_values(plain: Path, tmp_path: Path) -> None:
    train(tmp_path, lambda: Net(rate=0.1), clip_norm=1.0)
    found = compare_runs(plain, tmp_path)
    assert found.settings["lr"].a == 0.05
    assert found.settings["lr"].b == 0.1
    assert found.settings["clip_norm"].a is None
    assert found.settings["clip_norm"].b == 1.0
    assert parting(found).kind == "optimizer"
    assert parting(found).names == ["lr"]
    assert "they differ where they were first looked at" in str(found)


def test_settings_of_loops_and_layers_are_named_by_their_place(plain: Path, tmp_path: Path) -> None:
    def other() -> Net:
        model = Net()
        model.layers[2] = torch.nn.Dropout(0.5)
        return model

    def clip(trainer: Trainer) -> None:
        trainer.loop.epoch.batch.optimizer.clip_norm = 0.5

    train(tmp_path, other, change=clip)
    found = compare_runs(plain, tmp_path).settings
    assert {name: (one.a, one.b) for name, one in found.items()} == {
        "fit.epoch.batch.optimizer (OptimizerLoop): clip_norm": ("None", "0.5"),
        "model.layers.2 (Dropout): p": ("0.25", "0.5"),
    }


def test_what_was_set_while_a_run_went_on_is_told_with_its_step(
    plain: Path, tmp_path: Path
) -> None:
    train(tmp_path, change=at_step(3, lambda trainer: trainer.post("set", lr=0.01)))
    found = compare_runs(plain, tmp_path)
    assert [*found.settings] == ["lr, set in the run"]
    assert found.settings["lr, set in the run"].a is None
    assert re.fullmatch(r"0\.01 at step \d", str(found.settings["lr, set in the run"].b))


def test_other_data_are_told_as_other_data(plain: Path, tmp_path: Path) -> None:
    train(tmp_path, data=loader(noise=1e-3))
    found = compare_runs(plain, tmp_path)
    assert [*found.data] == ["the content of the data train: dataset.tensors[0]"]
    assert parting(found).kind == "batch"
    assert parting(found).names == ["batch[0]"]


def test_another_model_differs_in_its_shapes(plain: Path, tmp_path: Path) -> None:
    def wider() -> Net:
        model = Net()
        model.layers[0], model.layers[1] = torch.nn.Linear(5, 9), torch.nn.BatchNorm1d(9)
        model.layers[3] = torch.nn.Linear(9, 2)
        return model

    train(tmp_path, wider)
    found = parting(compare_runs(plain, tmp_path))
    assert found.kind == "weights"
    assert "layers.0.weight" in found.names


def test_another_seed_parts_at_once(plain: Path, tmp_path: Path) -> None:
    train(tmp_path, seed=2)
    found = parting(compare_runs(plain, tmp_path))
    assert (found.kind, found.also, found.before) == ("batch", ["generators"], None)


def test_a_run_without_fingerprints_is_compared_by_its_settings(
    plain: Path, tmp_path: Path
) -> None:
    train(tmp_path, lambda: Net(rate=0.1), fingerprints=None)
    found = compare_runs(plain, tmp_path)
    assert found.compared is None
    assert [*found.settings] == ["rate", "lr"]
    assert "has none" in str(found)


def test_a_folder_of_something_else_is_refused(plain: Path, tmp_path: Path) -> None:
    with pytest.raises(NoRun, match="is not the folder of a run"):
        compare_runs(plain, tmp_path)


def test_the_command_prints_it_and_tells_by_its_exit_code(plain: Path, tmp_path: Path) -> None:
    train(tmp_path, change=at_step(5, nudge_gradient))
    said = CliRunner().invoke(app, ["diff", str(plain), str(tmp_path)])
    assert said.exit_code == 1
    assert "backward: gradient of layers.3.weight" in said.stdout
    same = CliRunner().invoke(app, ["diff", str(plain), str(plain)])
    assert same.exit_code == 0


def test_the_command_prints_json(plain: Path, tmp_path: Path) -> None:
    train(tmp_path, change=at_step(5, nudge_gradient))
    said = CliRunner().invoke(app, ["diff", str(plain), str(tmp_path), "--json"])
    found = json.loads(said.stdout)["compared"]["parting"]
    assert (found["kind"], found["names"]) == ("gradients", ["layers.3.weight"])
    assert found["look"]["at_work"] == 5
