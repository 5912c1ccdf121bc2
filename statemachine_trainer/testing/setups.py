"""A training set-up as plain data, and the trainer that it describes."""

from __future__ import annotations

import functools
import os
import shutil
import tempfile
import weakref
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal

import torch
from torch import nn
from torch.optim import LBFGS, SGD, Adam, Optimizer
from torch.optim import lr_scheduler as schedulers
from torch.utils.data import ConcatDataset, DataLoader

from statemachine_trainer.callbacks import Checkpoints, EarlyStopping
from statemachine_trainer.loops import (
    ActiveLearningLoop,
    BatchLoop,
    KFoldLoop,
    Phase,
    PhasesLoop,
    every,
)
from statemachine_trainer.loops.context_state import is_handed_state
from statemachine_trainer.loops.default_tree import loops_of_trainer
from statemachine_trainer.machine.loop import Loop
from statemachine_trainer.testing import specimens
from statemachine_trainer.trainer import Trainer

Optimization = Literal["sgd", "momentum", "adam", "two", "frequencies", "lbfgs", "manual"]
Schedule = Literal[
    "none", "step", "multistep", "epoch", "plateau", "onecycle", "restarts", "lambda", "sequential"
]
Data = Literal["map", "sampler", "list", "stream", "stateful stream"]
Swap = Literal["class", "instance", "twice", "nested", "nested twice"]
Tree = Literal["kfold", "active", "phases"]
Place = Literal[
    "data",
    "transform",
    "sampler",
    "collate",
    "attribute",
    "model",
    "loss",
    "scheduler",
    "callback",
    "receiver",
]


@dataclass(frozen=True)
class Setup:
    """A small training set-up. All of it is plain, so that a failing one can be read and repeated.

    Attributes:
        optimization: Which optimizers, and who steps them.
        schedule: The learning rate scheduler of the first optimizer.
        accumulate: `[(from_epoch, number), ...]`.
        split_steps: Time steps in a split, with a recurrent model; None for whole batches.
        validate_every: `[number, unit]`, of which a float with "epoch" is a fraction.
        validation_loaders: How many.
        sanity_batches: Validation batches tried before the first epoch.
        data: Kind of the training data.
        samples: Number of training samples.
        augment: Whether reading a sample draws random numbers.
        workers: Workers of the training loader.
        norm: With batch normalisation.
        dropout: With dropout.
        later: Attributes of the set-up that are others where the run goes on, such as
            `{"workers": 2}`; None for none.
        precision: "32", "bf16" or "fp16".
        tree: A recipe around the fit: two folds, two rounds of active learning, or two phases; None for none.
        compiled: Whether the model is compiled (by dynamo, without code of its own).
        swap: How another batch loop, or another epoch loop with another batch loop inside, takes
            the place of the usual one; None for not at all.
        own_generators: Where a generator lies that draws while the run goes on; None for nowhere.
            "model" is a hook of the model, "attribute" an attribute of it.
        rate: What the learning rates are multiplied with.
        clip_norm: Largest norm of the gradients; None for no clipping.
        nan_at: Batch of each epoch whose loss is NaN and is skipped; None for none.
        gather_outputs: Whether the outputs of an epoch are kept.
        stateful_callback: With a callback that has a state.
        stop_at: Batch after which a callback posts `stop`; None for never.
        posts: `[(batch, event), ...]` that a callback posts.
        sets: `[(batch, what), ...]`, what a callback sets: see `specimens.SetAt`.
        patience: Of early stopping on the validation loss; None for no early stopping.
        checkpoint_every: `[number, unit]`, how often checkpoints are written into a temporary
            folder; None for none.
        max_epochs: Epochs at most.
        max_steps: Optimizer steps at most; None for no limit.
        seed: Of the trainer.
        seed_samples: See `Trainer`.
    """

    optimization: Optimization = "adam"
    schedule: Schedule = "none"
    accumulate: list[tuple[int, int]] | None = None
    split_steps: int | None = None
    validate_every: list[Any] | None = None
    validation_loaders: int = 1
    sanity_batches: int = 0
    data: Data = "map"
    samples: int = 20
    augment: bool = True
    workers: int = 0
    norm: bool = True
    dropout: bool = True
    later: dict[str, Any] | None = None
    precision: str = "32"
    tree: Tree | None = None
    compiled: bool = False
    swap: Swap | None = None
    own_generators: Place | None = None
    rate: float = 1.0
    clip_norm: float | None = None
    nan_at: int | None = None
    gather_outputs: bool = False
    stateful_callback: bool = False
    stop_at: int | None = None
    posts: list[tuple[int, str]] | None = None
    sets: list[tuple[int, str]] | None = None
    patience: int | None = None
    checkpoint_every: list[Any] | None = None
    max_epochs: int = 2
    max_steps: int | None = None
    seed: int | None = 0
    seed_samples: bool | None = None

    @property
    def make_trainer(self) -> Callable[[], Trainer]:
        """Builds everything anew and returns a started trainer, also in another process."""
        return functools.partial(build, **asdict(self))

    @property
    def where_it_goes_on(self) -> Setup:
        """The set-up of the second start, with what `later` names."""
        return replace(self, later=None, **(self.later or {}))

    def describe(self) -> str:
        """Return code that builds this set-up and tries it."""
        return (
            "from statemachine_trainer.testing import assert_resumable\n"
            "from statemachine_trainer.testing.setups import Setup\n\n"
            f"setup = {self!r}\n"
            "assert_resumable(setup.make_trainer, seed=0)\n"
        )

    def __repr__(self) -> str:
        changed = {
            one.name: getattr(self, one.name)
            for one in fields(self)
            if getattr(self, one.name) != one.default
        }
        return f"Setup({', '.join(f'{name}={value!r}' for name, value in changed.items())})"


