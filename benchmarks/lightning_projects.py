"""Lightning modules of other people, trained in Lightning's trainer and in ours.

The first call sets up an environment under the cache folder, which shares torch and Lightning with
this one and adds the packages that the modules come from. Each module is then fitted for two epochs on
data that are made here, in both trainers and from the same seed: weights, metrics, and the order of the
hooks. A third fit is killed in the middle of its second epoch (its process ends at once, without a word)
and resumed by another process from its checkpoint.

    python benchmarks/lightning_projects.py [--only DeepAR] [--write docs/performance] [--set-up]

A row says whether the weights are the same bits, whether metrics have the same names and values, whether
hooks come in the same order, and whether the resumed fit ends with the same bits as the undisturbed one;
else what went wrong. (Values of metrics may differ in their last digit: docs/migration.md.)
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import os
import subprocess
import sys
import tempfile
import venv
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

from _lightning_modules import PACKAGES, Make, projects

HOOKS = (
    "on_fit_start", "on_train_start", "on_train_epoch_start", "on_train_batch_start", "training_step",
    "on_before_zero_grad", "on_before_backward", "on_after_backward", "on_before_optimizer_step",
    "on_train_batch_end", "on_validation_start", "validation_step", "on_validation_end",
    "on_train_epoch_end", "on_train_end", "on_fit_end",
)  # fmt: skip
KILLED = 9


# -- one module -----------------------------------------------------------------------------------


def examine(make: Make) -> dict[str, str]:
    """Fit a module in both trainers, and stop and resume it in ours."""
    found: dict[str, str] = {}
    try:
        theirs, metrics, heard = _in_lightning(make)
    except Exception as error:
        return {"in Lightning": _said(error)}
    try:
        ours, metrics_here, heard_here = _here(make)
    except Exception as error:
        return {"in Lightning": "runs", "here": _said(error)}
    found.update({"in Lightning": "runs", "here": "runs"})
    found["weights"] = "same bits"
    if not _same(theirs, ours):
        again = _in_lightning(make)[0]
        found["weights"] = "other" if _same(theirs, again) else "other, as of two runs of Lightning"
    found["metrics"] = _compared(metrics, metrics_here)
    found["hooks"] = "same order" if heard == heard_here else "other"
    try:
        found["resumed"] = "same bits" if _same(ours, _resumed(make)) else "other"
    except Exception as error:
        found["resumed"] = _said(error)
    return found


def _compared(theirs: dict[str, float], ours: dict[str, float]) -> str:
    if theirs.keys() != ours.keys():
        return f"other names: {', '.join(sorted(theirs.keys() ^ ours.keys()))}"
    other = [n for n, v in theirs.items() if not math.isclose(v, ours[n], rel_tol=1e-5) and v == v]
    return f"other values: {', '.join(other)}" if other else f"same ({len(theirs)})"


def _seed(number: int) -> None:
    import random

    import numpy as np
    import torch

    random.seed(number)
    np.random.seed(number)
    torch.manual_seed(number)


def _noting(heard: list[str]) -> Any:
    from lightning.pytorch.callbacks import Callback

    def hook(name: str) -> Callable[..., None]:
        return lambda self, *_: heard.append(name)

    return type("Noting", (Callback,), {n: hook(n) for n in HOOKS if hasattr(Callback, n)})()


def _of_the_same_base(module: Any, callback: Any) -> Any:
    """Return a callback of the package that the module is of: there are two, with classes of their own."""
    if any(base.__module__.startswith("pytorch_lightning") for base in type(module).__mro__):
        import pytorch_lightning as pl

        return type(
            "Noting", (pl.Callback,), {n: v for n, v in vars(type(callback)).items() if n in HOOKS}
        )()
    return callback


def _trainer_of(module: Any) -> Any:
    root = "pytorch_lightning" if any(
        base.__module__.startswith("pytorch_lightning") for base in type(module).__mro__
    ) else "lightning"  # fmt: skip
    return __import__(root).Trainer


def _in_lightning(make: Make) -> tuple[Any, dict[str, float], list[str]]:
    _seed(1)
    module, train, validation = make()
    heard: list[str] = []
    trainer = _trainer_of(module)(
        max_epochs=2, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[_of_the_same_base(module, _noting(heard))],
        use_distributed_sampler=False,
    )  # fmt: skip
    _seed(2)
    trainer.fit(module, _loader(train), _loader(validation))
    return module.state_dict(), _numbers(trainer.callback_metrics), heard


def _here(make: Make) -> tuple[Any, dict[str, float], list[str]]:
    from statemachine_trainer import Trainer
    from statemachine_trainer.integrations import lightning

    _seed(1)
    module, train, validation = make()
    heard: list[str] = []
    trainer = Trainer(max_epochs=2, device="cpu", progress=False)
    _seed(2)
    model = lightning.module(module, callbacks=[_of_the_same_base(module, _noting(heard))])
    trainer.fit(model, _loader(train), _loader(validation))
    return module.state_dict(), _numbers(module.trainer.callback_metrics), heard


def _numbers(metrics: Any) -> dict[str, float]:
    return {name: float(value) for name, value in metrics.items()}


def _resumed(make: Make) -> Any:
    """Kill a fit in a process of its own, and go on with it here."""
    with tempfile.TemporaryDirectory() as folder:
        child = os.fork()
        if child == 0:
            with suppress(BaseException):
                _fit_with_checkpoints(make, folder, _die)
            os._exit(1)
        _, status = os.waitpid(child, 0)
        if os.waitstatus_to_exitcode(status) != KILLED:
            raise NotKilled("the fit that was to be killed ended before")
        return _fit_with_checkpoints(make, folder)


class NotKilled(Exception):
    """A fit did not come as far as the moment at which it was to be killed."""


def _die(trainer: Any) -> None:
    os._exit(KILLED)


def _fit_with_checkpoints(
    make: Make, folder: str, end: Callable[[Any], None] | None = None
) -> dict[str, Any]:
    from statemachine_trainer import Checkpoints, Trainer
    from statemachine_trainer.integrations import lightning

    _seed(1)
    module, train, validation = make()
    checkpoints = Checkpoints(folder, every="1 batch")
    trainer = Trainer(max_epochs=2, device="cpu", progress=False, checkpoints=checkpoints)
    if end is not None:
        trainer.on(
            "batch_start", end, when=lambda t, _: t.epoch == 1 and t.context.batch_idx == _middle(t)
        )
    _seed(2)
    trainer.fit(lightning.module(module), _loader(train), _loader(validation), resume="auto")
    weights: dict[str, Any] = module.state_dict()
    return weights


def _middle(trainer: Any) -> int:
    """Number of a batch in the middle of an epoch."""
    return int((trainer.context.counts.batches_per_epoch or 4) // 2)


def _loader(batches: Any) -> Any:
    """Return batches in a loader that both trainers take."""
    if not isinstance(batches, list):
        return batches
    from torch.utils.data import DataLoader, Dataset

    return DataLoader(cast(Dataset[Any], batches), batch_size=None)


def _same(one: Any, other: Any) -> bool:
    import torch

    return one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"


# -- all of them ----------------------------------------------------------------------------------


def set_up() -> Path:
    """Make the environment, unless it is there; return its Python."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    home = cache / "statemachine_trainer" / "lightning_projects"
    python = home / "bin" / "python"
    if not (home / "ready").exists():
        venv.create(home, with_pip=True, clear=True)
        (site,) = home.glob("lib/python*/site-packages")
        ours = [p for p in sys.path if p.endswith("site-packages")]
        (site / "shared.pth").write_text("\n".join([*ours, str(Path(__file__).parents[1])]) + "\n")
        subprocess.run([python, "-m", "pip", "install", "-q", *PACKAGES], check=True)
        (home / "ready").touch()
    return python


