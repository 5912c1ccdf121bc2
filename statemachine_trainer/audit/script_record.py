"""What a script has made, as short texts: the plain values of all that a fit reaches, and its code.

It is noted before training changes anything, and lies in each checkpoint. A script that goes on
from there notes its own, and is told what differs. What the code changes in training is left out.
"""

from __future__ import annotations

import dis
import functools
import types
import zlib
from collections.abc import Hashable, Iterable
from typing import Any, Final, cast

import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader

from statemachine_trainer.audit.changing_code import (
    MAKERS,
    Changed,
    ChangedLater,
    changed_by,
    codes_of_class,
    may_store,
)
from statemachine_trainer.audit.contents import numbers
from statemachine_trainer.audit.functions import checksum_of_code, compiler, each
from statemachine_trainer.audit.plain_values import plain_text
from statemachine_trainer.audit.reachable import Roots, Searches, roots_of_feed
from statemachine_trainer.audit.receivers_record import receivers_noted
from statemachine_trainer.audit.settings_of_run import CHANGES, ITS_CLASS, Settings, names_given
from statemachine_trainer.audit.value_names import OF_LOOPS, OF_MODULES
from statemachine_trainer.audit.value_texts import Texts
from statemachine_trainer.data import Feed
from statemachine_trainer.loops.base import TrainingLoop
from statemachine_trainer.loops.context import Context
from statemachine_trainer.machine.board import SignalBoard
from statemachine_trainer.machine.loop import Loop
from statemachine_trainer.parallel.ranks import Ranks
from statemachine_trainer.snapshot.found import names_in
from statemachine_trainer.snapshot.kinds import (
    attributes_of_class,
    how_to_visit,
    is_of_users,
    is_users,
    named,
)
from statemachine_trainer.snapshot.search import Search

_MOST: Final = 1000
"""Values that have a text of their own; those beyond have one checksum together."""

_LOOKED_AT: Final = 20_000
_CODE: Final = f"the code, for {compiler()}"
_REST: Final = "all further values"
_OF_RANK: Final = frozenset(
    {"rank", "local_rank", "world_size", "num_replicas", "num_workers", "pid"}
)
_OF_START: Final = ("resume", "ckpt_path", "checkpoint_path", "restart")
"""Parts of the names of what says how a script starts."""

_PARTS: Final = ("data_source", "dataset", "sampler")
"""What objects of torch take that is a part of the loader itself, with a path of its own."""

_AFTER_BACKWARD: Final = ("backward", "optimizer_step", "clip", "zero_grad", "batch_end")
"""Parts of the names of hooks, and of optimizers' methods, that are called where checkpoints hold gradients."""

_MOST_SEED: Final = 1 << 32
"""Seeds from here on come from the operating system, another one in each process."""