def build(**plain: Any) -> Trainer:
    """Build the trainer that a set-up describes, and start it."""
    setup = Setup(**plain)
    if is_handed_state():
        setup = setup.where_it_goes_on
    settings = _of_checkpoints(setup)
    of_fit: dict[str, Any] = {
        "max_epochs": setup.max_epochs,
        "max_steps": setup.max_steps,
        "sanity_batches": setup.sanity_batches,
        "split_steps": setup.split_steps,
        "gather_outputs": setup.gather_outputs,
        "validate_every": every(*setup.validate_every or [1.0, "epoch"]),
        **_of_optimization(setup),
    }
    settings |= {
        "callbacks": _callbacks(setup),
        "precision": setup.precision,
        "seed": setup.seed,
        "seed_samples": setup.seed_samples if setup.data in ("map", "sampler") else None,
        "progress": False,
    }
    trainer = _trainer(setup.tree, of_fit, settings)
    _swap(_fit_in(trainer, setup.tree), setup.swap)
    if setup.own_generators == "receiver":
        trainer.on("*.batch_end" if setup.tree else "batch_end", specimens.shaking())
    if "checkpoints" in settings:
        written = settings["checkpoints"].store.root
        weakref.finalize(trainer, shutil.rmtree, written, ignore_errors=True)
    model = _model(setup)
    if setup.own_generators in ("attribute", "loss"):
        specimens.add_generator(model, setup.own_generators)
    if setup.own_generators == "model":
        model.register_forward_pre_hook(specimens.noisy_inputs())
    if setup.compiled:
        model = torch.compile(model, backend="eager")  # type: ignore[assignment]
    trainer.start(model, _training_data(setup), _validation_data(setup))
    return trainer


