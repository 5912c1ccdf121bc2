"""Lightning modules of other people, trained in Lightning's trainer and in ours.

The first call sets up an environment under the cache folder, which shares torch and Lightning with
this one and adds the packages that the modules come from. Each module is then fitted for two epochs on
data that are made here, in both trainers and from the same seed: weights, and the order of the hooks. A
third fit is left in the middle of its second epoch and resumed by new objects from its checkpoint.

    python benchmarks/lightning_projects.py [--only DeepAR] [--write docs/performance] [--set-up]

A row says whether the weights are the same bits, whether hooks come in the same order, and whether the
resumed fit ends with the same bits as the undisturbed one; else what went wrong.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import subprocess
import sys
import tempfile
import venv
import warnings
from collections.abc import Callable
from importlib import import_module
from itertools import islice
from pathlib import Path
from typing import Any, cast

PACKAGES = ("gluonts==0.17.0",)
HOOKS = (
    "on_fit_start", "on_train_start", "on_train_epoch_start", "on_train_batch_start", "training_step",
    "on_before_zero_grad", "on_before_backward", "on_after_backward", "on_before_optimizer_step",
    "on_train_batch_end", "on_validation_start", "validation_step", "on_validation_end",
    "on_train_epoch_end", "on_train_end", "on_fit_end",
)  # fmt: skip
Parts = tuple[Any, Any, Any]
"""Module, training loader, validation loader or None."""


def projects() -> dict[str, Callable[[], Parts]]:
    """Return what makes each module with its data."""
    return {**_demos(), **_gluonts()}


def _demos() -> dict[str, Callable[[], Parts]]:
    import torch
    from lightning.pytorch.demos import boring_classes
    from torch.utils.data import DataLoader, TensorDataset

    def boring(kind: Any) -> Callable[[], Parts]:
        def make() -> Parts:
            data = boring_classes.BoringDataModule()
            data.setup("fit")
            data.setup("validate")
            return kind(), data.train_dataloader(), data.val_dataloader()

        return make

    def demo() -> Parts:
        data = TensorDataset(torch.randn(24, 32))
        loader = DataLoader(
            data, batch_size=4, shuffle=True, collate_fn=lambda b: torch.stack([o[0] for o in b])
        )
        return boring_classes.DemoModel(out_dim=10), loader, None

    return {
        "Lightning demos: BoringModel": boring(boring_classes.BoringModel),
        "Lightning demos: ManualOptimBoringModel": boring(boring_classes.ManualOptimBoringModel),
        "Lightning demos: DemoModel": demo,
    }


def _gluonts() -> dict[str, Callable[[], Parts]]:
    import numpy as np

    # By their names: gluonts is only in an environment of its own.
    g: Any = import_module("gluonts.torch")
    common: Any = import_module("gluonts.dataset.common")
    i_transformer: Any = import_module("gluonts.torch.model.i_transformer")

    series: list[dict[str, Any]] = [
        {"start": "2024-01-01", "target": np.sin(np.arange(120) / (3 + i)).astype("float32") + i}
        for i in range(6)
    ]
    several = [
        {"start": "2024-01-01", "target": np.stack([one["target"] for one in series[:3]])}
        for _ in range(4)
    ]

    def project(kind: Any, multivariate: bool = False, **settings: Any) -> Callable[[], Parts]:
        def make() -> Parts:
            estimator = kind(prediction_length=6, batch_size=8, num_batches_per_epoch=5, **settings)
            data = common.ListDataset(
                several if multivariate else series, freq="D", one_dim_target=not multivariate
            )
            transform = estimator.create_transformation()
            made = transform.apply(data, is_train=True)
            module = estimator.create_lightning_module()
            batches = estimator.create_training_data_loader(made, module)
            validation = estimator.create_validation_data_loader(made, module)
            return module, list(islice(batches, 5)), list(islice(validation, 2))

        return make

    return {
        "gluonts: SimpleFeedForward": project(g.SimpleFeedForwardEstimator),
        "gluonts: SimpleFeedForward, batch norm": project(
            g.SimpleFeedForwardEstimator, batch_norm=True
        ),
        "gluonts: DeepAR": project(g.DeepAREstimator, freq="D"),
        "gluonts: TemporalFusionTransformer": project(
            g.TemporalFusionTransformerEstimator, freq="D"
        ),
        "gluonts: DLinear": project(g.DLinearEstimator),
        "gluonts: PatchTST": project(g.PatchTSTEstimator, patch_len=4),
        "gluonts: LagTST": project(g.LagTSTEstimator, freq="D"),
        "gluonts: TiDE": project(g.TiDEEstimator, freq="D"),
        "gluonts: WaveNet": project(g.WaveNetEstimator, freq="D"),
        "gluonts: ITransformer": project(i_transformer.ITransformerEstimator, multivariate=True),
    }


# -- one module -----------------------------------------------------------------------------------


def examine(make: Callable[[], Parts]) -> dict[str, str]:
    """Fit a module in both trainers, and stop and resume it in ours."""
    found: dict[str, str] = {}
    try:
        theirs, heard = _in_lightning(make)
    except Exception as error:
        return {"in Lightning": _said(error)}
    try:
        ours, heard_here = _here(make)
    except Exception as error:
        return {"in Lightning": "runs", "here": _said(error)}
    found.update({"in Lightning": "runs", "here": "runs"})
    found["weights"] = "same bits" if _same(theirs, ours) else "other"
    found["hooks"] = "same order" if heard == heard_here else "other"
    try:
        found["resumed"] = "same bits" if _same(ours, _resumed(make)) else "other"
    except Exception as error:
        found["resumed"] = _said(error)
    return found


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


def _in_lightning(make: Callable[[], Parts]) -> tuple[Any, list[str]]:
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
    return module.state_dict(), heard


def _here(make: Callable[[], Parts]) -> tuple[Any, list[str]]:
    from statemachine_trainer import Trainer
    from statemachine_trainer.integrations import lightning

    _seed(1)
    module, train, validation = make()
    heard: list[str] = []
    trainer = Trainer(max_epochs=2, device="cpu", progress=False)
    _seed(2)
    model = lightning.module(module, callbacks=[_of_the_same_base(module, _noting(heard))])
    trainer.fit(model, _loader(train), _loader(validation))
    return module.state_dict(), heard


def _resumed(make: Callable[[], Parts]) -> Any:
    from statemachine_trainer import Checkpoints, Trainer
    from statemachine_trainer.integrations import lightning

    with tempfile.TemporaryDirectory() as folder:
        for until in ("left", None):
            _seed(1)
            module, train, validation = make()
            checkpoints = Checkpoints(folder, every="1 batch")
            trainer = Trainer(max_epochs=2, device="cpu", progress=False, checkpoints=checkpoints)
            if until is not None:
                trainer.on(
                    "batch_start",
                    _leave,
                    when=lambda t, _: t.epoch == 1 and t.context.batch_idx == 2,
                )
            _seed(2)
            model = lightning.module(module)
            try:
                trainer.fit(model, _loader(train), _loader(validation), resume="auto")
            except _Left:
                continue
        return module.state_dict()


class _Left(Exception):
    """Ends a fit in its middle."""


def _leave(trainer: Any) -> None:
    raise _Left


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
    columns = ("in Lightning", "here", "weights", "hooks", "resumed")
    rows = ["| module | " + " | ".join(columns) + " |", "|---" * 6 + "|"]
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
    warnings.simplefilter("ignore")
    for name in ("lightning.pytorch", "pytorch_lightning", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    found = {}
    for name, make in projects().items():
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
