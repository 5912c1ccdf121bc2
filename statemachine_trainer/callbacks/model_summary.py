"""A table of a model: its layers, the shapes of their outputs, parameters, and operations of a forward pass."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.nn.parameter import is_lazy
from torch.utils.flop_counter import FlopCounterMode

from statemachine_trainer.loops.loop_errors import SettingError
from statemachine_trainer.loops.plain_steps import inputs_of
from statemachine_trainer.loops.settings_checks import function, whole_number
from statemachine_trainer.loops.untouched import untouched
from statemachine_trainer.machine.keywords import HasSettings, refuses_unknown
from statemachine_trainer.parallel import map_leaves, to_device
from statemachine_trainer.parallel.ranks import Ranks
from statemachine_trainer.parallel.wrappers import see_through

Call = Callable[[Any, Any], Any]


@dataclass(frozen=True, slots=True)
class Layer:
    """A row of a summary.

    Attributes:
        name: Path of the module; "" for the model itself.
        kind: Its class.
        shape: Of its output, or of the first tensor in it, when it was first called; None if it was not called.
        parameters: How many numbers are in its parameters, those of its parts included.
        trainable: How many of them get gradients.
        flops: Floating point operations of its forward pass; None if none was made.
    """

    name: str
    kind: str
    shape: tuple[int, ...] | None
    parameters: int
    trainable: int
    flops: int | None


@dataclass(frozen=True, slots=True)
class Summary:
    """What `summary` returns; print it.

    Attributes:
        layers: The model first, then its parts to the depth that was asked for.
        parameters: How many numbers are in its parameters; shared ones count once.
        trainable: How many of them get gradients.
        megabytes: Memory of parameters and buffers, in 10^6 bytes.
        flops: Floating point operations of a forward pass on the whole batch: those of products of matrices,
            convolutions and attention. None without a batch.
    """

    layers: list[Layer]
    parameters: int
    trainable: int
    megabytes: float
    flops: int | None

    def __rich__(self) -> Table:
        """Return the table for a console of rich."""
        ran = self.flops is not None
        table = Table(caption=self._totals(), caption_justify="left")
        for name in ("layer", "class"):
            table.add_column(name, overflow="fold")
        for name in ("output", "parameters", "trainable", "FLOPs"):
            if ran or name not in ("output", "FLOPs"):
                table.add_column(name, justify="right", overflow="fold")
        for one in self.layers:
            cells = [one.name or "(model)", one.kind]
            if ran:
                cells.append("" if one.shape is None else " x ".join(map(str, one.shape)))
            cells += [f"{one.parameters:,}", f"{one.trainable:,}"]
            if ran:
                cells.append(f"{one.flops:,}" if one.flops else "")
            table.add_row(*cells)
        return table

    def __str__(self) -> str:
        written = io.StringIO()
        Console(file=written, width=120, color_system=None).print(self)
        return written.getvalue().rstrip()

    def _totals(self) -> str:
        frozen = self.parameters - self.trainable
        text = f"{self.parameters:,} parameters, {self.trainable:,} trainable, {frozen:,} frozen"
        text += f"; {self.megabytes:.1f} MB"
        return text if self.flops is None else f"{text}; {self.flops:,} FLOPs in a forward pass"


@refuses_unknown
def summary(
    model: nn.Module, batch: Any = None, *, depth: int = 2, call: Call | None = None
) -> Summary:
    """Describe a model, layer by layer.

    With a batch a forward pass is made: in evaluation mode and without gradients. It leaves no trace in the weights,
    buffers and generators.

    Example:
        >>> print(summary(nn.Linear(2, 3), torch.zeros(4, 2)).flops)
        48

    Args:
        model: The model.
        batch: A batch, as the loader gives it, or its inputs; None for a table without shapes and operations.
        depth: How deep parts of parts are listed; 0 for the model alone.
        call: Makes the forward pass, of the model and the batch. By default the model is called with the batch: with
            the first part of a pair, or with the entries of a dict as keywords.

    Raises:
        SettingError: A setting out of its range, no module, a batch that the model cannot be called with, or layers
            that have no shape before their first batch.
    """
    whole_number("summary", "depth", depth)
    function("summary", "call", call, "of the model and the batch.")
    if not isinstance(model, nn.Module):
        raise SettingError(
            f"summary: the model is a {type(model).__name__}, and no torch.nn.Module."
        )
    plain, _ = see_through(model)
    lazy = [name for name, one in plain.named_parameters() if is_lazy(one)]
    if lazy:
        raise SettingError(
            f"summary: the parameter {lazy[0]!r} is lazy, and gets its shape with the first batch. Call the model on "
            "a batch before."
        )
    shapes: dict[str, tuple[int, ...] | None] = {}
    counted: dict[str, int] | None = None
    if batch is not None:
        counted = _forward(plain, batch, call, shapes)
    layers = [
        _row(name, one, shapes.get(name), None if counted is None else counted.get(name, 0))
        for name, one in plain.named_modules()
        if not name or name.count(".") < depth
    ]
    total = layers[0]
    return Summary(layers, total.parameters, total.trainable, _megabytes(plain), total.flops)


class ModelSummary(HasSettings):
    """Prints the table of the model when a fit begins: `Trainer(callbacks=[ModelSummary()])`.

    Args:
        batch: A batch, as for `summary`; without one there are no shapes and operations.
        depth: How deep parts of parts are listed.
        call: As for `summary`.
        echo: Called with the `Summary`; prints it by default.

    Attributes:
        found: The summary of the last fit.

    Raises:
        SettingError: A setting out of its range.
    """

    def __init__(
        self,
        batch: Any = None,
        *,
        depth: int = 2,
        call: Call | None = None,
        echo: Callable[[Summary], object] | None = None,
    ) -> None:
        self.depth = whole_number(self, "depth", depth)
        function(self, "call", call, "of the model and the batch.")
        function(self, "echo", echo, "that is called with the summary.")
        self.found: Summary | None = None
        self._batch = batch
        self._call = call
        self._echo = echo

    def __repr__(self) -> str:
        return f"ModelSummary(depth={self.depth})"

    def on_fit_start(self, trainer: Any) -> None:
        """Print the table, once for a model: not for each fold."""
        context, is_first = trainer.context, Ranks.is_first()  # asked by all ranks
        if self.found is not None or context.counts.batch or not is_first:
            return
        batch = None if self._batch is None else to_device(self._batch, context.device)
        self.found = summary(context.model, batch, depth=self.depth, call=self._call)
        if self._echo is None:
            Console().print(self.found)
        else:
            self._echo(self.found)


def _forward(
    model: nn.Module, batch: Any, call: Call | None, shapes: dict[str, tuple[int, ...] | None]
) -> dict[str, int]:
    """Make a forward pass that leaves no trace; fill in the shapes, and return the operations by path."""
    counter = FlopCounterMode(display=False)
    hooks = [
        one.register_forward_hook(_noting(name, shapes)) for name, one in model.named_modules()
    ]
    try:
        with untouched(model, batch), torch.no_grad(), counter:
            _called(model.eval(), batch, call)
    finally:
        for hook in hooks:
            hook.remove()
    whole = counter.get_total_flops()
    prefix = f"{type(model).__name__}."
    found = {
        name.removeprefix(prefix): sum(by_operation.values())
        for name, by_operation in counter.get_flop_counts().items()
        if name.startswith(prefix)
    }
    return {**found, "": whole}


def _called(model: nn.Module, batch: Any, call: Call | None) -> None:
    if call is not None:
        call(model, batch)
        return
    inputs = inputs_of(batch)
    try:
        if isinstance(inputs, dict):
            model(**inputs)
        else:
            model(inputs)
    except Exception as error:
        raise SettingError(
            f"summary: {type(model).__name__} cannot be called with this batch ({type(error).__name__}: {error}). Give "
            "its inputs, or say how it is called: call=lambda model, batch: model.training_step(batch, 0)."
        ) from error


def _noting(name: str, shapes: dict[str, tuple[int, ...] | None]) -> Callable[..., None]:
    def note(_module: nn.Module, _inputs: Any, output: Any) -> None:
        if name not in shapes:
            first = next(_tensors(output), None)
            shapes[name] = None if first is None else tuple(first.shape)

    return note


def _tensors(output: Any) -> Iterator[torch.Tensor]:
    found: list[torch.Tensor] = []
    map_leaves(lambda leaf: found.append(leaf) if isinstance(leaf, torch.Tensor) else None, output)
    yield from found


def _row(name: str, module: nn.Module, shape: tuple[int, ...] | None, flops: int | None) -> Layer:
    sizes = [(one.numel(), one.requires_grad) for one in module.parameters()]
    trainable = sum(size for size, wants in sizes if wants)
    return Layer(
        name, type(module).__name__, shape, sum(size for size, _ in sizes), trainable, flops
    )


def _megabytes(model: nn.Module) -> float:
    tensors = [*model.parameters(), *model.buffers()]
    return sum(one.numel() * one.element_size() for one in tensors) / 1e6
