"""The base class of all loops: states, and the transitions between them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Never, Self, TypeVar, cast

from statemachine_trainer.machine.declaration import Declared, declared_names, plain_text
from statemachine_trainer.machine.errors import (
    CannotBuild,
    LoopDefinitionError,
    LoopUsedTwice,
    MissingLoop,
    PlaceNotNamed,
    ReservedName,
    UnknownLoop,
    suggest,
)
from statemachine_trainer.machine.fields import SINGLE, UNSET, Field, copied, fields_of
from statemachine_trainer.machine.keywords import HasSettings, refuse_keyword, refuses_unknown
from statemachine_trainer.machine.swap import (
    Machine,
    StatePolicy,
    has_setting,
    names_given,
    settings_taken,
    swap,
)

__all__ = ["SEPARATOR", "Loop", "Place", "StatePolicy", "place"]

SEPARATOR = "."
L = TypeVar("L", bound="Loop")

_DECLARATIONS = frozenset(
    {
        "context",
        "initial",
        "transitions",
        "errors",
        "most_errors",
        "outcomes",
        "entries",
        "posted",
        "most_posted",
    }
)


class Place:
    """The place for a loop inside another one.

    A data descriptor, so that an assignment `outer.place = loop` is a swap, and ordinary attributes
    of a loop cost nothing.
    """

    def __init__(self, factory: Callable[[], Loop] | None = None) -> None:
        self.factory = factory
        self.name = ""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, loop: Loop | None, owner: type) -> Any:
        if loop is None:
            return self
        found = loop._loops.get(self.name)
        if found is None:
            found = loop.loops_inside().get(self.name)
        if found is None:
            raise MissingLoop(
                f"{owner.__name__} has a place for a loop named {self.name!r} and nothing in it. "
                f"Give one: `{owner.__name__}({self.name}=...)` or `loop.{self.name} = ...`."
            )
        return found

    def __set__(self, loop: Loop, value: Loop | type[Loop]) -> None:
        loop[self.name] = value


@refuses_unknown
def place(factory: Callable[[], L]) -> L:
    """Declare the default loop of a place.

    Example:
        class Outer(Loop):
            inner: Loop = place(Inner)

    Args:
        factory: The loop's class, or any callable without arguments that makes one.
    """
    return cast("L", Place(factory))


class Loop(HasSettings):
    """Base class of all loops: a sub-machine declared by `initial` and `transitions`.

    A state is a method, which works and answers with an event, or the loop in the place of that
    name. An event for which this loop has no transition goes to the loop around it. Such an event
    is an outcome of the loop. Outcomes are the whole contract between a loop and its parent.

    Attributes:
        initial: Name of the first state.
        transitions: `[event, source, dest]`, in the convention of the library `transitions`; then
            conditions, `unless`, and actions, which are done between the exit of the source and the
            entry of the dest. An event may be a list of events.
        outcomes: Events that may leave this loop. Required for the root of a machine. Elsewhere the
            transitions of the parent decide, and `outcomes` narrows them.
        entries: Entry points: `{event: state}` makes a transition on that event into this loop
            begin at that state instead of `initial`.
        posted: Events that reach this loop from outside (`post`), besides "stop", "validate",
            "checkpoint" and "pause". An event that a state of the loop answers with itself is taken
            from outside only if it is listed here.
        most_posted: How often in a row events that receivers post may take transitions of this loop
            from the same state, if that state does no work in between. Beyond it `EndlessPosting` is
            raised.
        errors: `[type, source, dest]`: where an exception of this type leads that `source`, or a
            state inside it, raises. The innermost loop that has one for it decides, there the most
            specific type. Without one the exception surfaces.
        most_errors: How often in a row the same state may raise and take error edges of this loop.
        context: The object that all loops of one machine share; set by the machine.

    Every annotated name of the class that is not a state is a field of its state: it is reset when
    the loop is entered (see `field` for other scopes) and written down with each snapshot. Settings
    belong into `__init__` as plain attributes.
    """

    initial: ClassVar[str]
    transitions: ClassVar[Sequence[Declared]] = ()
    errors: ClassVar[Sequence[Declared]] = ()
    most_errors: ClassVar[int] = 100
    most_posted: ClassVar[int] = 100
    outcomes: ClassVar[Sequence[str]] = ()
    entries: ClassVar[Mapping[str, str]] = {}
    posted: ClassVar[Sequence[str]] = ()
    context: Any

    _called: ClassVar[frozenset[str]] = frozenset()
    """Names that a base class declares for its callers: a subclass may only override them to match."""

    _fields: ClassVar[dict[str, Field]] = {}
    _loops: dict[str, Loop]
    _declared: dict[str, object]
    """What declared each default loop inside: the factory of its place, or the class whose `__init__` puts it in."""
    _given: frozenset[str]
    """Names of the arguments that it was made with."""
    _stands_for: Loop | None = None
    """The loop that returns to this place later; see `stand_in`."""

    _parent: Loop | None = None
    _driver: Machine | None = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        _plain_names(cls)
        states = cls._names()
        for name in states:
            _check_state(cls, name)
            if inspect.getattr_static(cls, name, None) is None:
                made = Place()
                made.__set_name__(cls, name)
                setattr(cls, name, made)
        cls._fields = fields_of(cls, {*_DECLARATIONS, *states, *_places(cls)})
        for name, declared in cls._fields.items():
            if inspect.getattr_static(cls, name, UNSET) is UNSET:
                setattr(cls, name, declared)  # raises a clear error if it is read before it is set

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """Give the loop its fields, even if a subclass does not call `super().__init__()`."""
        if args:
            _check_positions(cls, args, kwargs)
        loop = super().__new__(cls, *args, **kwargs)
        # A dict with keys of its own. CPython reads an attribute from its place in such a dict, and
        # searches one that shares its keys with those of other loops each time. Set on `object`,
        # because a subclass may have a `__setattr__` that is not ready yet.
        object.__setattr__(loop, "__dict__", {**vars(loop)})
        loop._loops, loop._declared = {}, {}
        loop._given = names_given(cls, args, kwargs)
        loop.reset_fields()
        return loop

    def __init__(self, **loops: Loop | type[Loop]) -> None:
        """Fill places of this loop: `EpochLoop(batch=MyBatchLoop())`, an instance or a class.

        Raises:
            UnknownLoop: The loop has no place of this name.
            UnknownSetting: It has neither a setting nor a place of this name.
        """
        for name, loop in loops.items():
            if not self.is_place(name):
                _check_known(self, name, loop)
        swap(self, loops, "reset")

    # -- the loops inside ------------------------------------------------------------------------

    @classmethod
    def places(cls) -> list[str]:
        """Names of the states that are loops, in the order of the transitions."""
        return [name for name in cls._names() if cls.is_place(name)]

    @classmethod
    def _names(cls) -> list[str]:
        """Return the names of the states that the class declares, without checking them."""
        errors = cls.errors if isinstance(cls.errors, list | tuple) else ()
        return declared_names([*_listed(cls.transitions), *errors], getattr(cls, "initial", None))

    @classmethod
    def is_place(cls, name: str) -> bool:
        """Return whether the class has a place of this name."""
        for base in cls.__mro__:
            if name in vars(base):
                return isinstance(vars(base)[name], Place)
        return False

    @classmethod
    def declared(cls, name: str) -> Callable[[], Loop] | None:
        """Return the factory of the default loop of a place; None if the class declares none."""
        return getattr(inspect.getattr_static(cls, name), "factory", None)

    def loops_inside(self) -> dict[str, Loop]:
        """Return the loops in this loop's places by name; default loops are made on first use."""
        inside: dict[str, Loop] = {}
        for name in self.places():
            factory = self.declared(name)
            if name not in self._loops and factory is not None:
                if isinstance(factory, Loop):
                    kind, here = type(factory).__name__, f"{type(self).__name__}.{name}"
                    raise LoopDefinitionError(
                        f"{here} is a place for a {kind} that all loops of the class would share. Write "
                        f"`place({kind})`, or `place(lambda: {kind}(...))` for one with settings."
                    )
                self.put(name, factory(), declared_by=factory)
            if name in self._loops:
                inside[name] = self._loops[name]
        return inside

    def walk(self, path: str = "") -> Iterator[tuple[str, Loop]]:
        """Yield `(path, loop)` for this loop and all loops inside it, outer ones first."""
        yield path, self
        for name, loop in self.loops_inside().items():
            yield from loop.walk(_join(path, name))

    def outwards(self) -> Iterator[Loop]:
        """Yield this loop and the loops around it, the root last."""
        loop: Loop | None = self
        while loop is not None:
            yield loop
            loop = loop._parent

    def find(self, name: str) -> str:
        """Return the path, relative to this loop, of the place with this path, end of a path, or name.

        The root of a machine also accepts whole paths, which begin with its own name.

        Raises:
            UnknownLoop: No place matches, or several do.
        """
        name = plain_text(name)
        paths = [_join(path, key) for path, loop in self.walk() for key in loop.places()]
        if name in paths:
            return name
        own = "" if self._driver is None else f"{self._driver.name}{SEPARATOR}"
        if own and name.startswith(own) and name.removeprefix(own) in paths:
            return name.removeprefix(own)
        found = [path for path in paths if path.endswith(SEPARATOR + name)]
        if len(found) == 1:
            return found[0]
        if found:
            raise UnknownLoop(
                f"Several loops are called {name!r}: {', '.join(found)}. Use one of these paths."
            )
        raise UnknownLoop(
            f"{type(self).__name__} has no place for a loop called {name!r}. {suggest(name, paths)}"
        )

    def place_of(self, name: str) -> tuple[Loop, str]:
        """Find a place as `find` does. Return the loop that has it, and the place's own name."""
        path, _, key = self.find(name).rpartition(SEPARATOR)
        return (self[path] if path else self), key

    def __getitem__(self, path: str) -> Loop:
        """Return the loop at a path below this one, as `trainer.loop["epoch.batch"]`."""
        loop = self
        for name in self.find(path).split(SEPARATOR):
            loop = getattr(loop, name)
        return loop

    def __setitem__(self, path: str, loop: Loop | type[Loop]) -> None:
        """Replace the loop at a path below this one."""
        swap(self, {path: loop}, "reset")

    def replace(
        self, *unnamed: Never, state: StatePolicy = "reset", **loops: Loop | type[Loop]
    ) -> None:
        """Put other loops into places of this loop or of the loops inside it: all of them, or none.

        Loops that somebody put into the replaced loop are carried over into the places of the same
        name in the new loop, unless the new loop was given one. Default loops are not carried over:
        the new class makes its own, with the settings that were given for the old one. The same
        holds for the places of the loops inside.

        Args:
            *unnamed: Not accepted: a loop is given by the name of its place.
            state: What happens to the fields: "reset" (first values), "keep" (fields of the same
                name are carried over) or a function of the old and the new loop.
            **loops: Name, or path in a dict (`replace(**{"epoch.batch": loop})`), and the new loop:
                an instance, or a class, which is built with those settings of the old loop that its
                `__init__` takes.

        Raises:
            PlaceNotNamed: A loop was given without the name of its place.
            UnknownLoop: There is no place of this name.
            CannotBuild: The class needs settings that the old loop does not have.
            LoopInUse: The running state is inside the replaced loop.
            LoopDefinitionError: The new tree is invalid. The old one stays in place.
        """
        if unnamed:
            paths = [_join(path, key) for path, loop in self.walk() for key in loop.places()]
            raise PlaceNotNamed(
                "replace() takes each loop by the name of its place: `replace(batch=MyLoop)`, or by a path, "
                f"`replace(**{{'epoch.batch': MyLoop}})`. Places here: {', '.join(paths) or 'none'}."
            )
        swap(self, loops, state)

    def check_fits(self, name: str, loop: object) -> None:
        """Refuse to put something other than a loop, or an enclosing loop, into a place.

        Raises:
            LoopDefinitionError: It is not a loop.
            LoopUsedTwice: The place is inside this very loop.
        """
        here = f"The place {name!r} of {type(self).__name__}"
        if not isinstance(loop, Loop):
            kind = loop.__name__ if isinstance(loop, type) else type(loop).__name__
            raise LoopDefinitionError(
                f"{here} takes a loop, not {kind}. Give an object or a class derived from Loop; call a "
                "function or a `functools.partial` that makes one."
            )
        if any(loop is outer for outer in self.outwards()):
            raise LoopUsedTwice(
                f"{here} is inside the very {type(loop).__name__} that you put there. Make a "
                "second instance."
            )

    def put(self, name: str, loop: Loop, declared_by: object = None) -> None:
        """Put a loop into a place, without checks. To swap loops use `replace`.

        Args:
            name: Of the place.
            loop: The loop.
            declared_by: The factory or class of a default loop; None if somebody chose the loop.
        """
        self.check_fits(name, loop)
        self._loops[name] = loop
        self._declared.pop(name, None)
        if declared_by is not None:
            self._declared[name] = declared_by
        loop._parent = self

    def fill(self, name: str, **settings: Any) -> Loop:
        """Make the loop that the class declares for a place, with settings, and put it there.

        It remains a default loop: if a loop of another class is swapped in later, that class makes
        its own default, with these settings.

        Raises:
            CannotBuild: The declared loop does not take these settings.
        """
        factory = self.declared(name)
        if isinstance(factory, type):
            try:
                loop: Loop = factory(**settings)
            except TypeError as error:
                raise CannotBuild(
                    f"The {factory.__name__} that {type(self).__name__} declares for {name!r} does not "
                    f"take the settings {', '.join(settings)} ({error}). Give an instance: "
                    f"`{name}={factory.__name__}(...)`."
                ) from error
        elif factory is not None:
            loop = factory()
            for setting, value in settings.items():
                if has_setting(loop, setting):
                    setattr(loop, setting, value)
            loop._given |= settings.keys()
        else:
            raise MissingLoop(f"{type(self).__name__} declares no loop for {name!r}.")
        self.put(name, loop, declared_by=factory)
        return loop

    def stand_in(self, path: str, loop: Loop) -> None:
        """Put a temporary loop at a path. A second call can put the original loop back.

        Later swaps treat the place as if the original loop were in it.
        """
        outer, name = self.place_of(path)
        was, declared_by = outer.loops_inside().get(name), outer._declared.get(name)
        swap(self, {path: loop}, "reset", temporary=True)
        if declared_by is not None:
            outer._declared[name] = declared_by
        comes_back = was is not None and was._stands_for is loop
        loop._stands_for = None if comes_back or was is None else was._stands_for or was

    # -- state -----------------------------------------------------------------------------------

    def reset_fields(self) -> None:
        """Give every field its first value."""
        values = self.__dict__
        for name, declared in self._fields.items():
            if declared.factory is not None:
                values[name] = declared.factory()
            elif declared.default is not UNSET:
                values[name] = declared.default
            else:
                values.pop(name, None)

    def state_dict(self) -> dict[str, Any]:
        """Return the values of the fields that are saved; containers are copied."""
        values = self.__dict__
        found: dict[str, Any] = {}
        for name, declared in self._fields.items():  # each checkpoint asks each loop
            if declared.saved and name in values:
                value = values[name]
                found[name] = value if type(value) in SINGLE else copied(value)
        return found

    def undo_of(self, state: str) -> Callable[[Exception], None] | None:
        """Return a function that undoes what a state of this loop changes before it raises.

        Called before each work of a state for whose errors there is an edge, here or further out.
        The function is called with the error that the state raises, before an edge is looked up.
        This one restores the fields of the loop; loops whose states change more restore that, too.

        Args:
            state: Name of the state.
        """
        before = {name: copied(vars(self)[name]) for name in self._fields if name in vars(self)}

        def undo(_error: Exception) -> None:
            for name in self._fields.keys() - before.keys():
                vars(self).pop(name, None)
            vars(self).update(before)

        return undo

    def abandon(self) -> None:
        """Undo the changes of an unfinished loop that will not be continued.

        Called where an error edge leads out of the loop, after its exit signal.
        """

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the fields from a `state_dict`; fields that it lacks get their first values."""
        self.reset_fields()
        self.__dict__.update((n, copied(v)) for n, v in state.items() if n in self._fields)

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles hold the loop and the loops inside it, not the machine around them."""
        return {n: v for n, v in vars(self).items() if n not in ("_parent", "_driver", "context")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        inside = {"_loops": dict(state["_loops"]), "_declared": dict(state["_declared"])}
        vars(self).update(state | inside)
        for loop in self._loops.values():
            if loop._parent is None:  # a shallow copy shares its loops with the original
                loop._parent = self


def _listed(declared: Any) -> Iterable[Any]:
    return declared if isinstance(declared, Iterable) else ()


def _plain_names(cls: type[Loop]) -> None:
    """Convert members of a `StrEnum` in the declaration of a class to plain text."""
    body = vars(cls)
    if "initial" in body:
        cls.initial = plain_text(body["initial"])
    for name in ("outcomes", "posted"):
        if isinstance(body.get(name), list | tuple):
            setattr(cls, name, tuple(plain_text(one) for one in body[name]))
    if isinstance(body.get("entries"), dict):
        cls.entries = {plain_text(k): plain_text(v) for k, v in body["entries"].items()}


def _check_known(loop: Loop, name: str, given: object) -> None:
    """Refuse an argument that names no place below a loop: it may be a misspelt setting."""
    paths = [_join(path, key) for path, inner in loop.walk() for key in inner.places()]
    if any(path == name or path.endswith(f"{SEPARATOR}{name}") for path in paths):
        return
    settings = [one.name for one in settings_taken(type(loop))]
    if not (isinstance(given, Loop) or _is_loop_class(given)):
        refuse_keyword(type(loop), name, given, [*settings, *paths])
    raise UnknownLoop(
        f"{type(loop).__name__} has neither a setting nor a place for a loop called {name!r}. "
        f"{suggest(name, [*settings, *paths])}"
    )


def _check_positions(cls: type[Loop], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    """Refuse loops given by position if the class does not take them so."""
    given = [one for one in args if isinstance(one, Loop) or _is_loop_class(one)]
    if not given:
        return
    try:
        inspect.signature(cls.__init__).bind(None, *args, **kwargs)
    except TypeError:
        kind = given[0].__name__ if isinstance(given[0], type) else type(given[0]).__name__
        places = cls.places()
        name = places[0] if len(places) == 1 else "name"
        raise PlaceNotNamed(
            f"{cls.__name__} was given a {kind} by position, and takes loops by the name of their "
            f"place: `{cls.__name__}({name}={kind}())`. Its places: {', '.join(places) or 'none'}."
        ) from None


def _places(cls: type[Loop]) -> set[str]:
    """Return the names of all places of a class, also those that no transition names."""
    names = {name for base in cls.__mro__ for name in vars(base)}
    return {name for name in names if cls.is_place(name)}


def _is_loop_class(value: object) -> bool:
    return isinstance(value, type) and issubclass(value, Loop)


def _check_state(cls: type[Loop], name: str) -> None:
    """Refuse a state whose name is reserved, or whose declaration cannot work."""
    if name in vars(Loop) or name.startswith("_") or name in _RESERVED:
        raise ReservedName(
            f"{cls.__name__} has a state called {name!r}, a name that the machine keeps for "
            "itself. Call it something else."
        )
    value = inspect.getattr_static(cls, name, None)
    if isinstance(value, Field):
        raise LoopDefinitionError(
            f"{cls.__name__}.{name} is a state and cannot be a field as well."
        )
    if isinstance(value, Loop) or _is_loop_class(value):
        kind = value.__name__ if isinstance(value, type) else type(value).__name__
        raise LoopDefinitionError(
            f"{cls.__name__}.{name} is a {kind} that all {cls.__name__} loops would share. Write "
            f"`{name}: Loop = place({kind})`."
        )


# "state" is an argument of `replace`; "add" a method of the library's `machine.is_...` helpers.
_RESERVED = frozenset({"state", "self", "context", "add"})


def _join(path: str, name: str) -> str:
    return f"{path}{SEPARATOR}{name}" if path else name
