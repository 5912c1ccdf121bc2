"""What the source of a method tells: attributes that it sets, what it returns."""

from __future__ import annotations

import ast
import functools
import inspect
import linecache
from collections.abc import Iterator, Sequence
from typing import Final

Function = ast.FunctionDef | ast.AsyncFunctionDef
_MUTATING: Final = frozenset(
    {
        *("append", "appendleft", "extend", "extendleft", "insert", "pop", "popleft", "popitem"),
        *("remove", "clear", "add", "discard", "update", "setdefault", "sort", "reverse"),
        *("difference_update", "intersection_update", "symmetric_difference_update", "subtract"),
    }
)


def source_of(function: object) -> Function | None:
    """Return the source of a function that is called as it stands.

    None of one that is wrapped, and where there is no source to read: what was typed at the prompt
    or made by `exec` is not looked at.
    """
    function = getattr(function, "__func__", function)
    if not inspect.isfunction(function) or hasattr(function, "__wrapped__"):
        return None
    code = function.__code__
    found = _functions_of(code.co_filename).get(code.co_firstlineno)
    return found if found is not None and found.name == code.co_name else None


@functools.cache
def _functions_of(filename: str) -> dict[int, Function]:
    """Return the functions of a file by the line on which they begin, decorators included."""
    try:
        tree = ast.parse("".join(linecache.getlines(filename)))
    except (SyntaxError, ValueError):
        return {}
    return {
        min(one.lineno for one in (node, *node.decorator_list)): node
        for node in ast.walk(tree)
        if isinstance(node, Function)
    }


def own_nodes(function: Function) -> Iterator[ast.AST]:
    """Yield what is in a function, without the functions and classes inside it."""
    todo: list[ast.AST] = list(function.body)
    while todo:
        node = todo.pop()
        yield node
        if not isinstance(node, Function | ast.ClassDef | ast.Lambda):
            todo += ast.iter_child_nodes(node)


def on_self(node: ast.AST, function: Function) -> str | None:
    """Return the name if a node is an attribute of the function's first argument."""
    arguments = [*function.args.posonlyargs, *function.args.args]
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and arguments:
        return node.attr if node.value.id == arguments[0].arg else None
    return None


def attributes_set(function: object) -> set[str]:
    """Return the attributes that a method sets on its first argument."""
    source = source_of(function)
    if source is None:
        return set()
    found = (
        on_self(node, source)
        for node in own_nodes(source)
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)
    )
    return {name for name in found if name is not None}


def attributes_changed(function: object) -> set[str]:
    """Return the attributes of its first argument whose content a method changes."""
    source = source_of(function)
    if source is None:
        return set()
    changed: list[ast.AST] = []
    for node in own_nodes(source):
        if isinstance(node, ast.Subscript) and not isinstance(node.ctx, ast.Load):
            changed.append(node.value)
        elif (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and node.func.attr in _MUTATING
        ):
            changed.append(node.func.value)
    found = (on_self(node, source) for node in changed)
    return {name for name in found if name is not None}


def is_empty(function: Function) -> bool:
    """Whether there is nothing in a function but `...`, `pass` or a docstring."""
    return all(
        isinstance(one, ast.Pass)
        or (isinstance(one, ast.Expr) and isinstance(one.value, ast.Constant))
        for one in function.body
    )


def returned(function: Function) -> tuple[set[object], bool]:
    """Return the constants that a function returns, and whether it returns anything else as well."""
    todo = [
        node.value or ast.Constant(None)
        for node in own_nodes(function)
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
    return constants, others


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
