"""Says which names some code changes in a way that depends on what they were, and which it reads.

It reads instructions, not source: what was typed at the prompt or made by `exec` has no source.
"""

from __future__ import annotations

import dis
import functools
import types
from collections.abc import Iterable
from typing import Final, NamedTuple

from statemachine_trainer.snapshot.kinds import attributes_of_class, is_users

_LOADS: Final = ("LOAD_ATTR", "LOAD_METHOD", "LOAD_GLOBAL", "LOAD_DEREF", "LOAD_NAME")
_OF_OWNER: Final = ("LOAD_ATTR", "LOAD_METHOD")
_STORES: Final = ("STORE_ATTR", "STORE_GLOBAL", "STORE_DEREF")
_IN_PLACE: Final = ("STORE_SUBSCR", "DELETE_SUBSCR")
_ENDS: Final = (*_STORES, *_IN_PLACE, "STORE_FAST", "STORE_NAME", "POP_TOP", "RETURN_VALUE")
METHODS: Final = frozenset(
    {
        *("append", "appendleft", "add", "extend", "extendleft", "insert", "update", "setdefault"),
        *("pop", "popleft", "popitem", "remove", "discard", "clear", "sort", "reverse", "rotate"),
        *("difference_update", "intersection_update", "symmetric_difference_update"),
        *("move_to_end", "subtract", "__setitem__", "__delitem__"),
    }
)
"""Methods that change a container."""

_GROWING: Final = frozenset({"append", "appendleft", "extend", "add", "update"})
"""Those that give nothing back."""

_FUNCTIONS: Final = frozenset(
    {"shuffle", "heappush", "heappop", "heapreplace", "heappushpop", "insort"}
)
"""Functions that change the container that they are given."""

_BY_NAME: Final = frozenset({"setattr", "vars", "__dict__", *METHODS})
"""What code uses to change something whose name it need not have."""

_STORING: Final = tuple(dis.opmap[name] for name in (*_STORES, *_IN_PLACE))
"""The numbers of the instructions that change something other than a local variable."""

MAKERS: Final = ("__init__", "__new__", "__post_init__", "__setstate__", "__set_name__")
"""Methods that run while an object is made."""


def is_in_place(name: str) -> bool:
    """Whether a method of this name changes a tensor: `add_`, `copy_`."""
    return name.endswith("_") and not name.startswith("_") and not name.endswith("__")


_OTHER_EACH_TIME: Final = frozenset(
    {
        *(
            "next",
            "id",
            "hash",
            "uuid1",
            "uuid4",
            "getpid",
            "urandom",
            "token_hex",
            "mkdtemp",
            "mkstemp",
        ),
        *("time", "time_ns", "perf_counter", "monotonic", "now", "utcnow", "today", "strftime"),
        *("gethostname", "node", "getmtime", "TemporaryDirectory", "NamedTemporaryFile"),
    }
)
"""Names of functions that return something else in each process, or each time."""


DRAWS: Final = frozenset(
    {
        *("rand", "randn", "rand_like", "randn_like", "randint", "randint_like", "randperm"),
        *("random", "normal", "uniform", "choice", "choices", "shuffle", "sample", "integers"),
        *("random_", "normal_", "uniform_", "bernoulli", "bernoulli_", "multinomial", "dropout"),
        *("gauss", "permutation", "standard_normal", "randrange", "getrandbits", "poisson"),
    }
)
"""Names of functions that draw random numbers."""


_AT_RANDOM: Final = frozenset(
    {
        *("rand", "randn", "rand_like", "randn_like", "randint", "randint_like", "randperm"),
        *("multinomial", "bernoulli", "permutation", "standard_normal", "randrange", "gauss"),
        *("getrandbits", "uniform", "normal_", "uniform_"),
    }
)
"""Those of them that are the names of nothing else."""

_OF_DATA: Final = frozenset({"mean", "std", "var", "median", "quantile", "item", "detach", "clone"})
"""Methods whose results follow from the batch, or from the weights at that moment."""

_SEEDED: Final = frozenset({"manual_seed", "default_rng", "Random", "RandomState"})
"""Names of what makes random numbers the same each time."""


