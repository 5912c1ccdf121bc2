"""Who looks at gradients beside the optimizer: a step that is compiled whole has none to show.

Nobody can be told that he reads what is not there: `parameter.grad` is None, and that is no mistake.
So the code of all that is called between two steps is looked through, before it is called.
"""

from __future__ import annotations

import dis
import functools
import sys
from collections.abc import Iterable, Iterator
from contextlib import suppress
from types import CodeType, FunctionType, GeneratorType, ModuleType
from typing import Any, Final

from torch import Tensor

from statemachine_trainer.loops.compiled.lookups import function_of, words
from statemachine_trainer.machine.signals import Subscription

_WORDS: Final = {"grad", "clip_grad_norm_", "clip_grad_value_", "get_total_norm", "eval", "exec"}
"""Names of gradients, and of what runs code that cannot be looked through."""

_ASKING: Final = {"getattr", "attrgetter", "hasattr"}

_OF_MODELS: Final = ("validation_step", "test_step", "predict_step")
"""Methods of a model that are called between two steps."""

_MANY: Final = 100
"""Of a longer list or dictionary only so many things are looked at."""

_MOST: Final = 5000
"""So many things are looked at for one receiver."""


class Readers:
    """Those who look at gradients, among all that is called between two steps.

    Attributes:
        found: Whether there is one.
    """

    def __init__(self) -> None:
        self.found = False
        self._asked: dict[int, object] = {}

    def ask(self, loops: Iterable[object], trainer: Any, schedulers: Iterable[object]) -> bool:
        """Ask those who were not asked yet; tells whether one of all looks at gradients.

        One says so by an attribute `reads_gradients`, or the code names gradients.

        Args:
            loops: The loops around the one that steps the optimizers.
            trainer: Whose receivers are asked, and the steps of its model; None for none.
            schedulers: Of learning rates.
        """
        functions = (f for one in schedulers for f in (one, *getattr(one, "lr_lambdas", ())))
        for one in (*loops, *functions, *_receivers(trainer)):
            if self.found:
                break
            if id(one) not in self._asked:
                self._asked[id(one)] = one
                self.found = _reads(one, trainer)
        return self.found


def _receivers(trainer: Any) -> Iterator[Any]:
    board = getattr(trainer, "board", None)
    if board is None:
        return
    model = trainer.context.model
    for one in board.subscriptions:
        yield from (part for part in (one.receiver, one.when, one.every) if part is not None)
        owner = getattr(one.receiver, "__self__", None)
        # What a model computes is read where it is captured.
        if owner is not None and owner is not model:
            yield owner
    for signal in dict.fromkeys(board.resolve("*:*")):
        yield from (one for one in signal.receivers_for(None) if not isinstance(one, Subscription))
    for name in _OF_MODELS:
        function = function_of(getattr(type(model), name, None))
        if function is not None and not _is_of_others(function.__module__):
            yield function


def _reads(one: Any, trainer: Any) -> bool:
    said = getattr(one, "reads_gradients", None)
    if isinstance(said, bool):
        return said
    # What everybody comes to from the trainer.
    search = _Search([] if trainer is None else [trainer, trainer.context.model])
    if isinstance(one, functools.partial) or function_of(one) is not None:
        search.add(one)
    else:
        search.add_object(one, whole=True)
    return search.finds()


_OURS: Final = __name__.partition(".")[0]


def _is_of_others(module: str | None) -> bool:
    """Tell whether a module is one whose functions are not followed."""
    root = (module or "").partition(".")[0]
    return root in (_OURS, "torch") or (root in sys.stdlib_module_names and root != "__main__")


def _module_of(value: Any) -> str:
    return value.__name__ if isinstance(value, ModuleType) else type(value).__module__


def _is_of_user(code: CodeType) -> bool:
    return "-packages" not in code.co_filename


