"""What code looks up by name, and whether the names stand for the same things still.

A captured step was read once. Dynamo looks at the values that the step reads, and at most functions
that the code of users names. It does not look again at what torch's own code names, at the methods
of torch's classes, or at what stands in no place yet: `torch.nn.functional.relu = other` in the
middle of a run would change nothing.

So the dictionaries in which names are looked up are remembered: of modules, of classes, of builtins.
The version of each is compared in each call, which costs next to nothing. Where one has changed, the
names that the code looks up are compared one by one.
"""

from __future__ import annotations

import builtins
import dis
import gc
import sys
from collections.abc import Callable, Iterable, Sequence
from operator import attrgetter, is_
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from statemachine_trainer.loops.compiled import private_names

Space = dict[str, Any]

_ABSENT: Final = object()
_DATA: Final = object()
"""Stands for a value: Dynamo looks at those that it read."""

OFTEN: Final = 3
"""A dictionary that has changed so often, beside the names, is compared by these from then on."""

_IMMUTABLE: Final = 1 << 8
"""The flag of classes that nobody can change (`Py_TPFLAGS_IMMUTABLETYPE`)."""

_TRACED: Final = (
    "torch.nn", "torch.functional", "torch._tensor", "torch.linalg", "torch.special", "torch.fft",
    "torch.utils.checkpoint", "torch.autograd",
)  # fmt: skip
"""The modules of torch whose functions are followed further: they compute on tensors."""

_CLIPPING: Final = (
    "clip_grad_norm_", "clip_grad_value_", "get_total_norm", "clip_grads_with_norm_",
    "_get_total_norm", "_clip_grads_with_norm_",
)  # fmt: skip

_ASKING: Final = {"getattr", "hasattr"}

_OWN: Final = str(Path(__file__).parents[2])
"""Where the code of this library lies, which is part of each step."""

_OF_PYTHON: Final = tuple({str(Path(dis.__file__).parent), "<frozen"})

_code: Final = attrgetter("__code__")


class Names:
    """Names in dictionaries, and what they stand for.

    Attributes:
        unchanged: Tells that nothing has changed. It may answer False where `hold` finds that all is the same. It is
            no function of Python, as it is called in each step. Set by `arm`.
    """

    unchanged: Callable[[], bool]

    def __init__(self) -> None:
        self._named: dict[int, tuple[Space, dict[str, Any]]] = {}
        self._outlines: dict[int, tuple[Space, _Outline]] = {}
        self._changes: dict[int, int] = {}

    def hold(self) -> bool:
        """Tell whether all names stand for what they stood for."""
        if self._restless and not all(self._is_alike(space) for space in self._restless):
            return False
        return self._is_steady() or self._look_again()

    def look_at(self, space: Space, names: Iterable[str]) -> list[Any]:
        """Remember what names stand for in a dictionary; returns what may be followed."""
        found: list[Any] = []
        names = [*names]
        if not names:
            return found
        known = self._named.setdefault(id(space), (space, {}))[1]
        for name in names:
            value = space.get(name, _ABSENT)
            known[name] = _sign(value)
            if value is not _ABSENT:
                found.append(value)
        return found

    def look_at_all(self, space: Space) -> None:
        """Remember all that is called in a dictionary, and which names there are."""
        self._outlines[id(space)] = space, _Outline(space)

    def look_at_class(self, kind: type) -> Space | None:
        """Remember the methods of a class; returns its dictionary, None for one that cannot change."""
        if kind.__flags__ & _IMMUTABLE:
            return None
        # Of a class, `vars` is a view of the dictionary that has the version.
        space = next((d for d in gc.get_referents(vars(kind)) if type(d) is dict), None)
        if space is not None:
            self.look_at_all(space)
        return space

    @property
    def spaces(self) -> list[Space]:
        """All dictionaries in which names are looked up."""
        return [space for space, _ in (*self._named.values(), *self._outlines.values())]

    # -- comparing -------------------------------------------------------------------------------

    def arm(self) -> None:
        """Remember the versions of all dictionaries, but for those that change all the time."""
        spaces = self.spaces
        steady = [one for one in spaces if self._changes.get(id(one), 0) <= OFTEN]
        self._restless = [one for one in spaces if self._changes.get(id(one), 0) > OFTEN]
        self._versions = private_names.versions(steady)
        self._steady = steady
        self._is_steady: Callable[[], bool] = (
            private_names.unchanged(steady, self._functions_read()) or never
        )
        self.unchanged = never if self._restless else self._is_steady

    def _functions_read(self) -> Sequence[FunctionType]:
        """Return the functions that are to keep their code."""
        return ()

    def _look_again(self) -> bool:
        """Compare all names, where a dictionary has changed."""
        if not all(map(self._is_alike, self._steady)):
            return False
        if self._versions is not None:
            now = private_names.versions(self._steady) or []
            for space, old, new in zip(self._steady, self._versions, now, strict=True):
                if old != new:
                    self._changes[id(space)] = self._changes.get(id(space), 0) + 1
            self.arm()
        return True

    def _is_alike(self, space: Space) -> bool:
        _, named = self._named.get(id(space), (space, {}))
        _, outline = self._outlines.get(id(space), (space, None))
        return all(_sign(space.get(name, _ABSENT)) is sign for name, sign in named.items()) and (
            outline is None or outline.is_of(space)
        )