class Changed(NamedTuple):
    """Names of what code changes.

    Attributes:
        updated: It assigns to them what it computes from the same name, or if that has a certain value.
        in_place: It may change the containers that they name.
        read: It reads them for something else.
        other_each_time: It assigns to them what differs from process to process: a time, a number of a counter.
        stored: It assigns to them, whatever; each with the name of the owner before it: ("self", "x").
        made_once: It assigns to them, if a test of them says so, what is drawn at random or follows from a batch;
            each with the name of the owner.
    """

    updated: frozenset[str] = frozenset()
    in_place: frozenset[str] = frozenset()
    read: frozenset[str] = frozenset()
    other_each_time: frozenset[str] = frozenset()
    stored: frozenset[tuple[str, str]] = frozenset()
    made_once: frozenset[tuple[str, str]] = frozenset()

    def with_those_of(self, others: Iterable[Changed]) -> Changed:
        """Return these names and those of others."""
        all_ = [self, *others]
        return Changed(*(frozenset().union(*names) for names in zip(*all_, strict=True)))


def codes_of(thing: object) -> list[types.CodeType]:
    """Return the code of a function of a user, of a bound method or a partial; none of anything else."""
    while type(thing) is functools.partial:
        thing = thing.func
    inner = getattr(thing, "__func__", thing) if type(thing) is types.MethodType else thing
    if type(inner) is not types.FunctionType:
        return []
    # What `functools.wraps` has made calls itself by the module of what it wraps.
    return [inner.__code__] if is_users(inner.__globals__.get("__name__")) else []


def codes_of_class(kind: type) -> list[types.CodeType]:
    """Return the code of the properties, class methods and static methods of a class of a user."""
    found = []
    for base in kind.__mro__:
        for one in attributes_of_class(base).values() if is_users(base.__module__) else ():
            if isinstance(one, property):
                found += codes_of(one.fget) + codes_of(one.fset)
            elif isinstance(one, (classmethod, staticmethod)):
                found += codes_of(one.__func__)
    return found


@functools.lru_cache(maxsize=4096)
def changed_by(code: types.CodeType) -> Changed:
    """Return the names of what code changes in a way that depends on what it was."""
    found = _Statements()
    for one in dis.get_instructions(code):
        found.take(one)
    # A text that is put into a variable first may be the name of what is set.
    texts = {one for one in code.co_consts if isinstance(one, str) and one.isidentifier()}
    by_text = texts if found.by_computed_name else set()
    changed = Changed(
        frozenset(found.updated | by_text),
        frozenset(found.in_place),
        frozenset(found.read | by_text),
        frozenset(found.other_each_time),
        frozenset(found.stored),
        frozenset() if _SEEDED & {*code.co_names} else frozenset(found.made_once),
    )
    inner = [one for one in code.co_consts if isinstance(one, types.CodeType)]
    return changed.with_those_of(map(changed_by, inner))


