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
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import CodeType, FunctionType
from typing import Any, Final

import torch
from torch import Tensor
from torch.fx import GraphModule

from statemachine_trainer.loops.loop_errors import TrainingError
from statemachine_trainer.loops.metrics.log import log
from statemachine_trainer.loops.metrics.table import batch_size_of
from statemachine_trainer.loops.outputs import read_output
from statemachine_trainer.snapshot.rng import isolated_rng

Program = Callable[..., Sequence[Any]]
"""Called with the inputs of a graph in place of the graph, and returns its outputs."""

Arguments = dict[str, Any]

_NAMESPACE: Final = "statemachine_trainer"
_UTILS: Final = "__import_torch_dot__dynamo_dot_utils"
_FEWER: Final = {"capture_scalar_outputs": False, "capture_dynamic_output_shape_ops": False}
"""What Dynamo is not to put into a graph: numbers read from tensors, shapes that depend on them."""


class NotCapturable(TrainingError):
    """A training step, or an optimizer, that cannot become a compiled graph."""


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
    """Where `log` writes in a captured step. Dynamo cannot read the context variable of `log`."""

    context: Any = None


_target = _LogTarget()


class Capture:
    """A captured step.

    Args:
        source: The function that was captured; what Dynamo knows of it lives as long as it does.
        code: What Dynamo made of its code. It calls the graph by a name of its own.
        guards: Dynamo's test of the arguments.
        graph: The graph; None where the step returned no loss.
        inputs: What the graph is called with, this once.

    Attributes:
        graph: The graph.
        guards: The test.
        holds: Called with arguments; tells whether the capture holds for them.
        digest: Of graph and inputs; the same in each process.
        programs: What can be called in place of the graph, by what they do beside it.
        counted: Whether the run has taken note of it.
    """

    def __init__(
        self,
        source: FunctionType,
        code: CodeType,
        guards: Any,
        graph: GraphModule | None,
        inputs: Sequence[Tensor],
    ) -> None:
        self.graph = graph
        self.guards = guards
        self.holds: Callable[[Arguments], bool] = guards.check
        self.programs: dict[Any, Any] = {}
        self.counted = False
        self.digest = _digest(graph, inputs)
        self._source = source
        # Globals of its own: the guards look at those of the source.
        self._scope = {**source.__globals__}
        if _UTILS in self._scope:
            self._scope[_UTILS] = _Unprofiled(self._scope[_UTILS])
        self._function = FunctionType(code, self._scope)
        self._called = next((n for n in code.co_names if n.startswith("__compiled_fn")), "")

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
                self.replay(_reached, arguments)
        except _Reached as reached:
            return reached.inputs
        raise NotCapturable("the captured step did not come to its graph")


def capture(arguments: Arguments, recorder_of: Any) -> Capture:
    """Capture a training step.

    Args:
        arguments: Of `captured_step`, by name.
        recorder_of: The context of the run, whose `log_table` is a `LogRecorder` for now.

    Raises:
        NotCapturable: The message says what cannot be captured, and where it stands.
    """
    import torch._dynamo
    from torch._dynamo.eval_frame import _debug_get_cache_entry_list

    # The step would be run, and not be captured.
    if torch._C._len_torch_dispatch_stack():
        raise NotCapturable("a TorchDispatchMode is active")
    if torch._dynamo.config.disable:
        raise NotCapturable("torch.compile is switched off (TORCHDYNAMO_DISABLE)")
    _teach_dynamo()
    graphs: list[GraphModule] = []

    def backend(graph: GraphModule, _inputs: Sequence[Any]) -> Program:
        graphs.append(graph)
        return _reached

    # A code object of its own: Dynamo keeps what it knows with it. And globals of its own: Dynamo
    # puts names into them.
    code = captured_step.__code__
    scope = {**captured_step.__globals__}
    function = FunctionType(code.replace(co_name=f"captured_{next(_numbers)}"), scope)
    compiled = torch.compile(function, backend=backend, fullgraph=True, dynamic=False)
    _target.context = recorder_of
    inputs: list[Tensor] = []
    try:
        with isolated_rng(), quiet(), torch._dynamo.config.patch(_FEWER):
            compiled(**arguments)
    except _Reached as reached:
        inputs = reached.inputs
    except torch._dynamo.exc.TorchDynamoException as error:
        raise NotCapturable(_reason(error)) from error
    entries = _debug_get_cache_entry_list(function.__code__)
    if not entries:
        raise NotCapturable("torch.compile did nothing to it")
    if not all(isinstance(one, Tensor) for one in inputs):
        raise NotCapturable("it computes with numbers that change from step to step")
    graph = graphs[0] if graphs and _has_loss(graphs[0]) else None
    guards = getattr(getattr(entries[0], "guard_manager", None), "root", None)
    if guards is None:
        raise NotCapturable(f"torch {torch.__version__} keeps the guards of Dynamo elsewhere")
    return Capture(function, entries[0].code, guards, graph, inputs)


