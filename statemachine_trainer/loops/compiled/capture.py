"""A training step as a graph of tensor operations, and the conditions under which it is one.

Dynamo, the front end of `torch.compile`, reads the Python code of a step: it answers with a graph,
with a test whether the graph holds for other arguments (its guards), and with code that does what
else the step does: attributes that it sets, what it logs, what it returns. Here the three are taken
apart, so that the graph can become part of a larger one and that a step costs no more than the test
and the code.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import os
from collections.abc import Callable, Sequence
from types import CodeType, FunctionType
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from statemachine_trainer.loops.compiled import private
from statemachine_trainer.loops.compiled.compiled_errors import NotCapturable, Reached, reached
from statemachine_trainer.loops.compiled.hooked import Watch, catching, named_by_steps
from statemachine_trainer.loops.compiled.lookups import replaced_backward, unseen
from statemachine_trainer.loops.compiled.wording import condition
from statemachine_trainer.loops.metrics.log import log
from statemachine_trainer.loops.metrics.table import batch_size_of
from statemachine_trainer.loops.outputs import read_output
from statemachine_trainer.snapshot.rng import isolated_rng

Program = Callable[..., Sequence[Any]]
"""Called with the inputs of a graph in place of the graph, and returns its outputs."""

Arguments = dict[str, Any]

_NAMESPACE: Final = "statemachine_trainer"
_UTILS: Final = "__import_torch_dot__dynamo_dot_utils"


class LogRecorder:
    """Stands in for the table of metrics within a captured step: notes down what is logged.

    Attributes:
        entries: Name, value and settings of each `log`, in order.
    """

    def __init__(self) -> None:
        self.entries: list[tuple[str, Any, dict[str, Any]]] = []

    def log(self, name: str, value: Any, **settings: Any) -> None:
        """Note down a value."""
        self.entries.append((name, value, settings))

    def write_to(self, table: Any) -> None:
        """Log what was noted down, and forget it."""
        entries = [*self.entries]
        self.entries.clear()
        for name, value, settings in entries:
            table.log(name, value, **settings)


class _LogTarget:
    """Where `log` writes in a captured step. Dynamo cannot read the context variable of `log`.

    Set by the captured step itself, as Dynamo reads it: nothing of it is left when it is called.
    """

    context: Any = None


_target = _LogTarget()


class Capture:
    """A captured step.

    Args:
        source: The function that was captured; what Dynamo knows of it lives as long as it does.
        found: What Dynamo made of it.
        graph: The graph; None where the step returned no loss.
        watch: What the guards do not look at.

    Attributes:
        graph: The graph.
        holds: Called with arguments; tells whether the capture holds for them.
        watch: Tells whether the code that was read is what it was.
        digest: Of graph and inputs; the same in each process.
        programs: What can be called in place of the graph, by what they do beside it.
        counted: Whether the run has taken note of it.
    """

    def __init__(
        self,
        source: FunctionType,
        found: private.Captured,
        graph: GraphModule | None,
        watch: Watch,
    ) -> None:
        self.graph = graph
        self.watch = watch
        self.holds = found.check
        self.programs: dict[Any, Any] = {}
        self.counted = False
        self.digest = _digest(graph, found.inputs)
        self._source, self._guards, self._explain = source, found.guards, found.explain
        # Globals of its own: the guards look at those of the source.
        self._scope = {**source.__globals__}
        if _UTILS in self._scope:
            self._scope[_UTILS] = _Unprofiled(self._scope[_UTILS])
        self._function = FunctionType(found.code, self._scope)
        self._called = next((n for n in found.code.co_names if n.startswith("__compiled_fn")), "")

    def replay(self, program: Program, arguments: Arguments) -> Any:
        """Do what the step does, with a program in place of the graph.

        Returns:
            What `captured_step` returns.
        """
        self._scope[self._called] = program
        return self._function(**arguments)

    def inputs(self, arguments: Arguments) -> list[Tensor]:
        """Return what the graph is called with; nothing is done."""
        try:
            with isolated_rng():
                self.replay(reached, arguments)
        except Reached as stopped:
            return stopped.inputs
        raise NotCapturable("the captured step did not come to its graph")

    def failing_condition(self, arguments: Arguments) -> str | None:
        """Return a condition that does not hold for arguments, and where it comes from."""
        with private.guarded():
            found = self._explain(arguments)
            if found.result:
                return None
            parts = found.verbose_code_parts
        return condition(parts[0]) if parts else "something without a name"


def capture(arguments: Arguments, model: nn.Module) -> Capture:
    """Capture a training step.

    Args:
        arguments: Of `captured_step`, by name.
        model: Whose step it is.

    Raises:
        NotCapturable: The message says what cannot be captured, and where it stands.
    """
    _teach_dynamo()
    # A code object of its own: Dynamo keeps what it knows with it. And globals of its own: Dynamo
    # puts names into them.
    code = captured_step.__code__
    scope = {**captured_step.__globals__}
    function = FunctionType(code.replace(co_name=f"captured_{next(_numbers)}"), scope)
    with isolated_rng(), private.quiet():
        found = private.run_dynamo(function, arguments)
    _check_code(found, model)
    if not all(isinstance(one, Tensor) for one in found.inputs):
        raise NotCapturable("it computes with numbers that change from step to step")
    graph = found.graph if found.graph is not None and _has_loss(found.graph) else None
    if graph is not None:
        _check_graph(graph)
    watch = Watch(found.read, found.bare, found.kinds, model, found.asked)
    return Capture(function, found, graph, watch)


def captured_step(
    training: Callable[[Any, int], Any],
    split: Any,
    batch_idx: int,
    takes_hiddens: bool,
    autocast: tuple[str, torch.dtype] | None,
    logs_to: Any,
) -> tuple[Tensor | None, Any, Any]:
    """Call a training step: the code that is captured.

    Args:
        training: The step.
        split: Its batch, or a part of it.
        batch_idx: The number of the batch.
        takes_hiddens: Whether it hands hiddens on.
        autocast: Type of device and data type of mixed precision; None for none.
        logs_to: The context of the run, whose `log_table` is a `LogRecorder` for now.

    Returns:
        The loss (None to leave the batch out), the hiddens, and all that the step returned.
    """
    _target.context = logs_to
    if autocast is None:
        output = training(split, batch_idx)
    else:
        with torch.autocast(autocast[0], dtype=autocast[1]):
            output = training(split, batch_idx)
    _target.context = None
    loss, hiddens = read_output(output, takes_hiddens)
    if loss is None:
        return None, hiddens, output
    # The mark says which of the values in the graph is the loss.
    return torch.ops.statemachine_trainer.loss(loss), hiddens, output


def _has_loss(graph: GraphModule) -> bool:
    return any(_is_mark(node) for node in graph.graph.nodes)


def _is_mark(node: torch.fx.Node) -> bool:
    return "statemachine_trainer.loss" in str(node.target)


def _check_code(found: private.Captured, model: nn.Module) -> None:
    """Refuse what Dynamo reads as if it were the same each time.

    Raises:
        NotCapturable: It may not be.
    """
    if found.cached:
        raise NotCapturable(
            "it calls a function whose results functools keeps (lru_cache, cache), and which would "
            "be computed anew. Call it once, before the training"
        )
    if found.grads:
        raise NotCapturable(
            "it reads the gradient of a parameter (.grad), which a compiled step does not leave there"
        )
    changed = replaced_backward()
    if changed is not None:
        raise NotCapturable(f"{changed} was replaced, which a compiled step does not call")
    asked = unseen(found.read or named_by_steps(model), found.kinds)
    if asked is not None:
        name, place = asked
        raise NotCapturable(
            f"it asks for `{name}` in {place.co_name}, {place.co_filename}:{place.co_firstlineno}, which is "
            "not looked at again. Ask for attributes with `hasattr` or `getattr`, and for settings "
            "before the training"
        )
    code = catching(found.read, model)
    if code is not None:
        raise NotCapturable(
            f"it catches an exception in {code.co_name}, {code.co_filename}:{code.co_firstlineno}: what "
            "raised it is not looked at again. Ask with `hasattr` or `in`, or leave it out of the step"
        )
    if any(code.co_filename == _OS.co_filename for code in found.read):
        raise NotCapturable(
            "it reads the environment of the process (os.environ), which is not looked at again. "
            "Read it once, before the training"
        )


_OS: Final[CodeType] = os.getenv.__code__


def _check_graph(graph: GraphModule) -> None:
    """Refuse graphs that hold tensors themselves.

    Raises:
        NotCapturable: There is one.
    """
    held = itertools.chain.from_iterable(
        [*module.named_parameters(), *module.named_buffers(), *_tensors_of(module)]
        for module in graph.modules()
    )
    for name, one in held:
        raise NotCapturable(
            f"a tensor of shape {tuple(one.shape)} became part of the graph ({name}), so that it "
            "would not be trained, or seen to change. A step that reads its optimizer makes parts of "
            "its parameters: read learning rates in a receiver instead"
        )


def _tensors_of(module: nn.Module) -> list[tuple[str, Tensor]]:
    return [(name, one) for name, one in vars(module).items() if isinstance(one, Tensor)]


def take_out_mark(graph: GraphModule) -> tuple[GraphModule, torch.fx.Node]:
    """Return a copy of a captured graph without the mark of the loss, and the node of the loss."""
    copied = torch.fx.Graph()
    copied.output(copied.graph_copy(graph.graph, {}))
    mark = next(node for node in copied.nodes if _is_mark(node))
    loss = mark.args[0]
    assert isinstance(loss, torch.fx.Node)
    mark.replace_all_uses_with(loss)
    copied.erase_node(mark)
    return GraphModule(graph, copied), loss


# -- parts ---------------------------------------------------------------------------------------


class _Unprofiled:
    """Dynamo's utilities without its marks for the profiler, which take as long as a small step."""

    def __init__(self, utilities: Any) -> None:
        vars(self).update(vars(utilities))
        # Called in each step, without and with an argument: there is nothing that does less.
        self.record_pregraph_bytecode_enter = self.record_pregraph_bytecode_exit = bool


_numbers = itertools.count()


@functools.cache
def _teach_dynamo() -> None:
    """Define the mark of the loss, and tell Dynamo how to read `log`."""
    private.teach(_NAMESPACE, "loss", log, _log_in_graph)


def _log_in_graph(name: str, value: Any, *, batch_size: int | None = None, **settings: Any) -> None:
    context = _target.context
    if context is None or not isinstance(context.log_table, LogRecorder):
        private.break_graph()  # code of others: `log` is called as it is
    if isinstance(value, Tensor):
        # As it is now: the table reads it after the step, which may change what it is a part of.
        value = value.detach().clone()
    if batch_size is None and context.split is not None:
        batch_size = batch_size_of(context.split)
    context.log_table.log(name + context.log_suffix, value, batch_size=batch_size, **settings)


def _digest(graph: GraphModule | None, inputs: Sequence[Any]) -> str:
    shapes = [(str(one.dtype), list(one.shape), list(one.stride())) for one in inputs]
    code = "" if graph is None else graph.code
    return hashlib.sha256(f"{code}{shapes}".encode()).hexdigest()[:16]