class _Statements:
    """Reads the instructions of a function, statement by statement."""

    def __init__(self) -> None:
        self.updated: set[str] = set()
        self.in_place: set[str] = set()
        self.read: set[str] = set()
        self._carried: set[tuple[str, str]] = set()  # read, and not set yet
        self.other_each_time: set[str] = set()
        self.stored: set[tuple[str, str]] = set()
        self.made_once: set[tuple[str, str]] = set()
        self.by_computed_name = False
        self._tested: set[str] = set()  # and not set yet
        self._before: tuple[str, str] = ("", "")  # the instruction before, and its name
        self._begin()

    def _begin(self) -> None:
        self._loaded: set[tuple[str, str]] = set()  # names, each with that before it: ("self", "x")
        self._locals = 0
        self._compares = ""
        self._augmented: set[str] = set()
        self._set: set[str] = set()  # and what is only set here, or grows
        self._texts: set[str] = set()

    def take(self, one: dis.Instruction) -> None:
        """Take the next instruction."""
        kind = one.opname
        pair = kind.startswith("LOAD_FAST") and isinstance(one.argval, tuple)  # two at once
        name = str(one.argval[-1] if pair else one.argval)
        if kind in _LOADS or kind.startswith("LOAD_FAST"):
            self._locals += (2 if pair else 1) if kind.startswith("LOAD_FAST") else 0
            self._load(kind, name)
        elif kind == "LOAD_CONST" and type(one.argval) is str:
            self._texts.add(name)
        elif kind in ("COMPARE_OP", "IS_OP", "CONTAINS_OP"):
            self._compares = f"{one.argval}"
        elif kind in _STORES:
            self._store(kind, name)
        names = {name for _, name in self._loaded}
        ends = kind in _ENDS or kind.startswith("STORE_FAST")
        if kind in _IN_PLACE or (ends and names & _FUNCTIONS):
            self.in_place |= names
        if kind == "STORE_SUBSCR" and names & {"vars", "__dict__"}:
            self.updated |= self._texts
        if ends or "JUMP" in kind:
            self._end(names, jumps="JUMP" in kind)
            self._begin()
        self._before = kind, name

    def _load(self, kind: str, name: str) -> None:
        of_owner = kind in _OF_OWNER
        owner = self._before[1] if of_owner else ""
        if self._before[0] == "COPY":  # `self.x += ...`
            self._augmented.add(name)
        if of_owner and name in METHODS:
            # Of what a call or an index gives, such as `self.queues[0].append(x)`, it is any name before.
            found = self._before[0] in _LOADS or self._before[0].startswith("LOAD_FAST")
            owners = {owner} if found else {one for _, one in self._loaded}
            self.in_place |= owners
            if name in _GROWING:
                self._set |= owners
        if of_owner and is_in_place(name):
            self.in_place.add(owner)
        self._loaded.add((owner, name))

    def _store(self, kind: str, name: str) -> None:
        place = (self._before[1] if kind == "STORE_ATTR" else "", name)
        by_text = name in self._texts and ("", "getattr") in self._loaded
        of_same = place in self._loaded or place in self._carried or by_text
        if of_same or (kind == "STORE_ATTR" and name in self._augmented):
            self.updated.add(name)
        if _OTHER_EACH_TIME & {one for _, one in self._loaded}:
            self.other_each_time.add(name)
        names = {one for _, one in self._loaded}
        if name in self._tested and names & (_AT_RANDOM | _OF_DATA):
            self.made_once.add(place)
        self._tested.discard(name)
        self._set.add(name)
        self.stored.add(place)

    def _end(self, names: set[str], *, jumps: bool) -> None:
        if names & {"setattr", "__setattr__"}:
            reads = names & {"getattr", "__getattribute__"}
            self.updated |= self._texts if reads else names & self._texts
            self.by_computed_name |= bool(reads) and not self._texts
        elif names & {"getattr", "vars", "__dict__"}:
            self.read |= self._texts
        for owner, name in self._loaded:  # of a context variable
            if name == "set" and (owner, "get") in self._loaded | self._carried:
                self.updated.add(owner)
                self._set.add(owner)
        if jumps:
            by_text = names & {"hasattr", "getattr", "vars", "__dict__"}
            self._tested |= {name for owner, name in self._loaded if owner}
            self._tested |= self._texts if by_text else set()
        self.read |= names - self._set
        # `if self.x is None: self.x = ...` makes it once, and `if self.step != step: ...` follows another.
        # What is set if it is less than something, or if it is a certain value, goes on from what it was.
        decides = any(one in self._compares for one in "<>") or (
            self._compares != "" and self._locals <= 1
        )
        if not jumps or decides:
            self._carried |= self._loaded - self.stored


class ChangedLater:
    """Which attributes and variables some code changes after their owner was made, or differently each time."""

    def __init__(self, codes: Iterable[types.CodeType]) -> None:
        codes = [*dict.fromkeys(codes)]
        making = _making(codes)
        self._of_class: dict[str, set[str]] = {}
        self._of_any: set[str] = set()
        for code in codes:
            if not may_store(code):
                continue
            changed = changed_by(code)
            self._of_any |= changed.other_each_time
            if code in making:
                continue
            self._of_any |= changed.in_place
            if _BY_NAME & {*code.co_names}:
                self._of_any |= changed.updated
            owner = code.co_qualname.rpartition(".")[0]
            for before, name in changed.stored:
                if before == "self":
                    self._of_class.setdefault(owner, set()).add(name)
                else:
                    self._of_any.add(name)

    def has(self, kind: type | None, name: str) -> bool:
        """Whether an attribute of the objects of a class, or a variable, is changed."""
        if name in self._of_any:
            return True
        bases = () if kind is None else kind.__mro__
        return any(name in self._of_class.get(base.__qualname__, ()) for base in bases)


def _making(codes: list[types.CodeType]) -> set[types.CodeType]:
    """Return the code that runs while an object is made: constructors, and methods that only they call."""
    making = {code for code in codes if code.co_name in MAKERS}
    for _ in range(3):
        called = {name for code in making for name in code.co_names}
        by_others = {name for code in codes if code not in making for name in code.co_names}
        more = {one for one in codes if one.co_name in called - by_others} - making
        if not more:
            break
        making |= more
    return making


@functools.lru_cache(maxsize=8192)
def may_store(code: types.CodeType) -> bool:
    """Whether code may change a name: most does not, and is not read in detail."""
    operations = code.co_code[::2]
    if _BY_NAME & {*code.co_names} or any(one in operations for one in _STORING):
        return True
    if any(map(is_in_place, code.co_names)):
        return True
    return any(may_store(one) for one in code.co_consts if isinstance(one, types.CodeType))
