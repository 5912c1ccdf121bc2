"""Taken from inside of torch: which code Dynamo reads, and the versions of dictionaries.

As in `private`, none of it is promised by torch. What a version has not is done without.
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from operator import attrgetter
from types import CodeType, FunctionType, ModuleType
from typing import Any, Final

_code: Final = attrgetter("__code__")


@contextmanager
def noting(
    read: list[CodeType],
    kinds: dict[type, None],
    asked: list[ModuleType | FunctionType],
    constants: list[str],
) -> Iterator[None]:
    """Note the code that Dynamo reads within a block, where it does not do so itself (torch 2.7).

    Args:
        read: Takes the code.
        kinds: Takes the classes of what it is called with.
        asked: Takes modules and functions that are asked for an attribute by `getattr` or `hasattr`.
        constants: Takes the names of numbers and texts in classes of users, which become part of the graph.
    """
    try:
        from torch._dynamo.symbolic_convert import InliningInstructionTranslator as Reader
        from torch._dynamo.variables import BuiltinVariable, UserDefinedClassVariable
        from torch._guards import TracingContext
    except ImportError:
        yield
        return
    known = vars(Reader).get("inline_call")
    if hasattr(TracingContext, "get_traced_code") or known is None:
        yield
        return

    def inline_call(parent: Any, function: Any, args: Any, kwargs: Any) -> Any:
        if hasattr(function, "get_code"):
            read.append(function.get_code())
        # In the dictionary: asking for the attribute makes some of them give up.
        values = (getattr(one, "__dict__", {}).get("value") for one in args)
        kinds.update((type(value), None) for value in values if value is not None)
        return known.__get__(None, Reader)(parent, function, args, kwargs)

    def asking(plain: Any) -> Any:
        def call(self: Any, tx: Any, one: Any, *rest: Any) -> Any:
            places = getattr(one.realize() if hasattr(one, "realize") else one, "__dict__", {})
            value = places.get("value", places.get("fn"))
            value = getattr(value, "__func__", value)
            if isinstance(value, ModuleType | FunctionType):
                asked.append(value)
            return plain(self, tx, one, *rest)

        return call

    def of_class(self: Any, tx: Any, name: str) -> Any:
        held = inspect.getattr_static(self.value, name, None)
        if type(held) in (bool, int, float, str) and name not in ("__module__", "__doc__"):
            module = str(self.value.__module__).partition(".")[0]
            if module != "torch" and (
                module == "__main__" or module not in sys.stdlib_module_names
            ):
                constants.append(f"{self.value.__qualname__}.{name}")
        return attribute(self, tx, name)

    attribute = UserDefinedClassVariable.var_getattr
    # It keeps what it found for a function once, which would call what was there before.
    found: Any = getattr(BuiltinVariable, "call_function_handler_cache", {})
    found.clear()
    names = [n for n in ("call_getattr", "call_hasattr") if n in vars(BuiltinVariable)]
    plain = {name: vars(BuiltinVariable)[name] for name in names}
    Reader.inline_call = staticmethod(inline_call)  # type: ignore[method-assign, assignment]
    for name in names:
        setattr(BuiltinVariable, name, asking(plain[name]))
    UserDefinedClassVariable.var_getattr = of_class  # type: ignore[method-assign]
    try:
        yield
    finally:
        Reader.inline_call = known  # type: ignore[method-assign]
        for name in names:
            setattr(BuiltinVariable, name, plain[name])
        UserDefinedClassVariable.var_getattr = attribute  # type: ignore[method-assign]
        found.clear()


def versions(spaces: Sequence[dict[str, Any]]) -> list[int] | None:
    """Return a number of each dictionary that is another one after each change; None if unknown."""
    try:
        from torch._C._dynamo.guards import dict_version

        return [dict_version(one) for one in spaces]
    except (ImportError, TypeError):
        return None


def unchanged(
    spaces: Sequence[dict[str, Any]], functions: Sequence[FunctionType] = ()
) -> Callable[[], bool] | None:
    """Return a test whether all is as it is now; None if this torch has none.

    It is one call into C, however much there is to look at.

    Args:
        spaces: Dictionaries, which are to have the versions that they have.
        functions: Those that are to have the code that they have.
    """
    try:
        from torch._C._dynamo.guards import RootGuardManager
        from torch._dynamo.guards import GuardManagerType

        root = RootGuardManager()
        places: dict[int, Any] = dict(enumerate(spaces))
        for place, space in enumerate(spaces):
            kind = GuardManagerType.GUARD_MANAGER
            manager = root.dict_getitem_manager(place, f"spaces[{place}]", space, kind)
            try:
                manager.add_dict_version_guard(space, ["changed"], None)
            except TypeError:  # without a place in the code, as in torch 2.7
                manager.add_dict_version_guard(space, ["changed"])  # type: ignore[call-arg]
        same = functools.partial(root.check, places)
        if functions and not hasattr(root, "code_manager"):  # as in torch 2.7
            codes = [*map(_code, functions)]
            return lambda: same() and [*map(_code, functions)] == codes
        for place, function in enumerate(functions, len(spaces)):
            places[place] = function
            source, kind = f"functions[{place}]", GuardManagerType.GUARD_MANAGER
            manager = root.dict_getitem_manager(place, source, function, kind)
            manager = manager.code_manager(f"{source}.__code__", function.__code__, kind)
            manager.add_id_match_guard(id(function.__code__), ["changed"], None)
        return same
    except (ImportError, AttributeError, TypeError):
        return None