class _Search:
    """Looks through code, and through what this can call.

    The code of users is followed to the objects that it has: to its globals, what it encloses, its
    defaults, `self`, and their attributes of the names that it uses. That of packages is followed to
    the functions that it names.
    """

    def __init__(self, objects: Iterable[Any]) -> None:
        self._left: list[Any] = []
        self._met: dict[int, Any] = {}
        self._objects = [*objects]
        self._names: set[str] = set()
        self._found = False

    def finds(self) -> bool:
        """Tell whether gradients are named somewhere."""
        while not self._found and len(self._met) < _MOST:
            if self._left:
                self._look_at(self._left.pop())
            elif not self._look_into_objects():
                break
        return self._found

    def add(self, value: Any) -> None:
        """Take note of a value, to be looked at."""
        if id(value) not in self._met and not isinstance(value, Tensor | str | int | float):
            self._met[id(value)] = value
            self._left.append(value)

    def add_object(self, one: Any, *, whole: bool = False) -> None:
        """Take note of an object; of the whole of it, all methods that its author wrote."""
        self.add(one)
        for kind in type(one).__mro__ if whole else ():
            if not _is_of_others(kind.__module__):
                for value in vars(kind).values():
                    if function_of(value) is not None:
                        self.add(value)

    # -- one thing -------------------------------------------------------------------------------

    def _look_at(self, value: Any) -> None:
        if isinstance(value, functools.partial):
            for one in (value.func, *value.args, *value.keywords.values()):
                self.add(one)
        elif isinstance(value, dict):
            for one in [*value.values()][:_MANY]:
                self.add(one)
        elif isinstance(value, list | tuple | set | frozenset):
            for one in [*value][:_MANY]:
                self.add(one)
        elif isinstance(value, GeneratorType):
            self._look_at_code(
                value.gi_code, {} if value.gi_frame is None else value.gi_frame.f_globals
            )
            self.add({} if value.gi_frame is None else value.gi_frame.f_locals)
        elif (function := function_of(value)) is not None:
            owner = getattr(value, "__self__", None)
            if owner is not None:
                self.add(owner)
            self._look_at_function(function)
        elif isinstance(value, type) or not _is_of_others(_module_of(value)):
            self._objects.append(value)

    def _look_at_function(self, function: FunctionType) -> None:
        if _is_of_others(function.__module__):
            return
        self._look_at_code(function.__code__, function.__globals__)
        if not _is_of_user(function.__code__):
            return
        for cell in function.__closure__ or ():
            with suppress(ValueError):  # it is empty as yet
                self.add(cell.cell_contents)
        self.add([*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()])
        self.add(getattr(function, "__wrapped__", None))

    def _look_at_code(self, code: CodeType, space: dict[str, Any]) -> None:
        codes = [code]
        for one in codes:  # which grows meanwhile
            codes += [inner for inner in one.co_consts if isinstance(inner, CodeType)]
        self._found = any(map(_names_gradients, codes))
        for name in {name for one in codes for name in one.co_names}:
            value = space.get(name)
            if _is_of_user(code) or isinstance(value, FunctionType):
                self.add(value)
        if _is_of_user(code):
            self._names.update(*map(words, codes))

    def _look_into_objects(self) -> bool:
        """Look at attributes of the names that were used; tells whether there was something new."""
        for one in self._objects:
            own = getattr(one, "__dict__", None) or {}
            for name in self._names.intersection(own):
                self.add(own[name])
            for kind in one.__mro__ if isinstance(one, type) else type(one).__mro__:
                if not _is_of_others(kind.__module__):
                    space = vars(kind)
                    asked = {name for name in space if name in self._names or _is_special(name)}
                    for name in asked:
                        self.add(_in_slot(one, name, space[name]))
        return bool(self._left)


def _is_special(name: str) -> bool:
    return name.startswith("__") and name not in ("__dict__", "__weakref__", "__annotations__")


def _in_slot(one: Any, name: str, value: Any) -> Any:
    """Return what an object has in a place of its own (`__slots__`); of another attribute, itself."""
    if type(value).__name__ == "member_descriptor" and not isinstance(one, type):
        return getattr(one, name, None)
    return value


# -- one piece of code ----------------------------------------------------------------------------


def _names_gradients(code: CodeType) -> bool:
    if not _WORDS.isdisjoint(code.co_names):
        return True
    if _ASKING.isdisjoint(code.co_names):
        return False
    return "grad" in code.co_consts or (_is_of_user(code) and _asks_for_computed_names(code))


def _asks_for_computed_names(code: CodeType) -> bool:
    """Tell whether `getattr` is given a name that does not stand in the code."""
    instructions = [*dis.get_instructions(code)]
    for place, one in enumerate(instructions):
        if one.opname in ("LOAD_GLOBAL", "LOAD_NAME") and one.argval in ("getattr", "hasattr"):
            called = next(
                (n for n in range(place, len(instructions)) if _is_call(instructions[n].opname)),
                len(instructions),
            )
            given = instructions[place + 1 : called]
            names = [
                n
                for n, other in enumerate(given)
                if isinstance(other.argval, str) and other.opname.startswith("LOAD_CONST")
            ]
            after = [given[n + 1].opname for n in names[:1] if n + 1 < len(given)]
            made = any(other.opname.startswith(("BUILD_STRING", "FORMAT_")) for other in given)
            if not names or made or any(x in ("LOAD_METHOD", "LOAD_ATTR") for x in after):
                return True
    return False


def _is_call(name: str) -> bool:
    return name in ("PRECALL", "CALL", "CALL_KW", "CALL_FUNCTION_EX")
