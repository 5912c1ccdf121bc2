"""Each recipe of the page trains, and goes on to the same bits after a resume at any boundary."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from statemachine_trainer.snapshot import Store
from statemachine_trainer.testing import assert_resumable

PAGE = (Path(__file__).parents[2] / "docs" / "recipes.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^## ([^\n]+)\n(.*?)(?=^## |\Z)", PAGE, flags=re.M | re.S))
(SHARED,) = re.findall(r"```python\n(.*?)```", PAGE.partition("\n## ")[0], flags=re.S)
NEEDS = {
    "Schedule-free optimizers": "schedulefree",
    "LoRA by peft": "peft",
    "8-bit optimizers": "bitsandbytes",
    "Exporting to ONNX": "onnxscript",
}
RESUMED = [name for name in SECTIONS if not name.startswith("Exporting")]
OF_OTHERS = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::PendingDeprecationWarning"
)
"""Libraries that are not for development warn when they are imported or called, whichever version is there."""


def names_of(section: str) -> dict[str, Any]:
    """Run the code of a section, and return what it defines."""
    if section in NEEDS:
        pytest.importorskip(NEEDS[section], reason=f"{section} needs {NEEDS[section]}")
    names: dict[str, Any] = {"__name__": "recipe"}
    for block in (SHARED, *re.findall(r"```python\n(.*?)```", SECTIONS[section], flags=re.S)):
        exec(block, names)
    return names


@OF_OTHERS
@pytest.mark.parametrize("section", RESUMED)
def test_it_resumes_anywhere(section: str) -> None:
    make: Callable[[], Any] = names_of(section)["make_trainer"]
    assert_resumable(make, examples=3, seed=0)


@OF_OTHERS
@pytest.mark.parametrize("section", RESUMED)
def test_it_learns_something(section: str) -> None:
    torch.manual_seed(0)
    trainer = names_of(section)["make_trainer"]()
    before = [one.detach().clone() for one in trainer.model.parameters()]
    trainer.run()
    after = [*trainer.model.parameters()]
    moved = [
        one.requires_grad
        for one, was in zip(after, before, strict=True)
        if not torch.equal(one, was)
    ]
    assert moved
    assert all(moved), "what is frozen stays"


@pytest.mark.slow
def test_what_is_exported_says_what_the_model_says(tmp_path: Path) -> None:
    program = names_of("Exporting")["export"](tmp_path)
    assert program.module()(torch.zeros(5, 4)).shape == (5, 3)


@OF_OTHERS
@pytest.mark.slow
def test_what_is_exported_to_onnx_says_what_the_model_says(tmp_path: Path) -> None:
    export = names_of("Exporting to ONNX")["export_onnx"]
    reference = pytest.importorskip("onnx.reference")
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
    export(model, tmp_path / "model.onnx")
    reads = reference.ReferenceEvaluator(str(tmp_path / "model.onnx"))
    inputs = torch.randn(5, 4)
    (outputs,) = reads.run(None, {reads.input_names[0]: inputs.numpy()})
    torch.testing.assert_close(torch.from_numpy(outputs), model(inputs).detach())


@OF_OTHERS
def test_adapters_go_on_to_the_same_bits_over_a_base_that_no_checkpoint_holds(
    tmp_path: Path,
) -> None:
    names = names_of("LoRA by peft")
    torch.manual_seed(0)
    whole = names["train"](tmp_path / "whole", max_epochs=2).state_dict()
    torch.manual_seed(0)
    names["train"](tmp_path / "parts", max_epochs=1)
    parts = names["train"](tmp_path / "parts", max_epochs=2).state_dict()
    assert all(torch.equal(parts[name], one) for name, one in whole.items())
    newest: Any = Store(tmp_path / "parts").newest()
    weights = newest.tree["context"]["model"]["weights"]
    held = {name for name, one in weights.items() if one is not None}
    assert held == {name for name in weights if "lora_" in name}
