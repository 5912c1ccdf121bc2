"""The page for those who come from Lightning is complete, and its numbers are true."""

from __future__ import annotations

import ast
import inspect
import io
import json
import re
import tokenize
from pathlib import Path
from typing import Any

import pytest

from statemachine_trainer import loops

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "migration.md").read_text()
PROSE = re.sub(r"```.*?```", "", PAGE, flags=re.S)
NAMES = set(re.findall(r"\w+", " ".join(re.findall(r"`([^`]+)`", PROSE))))

FLAGS_OF_1_9 = (
    "accelerator accumulate_grad_batches amp_backend amp_level auto_lr_find auto_scale_batch_size "
    "auto_select_gpus benchmark callbacks check_val_every_n_epoch default_root_dir detect_anomaly "
    "deterministic devices enable_checkpointing enable_model_summary enable_progress_bar "
    "fast_dev_run gpus gradient_clip_algorithm gradient_clip_val inference_mode ipus "
    "limit_predict_batches limit_test_batches limit_train_batches limit_val_batches "
    "log_every_n_steps logger max_epochs max_steps max_time min_epochs min_steps "
    "move_metrics_to_cpu multiple_trainloader_mode num_nodes num_processes num_sanity_val_steps "
    "overfit_batches plugins precision profiler reload_dataloaders_every_n_epochs "
    "replace_sampler_ddp resume_from_checkpoint strategy sync_batchnorm tpu_cores track_grad_norm "
    "truncated_bptt_steps val_check_interval"
)
LOOPS_API_OF_1_9 = (
    "FitLoop TrainingEpochLoop TrainingBatchLoop OptimizerLoop ManualOptimization EvaluationLoop "
    "EvaluationEpochLoop DataLoaderLoop PredictionLoop run advance done skip reset connect replace "
    "on_run_start on_advance_start on_advance_end on_run_end on_save_checkpoint "
    "on_load_checkpoint state_dict load_state_dict restarting tbptt_split_batch "
    "training_step_end validation_step_end test_step_end training_epoch_end validation_epoch_end "
    "test_epoch_end on_epoch_start on_epoch_end on_batch_start on_batch_end"
)


@pytest.mark.parametrize("names", [FLAGS_OF_1_9, LOOPS_API_OF_1_9], ids=["flags", "loops"])
def test_all_of_lightning_1_9_is_on_the_page(names: str) -> None:
    assert [name for name in names.split() if name not in NAMES] == []


def test_every_flag_of_the_installed_lightning_is_on_the_page() -> None:
    lightning = pytest.importorskip("lightning.pytorch")
    flags = inspect.signature(lightning.Trainer).parameters
    assert [name for name in flags if name not in NAMES] == []


def test_every_hook_of_the_installed_lightning_is_on_the_page() -> None:
    lightning = pytest.importorskip("lightning.pytorch")
    hooks = pytest.importorskip("lightning.pytorch.core.hooks")
    classes = (
        hooks.ModelHooks,
        hooks.DataHooks,
        hooks.CheckpointHooks,
        lightning.Callback,
        lightning.LightningModule,
        lightning.LightningDataModule,
    )
    public = {
        name for one in classes for name, value in vars(one).items() if _is_public(name, value)
    }
    assert len(public) > 80
    assert sorted(public - NAMES - {"forward"}) == []


def test_every_loop_of_ours_is_on_the_page() -> None:
    ours = {name for name in dir(loops) if name.endswith("Loop")}
    for name in ("BatchLoop", "YieldingLoop", "ClosureLoop", "PhasesLoop", "CustomLoop"):
        assert name in ours
        assert name in NAMES


def _is_public(name: str, value: Any) -> bool:
    return not name.startswith("_") and (
        inspect.isfunction(value) or isinstance(value, property | classmethod | staticmethod)
    )


# -- how much a user writes ------------------------------------------------------------------------


def count_lines(source: str) -> int:
    """Lines with code on them, without docstrings."""
    docstrings: set[int] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and node.body:
            first = node.body[0]
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                docstrings.update(range(first.lineno, (first.end_lineno or 0) + 1))
    code: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type in (tokenize.NAME, tokenize.OP, tokenize.NUMBER, tokenize.STRING):
            code.update(range(token.start[0], token.end[0] + 1))
    return len(code - docstrings)


def cells_of(notebook: str) -> list[str]:
    cells = json.loads((ROOT / "notebooks" / notebook).read_text())["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


def row_of(notebook: str) -> list[int]:
    """The numbers in the table: Lightning whole, ours whole, Lightning's loop, ours."""
    (line,) = [line for line in PAGE.splitlines() if line.startswith("|") and notebook in line]
    return [int(cell) for cell in line.split("|")[2:6]]


LOOPS = {
    "kfold.ipynb": {"KFoldLoop", "loop"},
    "gan_yielding.ipynb": {"YieldingLoop"},
    "loop_from_scratch.ipynb": {"ScaledUpdates"},
}
"""Names in the statements that define and attach the loop of a notebook."""


def about(source: str, names: set[str]) -> str:
    """The statements at the top of the source, other than imports, that use one of the names."""
    found = []
    for node in ast.parse(source).body:
        used = {one.id for one in ast.walk(node) if isinstance(one, ast.Name)}
        used |= {one.name for one in ast.walk(node) if isinstance(one, ast.ClassDef)}
        if used & names:
            found.append(ast.get_source_segment(source, node) or "")
    return "\n".join(found)


@pytest.mark.parametrize("notebook", LOOPS)
def test_a_user_writes_half_of_what_lightning_s_own_example_takes_or_less(notebook: str) -> None:
    cells = cells_of(notebook)
    whole = sum(map(count_lines, cells))
    loop = sum(count_lines(about(cell, LOOPS[notebook])) for cell in cells)
    their_whole, stated_whole, their_loop, stated_loop = row_of(notebook)
    assert whole <= stated_whole, whole
    assert loop <= stated_loop, loop
    assert 2 * stated_whole <= their_whole
    assert 2 * stated_loop <= their_loop


def test_so_does_active_learning() -> None:
    block = next(one for one in re.findall(r"```python\n(.*?)```", PAGE, re.S) if "bald" in one)
    (line,) = [line for line in PAGE.splitlines() if line.startswith("| active learning")]
    theirs, stated = (int(cell) for cell in line.split("|")[4:6])
    body = ast.parse(block).body[-1]
    assert isinstance(body, ast.FunctionDef)
    assert sum((one.end_lineno or 0) - one.lineno + 1 for one in body.body) == stated
    assert 2 * stated <= theirs
