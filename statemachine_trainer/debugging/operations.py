"""The operations of torch that a piece of work is made of, each with digests of what it reads and writes."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from statemachine_trainer.machine.driver import Driver
from statemachine_trainer.parallel.containers import leaves_with_paths
from statemachine_trainer.snapshot.digests import Digests

_HERE: Final = str(Path(__file__).resolve().parents[1])
_TORCH: Final = str(Path(torch.__file__).resolve().parent)

_UNFILLED: Final = "not filled"
_EMPTY: Final = ("empty", "new_empty")
_UNSEEN: Final = "not seen"
_PLAIN: Final = (str, int, float, complex, bool, type(None))


@dataclass(frozen=True)
class Value:
    """What an operation reads or writes.

    Attributes:
        name: Of the argument; of what is returned "result".
        kind: What it is, such as "float32 (10, 3)".
        content: Its digest; of a plain value how it is written.
    """

    name: str
    kind: str
    content: str


@dataclass(frozen=True)
class Operation:
    """A call of an operation.

    Attributes:
        name: Such as "aten.mul.Tensor".
        state: Path of the state at work.
        place: The module or the node of the backward pass it belongs to; "" if it is in none.
        line: The line of the user's code, as "train.py:23, in loss"; "" if none is on the stack.
        inputs: What it reads.
        outputs: What it returns, and what it writes in place.
        reads_unfilled: Whether it reads memory that was allocated and never written, such as that of `torch.empty`.
    """

    name: str
    state: str
    place: str
    line: str
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    reads_unfilled: bool = False

    @property
    def where(self) -> str:
        """Where it is called, in words."""
        found = [self.state.rpartition(".")[2], self.place, self.line]
        return ", ".join(one for one in found if one)

    def to_dict(self) -> dict[str, Any]:
        """Return it as data that JSON can hold."""
        return asdict(self)

    @classmethod
    def from_dict(cls, said: Mapping[str, Any]) -> Operation:
        """Read what `to_dict` has returned."""
        values = {name: tuple(Value(**one) for one in said[name]) for name in ("inputs", "outputs")}
        return cls(**{**said, **values})


@dataclass(frozen=True)
class Departure:
    """The first operation by which two pieces of work differ.

    Attributes:
        number: Which it is, from 1.
        of: How many operations the first of the two has.
        what: "outputs": it reads the same, and what it writes differs. "inputs": it reads something else that no
            operation before it has made. "way": the two do something else from here on.
        names: Of the values that differ.
        a: The operation; None if there is none any more.
        b: That of the other one.
    """

    number: int
    of: int
    what: str
    names: tuple[str, ...]
    a: Operation | None
    b: Operation | None

    def __str__(self) -> str:
        one = self.a or self.b
        assert one is not None
        at = f"operation {self.number} of {self.of}"
        if self.what == "way":
            both = [
                "(none)" if o is None else f"{o.name}{_kinds(o)} ({o.where})"
                for o in (self.a, self.b)
            ]
            return f"{at}: one goes on with {both[0]}, the other with {both[1]}"
        names = ", ".join(self.names)
        if self.what == "inputs":
            return f"{at}: {one.name} ({one.where}) reads something else: {names}{self._plain()}"
        text = f"{at}: {one.name} ({one.where}) gives something else for equal inputs: {names}"
        if one.reads_unfilled:
            text += ". It reads memory that nothing was written to, as torch.empty returns it"
        return text

    def _plain(self) -> str:
        """Return the two values, if they are no tensors."""
        if self.a is None or self.b is None:
            return ""
        pairs = zip(self.a.inputs, self.b.inputs, strict=True)
        found = [(x, y) for x, y in pairs if x.name in self.names and x.content != y.content]
        if not found or found[0][0].kind:
            return ""
        return f" ({found[0][0].content} | {found[0][1].content})"


def compare_operations(a: Sequence[Operation], b: Sequence[Operation]) -> Departure | None:
    """Return the first operation by which two lists differ; None if they are equal."""
    for number, (one, other) in enumerate(zip(a, b, strict=False), 1):
        if _shape_of(one) != _shape_of(other):
            return Departure(number, len(a), "way", (), one, other)
        for what in ("inputs", "outputs"):
            pairs = zip(getattr(one, what), getattr(other, what), strict=True)
            names = tuple(x.name for x, y in pairs if x.content != y.content)
            if names:
                return Departure(number, len(a), what, names, one, other)
    if len(a) == len(b):
        return None
    at = min(len(a), len(b))
    rest = [many[at] if at < len(many) else None for many in (a, b)]
    return Departure(at + 1, len(a), "way", (), *rest)


def _shape_of(one: Operation) -> object:
    values = [[(v.name, v.kind) for v in many] for many in (one.inputs, one.outputs)]
    return one.name, values


def _kinds(one: Operation) -> str:
    return f"({', '.join(v.kind or v.content for v in one.inputs)})"


# -- recording -------------------------------------------------------------------------------------


@dataclass
class OperationLog:
    """Context manager that records the operations of torch within its block, in this thread's autograd too.

    What a compiled function does inside is not seen: it is one operation, or none.

    Args:
        driver: The driver of the fit, which tells the state at work.
        model: The model, whose modules are named.

    Attributes:
        operations: What was recorded.
    """

    driver: Driver
    model: nn.Module
    operations: list[Operation] = field(default_factory=list)

    def __enter__(self) -> OperationLog:
        self._modules = _Modules(self.model)
        self._mode = _Mode(self)
        self._modules.attach()
        self._mode.__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: object) -> None:
        self._mode.__exit__(*error)  # type: ignore[no-untyped-call]
        self._modules.remove()

    def place(self) -> str:
        """Return the node of the backward pass, or the module, that is at work; "" if none is."""
        node = torch._C._current_autograd_node()
        return self._modules.current if node is None else str(node.name())


class _Modules:
    """Knows the name of the module in whose forward pass the program is."""

    def __init__(self, model: nn.Module) -> None:
        self._names = {id(one): name for name, one in model.named_modules()}
        self._inside: list[str] = []
        self._handles: list[Any] = []

    @property
    def current(self) -> str:
        return self._inside[-1] if self._inside else ""

    def attach(self) -> None:
        before = nn.modules.module.register_module_forward_pre_hook(self._enter)
        after = nn.modules.module.register_module_forward_hook(self._leave, always_call=True)
        self._handles = [before, after]

    def remove(self) -> None:
        for one in self._handles:
            one.remove()
        self._inside.clear()

    def _enter(self, module: nn.Module, arguments: object) -> None:
        self._inside.append(self._names.get(id(module), self.current))

    def _leave(self, module: nn.Module, arguments: object, result: object) -> None:
        if self._inside:
            self._inside.pop()


class _Mode(TorchDispatchMode):
    """Sees each operation as it is called. What it does itself is not seen by it."""

    def __init__(self, log: OperationLog) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._log = log
        self._unfilled: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        names = [one.name for one in func._schema.arguments]
        given = {**dict(zip(names, args, strict=False)), **kwargs}
        written = {
            one.name: given[one.name]
            for one in func._schema.arguments
            if one.alias_info is not None and one.alias_info.is_write and one.name in given
        }
        read = _storages(given.values())
        inputs = [*self._values(_leaves(given)), *_generator_of(func, given)]
        result = func(*args, **kwargs)
        self._note_memory(func, read, written, result)
        outputs = self._values([*_leaves({"result": result}), *_leaves(written)])
        unwritten = {name: one for name, one in given.items() if name not in written}
        unfilled = self._unfilled & _storages(unwritten.values())
        aliases = unfilled and unfilled <= _storages([result])
        one = Operation(
            str(func),
            self._log.driver.path or "",
            self._log.place(),
            _line(sys._getframe(1)),
            tuple(inputs),
            tuple(outputs),
            bool(unfilled) and not aliases,
        )
        self._log.operations.append(one)
        return result

    def _note_memory(self, func: Any, read: set[int], written: Any, result: Any) -> None:
        """Note which memory was allocated, and not written yet: what is in it is by chance."""
        made = _storages([result]) - read
        if func.overloadpacket.__name__.startswith(_EMPTY):
            self._unfilled |= made
        else:
            self._unfilled -= made  # memory that was given back, and taken again
        self._unfilled -= _storages(written.values())

    def _values(self, leaves: Sequence[tuple[str, object]]) -> list[Value]:
        tensors = [one for _, one in leaves if isinstance(one, Tensor)]
        digests = Digests(tensors) if tensors else None
        read = iter([] if digests is None else digests.read().tolist())
        seen = iter([] if digests is None else digests.seen)
        found = []
        for name, one in leaves:
            if isinstance(one, Tensor):
                digest = f"{next(read):016x}" if next(seen) else _UNSEEN
                content = _UNFILLED if _storages([one]) & self._unfilled else digest
                found.append(Value(name, f"{str(one.dtype)[6:]} {(*one.shape,)}", content))
            else:
                found.append(Value(name, "", repr(one)))
        return found


def _leaves(given: Mapping[str, object]) -> list[tuple[str, object]]:
    """Return tensors and plain values by the names of their arguments."""
    return [
        (name, one if isinstance(one, (Tensor, *_PLAIN)) else _Named(one))
        for argument, value in given.items()
        for name, one in leaves_with_paths(value, argument)
        if not isinstance(one, torch.Generator)
    ]


class _Named:
    """Something that is neither a tensor nor plain: a dtype, a device, an object of another library."""

    def __init__(self, one: object) -> None:
        usual = isinstance(one, torch.dtype | torch.device | torch.layout | torch.memory_format)
        self._text = str(one) if usual else type(one).__name__

    def __repr__(self) -> str:
        return self._text


def _storages(values: Any) -> set[int]:
    return {found for one in _tensors(values) if (found := _storage(one)) is not None}


def _tensors(values: Any) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)


def _storage(one: Tensor) -> int | None:
    try:
        return int(one.untyped_storage()._cdata)
    except (RuntimeError, NotImplementedError):  # sparse ones, and those of other libraries
        return None


def _generator_of(func: Any, given: Mapping[str, Any]) -> list[Value]:
    """Return the state of the generator that an operation draws from; nothing if it draws from none."""
    if torch.Tag.nondeterministic_seeded not in func.tags:
        return []
    generator = given.get("generator")
    named = given.get("device") or "cpu"
    device = next((one.device for one in _tensors(given.values())), torch.device(named))
    if generator is not None:
        state = generator.get_state()
    elif device.type == "cuda":
        state = torch.cuda.get_rng_state(device)
    elif device.type == "cpu":
        state = torch.get_rng_state()
    else:
        return []
    digest = Digests([state]).read().tolist()[0]
    return [Value("the state of the generator", "generator", f"{digest:016x}")]


def _line(frame: FrameType | None) -> str:
    """Return the innermost line of code that is neither torch's nor ours; "" if ours called torch."""
    while frame is not None:
        name = frame.f_code.co_filename
        if name != __file__ and name.startswith(_HERE):
            return ""
        if name != __file__ and not name.startswith((_TORCH, "<")):
            return f"{Path(name).name}:{frame.f_lineno}, in {frame.f_code.co_name}"
        frame = frame.f_back
    return ""
