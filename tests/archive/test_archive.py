"""What earlier versions wrote is read, and goes on to the end that it had."""

from __future__ import annotations

import importlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from statemachine_trainer import Run
from statemachine_trainer.snapshot import Store, decode, leaves
from tests.archive.setups import FITS
from tests.archive.write import finish

ARCHIVE = Path(__file__).parent
VERSIONS = sorted(one.name for one in ARCHIVE.iterdir() if one.name[0].isdigit())
RUNS = [(version, name) for version in VERSIONS for name in FITS]


@pytest.fixture(params=RUNS, ids=lambda run: "-".join(run))
def run(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    version, name = request.param
    source = ARCHIVE / version / name
    return Path(shutil.copytree(source, tmp_path / name))


def test_a_run_of_an_earlier_version_goes_on_to_the_end_that_it_had(run: Path) -> None:
    expected: dict[str, Any] = json.loads((run / "expected.json").read_text())
    fit = FITS[run.name]
    trainer = fit.trainer(run)
    torch.manual_seed(999)  # nothing of the process that reads is to matter
    trainer.start(fit.model(), *fit.data(), resume="auto")
    assert trainer.path == expected["stood_at"]
    assert finish(trainer) == (expected["states"], expected["outcome"])
    weights = trainer.model.state_dict()
    assert weights.keys() == expected["weights"].keys()
    for name, values in expected["weights"].items():
        told = torch.tensor(values, dtype=weights[name].dtype)
        # Another processor or version of torch may add in another order.
        torch.testing.assert_close(weights[name], told, rtol=1e-4, atol=1e-5)


def test_what_is_recorded_of_it_can_be_asked_for(run: Path) -> None:
    one = Run(run)
    graph = one.graph()
    assert graph is not None
    assert graph.name == "fit"
    assert [event.what for event in one.history()][:1] == ["started"]
    assert "max_epochs" in one.settings() or run.name == "fold"
    (info,) = Store(run).list()
    assert info.damage is None


@pytest.mark.parametrize("old,new", leaves._MOVED.items(), ids=lambda name: str(name))
def test_a_class_of_ours_is_found_under_the_name_it_had(old: tuple[str, str], new: str) -> None:
    kind = getattr(importlib.import_module(new), old[1])
    names = leaves._fields_of(kind)
    assert names is not None
    document: Any = {"tree": {"$record": [*old, dict.fromkeys(names)]}, "tensors": {}}
    assert type(decode(document, {})) is kind


def test_an_interval_that_was_saved_where_it_stood_before_is_the_same_interval() -> None:
    from statemachine_trainer import every

    (kind, inside) = leaves.record_of(every(100, "step")) or ((), {})
    assert kind == ("statemachine_trainer.intervals", "Every")
    old = ["statemachine_trainer.loops.every", "Every", inside]
    assert decode({"tree": {"$record": old}, "tensors": {}}, {}) == every(100, "step")  # type: ignore[dict-item]