class ScriptRecord:
    """Notes what the script has made of one fit, and of its data where they are first seen.

    Args:
        context: The context of the fit.
        board: The signals of the trainer.
        roots: Where to look for all but the data.
        callbacks: The callbacks that have a state. What their constructors take is noted elsewhere.
        of_model: Names of attributes of the model that are noted elsewhere.
    """

    def __init__(
        self,
        context: Context,
        board: SignalBoard,
        roots: Roots,
        callbacks: Iterable[object],
        of_model: Iterable[str],
    ) -> None:
        self.context = context
        self._elsewhere = _Elsewhere(context, callbacks, of_model)
        self._fit = _Walk(roots, self._elsewhere)
        self._fit.walk(roots)
        self._fit.values.update(receivers_noted(board, context.model.modules()))
        self._of_data: dict[int, tuple[object, _Walk]] = {}
        self._known: tuple[list[_Walk], dict[str, Settings]] | None = None

    def settings(self) -> dict[str, Settings]:
        """Return what was noted of the fit and of its present loaders, by part, owner and name."""
        if not Ranks.is_first():
            return {}  # each has data of its own; one of them is enough
        walks = [self._fit, *self._walks_of_data()]
        if self._known is None or self._known[0] != walks:
            self._known = walks, _settings_of(walks)
        return self._known[1]

    def needs_gradients(self, loops: Iterable[Loop]) -> bool:
        """Whether some code may read gradients, or step with them, that no loop of this package keeps account of.

        Args:
            loops: All loops of the fit.
        """
        if self._reads_gradients_between_steps:
            return True
        return any(
            isinstance(loop, TrainingLoop) and _goes_backward_by_itself(loop) for loop in loops
        )

    @functools.cached_property
    def _reads_gradients_between_steps(self) -> bool:
        # Each checkpoint asks, and the code was read once.
        return any(_reads_gradients(code) for code in self._fit.codes)

    @property
    def codes(self) -> list[types.CodeType]:
        """The code of the functions of users that the fit reaches, but its data."""
        return self._fit.codes

    def walk_data(self) -> Searches:
        """Walk over the present loaders; return what was found of those that had not been walked over before."""
        found: Searches = {}
        if Ranks.is_first():
            self._walks_of_data(found)
        return found

    def _walks_of_data(self, found: Searches | None = None) -> list[_Walk]:
        """Return the walks of the present loaders; each is walked where it is first seen."""
        known, self._of_data = self._of_data, {}
        for name, feed in [("train", self.context.train), *self.context.validation]:
            if feed is None or id(feed.loader) in self._of_data:
                continue
            walked = known.get(id(feed.loader))
            if walked is None:
                walk, search = self._walk_of(name, feed)
                walked = feed.loader, walk
                if found is not None:
                    found[name, id(feed.loader)] = search
            self._of_data[id(feed.loader)] = walked
        return [walk for _, walk in self._of_data.values()]

    def _walk_of(self, name: str, feed: Feed) -> tuple[_Walk, Search]:
        roots = roots_of_feed(name, feed)
        loader: Any = feed.loader
        of_torch = isinstance(loader, DataLoader)
        begins = f"{name}.dataset" if of_torch else name
        if of_torch and loader.batch_size is not None:  # what the loader made by its settings
            self._elsewhere.whole.add(id(loader.batch_sampler))
        told = [path for path in roots if path.startswith(begins)]
        walk = _Walk(roots, self._elsewhere, told, torchs=of_torch)
        return walk, walk.walk(roots)


def _settings_of(walks: list[_Walk]) -> dict[str, Settings]:
    changing = ChangedLater([code for one in walks for code in one.codes])
    values: Settings = {}
    of_libraries: Settings = {}
    code: dict[str, str] = {}
    rest = count = 0
    for walk in walks:
        code |= walk.code
        for (owner, name), (kind, text) in walk.values.items():
            count += 1
            text = CHANGES if changing.has(kind, name) else text
            if count > _MOST:
                rest = zlib.crc32(f"{owner} {name} {text}".encode(), rest)
                continue
            into = values if kind is None or is_of_users(kind) else of_libraries
            into.setdefault(owner, {})[name] = text
    if count > _MOST:
        values[_REST] = {"their number and checksum": f"{count - _MOST} #{rest:08x}"}
    return {"script": values, "of libraries": of_libraries, "code": {_CODE: code}}


class _Elsewhere:
    """Says which values other parts of a checkpoint hold, or other parts of its settings tell."""

    def __init__(
        self, context: Context, callbacks: Iterable[object], of_model: Iterable[str]
    ) -> None:
        self._model = context.model
        self._told = {id(one) for one in callbacks}
        self._of_model = {*of_model, *_only_for_optimizers(context.model)}
        self._layers = {id(one) for one in context.model.modules()}
        self._layers.add(id(context.steps.given.loss))
        self.functions = {id(context.steps.given.loss)}
        self.whole: set[int] = set()

    def has(self, path: str, holder: Any, name: str) -> bool:
        """Whether an attribute is noted, or held, elsewhere."""
        kind = type(holder)
        if (
            name.startswith(("__", "_torchdynamo"))
            or name in _OF_RANK
            or any(one in name for one in _OF_START)
        ):
            return True
        if (
            id(holder) in self.whole
            or self.is_below(path)
            or issubclass(kind, torch.optim.Optimizer | LRScheduler | DataLoader)
        ):
            return True
        if holder is self._model and {name, name.lstrip("_")} & self._of_model:
            return True
        if issubclass(kind, nn.Module):
            constants = getattr(kind, "__constants__", ()) if id(holder) in self._layers else ()
            of_torch = name.startswith(("_compile", "_is_torch", "_dynamo"))  # set by its compiler
            return of_torch or name in OF_MODULES or name in constants
        if issubclass(kind, Loop):
            known = names_given(cast(Hashable, kind))
            return name in OF_LOOPS or name in holder._fields or name.lstrip("_") in known
        return id(holder) in self._told and name in names_given(cast(Hashable, kind))

    def is_below(self, path: str) -> bool:
        """Whether a path leads through what settings of optimizers, or of loaders, tell."""
        if path.startswith(("optimizer ", "scheduler ")):
            return True
        first, _, rest = path.partition(".")
        if first == "model":
            return rest.partition(".")[0].partition("(")[0] in self._of_model
        return rest.startswith(("loader.collate_fn", "loader.worker_init_fn"))


