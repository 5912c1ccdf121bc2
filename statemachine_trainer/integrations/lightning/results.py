"""Where `self.log` of a LightningModule writes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

import torch

from statemachine_trainer.integrations.lightning.library import NotSupported
from statemachine_trainer.integrations.lightning.standing import Standing
from statemachine_trainer.loops.context import Context
from statemachine_trainer.loops.metrics.table import Metrics, is_metric

_REDUCTIONS: Final = {"mean": "mean", "avg": "mean", "sum": "sum", "min": "min", "max": "max"}
_OUTSIDE: Final = ("on_fit_start", "on_train_start")
"""Hooks that may log, and are called outside of any pass over data."""

_REDUCED_ALREADY: Final = ("on_train_epoch_end", "on_validation_epoch_end", "on_test_epoch_end")
"""Hooks that may log, and are called when what was logged in a pass has been reduced over the ranks."""


class Results:
    """Takes the place of Lightning's collection of results.

    With `on_step` and `on_epoch` both, a value is kept under three names as in Lightning: `loss`,
    `loss_step` (the newest value) and `loss_epoch` (reduced over the pass). The number of a loader
    comes last: `loss_epoch/dataloader_idx_1`.

    Args:
        standing: Where the run stands.

    Attributes:
        hidden: Names that were logged with `logger=False`.
        steps: The newest values logged with `on_step` while a model was evaluated.
        epochs: Names of what was logged with `on_epoch`, that of the whole pass.
        synced: Names of what was logged with `on_epoch` and `sync_dist`.
    """

    def __init__(self, standing: Standing) -> None:
        self._standing = standing
        self.hidden: set[str] = set()
        self.steps: dict[str, Any] = {}
        self.epochs: dict[str, str] = {}
        self.synced: set[str] = set()

    def log(
        self,
        fx: str,
        name: str,
        value: Any,
        *,
        on_step: bool,
        on_epoch: bool,
        prog_bar: bool = False,
        logger: bool = True,
        reduce_fx: Any = "mean",
        add_dataloader_idx: bool = True,
        batch_size: Any = None,
        sync_dist: bool = False,
        sync_dist_fn: Callable[..., Any] | None = None,
        sync_dist_group: Any = None,
        rank_zero_only: bool = False,
        **_: Any,
    ) -> None:
        """Log one value, as `LightningModule.log` does once it has checked it."""
        standing = self._standing
        context = standing.context
        table = context.log_table
        if table is None or fx in _OUTSIDE:
            context.results[name] = float(value)
            return
        suffix = ""
        if add_dataloader_idx and context.log_suffix:
            suffix = f"/dataloader_idx_{context.dataloader_idx}"
        forked = on_step and on_epoch
        whole, step, epoch = f"{name}{suffix}", f"{name}_step{suffix}", f"{name}_epoch{suffix}"
        step = step if forked else whole
        evaluated = table is context.validation_metrics
        self._note_for_loggers(whole, step, epoch if forked else whole, on_epoch, logger)
        reduce = _reduction(name, reduce_fx)
        if is_metric(value):
            if on_step and evaluated:
                self.steps[step] = getattr(value, "_forward_cache", None)
            _log_metric(
                table, (whole, step, epoch), value, on_step, on_epoch, prog_bar, evaluated=evaluated
            )
            return
        newest = value
        if sync_dist and sync_dist_fn is not None and self._is_of_all_ranks(rank_zero_only):
            if on_epoch:
                self.synced.update((whole, epoch))
            if on_step or fx in _REDUCED_ALREADY:
                given = value.clone() if isinstance(value, torch.Tensor) else torch.tensor(value)
                newest = sync_dist_fn(given, group=sync_dist_group, reduce_op=reduce)
            value = newest if fx in _REDUCED_ALREADY else value
        if on_epoch:
            if isinstance(batch_size, torch.Tensor):
                batch_size = batch_size.item()
            if reduce == "mean" and batch_size is None:
                batch_size = table.weight_of(context.split, name)
            settings = {"batch_size": batch_size, "reduce": reduce, "prog_bar": prog_bar}
            for one in (whole, epoch) if forked else (whole,):
                table.log(one, value, **settings)
        if on_step and evaluated:  # kept out of the metrics of the pass, as in Lightning
            self.steps[step] = newest
        elif on_step:
            shown = prog_bar and not forked
            table.log(step, newest, reduce="last", on_step=True, prog_bar=shown)

    def _is_of_all_ranks(self, rank_zero_only: bool) -> bool:
        """Whether all ranks log a value, so that it can be reduced where it is logged."""
        return not rank_zero_only and self._standing.speaks

    def reset(self, **_: Any) -> None:
        """Do nothing: a pass begins with an empty table."""

    def _note_for_loggers(
        self, whole: str, step: str, epoch: str, on_epoch: bool, logger: bool
    ) -> None:
        if on_epoch:
            self.epochs[whole] = epoch
        for name in (whole, step, epoch):
            (self.hidden.discard if logger else self.hidden.add)(name)


def _log_metric(
    table: Metrics,
    names: tuple[str, str, str],
    metric: Any,
    on_step: bool,
    on_epoch: bool,
    prog_bar: bool,
    *,
    evaluated: bool,
) -> None:
    whole, step, epoch = names
    if evaluated and not on_epoch:
        return
    forked = on_step and on_epoch  # then the value of a step has a name of its own
    table.log(
        whole,
        metric,
        on_step=on_step and not evaluated and not forked,
        on_epoch=on_epoch,
        prog_bar=prog_bar,
    )
    if forked:
        table.log(epoch, metric)
        newest = getattr(metric, "_forward_cache", None)
        if newest is not None and not evaluated:
            table.log(step, newest, reduce="last", on_step=True)


def _reduction(name: str, reduce_fx: Any) -> Any:
    asked = reduce_fx if isinstance(reduce_fx, str) else getattr(reduce_fx, "__name__", "?")
    asked = asked.lower().removeprefix("a") if asked in ("amin", "amax") else asked.lower()
    if asked not in _REDUCTIONS:
        raise NotSupported(
            f"self.log({name!r}, reduce_fx={reduce_fx!r}): a value is reduced by 'mean', 'sum', 'min' or "
            "'max'. For another reduction log a torchmetrics object."
        )
    return _REDUCTIONS[asked]


def known_metrics(context: Context) -> dict[str, float]:
    """Return all metrics as Lightning's `callback_metrics` has them, those of the last step as well."""
    known = context.read_metrics()
    for table in (context.train_metrics, context.validation_metrics):
        for name, value in table.newest().items():
            known.setdefault(name, value)
    return known


def as_tensors(values: Mapping[str, float]) -> dict[str, torch.Tensor]:
    """Return numbers as tensors, as callbacks of Lightning expect them."""
    return {name: torch.tensor(value) for name, value in values.items()}
