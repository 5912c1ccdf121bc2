"""Where `self.log` of a LightningModule writes: the trainer's own table of metrics."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from statemachine_trainer.integrations._lightning_library import NotSupported
from statemachine_trainer.loops.metrics import Metrics, batch_size_of, is_metric

if TYPE_CHECKING:
    from statemachine_trainer.loops.context import Context

_REDUCTIONS: Final = {"mean": "mean", "avg": "mean", "sum": "sum", "min": "min", "max": "max"}


class Results:
    """Takes the place of Lightning's collection of results.

    With `on_step` and `on_epoch` both, a value is kept under three names as in Lightning: `loss`,
    `loss_step` (the newest value) and `loss_epoch` (reduced over the pass).

    Args:
        context: The context of the run.
    """

    def __init__(self, context: Context) -> None:
        self._context = context

    def log(
        self,
        fx: str,
        name: str,
        value: Any,
        *,
        on_step: bool,
        on_epoch: bool,
        prog_bar: bool = False,
        reduce_fx: Any = "mean",
        add_dataloader_idx: bool = True,
        batch_size: int | None = None,
        **_: Any,
    ) -> None:
        """Log one value, as `LightningModule.log` does once it has checked it."""
        context = self._context
        table = context.log_table
        if table is None:
            raise NotSupported(
                f"self.log({name!r}, ...) was called in {fx}, outside of a pass over data."
            )
        if add_dataloader_idx and context.log_suffix:
            name = f"{name}/dataloader_idx_{context.dataloader_idx}"
        reduce = _reduction(name, reduce_fx)
        forked = on_step and on_epoch
        if is_metric(value):
            _log_metric(table, name, value, on_step, on_epoch, prog_bar)
            return
        if reduce == "mean" and on_epoch and batch_size is None:
            batch_size = batch_size_of(context.split)
        if on_epoch:
            settings = {"batch_size": batch_size, "reduce": reduce, "prog_bar": prog_bar}
            for one in (name, f"{name}_epoch") if forked else (name,):
                table.log(one, value, **settings)
        if on_step:
            one = f"{name}_step" if forked else name
            table.log(one, value, reduce="last", on_step=True, prog_bar=prog_bar and not forked)

    def reset(self, **_: Any) -> None:
        """Do nothing: a pass begins with an empty table."""


def _log_metric(
    table: Metrics, name: str, metric: Any, on_step: bool, on_epoch: bool, prog_bar: bool
) -> None:
    table.log(name, metric, on_step=on_step, on_epoch=on_epoch, prog_bar=prog_bar)
    if on_step and on_epoch:
        table.log(f"{name}_epoch", metric)
        newest = getattr(metric, "_forward_cache", None)
        if newest is not None:
            table.log(f"{name}_step", newest, reduce="last", on_step=True)


def _reduction(name: str, reduce_fx: Any) -> Any:
    asked = reduce_fx if isinstance(reduce_fx, str) else getattr(reduce_fx, "__name__", "?")
    if asked.lower() not in _REDUCTIONS:
        raise NotSupported(
            f"self.log({name!r}, reduce_fx={reduce_fx!r}): a value is reduced by 'mean', 'sum', 'min' or "
            "'max'. For another reduction log a torchmetrics object."
        )
    return _REDUCTIONS[asked.lower()]


def known_metrics(context: Context) -> dict[str, float]:
    """Return all metrics as Lightning's `callback_metrics` has them, those of the last step as well."""
    known = context.read_metrics()
    for table in (context.train_metrics, context.validation_metrics):
        for name, value in table.newest().items():
            known.setdefault(name, value)
    return known
