"""`FILE:OBJECT` on a command line: the loop or trainer in a user's file that is meant."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import inspect
import re
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final

from statemachine_trainer.graph.graph import Graph, graph_of
from statemachine_trainer.machine.errors import NotStarted, StateMachineError, suggest
from statemachine_trainer.machine.loop import Loop

if TYPE_CHECKING:
    from statemachine_trainer.audit.report import Audit
    from statemachine_trainer.trainer import Trainer


class BadTarget(StateMachineError):
    """What was named on the command line is not there, cannot be loaded, or is no loop."""


def graph_of_target(target: str, *, loop: str | None = None, subscribers: bool = False) -> Graph:
    """Return the graph of what `FILE:OBJECT` names.

    Args:
        target: A path of a Python file or a dotted module, a colon, and the name (dots lead inside)
            of a loop class, a loop, a trainer, or a function without arguments that makes one.
        loop: Which loop of a trainer is meant: "fit" (unless given), "validate", and so on.
        subscribers: Name who listens to each state and event of a trainer.

    Raises:
        BadTarget: There is no such file or object, or it is something else, or it is no trainer and
            something was asked for that only a trainer has.
        LoopDefinitionError: The loop tree does not hold together.
        UnknownLoop: The trainer has no loop of this name.
    """
    asked: dict[str, Any] = {} if loop is None else {"name": loop}
    if subscribers:
        asked["subscribers"] = True
    return _graph(_object(target), target, asked)


def trainer_of_target(target: str) -> Trainer:
    """Return the started trainer that the function `FILE:FUNCTION` makes.

    Args:
        target: A path of a Python file or a dotted module, a colon, and the name of a function
            without arguments that builds everything, calls `trainer.start(...)` and returns the
            trainer: the one that `assert_resumable` takes. A trainer that was started will do.

    Raises:
        BadTarget: There is no such file or function, or it returns something else.
    """
    trainer = _trainer(target)
    if trainer.driver.context is None:
        raise BadTarget(_NOT_STARTED.format(target))
    return trainer


def audit_of_target(target: str) -> Audit:
    """Return what checkpoints can hold of the training that `FILE:FUNCTION` would start.

    Args:
        target: As for `trainer_of_target`. Its `trainer.start(...)` starts nothing.

    Raises:
        BadTarget: There is no such file or function, or it starts no trainer.
        OnlyRehearsed: It trains or evaluates.
    """
    from statemachine_trainer.running.rehearsal import rehearsal

    with rehearsal():
        trainer = _trainer(target)
        try:
            return trainer.audit()
        except NotStarted:
            raise BadTarget(_NOT_STARTED.format(target)) from None


_NOT_STARTED: Final = (
    "{} returns a trainer that was not started. Call `trainer.start(model, data)` with the arguments of `fit` "
    "before returning it."
)


def object_of_target(target: str) -> Any:
    """Return what `FILE:OBJECT` names.

    Raises:
        BadTarget: There is no such file or object.
    """
    return _object(target)


def _trainer(target: str) -> Trainer:
    """Return the trainer that is named, or that a function makes."""
    from statemachine_trainer.trainer import Trainer

    thing = _object(target)
    if callable(thing) and not isinstance(thing, Trainer):
        _check_callable(thing, target)
        thing = _run_user_code(thing, target)
    if not isinstance(thing, Trainer):
        raise BadTarget(
            f"{target} is a {type(thing).__name__}. Name a function that builds model, data and a "
            "Trainer, calls `trainer.start(model, data)`, and returns the trainer."
        )
    return thing


def _object(target: str) -> Any:
    place, _, name = target.rpartition(":")
    if not place or not name:
        place, name = target.removesuffix(":"), ""
    module = _load(place)
    if not name:
        raise BadTarget(
            f"Say which object of {place} is meant: {place}:OBJECT. "
            f"{suggest('', _candidates(module))}"
        )
    return _look_up(module, place, name)


def _load(place: str) -> ModuleType:
    is_path = place.endswith(".py") or "/" in place or "\\" in place
    return _load_file(Path(place)) if is_path else _load_module(place)


def _load_file(path: Path) -> ModuleType:
    if not path.is_file():
        folder = path.parent
        near = [str(folder / p.name) for p in folder.glob("*.py")] if folder.is_dir() else []
        raise BadTarget(
            f"There is no file {path}. {suggest(str(path), near) if near else ''}".strip()
        )
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise BadTarget(f"{path} is no Python file: its name must end in .py.")
    module = importlib.util.module_from_spec(spec)
    loader = spec.loader
    # As `python FILE` does it: what lies beside the file can be imported.
    sys.path.insert(0, str(path.parent.resolve()))
    sys.modules.setdefault(path.stem, module)
    _run_user_code(lambda: loader.exec_module(module), str(path))
    return module


def _load_module(name: str) -> ModuleType:
    sys.path.insert(0, str(Path.cwd()))
    try:
        found = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        found = None
    if found is None:
        near = [p.stem for p in Path.cwd().glob("*.py")]
        hint = suggest(name, near) if near else ""
        raise BadTarget(
            f"There is no module {name!r} here or among the installed packages. {hint} A file is "
            f"named with its ending: {name}.py:OBJECT."
        )
    module: ModuleType = _run_user_code(lambda: importlib.import_module(name), name)
    return module


def _look_up(module: ModuleType, place: str, name: str) -> Any:
    found: Any = module
    for part in name.split("."):
        if not hasattr(found, part):
            where = place if found is module else f"{place}:{name.rpartition('.')[0]}"
            known = _candidates(module) if found is module else _public(found)
            raise BadTarget(f"{where} has no {part!r}. {suggest(part, known)}")
        found = getattr(found, part)
    return found


def _graph(thing: Any, target: str, asked: Mapping[str, Any]) -> Graph:
    """Return the graph of a loop or trainer, made by calling `thing` if need be.

    What is asked are arguments of `Trainer.graph`: a loop has one graph, and nobody subscribes to it.
    """
    if callable(thing) and not isinstance(thing, Loop) and not _has_graph(thing):
        _check_callable(thing, target)
        thing = _run_user_code(thing, target)
    if asked and isinstance(thing, (Graph, Loop)):
        raise BadTarget(
            f"{target} is a {type(thing).__name__}: only a trainer has subscribers, and several loops "
            "to choose from. Name a trainer, or a function that makes one."
        )
    if isinstance(thing, Graph):
        return thing
    if isinstance(thing, Loop):
        return graph_of(thing, _name_of(thing))
    if _has_graph(thing):
        graph = _run_user_code(lambda: thing.graph(**asked), target)
        if isinstance(graph, Graph):
            return graph
    raise BadTarget(
        f"{target} is a {type(thing).__name__}, and has no graph. Name a loop class, a loop, a "
        "trainer, or a function that makes one."
    )


def _check_callable(thing: Callable[..., Any], target: str) -> None:
    try:
        signature = inspect.signature(thing)
    except (TypeError, ValueError):
        return
    try:
        signature.bind()
    except TypeError:
        raise BadTarget(
            f"{target}{signature} needs arguments, and is called without any. Give them defaults, "
            "or name a function that makes the loop or trainer."
        ) from None


def _run_user_code(function: Callable[[], Any], where: str) -> Any:
    """Call code of the user; a mistake in it becomes one line that says where it is.

    What it prints goes to standard error: standard output is the graph's.
    """
    try:
        with contextlib.redirect_stdout(sys.stderr):
            return function()
    except StateMachineError:
        raise
    except (Exception, SystemExit) as error:
        frames = traceback.extract_tb(error.__traceback__)
        last = next((f for f in reversed(frames) if "importlib" not in f.filename), None)
        at = f" ({last.filename}, line {last.lineno})" if last is not None else ""
        raise BadTarget(f"{where} raised {type(error).__name__}: {error}{at}") from error


def _has_graph(thing: Any) -> bool:
    return not isinstance(thing, type) and callable(getattr(thing, "graph", None))


def _candidates(module: ModuleType) -> list[str]:
    """Return the names in a module that may be meant."""
    found = []
    for name in _public(module):
        value = getattr(module, name)
        own = f"{getattr(value, '__module__', '')}.".startswith(f"{module.__name__}.")
        made = isinstance(value, Loop) or _has_graph(value)
        makes = inspect.isfunction(value) or (isinstance(value, type) and issubclass(value, Loop))
        if made or (own and makes):
            found.append(name)
    return found


def _public(thing: Any) -> list[str]:
    return [name for name in dir(thing) if not name.startswith("_")]


def _name_of(loop: Loop) -> str:
    """Return a name for the root: `EpochLoop` is "epoch"."""
    words = re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z0-9]+", type(loop).__name__)
    name = "_".join(word.lower() for word in words if word != "Loop")
    return name if name.isidentifier() else "loop"