class _Walk:
    """One walk: the values that were found, by owner and name, and the code.

    Args:
        roots: Where it begins.
        elsewhere: What is not noted here.
        told: Those where it begins whose class, or content, is noted too.
        torchs: Whether the content of the data tells of the tensors and arrays of these.

    Attributes:
        values: The class of the holder, None for no object, and the text.
        code: Checksums by the name of the function, and the methods of each class.
        codes: The code of the functions.
    """

    def __init__(
        self, roots: Roots, elsewhere: _Elsewhere, told: Iterable[str] = (), *, torchs: bool = False
    ) -> None:
        self.values: dict[tuple[str, str], tuple[type | None, str]] = {}
        self.code: dict[str, str] = {}
        self.codes: list[types.CodeType] = []
        self._elsewhere = elsewhere
        self._texts = Texts()
        self._contents = {id(roots[one]) for one in told} if torchs else set()
        for path in told:
            self._note(path, None, "itself", roots[path])

    def walk(self, roots: Roots) -> Search:
        """Walk, and return what was found."""
        search = Search(roots, notice=self._notice, visit=self._visit)
        for path, place in search.places.items():
            self._note_seed(path, place.generator)
        return search

    def _notice(self, path: str, holder: object, name: str, value: object) -> None:
        """Take what users wrote, as `Search` calls it."""
        if isinstance(holder, type) or path.startswith("global "):
            if isinstance(value, types.FunctionType | types.MethodType | type | property):
                return  # that is code
            if isinstance(holder, type):
                self._note(path, holder, name, value)
            else:
                self._note(f"the globals of {path.removeprefix('global ')}", None, name, value)
        elif not self._elsewhere.has(path, holder, name) and not _is_made_later(
            cast(Hashable, type(holder)), name
        ):
            self._note_attribute(path, holder, name, value)

    def _visit(self, path: str, thing: object) -> None:
        kind = type(thing)
        if kind is types.FunctionType:
            assert isinstance(thing, types.FunctionType)
            if is_users(thing.__module__):
                self.codes.append(thing.__code__)
                if id(thing) not in self._elsewhere.functions and not self._elsewhere.is_below(
                    path
                ):
                    self._note_code(thing.__qualname__, f"#{checksum_of_code(thing.__code__)}")
        elif issubclass(kind, type):
            assert isinstance(thing, type)
            if is_users(thing.__module__):
                self._note_class(thing)
        elif not is_of_users(kind):
            self._note_of_library(path, thing, kind)

    def _note_of_library(self, path: str, thing: object, kind: type) -> None:
        """Take what the constructor of a library takes; data that our own loops make follow from their state."""
        if kind.__module__.startswith("statemachine_trainer.") and not path.startswith("callback "):
            return
        visited = how_to_visit(cast(Hashable, kind))[0] in ("_object", "_module")
        if not visited or plain_text(thing) is not None:
            return
        names = names_given(cast(Hashable, kind)).difference(_PARTS)
        for name, value in named(thing) if names else ():
            if name.lstrip("_") in names and not self._elsewhere.has(path, thing, name):
                self._note_attribute(path, thing, name, value)

    def _note_attribute(self, path: str, holder: object, name: str, value: object) -> None:
        inside = each(name, value).values() if id(holder) in self._contents else ()
        if inside and all(numbers(one, 1) for one in inside):
            return  # the content of the data tells it
        self._note(path, type(holder), name, value)

    def _note(self, path: str, kind: type | None, name: str, value: object) -> None:
        # The order of a set, and of what an object of C refers to, differs from process to process.
        if len(self.values) >= _LOOKED_AT or "{...}" in path or ">." in path:
            return
        if (text := self._texts.of(value)) is None:
            return
        self.values.setdefault((path, name), (kind, text))
        if kind is not None:
            self.values.setdefault((path, ITS_CLASS), (kind, kind.__qualname__))

    def _note_seed(self, path: str, generator: object) -> None:
        if isinstance(generator, torch.Generator):
            seed: Any = generator.initial_seed()
        else:
            sequence = getattr(getattr(generator, "bit_generator", None), "seed_seq", None)
            seed = getattr(sequence, "entropy", None)
        if isinstance(seed, int) and seed < _MOST_SEED:
            self.values[path, "the seed"] = (object, str(seed))

    def _note_class(self, kind: type) -> None:
        self.codes += codes_of_class(kind)
        inside = attributes_of_class(kind).items()
        methods = sorted(name for name, one in inside if isinstance(one, types.FunctionType))
        self._note_code(f"the names of the methods of {kind.__qualname__}", ", ".join(methods))

    def _note_code(self, name: str, text: str) -> None:
        if name in self.code and self.code[name] != text:  # two of one name
            text = f"#{zlib.crc32(f'{self.code[name]} {text}'.encode()):08x}"
        self.code[name] = text


