"""What an import brings in: modules can be counted on any machine, unlike milliseconds."""

from __future__ import annotations

import subprocess
import sys
from functools import cache

import pytest

MOST_MODULES = 230
"""Modules that the trainer may add to those of torch, the standard library's included."""

NOT_NEEDED = (
    "IPython",
    "hypothesis",
    "lightning",
    "matplotlib",
    "pytest",
    "rich",
    "sklearn",
    "starlette",
    "torchdata",
    "torchmetrics",
    "typer",
    "uvicorn",
)
"""Packages that only some runs use: a progress bar, a page, a metric object, a command line."""


@cache
def modules_after(code: str) -> frozenset[str]:
    listing = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys\nprint(*sys.modules)"],
        check=True,
        capture_output=True,
        text=True,
        timeout=100,
    )
    return frozenset(listing.stdout.split())


def added_to_torch(code: str) -> set[str]:
    return set(modules_after(f"import torch\n{code}") - modules_after("import torch"))


BUILDING = "from statemachine_trainer import Trainer\nTrainer(max_epochs=1)"


def test_the_package_itself_imports_nothing_of_torch() -> None:
    loaded = modules_after("import statemachine_trainer")
    assert "torch" not in loaded
    ours = {name for name in loaded if name.startswith("statemachine_trainer.")}
    assert ours == {"statemachine_trainer.lazy", "statemachine_trainer.version"}


@pytest.mark.parametrize("package", NOT_NEEDED)
def test_building_a_trainer_loads_no_package_that_only_some_runs_use(package: str) -> None:
    assert package not in {name.partition(".")[0] for name in added_to_torch(BUILDING)}


def test_building_a_trainer_adds_few_modules_to_those_of_torch() -> None:
    added = added_to_torch(BUILDING)
    assert len(added) <= MOST_MODULES, f"{len(added)} modules: {sorted(added)}"


def test_a_training_that_shows_nothing_loads_nothing_to_show_it_with() -> None:
    added = added_to_torch(
        "from torch import nn\n"
        "from statemachine_trainer import Trainer\n"
        "batches = [(torch.randn(4, 2), torch.randn(4, 1))]\n"
        "Trainer(max_epochs=1, progress=False, device='cpu').fit(\n"
        "    nn.Linear(2, 1), batches, loss=nn.functional.mse_loss,\n"
        "    optimizer=torch.optim.SGD,\n"
        ")\n"
    )
    assert {name.partition(".")[0] for name in added} & set(NOT_NEEDED) == set()
