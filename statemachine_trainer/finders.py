"""Finders of settings: a learning rate and the largest batch size, by short fits that leave no trace."""

from __future__ import annotations

import gc
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from statemachine_trainer.data.makers import is_maker, made_by
from statemachine_trainer.data.sources import reloaded
from statemachine_trainer.loops.loop_errors import SettingError
from statemachine_trainer.loops.samples import is_out_of_memory
from statemachine_trainer.loops.settings_checks import number, refuse, whole_number
from statemachine_trainer.loops.untouched import untouched
from statemachine_trainer.parallel.cut_up import is_cut_up, settle
from statemachine_trainer.parallel.ranks import Ranks
from statemachine_trainer.parallel.wrappers import see_through
from statemachine_trainer.snapshot.ranked import do_together
from statemachine_trainer.trainer import Trainer

_SMOOTH: Final = 0.9
"""How much of the running mean of the loss stays at each step."""

_SET_HERE: Final = (
    "max_epochs",
    "max_steps",
    "max_batches",
    "checkpoints",
    "run",
    "progress",
    "callbacks",
)


@dataclass(frozen=True)
class LearningRates:
    """What `find_learning_rate` returns.

    Attributes:
        rates: The rates that were tried, rising.
        losses: The loss of the step at each of them.
        smooth: The same as a running mean.
        suggestion: The rate at which the loss fell fastest; None if it never fell.
    """

    rates: Sequence[float]
    losses: Sequence[float]
    smooth: Sequence[float]
    suggestion: float | None

    def plot(self) -> Any:
        """Return a figure of matplotlib: the loss over the rate, with the suggestion.

        Raises:
            SettingError: matplotlib is not installed.
        """
        try:
            from matplotlib.figure import Figure
        except ImportError as error:
            raise SettingError(
                "A plot needs matplotlib: pip install 'statemachine-trainer[bench]'. Or draw `rates` and `smooth` "
                "yourself."
            ) from error
        figure = Figure()
        axes = figure.add_subplot()
        axes.plot(self.rates, self.losses, alpha=0.3)
        axes.plot(self.rates, self.smooth)
        if self.suggestion is not None:
            axes.axvline(self.suggestion, linestyle="--", label=f"{self.suggestion:.2g}")
            axes.legend()
        axes.set(xscale="log", xlabel="learning rate", ylabel="loss")
        return figure


def find_learning_rate(
    model: nn.Module,
    train: Any,
    *,
    loss: Any = None,
    optimizer: Any = None,
    lowest: float = 1e-7,
    highest: float = 1.0,
    steps: int = 100,
    diverged: float = 4.0,
    **settings: Any,
) -> LearningRates:
    """Try learning rates: train for some steps, with a rate that rises from step to step.

    Afterwards the model, the data, an optimizer and all generators are as they were, to the bit. The rate of all groups
    of parameters is set. Validation, checkpoints and schedulers have no part in it.

    All ranks of a run call it together, with the model as `fit` gets it: they take the same steps, and find the same by
    the mean of their losses.

    Smith, "Cyclical Learning Rates for Training Neural Networks", WACV 2017.

    Args:
        model: As for `fit`.
        train: The training data, as for `fit`.
        loss: For a plain model.
        optimizer: For a model that configures none.
        lowest: The first rate.
        highest: The last rate.
        steps: How many rates, evenly on a logarithmic scale; at least 5.
        diverged: Stop when the mean loss is so many times its smallest value so far.
        **settings: Of the `Trainer`, such as `accumulate`, `clip_norm`, `device`, `precision` and `seed`.

    Raises:
        SettingError: A setting out of its range, several optimizers or one by hand, lazy layers, or data that can be
            read only once.
    """
    name = "find_learning_rate"
    low, high = number(name, "lowest", lowest), number(name, "highest", highest)
    if low >= high:
        refuse(name, "lowest", lowest, f"use a rate below highest={highest!r}.")
    whole_number(name, "steps", steps, 5)
    if number(name, "diverged", diverged) <= 1:
        refuse(name, "diverged", diverged, "use a number above 1.")
    _refuse_manual(model)
    rates = [low * (high / low) ** (place / (steps - 1)) for place in range(steps)]
    sweep = _Sweep(rates, diverged)
    accumulate = settings.get("accumulate", 1)
    window = accumulate if isinstance(accumulate, int) else 1000
    limits = {
        "max_steps": steps,
        "max_batches": 2 * steps * max(window, 1),
    }  # steps may fail to come
    _train(name, model, train, loss, optimizer, settings, sweep, **limits)
    if not sweep.losses:
        raise SettingError(
            f"find_learning_rate: {type(model).__name__} made no optimizer step. Does its training step return a loss?"
        )
    tried = rates[: len(sweep.losses)]
    return LearningRates(tried, sweep.losses, sweep.smooth, _steepest(tried, sweep.smooth))