def table(found: dict[str, dict[str, str]]) -> str:
    """Return the findings as a table in Markdown."""
    columns = ("in Lightning", "here", "weights", "metrics", "hooks", "resumed")
    rows = ["| module | " + " | ".join(columns) + " |", "|---" * 7 + "|"]
    for name, one in found.items():
        rows.append(f"| {name} | " + " | ".join(one.get(c, "") for c in columns) + " |")
    return "\n".join(rows)


def main() -> None:
    """Set up, run, print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", help="modules whose name has this in it")
    parser.add_argument("--write", type=Path, help="folder for the table")
    parser.add_argument("--set-up", action="store_true", help="set up and do nothing else")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if not options.inside:
        python = set_up()
        if not options.set_up:
            subprocess.run(
                [python, "-W", "ignore", __file__, "--inside", *sys.argv[1:]], check=True
            )
        return
    import torch

    torch.set_num_threads(1)  # a process with several cannot be forked
    warnings.simplefilter("ignore")
    for name in ("lightning.pytorch", "pytorch_lightning", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    found = {}
    for name, make in projects(options.only or "").items():
        if options.only is None or options.only in name:
            found[name] = examine(make)
            print(name, json.dumps(found[name]), file=sys.stderr, flush=True)
    print(table(found))
    if options.write is not None:
        options.write.mkdir(parents=True, exist_ok=True)
        text = f"# Lightning modules of other people\n\n{table(found)}\n"
        (options.write / "lightning_projects.md").write_text(text)


if __name__ == "__main__":
    main()
