"""What a plain model is given to be trained: a loss, an optimizer, a scheduler and metrics."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch.optim import Optimizer

from statemachine_trainer.loops.loop_errors import OptimizerError, SettingError
from statemachine_trainer.loops.metrics.log import log
from statemachine_trainer.loops.metrics.objects import MetricObject, is_metric

Loss = Callable[[Any, Any], torch.Tensor]
MakeOptimizer = Optimizer | Callable[..., Any]

_PREFIXES: Final = {"training_step": "", "validation_step": "val_", "test_step": "test_"}


@dataclass(frozen=True)
class PlainParts:
    """What a plain model is given.

    Attributes:
        loss: Called with the model's output and the targets.
        optimizer: An optimizer, or a callable that makes one of the parameters. It may make all that
            `configure_optimizers` may return.
        scheduler: A scheduler; a function that makes one of the optimizer, or of the optimizer and
            `total_steps`; or a dict with one of these as `scheduler`, and with `interval`, `frequency`,
            `monitor`.
        metrics: A metric of outputs and targets, or a dict of several by name: torchmetrics, or
            functions that return a number.
    """

    loss: Loss | None = None
    optimizer: MakeOptimizer | None = None
    scheduler: Any = None
    metrics: Any = None


NOTHING_GIVEN: Final = PlainParts()


# -- Optimizer and scheduler ----------------------------------------------------------------------


def optimizers_of(parts: PlainParts, configured: Any, total_steps: Callable[[], int]) -> Any:
    """Return in the form of `configure_optimizers` an optimizer with the scheduler that was given.

    Args:
        parts: What was given.
        configured: The optimizer, or what else the model configures.
        total_steps: Finds the steps of the whole fit; asked only if the scheduler is made of them.

    Raises:
        OptimizerError: It is not one optimizer that the scheduler is for, or it has one already.
    """
    if parts.scheduler is None:
        return configured
    if isinstance(configured, Mapping) and configured.get("lr_scheduler") is None:
        configured = configured.get("optimizer")
    if not isinstance(configured, Optimizer):
        raise OptimizerError(
            "scheduler= goes with one optimizer that has none yet. Return the schedulers from "
            "configure_optimizers() with their optimizers, and leave scheduler= out."
        )
    config = (
        parts.scheduler if isinstance(parts.scheduler, Mapping) else {"scheduler": parts.scheduler}
    )
    made = dict(config)
    make = made.get("scheduler")
    if (callable(make) and not callable(getattr(make, "state_dict", None))) or isinstance(
        make, type
    ):
        parameters = inspect.signature(make).parameters
        goes_by_steps = "total_steps" in parameters and not isinstance(make, type)
        _refuse_needs(make, parameters, goes_by_steps=goes_by_steps)
        if goes_by_steps:
            made.setdefault("interval", "step")
            made["scheduler"] = make(configured, total_steps=total_steps())
        else:
            made["scheduler"] = make(configured)
    return {"optimizer": configured, "lr_scheduler": made}


def _refuse_needs(
    make: Any, parameters: Mapping[str, inspect.Parameter], *, goes_by_steps: bool
) -> None:
    """Refuse what makes a scheduler of more than the optimizer, such as the class `StepLR` itself."""
    given = {*[*parameters][:1], *(["total_steps"] if goes_by_steps else [])}
    lacking = [
        name
        for name, one in parameters.items()
        if name not in given
        and one.default is one.empty
        and one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD)
    ]
    if lacking:
        name = getattr(make, "__name__", type(make).__name__)
        raise OptimizerError(
            f"scheduler={name} needs {', '.join(lacking)} too. Give a function of the optimizer alone: "
            f"scheduler=lambda optimizer: {name}(optimizer, {lacking[0]}=...)."
        )


# -- Metrics --------------------------------------------------------------------------------------


class PlainMetrics:
    """The metrics of a plain model: of each kind of step its own, "acc", "val_acc" and "test_acc".

    Args:
        given: What was given as `metrics=`.
        context: Has the table that is logged to as `log_table`.

    Raises:
        SettingError: It is no metric, and no dict of such.
    """

    def __init__(self, given: Any, context: Any) -> None:
        self._context = context
        named = dict(_named(given))
        self._of_step: dict[str, dict[str, Any]] = {
            step: {
                f"{prefix}{name}": copy.deepcopy(one) if is_metric(one) else one
                for name, one in named.items()
            }
            for step, prefix in _PREFIXES.items()
        }

    def update(self, step: str, output: Any, targets: Any) -> None:
        """Take in the answer to a batch, and log."""
        for name, one in self._of_step[step].items():
            if not is_metric(one):
                log(name, one(_detached(output), targets))
                continue
            log(name, one)  # before it takes in the batch: a pass that begins resets it
            if isinstance(output, torch.Tensor) and getattr(one, "device", None) != output.device:
                _move(one, output.device)
            one.update(_detached(output), targets)  # type: ignore[operator]

    def find(self, name: str) -> MetricObject | None:
        """Return the metric object that is logged by a name, or by that name and the name of a loader."""
        for named in self._of_step.values():
            for known, one in named.items():
                if is_metric(one) and (name == known or name.startswith(f"{known}/")):
                    return one
        return None


def _named(given: Any) -> Iterator[tuple[str, Any]]:
    """Yield the metrics by name.

    Raises:
        SettingError: One is none.
    """
    if is_metric(given) and not hasattr(given, "compute_groups"):
        pairs = [(type(given).__name__, given)]
    elif hasattr(given, "items"):  # a dict, or a MetricCollection
        pairs = list(given.items())
    else:
        pairs = [(getattr(given, "__name__", "metric"), given)]
    for name, one in pairs:
        if isinstance(one, type) or (not callable(one) and not is_metric(one)):
            what = f"the class {one.__name__}" if isinstance(one, type) else repr(one)
            raise SettingError(
                f"metrics: {name!r} is {what}. Give a metric object, such as torchmetrics.Accuracy(...), a function "
                "of output and targets, or a dict of such by name."
            )
        yield name, one


def _detached(output: Any) -> Any:
    return output.detach() if isinstance(output, torch.Tensor) else output


def _move(metric: Any, device: torch.device) -> None:
    if hasattr(metric, "to"):
        metric.to(device)