def find_batch_size(
    model: nn.Module,
    train: DataLoader[Any],
    *,
    loss: Any = None,
    optimizer: Any = None,
    start: int = 2,
    most: int | None = None,
    steps: int = 2,
    **settings: Any,
) -> int:
    """Find the largest batch size that fits into memory: double it, then halve the distance to the first that failed.

    Afterwards the model, the data, an optimizer and all generators are as they were, to the bit. Leave some room: other
    samples, the validation, or pieces of memory that lie apart may need more.

    All ranks of a run call it together. Each tries the model by itself, without its wrapper, so that none waits for one
    whose memory has run out. What fits is what fits at all of them, and is the batch size of each.

    Args:
        model: As for `fit`.
        train: A `DataLoader` over a data set with a length; its collate function, workers and so on are taken over.
        loss: For a plain model.
        optimizer: For a model that configures none.
        start: The first size; 1 for a model without batch normalization.
        most: The largest size; that of the data set unless given.
        steps: Batches that are trained on with each size.
        **settings: Of the `Trainer`, such as `accumulate`, `device` and `precision`.

    Raises:
        SettingError: A setting out of its range, lazy layers, or `start` does not fit. Or several ranks exchange
            something within a forward pass: parts of parameters, or what layers see.
        BadSource: Something of its own chooses samples or batches.
    """
    name = "find_batch_size"
    size = whole_number(name, "start", start, 1)
    steps = whole_number(name, "steps", steps, 1)
    loader = made_by(train, "train", None) if is_maker(train) else train
    if not isinstance(loader, DataLoader) or not hasattr(loader.dataset, "__len__"):
        refuse(
            name, "train", type(loader).__name__, "give a DataLoader over a data set with a length."
        )
    ranks, (plain, _) = Ranks.here(), see_through(model)
    if ranks is not None:
        _refuse_exchanges(plain)
    largest = _samples(loader, ranks)
    if most is not None:
        largest = min(largest, whole_number(name, "most", most, 1))
    if size > largest:
        refuse(name, "start", start, f"use a size up to {largest}.")

    def fits(tried: int) -> bool:
        if ranks is None:
            return fits_here(tried)
        found: list[bool] = []
        with Ranks.apart():
            do_together(ranks, lambda: found.append(fits_here(tried)))
        return ranks.objector(found[0]) is None

    def fits_here(tried: int) -> bool:
        with untouched(plain, loader, optimizer):
            other = reloaded(loader, loader.dataset, batch_size=tried)
        enough = {"max_batches": steps, "limit_train_batches": max(1, largest // tried)}
        try:
            _train(name, plain, other, loss, optimizer, settings, None, **enough)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            return False
        finally:
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
        return True

    if not fits(size):
        raise SettingError(
            f"find_batch_size: a batch of {size} does not fit{'' if ranks is None else ' at one of the ranks'}. "
            "Begin with a smaller start=."
        )
    good, bad = size, largest + 1
    while good < largest and bad > largest:
        tried = min(2 * good, largest)
        good, bad = (tried, bad) if fits(tried) else (good, tried)
    while bad - good > 1:
        tried = (good + bad) // 2
        good, bad = (tried, bad) if fits(tried) else (good, tried)
    return good


class _Sweep:
    """Sets the rate before each step, and notes the loss of the step."""

    def __init__(self, rates: Sequence[float], diverged: float) -> None:
        self.losses: list[float] = []
        self.smooth: list[float] = []
        self._rates = rates
        self._diverged = diverged
        self._mean = 0.0
        self._lowest = math.inf

    def on_fit_start(self, trainer: Any) -> None:
        """Leave schedulers out: the rate is set here, and they may be made for fewer steps."""
        for slot in trainer.context.slots:
            slot.schedulers = []

    def on_optimizer_step(self, trainer: Any) -> None:
        context = trainer.context
        if len(context.slots) > 1:
            raise SettingError(
                f"find_learning_rate: {type(context.model).__name__} has {len(context.slots)} optimizers, and one rate "
                "would be set for all of them. Try the rates of one after the other in fits of your own."
            )
        done = len(self.losses)
        if done == len(self._rates):
            return
        for group in context.optimizers[0].param_groups:
            rate, now = group["lr"], self._rates[done]
            group["lr"] = torch.full_like(rate, now) if isinstance(rate, torch.Tensor) else now
        loss = context.loss
        self._note(float("nan") if loss is None else float(context.steps.sync.mean(loss.detach())))
        if not math.isfinite(self.smooth[-1]) or self.smooth[-1] > self._diverged * abs(
            self._lowest
        ):
            trainer.stop()

    def _note(self, loss: float) -> None:
        self.losses.append(loss)
        self._mean = _SMOOTH * self._mean + (1 - _SMOOTH) * loss
        mean = self._mean / (1 - _SMOOTH ** len(self.losses))  # without the zero that it began with
        self.smooth.append(mean)
        self._lowest = min(self._lowest, mean) if mean > 0 else self._lowest


def _train(
    name: str,
    model: nn.Module,
    train: Any,
    loss: Any,
    optimizer: Any,
    settings: dict[str, Any],
    callback: object | None,
    **limits: Any,
) -> None:
    """Train for a while; leave no trace, also after an error."""
    if taken := [one for one in _SET_HERE if one in settings]:
        raise SettingError(
            f"{name}({taken[0]}=...): this is set by the search itself. Leave it out."
        )
    plain, _ = see_through(model)
    trainer = Trainer(
        callbacks=[] if callback is None else [callback], progress=False, **settings, **limits
    )
    settle(plain)
    with untouched(plain, train, optimizer):
        given = {"loss": loss, "optimizer": optimizer}
        try:
            trainer.fit(model, train, **{key: one for key, one in given.items() if one is not None})
        finally:
            context = trainer.driver.context
            if context is not None and context.train is not None:
                context.train.shutdown()


def _samples(loader: DataLoader[Any], ranks: Ranks | None) -> int:
    """Return how many samples a pass has, at each rank."""
    if ranks is None:
        return len(loader.dataset)  # type: ignore[arg-type]
    sampler: Any = getattr(loader.batch_sampler, "sampler", loader.sampler)
    mine = len(sampler) if hasattr(sampler, "__len__") else len(loader.dataset)  # type: ignore[arg-type]
    return -int(ranks.largest([-mine])[0])


def _refuse_exchanges(model: nn.Module) -> None:
    """Refuse a model that exchanges something within its passes: a rank without memory would keep others waiting."""
    what = None
    if any(is_cut_up(one) for one in model.parameters()):
        what = "its parameters are cut up among the ranks, which exchange parts of them"
    elif any(isinstance(one, DistributedDataParallel) for one in model.modules()):
        what = "networks inside of it are in DistributedDataParallel"
    elif any(isinstance(one, nn.SyncBatchNorm) for one in model.modules()):
        what = "it has a SyncBatchNorm"
    if what is not None:
        raise SettingError(
            f"find_batch_size lets each rank try {type(model).__name__} by itself, and {what}. Try sizes in short fits "
            "of your own, or search with a model that is in no wrapper, in one process."
        )


def _refuse_manual(model: nn.Module) -> None:
    plain, _ = see_through(model)
    if getattr(plain, "automatic_optimization", True) is False:
        raise SettingError(
            f"find_learning_rate: {type(plain).__name__} optimizes by hand, and sets its rates itself. Try them in "
            "short fits of your own."
        )


def _steepest(rates: Sequence[float], losses: Sequence[float]) -> float | None:
    """Return the rate at which the loss falls fastest over the logarithm of the rate."""
    places = range(max(1, len(rates) // 10), len(rates) - 1)  # the mean of the first few is noise
    slopes = {place: losses[place + 1] - losses[place - 1] for place in places}
    finite = {place: one for place, one in slopes.items() if math.isfinite(one)}
    if not finite:
        return None
    best = min(finite, key=finite.__getitem__)
    return rates[best] if finite[best] < 0 else None