def _callbacks(setup: Setup) -> list[object]:
    found: list[object] = [specimens.Stumbling()] if setup.stateful_callback else []
    posts = [*(setup.posts or ())]
    if setup.stop_at is not None:
        posts.append((setup.stop_at, "stop"))
    if posts:
        found.append(specimens.PostAt(posts))
    if setup.sets:
        found.append(specimens.SetAt(setup.sets))
    if setup.patience is not None:
        found.append(EarlyStopping("val_loss", patience=setup.patience))
    if setup.own_generators == "callback":
        found.append(specimens.Shaking())
    return found


def _trainer(tree: Tree | None, of_fit: dict[str, Any], settings: dict[str, Any]) -> Trainer:
    if tree is None:
        return Trainer(**settings, **of_fit)
    return Trainer(_tree(tree, of_fit), **settings)


def _tree(kind: Tree, of_fit: dict[str, Any]) -> Loop:
    """Return a recipe around fits with these settings."""

    def fit() -> Loop:
        return loops_of_trainer(None, of_fit, Trainer)["fit"]

    if kind == "kfold":
        return KFoldLoop(2, fit=fit())
    if kind == "active":
        return ActiveLearningLoop(first=10, query=5, rounds=2, fit=fit())
    return PhasesLoop(Phase("first", fit()), Phase("second", fit(), optimizer="new"))


def _fit_in(trainer: Trainer, tree: Tree | None) -> Loop:
    """Return the loop of a fit; of two phases the first."""
    root: Loop = trainer.loop
    if tree is None:
        return root
    return root["first" if tree == "phases" else "fit"]


def _swap(fit: Loop, how: Swap | None) -> None:
    if how == "class":
        fit.replace(batch=specimens.CountingBatches)
    elif how == "instance":
        fit["epoch.batch"] = specimens.CountingBatches()
    elif how == "twice":
        fit.replace(batch=BatchLoop)
        fit.replace(batch=specimens.CountingBatches)
    elif how in ("nested", "nested twice"):
        fit.replace(epoch=specimens.CountingEpochs)
        if how == "nested twice":
            fit["epoch"].replace(batch=specimens.CountingBatches)


def _of_checkpoints(setup: Setup) -> dict[str, Any]:
    """Write checkpoints into a folder that is named from the working directory."""
    if setup.checkpoint_every is None:
        return {}
    folder = os.path.relpath(tempfile.mkdtemp(prefix="setup-"))
    interval = every(*setup.checkpoint_every)
    return {"checkpoints": Checkpoints(folder, every=interval, on_signals=False)}


def _of_optimization(setup: Setup) -> dict[str, Any]:
    if setup.optimization == "manual":
        return {}
    settings: dict[str, Any] = {"clip_norm": setup.clip_norm}
    if setup.accumulate is not None and setup.optimization != "lbfgs":
        settings["accumulate"] = dict(setup.accumulate)
    if setup.nan_at is not None:
        settings["nonfinite_loss"] = "skip"
    return settings


def _model(setup: Setup) -> nn.Module:
    configure = functools.partial(_configure, setup)
    if setup.split_steps is not None:
        return specimens.Recurrent(dropout=setup.dropout, configure=configure)
    kinds = {"two": specimens.Pair, "frequencies": specimens.Pair, "manual": specimens.ByHand}
    usual = specimens.Tested if setup.tree == "kfold" else specimens.Net
    return kinds.get(setup.optimization, usual)(
        norm=setup.norm, dropout=setup.dropout, nan_at=setup.nan_at, configure=configure
    )


def _configure(setup: Setup, model: Any) -> Any:
    if setup.optimization in ("two", "frequencies"):
        optimizers = [
            Adam(model.body.parameters(), lr=0.02 * setup.rate),
            _momentum(model.head.parameters(), setup.rate),
        ]
        configs: list[dict[str, Any]] = [{"optimizer": one} for one in optimizers]
        if setup.optimization == "frequencies":
            configs[0]["frequency"], configs[1]["frequency"] = 2, 1
        _add_schedule(setup, configs[0])
        return configs
    config: dict[str, Any] = {"optimizer": _optimizer(setup, model)}
    _add_schedule(setup, config)
    return config