@functools.lru_cache(maxsize=8192)
def _reads_gradients(code: types.CodeType) -> bool:
    """Whether code reads `.grad` of something, at another time than after a backward pass."""
    if code.co_name == "step" or any(one in code.co_name for one in _AFTER_BACKWARD):
        return False
    if "getattr" in code.co_names and "grad" in code.co_consts:
        return True
    before = ""
    for one in dis.get_instructions(code) if "grad" in code.co_names else ():
        if one.opname == "LOAD_ATTR" and one.argval == "grad" and before != "autograd":
            return True
        before = str(one.argval)
    return any(_reads_gradients(one) for one in code.co_consts if isinstance(one, types.CodeType))


def _goes_backward_by_itself(loop: TrainingLoop) -> bool:
    """Whether a loop that a user wrote from scratch has code for a backward pass."""
    if loop.steps_optimizers or loop.by_hand:
        return False
    return _has_backward_of_a_user(cast(Hashable, type(loop)))


@functools.lru_cache(maxsize=256)
def _has_backward_of_a_user(kind: type) -> bool:
    bases = [base for base in kind.__mro__ if is_users(base.__module__)]
    ours = next(base for base in kind.__mro__ if base not in bases)
    if hasattr(ours, "backward"):
        return False
    inside = [one for base in bases for one in attributes_of_class(base).values()]
    return any(
        "backward" in names_in(one.__code__)
        for one in inside
        if isinstance(one, types.FunctionType)
    )


@functools.lru_cache(maxsize=2048)
def _is_made_later(kind: type, name: str) -> bool:
    """Whether an attribute is one that a library keeps in the objects of its subclasses, or a cached one."""
    for base in kind.__mro__[:-1]:
        if isinstance(attributes_of_class(base).get(name), functools.cached_property):
            return True
        if base is not nn.Module and not is_users(base.__module__) and name in _stored_by(base):
            return True
    return False


@functools.lru_cache(maxsize=256)
def _stored_by(kind: type) -> frozenset[str]:
    inside = attributes_of_class(kind).values()
    codes = [one.__code__ for one in inside if isinstance(one, types.FunctionType)]
    changed = Changed().with_those_of(changed_by(one) for one in codes if may_store(one))
    return frozenset(name for before, name in changed.stored if before == "self")


def _only_for_optimizers(model: nn.Module) -> set[str]:
    """Return the names of what the model's `configure_optimizers` alone reads: settings of optimizers tell it."""
    reads: set[str] = set()
    others: set[str] = set()
    for base in type(model).__mro__:
        if not is_users(base.__module__):
            continue
        for name, one in attributes_of_class(base).items():
            if not isinstance(one, types.FunctionType) or name in MAKERS:
                continue
            found = reads if name == "configure_optimizers" else others
            found.update(names_in(one.__code__))
    return reads - others