class Lookups(Names):
    """The names that a captured step looks up, and what they stood for.

    Args:
        read: The code that was read; empty if that is not known.
        kinds: The classes of the objects that were met.
        model: The module whose step it is.
        asked: Modules and functions that were met.
    """

    def __init__(
        self,
        read: Sequence[CodeType],
        kinds: Iterable[type],
        model: nn.Module,
        asked: Iterable[ModuleType | FunctionType] = (),
    ) -> None:
        super().__init__()
        self._wanted = set(read)
        self._computes = any(map(_computes_names, read))
        self._kinds: set[type] = set()
        self._followed: set[CodeType] = set()
        self._functions: dict[int, FunctionType] = {}
        self._look_at_classes([Tensor, nn.Parameter, Optimizer, *map(type, model.modules())])
        self._look_at_classes(one for one in kinds if not _is_of_torch(one.__module__))
        self.look_at(vars(torch.autograd), {"backward", "grad"})
        self.look_at(vars(nn.utils), _CLIPPING)
        self.look_at(vars(sys.modules["torch.nn.utils.clip_grad"]), _CLIPPING)
        for one in asked if self._computes else ():
            self._look_at_whole(one)
        spaces = _spaces_of_files({code.co_filename for code in read} - {""})
        for code in read:
            if (space := spaces.get(code.co_filename)) is not None:
                self._follow(code, space)
        self._codes = [*map(_code, self._functions.values())]
        self.arm()

    def hold(self) -> bool:
        """Tell whether all names stand for what they stood for, and functions have their code."""
        if [*map(_code, self._functions.values())] != self._codes:
            return False
        return super().hold()

    def _functions_read(self) -> Sequence[FunctionType]:
        return [*self._functions.values()]

    # -- looking at them -------------------------------------------------------------------------

    def _look_at_classes(self, kinds: Iterable[type]) -> None:
        for kind in dict.fromkeys(base for one in kinds for base in one.__mro__):
            if kind in self._kinds or _is_settled(kind.__module__):
                continue
            space = self.look_at_class(kind)
            if space is None:
                continue
            self._kinds.add(kind)
            foreign = not _is_of_torch(kind.__module__)
            for name, value in [*space.items()]:
                function = function_of(value)
                if function is None or not (foreign or name == "forward" or self._wanted):
                    continue
                if foreign and self._computes:
                    self._look_at_whole(function)
                if function.__code__ in self._wanted or not self._wanted:
                    self._functions[id(function)] = function
                    self._follow(function.__code__, function.__globals__)

    def _follow(self, code: CodeType, space: Space) -> None:
        """Look at the names of a piece of code, and of the functions that these stand for."""
        if code in self._followed or code.co_filename.startswith(_OWN):
            return
        self._followed.add(code)
        looked_up, imported, inner = _names(code)
        found = self.look_at(space, looked_up)
        missing = {name for name in looked_up if name not in space}
        self.look_at(vars(builtins), missing)
        found += self.look_at(sys.modules, imported)
        names, foreign = words(code), not code.co_filename.startswith(torch.__path__[0])
        met: set[int] = set()
        for value in found:  # which grows meanwhile
            if id(value) in met:
                continue
            met.add(id(value))
            if foreign and self._computes and isinstance(value, ModuleType | FunctionType):
                self._look_at_whole(value)
            if isinstance(value, ModuleType) and (foreign or not _is_settled(value.__name__)):
                found += self.look_at(vars(value), names)
            elif isinstance(value, FunctionType):
                if _is_followed(value):
                    self._follow(value.__code__, value.__globals__)
                    if not _is_of_torch(value.__module__):
                        self.look_at(vars(value), names)
            elif isinstance(value, type) and not _is_of_torch(value.__module__):
                self._look_at_classes([value])
        for one in inner:
            self._follow(one, space)

    def _look_at_whole(self, one: ModuleType | FunctionType) -> None:
        """Look at all names of something that is asked for a name that does not stand in the code."""
        if isinstance(one, ModuleType) or not _is_of_torch(one.__module__):
            self.look_at_all(vars(one))