def _optimizer(setup: Setup, model: nn.Module) -> Optimizer:
    parameters = model.parameters()
    if setup.optimization == "lbfgs":
        return LBFGS(parameters, lr=0.1 * setup.rate, max_iter=3, history_size=3)
    if setup.optimization == "sgd":
        return SGD(parameters, lr=0.1 * setup.rate)
    if setup.optimization == "momentum":
        return _momentum(parameters, setup.rate)
    return Adam(parameters, lr=0.02 * setup.rate)


def _momentum(parameters: Any, rate: float) -> Optimizer:
    return SGD(parameters, lr=0.05 * rate, momentum=0.9, nesterov=True)


def _add_schedule(setup: Setup, config: dict[str, Any]) -> None:
    if setup.own_generators == "scheduler":
        jumping = schedulers.LambdaLR(config["optimizer"], specimens.jumping())
        config["lr_scheduler"] = {"scheduler": jumping, "interval": "step"}
        return
    if setup.schedule == "none":
        return
    made, interval = _schedule(setup.schedule, config["optimizer"])
    config["lr_scheduler"] = {"scheduler": made, "interval": interval}
    if setup.schedule == "plateau":
        config["lr_scheduler"] |= {"monitor": "loss", "strict": False}


def _schedule(kind: Schedule, optimizer: Optimizer) -> tuple[Any, str]:
    if kind == "step":
        return schedulers.StepLR(optimizer, 2), "step"
    if kind == "multistep":
        return schedulers.MultiStepLR(optimizer, [1, 3, 3]), "step"
    if kind == "epoch":
        return schedulers.ExponentialLR(optimizer, 0.7), "epoch"
    if kind == "plateau":
        return schedulers.ReduceLROnPlateau(optimizer, patience=0, factor=0.5), "epoch"
    if kind == "onecycle":
        made = schedulers.OneCycleLR(optimizer, 0.1, total_steps=100, cycle_momentum=False)
        return made, "step"
    if kind == "restarts":
        return schedulers.CosineAnnealingWarmRestarts(optimizer, 3), "step"
    if kind == "lambda":
        return schedulers.LambdaLR(optimizer, lambda count: 0.9**count), "step"
    warm_up = schedulers.LinearLR(optimizer, 0.5, total_iters=2)
    after = schedulers.ExponentialLR(optimizer, 0.9)
    return schedulers.SequentialLR(optimizer, [warm_up, after], milestones=[2]), "step"


def _training_data(setup: Setup) -> Any:
    sequences = setup.split_steps is not None
    samples: Any = specimens.Samples(setup.samples, augment=setup.augment, sequences=sequences)
    if setup.own_generators == "data":
        samples = ConcatDataset([specimens.Jittered(samples)])
    if setup.own_generators == "transform":
        samples = specimens.Transformed(samples, specimens.jitter())
    if setup.data == "list":
        loader = DataLoader(specimens.Samples(setup.samples, augment=False, sequences=sequences), 5)
        return [*loader]
    collate = specimens.noisy_collate() if setup.own_generators == "collate" else None
    settings: dict[str, Any] = {"batch_size": 5, "collate_fn": collate}
    if setup.data == "stream":
        return DataLoader(specimens.Stream(samples), **settings)
    if setup.data == "stateful stream":
        return DataLoader(specimens.StatefulStream(samples), **settings)
    settings["num_workers"] = setup.workers
    if setup.data == "sampler" or setup.own_generators == "sampler":
        settings["sampler"] = specimens.Shuffled(len(samples), 5)
        return DataLoader(samples, **settings)
    return DataLoader(samples, shuffle=True, **settings)


def _validation_data(setup: Setup) -> Any:
    sequences = setup.split_steps is not None
    loaders = [
        DataLoader(specimens.Samples(8 + 3 * n, augment=n > 0, sequences=sequences, seed=9), 6)
        for n in range(setup.validation_loaders)
    ]
    return loaders or None
