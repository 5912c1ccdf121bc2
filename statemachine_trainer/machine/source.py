"""Reads the source of a method: the attributes that it sets, what it calls and returns."""

from __future__ import annotations

import ast
import functools
import inspect
import linecache
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import CodeType
from typing import Final

Function = ast.FunctionDef | ast.AsyncFunctionDef

_MUTATING: Final = frozenset(
    {
        *("append", "appendleft", "extend", "extendleft", "insert", "pop", "popleft", "popitem"),
        *("remove", "clear", "add", "discard", "update", "setdefault", "sort", "reverse"),
        *("difference_update", "intersection_update", "symmetric_difference_update", "subtract"),
    }
)


@dataclass(frozen=True, slots=True)
class Facts:
    """Facts about the source of one method.

    Attributes:
        sets: Attributes that it sets on its first argument.
        changes: Attributes of its first argument whose contents it changes.
        calls: Methods of its first argument that it calls.
        returns: The constants that it returns, None among them if its end may be reached.
        returns_others: Whether it returns anything else as well.
        is_empty: Whether it holds nothing but `...`, `pass` or a docstring.
    """

    sets: frozenset[str]
    changes: frozenset[str]
    calls: frozenset[str]
    returns: frozenset[object]
    returns_others: bool
    is_empty: bool


def facts_of(function: object) -> Facts | None:
    """Read a function that is called as it stands.

    None of one that is wrapped, and where there is no source to read: what was typed at the prompt
    or made by `exec` is not looked at.
    """
    function = getattr(function, "__func__", function)
    if not inspect.isfunction(function) or hasattr(function, "__wrapped__"):
        return None
    return _facts_of_code(function.__code__)


# A walk over the source takes longer than all else that a tree is checked for. A notebook makes new
# functions all the time.
@functools.lru_cache(maxsize=4096)
def _facts_of_code(code: CodeType) -> Facts | None:
    linecache.checkcache(code.co_filename)  # a module may be loaded anew after it was edited
    text = "".join(linecache.getlines(code.co_filename))
    function = _functions_in(text).get(code.co_firstlineno)
    if function is None or function.name != code.co_name:
        return None
    sets, changed, called = [], [], []
    for node in _own_nodes(function):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            sets.append(node)
        elif isinstance(node, ast.Subscript) and not isinstance(node.ctx, ast.Load):
            changed.append(node.value)
        elif isinstance(node, ast.Call):
            called.append(node.func)
            if isinstance(node.func, ast.Attribute) and node.func.attr in _MUTATING:
                changed.append(node.func.value)
    constants, others = _returned(function)
    return Facts(
        _of_self(sets, function),
        _of_self(changed, function),
        _of_self(called, function),
        constants,
        others,
        all(
            isinstance(one, ast.Pass)
            or (isinstance(one, ast.Expr) and isinstance(one.value, ast.Constant))
            for one in function.body
        ),
    )


@functools.lru_cache(maxsize=64)
def _functions_in(text: str) -> dict[int, Function]:
    """Return the functions of a file by the line on which they begin, decorators included."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # its compiler has given them already
            tree = ast.parse(text)
    except (SyntaxError, ValueError):
        return {}
    return {
        min(one.lineno for one in (node, *node.decorator_list)): node
        for node in ast.walk(tree)
        if isinstance(node, Function)
    }


def _own_nodes(function: Function) -> Iterator[ast.AST]:
    """Yield what is in a function, without the functions and classes inside it."""
    todo: list[ast.AST] = list(function.body)
    while todo:
        node = todo.pop()
        yield node
        if not isinstance(node, Function | ast.ClassDef | ast.Lambda):
            todo += ast.iter_child_nodes(node)


def _of_self(nodes: Sequence[ast.AST], function: Function) -> frozenset[str]:
    """Return the names of those nodes that are attributes of the function's first argument."""
    arguments = [*function.args.posonlyargs, *function.args.args]
    own = arguments[0].arg if arguments else None
    return frozenset(
        node.attr
        for node in nodes
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == own
    )


def _returned(function: Function) -> tuple[frozenset[object], bool]:
    """Return the constants that a function returns, and whether it returns anything else as well."""
    todo = [
        node.value or ast.Constant(None)
        for node in _own_nodes(function)
        if isinstance(node, ast.Return)
    ]
    constants: set[object] = {None} if _falls_through(function.body) else set()
    others = False
    while todo:
        value = todo.pop()
        if isinstance(value, ast.IfExp):
            todo += [value.body, value.orelse]
        elif isinstance(value, ast.Constant):
            constants.add(value.value)
        else:
            others = True
    return frozenset(constants), others


def _falls_through(body: Sequence[ast.stmt]) -> bool:
    """Whether the end of some statements may be reached, as far as their form tells."""
    last = body[-1] if body else ast.Pass()
    if isinstance(last, ast.Return | ast.Raise):
        return False
    if isinstance(last, ast.If):
        return _falls_through(last.body) or _falls_through(last.orelse)
    if isinstance(last, ast.With):
        return _falls_through(last.body)
    if isinstance(last, ast.While) and isinstance(last.test, ast.Constant) and last.test.value:
        return any(isinstance(node, ast.Break) for node in ast.walk(last))
    return not isinstance(last, ast.Try | ast.Match)