def never() -> bool:
    """Stand in for a test that this torch has not."""
    return False


def _sign(value: Any) -> Any:
    structural = isinstance(value, ModuleType | type) or callable(value)
    return value if structural or value is _ABSENT else _DATA


class _Outline:
    """The names in a class, and what is called there, or stands for attributes."""

    def __init__(self, space: Space) -> None:
        self._names = [*space]
        kept = {k: v for k, v in space.items() if callable(v) or hasattr(type(v), "__get__")}
        self._places, self._values = [*kept], [*kept.values()]

    def is_of(self, space: Space) -> bool:
        """Tell whether a class has the same ones."""
        now = map(space.get, self._places)
        return [*space] == self._names and all(map(is_, now, self._values))


def function_of(value: Any) -> FunctionType | None:
    """Return the function of a method of any kind; None if it is none."""
    for name in ("fget", "__func__"):  # of a property, a static or a class method
        value = getattr(value, name, None) or value
    return value if isinstance(value, FunctionType) else None


def _is_followed(function: FunctionType) -> bool:
    module = str(function.__globals__.get("__name__", ""))
    if _is_of_torch(module):
        return module.startswith(_TRACED)
    return not _is_settled(module)


def _is_settled(module: str) -> bool:
    """Tell whether a module is one of Python's, of which Dynamo looks at what users name."""
    root = module.partition(".")[0]
    return root in sys.stdlib_module_names and root != "__main__"


def _is_of_torch(module: str | None) -> bool:
    return (module or "").partition(".")[0] == "torch"


def _names(code: CodeType) -> tuple[set[str], set[str], list[CodeType]]:
    """Return the global names of a piece of code, the modules it imports, and code within it."""
    looked_up, imported = set(), set()
    for one in dis.get_instructions(code):
        if one.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
            looked_up.add(str(one.argval))
        elif one.opname == "IMPORT_NAME":
            imported.add(str(one.argval))
    return looked_up, imported, [one for one in code.co_consts if isinstance(one, CodeType)]


def _computes_names(code: CodeType) -> bool:
    """Tell whether code of users may ask for attributes whose names do not stand in it."""
    return not _ASKING.isdisjoint(code.co_names) and not code.co_filename.startswith(
        (_OWN, torch.__path__[0], *_OF_PYTHON)
    )


def words(code: CodeType) -> set[str]:
    """Return all names in a piece of code, those that are given to `getattr` too."""
    texts = {one for one in code.co_consts if isinstance(one, str) and one.isidentifier()}
    return {*code.co_names, *texts}


def _spaces_of_files(files: set[str]) -> dict[str, Space]:
    """Return the globals of the modules that lie in these files."""
    modules = [*sys.modules.values()]
    return {
        name: vars(module)
        for module in modules
        if (name := getattr(module, "__file__", None)) in files and isinstance(module, ModuleType)
    }


# -- what is refused ------------------------------------------------------------------------------

_UNSEEN: Final = {
    "vars", "dir", "__dict__", "getrecursionlimit", "get_autocast_dtype", "get_autocast_gpu_dtype",
    "get_autocast_cpu_dtype",
}  # fmt: skip
"""Ask for what Dynamo reads and does not look at again."""

_TEXTS: Final = {"str", "repr", "format"}
"""Ask for the text of an object, which its class may make of its attributes."""


def unseen(read: Iterable[CodeType], kinds: Iterable[type]) -> tuple[str, CodeType] | None:
    """Return what users' code asks for that is not looked at again, and the code; None for nothing.

    Args:
        read: The code.
        kinds: The classes of the objects that it met.
    """
    written = any(
        isinstance(getattr(kind, name), FunctionType)
        for kind in kinds
        if not _is_of_torch(kind.__module__)
        for name in ("__str__", "__repr__")
    )
    wanted = _UNSEEN | _TEXTS if written else _UNSEEN
    for code in read:
        if code.co_filename.startswith((_OWN, torch.__path__[0], *_OF_PYTHON)):
            continue
        found = wanted.intersection(code.co_names)
        if found:
            return min(found), code
    return None


def replaced_backward() -> str | None:
    """Name a function of torch that somebody has replaced, and that a compiled step does not call."""
    for name, function in (
        ("torch.Tensor.backward", Tensor.backward),
        ("torch.autograd.backward", torch.autograd.backward),
        ("torch.optim.Optimizer.zero_grad", Optimizer.zero_grad),
    ):
        code = getattr(function, "__code__", None)
        if code is None or not code.co_filename.startswith(torch.__path__[0]):
            return name
    return None