def captured_step(
    training: Callable[[Any, int], Any],
    split: Any,
    batch_idx: int,
    takes_hiddens: bool,
    autocast: tuple[str, torch.dtype] | None,
) -> tuple[Tensor | None, Any, Any]:
    """Call a training step: the code that is captured.

    Args:
        training: The step.
        split: Its batch, or a part of it.
        batch_idx: The number of the batch.
        takes_hiddens: Whether it hands hiddens on.
        autocast: Type of device and data type of mixed precision; None for none.

    Returns:
        The loss (None to leave the batch out), the hiddens, and all that the step returned.
    """
    if autocast is None:
        output = training(split, batch_idx)
    else:
        with torch.autocast(autocast[0], dtype=autocast[1]):
            output = training(split, batch_idx)
    loss, hiddens = read_output(output, takes_hiddens)
    if loss is None:
        return None, hiddens, output
    # The mark says which of the values in the graph is the loss.
    return torch.ops.statemachine_trainer.loss(loss), hiddens, output


def _has_loss(graph: GraphModule) -> bool:
    return any(_is_mark(node) for node in graph.graph.nodes)


def _is_mark(node: torch.fx.Node) -> bool:
    return "statemachine_trainer.loss" in str(node.target)


@contextmanager
def quiet() -> Iterator[None]:
    """Silence what the compiler says about its own code: no warning of it is the user's to heed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


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
        self._utilities = utilities

    def __getattr__(self, name: str) -> Any:
        return getattr(self._utilities, name)

    def record_pregraph_bytecode_enter(self) -> None:
        pass

    def record_pregraph_bytecode_exit(self, _mark: object) -> None:
        pass


class _Reached(Exception):
    """The graph was called; carries its inputs."""

    def __init__(self, inputs: Sequence[Any]) -> None:
        super().__init__()
        self.inputs = list(inputs)


def _reached(*inputs: Any) -> Sequence[Any]:
    raise _Reached(inputs)


_numbers = iter(range(10**9))


@functools.cache
def _teach_dynamo() -> None:
    """Define the mark of the loss, and tell Dynamo how to read `log`."""
    library = torch.library.Library(_NAMESPACE, "DEF")
    library.define("loss(Tensor loss) -> Tensor")
    library.impl("loss", torch.clone, "CompositeImplicitAutograd")
    _kept.append(library)  # what it defines lives as long as it does

    @torch.compiler.substitute_in_graph(log, skip_signature_check=True)
    def log_in_graph(
        name: str, value: Any, *, batch_size: int | None = None, **settings: Any
    ) -> None:
        context = _target.context
        if context is None or not isinstance(context.log_table, LogRecorder):
            torch._dynamo.graph_break()  # code of others: `log` is called as it is
        if batch_size is None and context.split is not None:
            batch_size = batch_size_of(context.split)
        context.log_table.log(name + context.log_suffix, value, batch_size=batch_size, **settings)


_kept: list[Any] = []


def _reason(error: BaseException) -> str:
    """Shorten what Dynamo says: what it cannot trace, and the innermost line of the user's code."""
    lines = [line.strip() for line in str(error).splitlines()]
    what = lines[0] if lines else type(error).__name__
    if "data-dependent" in str(error):
        what = "A condition, or a shape, depends on a number read from a tensor"
    explained = next((x for x in lines if x.startswith("Explanation:")), "")
    places = [line for line in lines if line.startswith("File ")]
    own = [place for place in places if "/torch/" not in place]
    where = f", in {(own or places)[-1].removeprefix('File ')}" if places else ""
    why = explained.removeprefix("Explanation:").strip().rstrip(".")
    return f"{what.rstrip('.')}{where}{'. ' if why else ''}{why}"


def _digest(graph: GraphModule | None, inputs: Sequence[Tensor]) -> str:
    shapes = [(str(one.dtype), list(one.shape), list(one.stride())) for one in inputs]
    code = "" if graph is None else graph.code
    return hashlib.sha256(f"{code}{shapes}".encode()).hexdigest()[:16]


def failing_condition(one: Capture, arguments: Arguments) -> str | None:
    """Return a condition of a capture that does not hold for arguments, as Dynamo puts it."""
    found = one.guards.check_verbose(arguments)
    if found.result:
        return None
    parts = found.verbose_code_parts
    return parts[0].partition("#")[0].strip() if parts else "something that Dynamo does not name"
