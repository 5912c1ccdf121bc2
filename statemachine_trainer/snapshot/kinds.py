"""What the search for state does with the objects of each type, and what it tells of them."""

from __future__ import annotations

import contextvars
import functools
import gc
import io
import itertools
import queue
import sys
import threading
import types
import weakref
from collections import deque
from collections.abc import Mapping
from typing import Any, Final, cast

import numpy as np
import torch
from torch import nn

from statemachine_trainer.snapshot.generators import GENERATORS

_ITERATOR = (
    "make it anew from the index or the epoch, or give its owner `state_dict` and `load_state_dict`"
)
_OF_LOADER = (
    "give `fit` both loaders, `fit(model, {'labelled': one, 'unlabelled': other})`, or give its owner "
    "`state_dict` and `load_state_dict`"
)
_ENGINE = "keep the number of points drawn in an object with `state_dict`, and call `fast_forward`"
_OPEN = "open it where it is used, or give its owner `state_dict` and `load_state_dict`"
_WAITING = "leave nothing in it over a stop, or give its owner `state_dict` and `load_state_dict`"

ATOMS: Final = frozenset(
    {
        type(None), bool, int, float, complex, str, bytes, bytearray, range, type(...),
        torch.Tensor, nn.Parameter, nn.Buffer, torch.dtype, torch.device, torch.Size,
        types.ModuleType, types.CodeType, types.FrameType, types.TracebackType, types.GetSetDescriptorType,
        types.MemberDescriptorType, types.WrapperDescriptorType, types.MethodDescriptorType,
    }
)  # fmt: skip
_BOUND: Final = (types.MethodType, types.BuiltinMethodType, types.MethodWrapperType)
HEAP: Final = 1 << 9  # flag of the classes that are written in Python


LIBRARIES: Final = frozenset(sys.stdlib_module_names - {"__main__"}) | {
    "PIL", "accelerate", "albumentations", "bitsandbytes", "datasets", "filelock", "fsspec", "h5py",
    "httpx", "huggingface_hub", "lightning", "lightning_fabric", "matplotlib", "numpy", "pandas",
    "peft", "pyarrow", "pydantic", "pytest", "_pytest", "hypothesis", "pytorch_lightning", "rich",
    "safetensors", "scipy", "sklearn", "statemachine_trainer", "tensorboard", "tokenizers", "torch",
    "torchaudio", "torchdata", "torchmetrics", "torchvision", "tqdm", "transformers", "wandb",
}  # fmt: skip
"""Packages whose classes and functions are not looked into; their objects are."""

_OURS_FOR_USERS = ("statemachine_trainer.testing.specimens", "statemachine_trainer.demo")
_TRANSPARENT = ("torch.utils.data", "torchvision.", "torch.nn.", "functools", "types")
_SKIPPED = (
    "statemachine_trainer.machine.", "statemachine_trainer.running.", "statemachine_trainer.trainer",
    "statemachine_trainer.observe.", "statemachine_trainer.debugging.", "statemachine_trainer.page.",
    "statemachine_trainer.loops.context", "statemachine_trainer.integrations.", "logging.",
    "torch.utils.data.dataloader._", "torch._dynamo", "torch._inductor", "torch.fx", "torch._ops",
    "lightning.pytorch.trainer", "pytorch_lightning.trainer", "statemachine_trainer.snapshot.",
    "statemachine_trainer.callbacks.checkpoints", "torch.jit", "torch.distributed",
    "statemachine_trainer.loops.compiled.fused",  # its captures have all names of torch's modules
)  # fmt: skip
_QUEUES = ("asyncio.queues", "multiprocessing.queues", "torch.multiprocessing.queue")
_BASES_WITHOUT_STATE = ("torch.nn.", "torch.optim.optimizer", "lightning.", "pytorch_lightning.")


@functools.lru_cache(maxsize=2048)
def how_to_visit(kind: type) -> tuple[str, tuple[str, str] | None]:
    """Choose what to do with the objects of a type.

    Returns:
        The name of a method, or "" for nothing, or "tell"; and what is to be told. For a method,
        anything but None says that what lies below is not to be told.
    """
    for kinds, visit in _VISITS:
        if issubclass(kind, kinds):
            return visit, _QUIET if visit == "_module" and _has_extra_state(kind) else None
    if kind.__name__ == "cython_function_or_method":
        return "_bound", None
    if (told := _unheld(kind)) is not None:
        return "tell", told
    if f"{kind.__module__}.{kind.__qualname__}".startswith(_SKIPPED):
        return "", None
    if not kind.__flags__ & HEAP and not any(
        "__dict__" in attributes_of_class(one) for one in kind.__mro__
    ):
        return "_referents", None
    visit = "_object_of_c" if _holds_in_c(kind) else "_object"
    known = is_of_users(kind) or is_transparent(kind.__module__)
    if not known:
        return visit, LENT
    return visit, _QUIET if _has_state(kind) else None


_QUIET: Final = ("", "")
LENT: Final = ("of a library", "")
"""That of an object of a library nothing is told, but for what lies in functions that users gave it."""

_VISITS: Final[tuple[tuple[Any, str], ...]] = (
    (GENERATORS, "_find"),
    (types.ModuleType, ""),
    (torch.Tensor, "_tensor"),
    (dict, "_mapping"),
    ((list, tuple, deque), "_sequence"),
    ((set, frozenset), "_set"),
    (types.FunctionType, "_function"),
    (functools.partial, "_partial"),
    (_BOUND, "_bound"),
    (type(functools.cache(len)), "_cache"),
    (contextvars.ContextVar, "_context_variable"),
    (threading.local, "_of_thread"),
    (weakref.ReferenceType, "_weak"),
    (np.ndarray, "_array"),
    (type, "_class"),
    (nn.Module, "_module"),
)


def named_values(thing: object) -> dict[str, object]:
    """Return the attributes that an object holds itself, in its dictionary or its slots."""
    return dict(named(thing))


def behind(value: object) -> object:
    """Return what a context variable has in this context; anything else as it is."""
    if type(value) is not contextvars.ContextVar:
        return value
    try:
        return value.get()  # its default, where nothing was set
    except LookupError:
        return None


def is_of_users(kind: type) -> bool:
    """Whether the attributes of the objects of a class are a user's: it wrote the class, or names for them."""
    return is_users(kind.__module__) or (kind.__module__, kind.__name__) in _NAMESPACES


_NAMESPACES: Final = frozenset({("types", "SimpleNamespace"), ("argparse", "Namespace")})


@functools.lru_cache(maxsize=4096)
def is_users(module: object) -> bool:
    """Whether a module, by its name, is one of a user, and none of a known library."""
    if not isinstance(module, str):
        return False
    return module.partition(".")[0] not in LIBRARIES or module.startswith(_OURS_FOR_USERS)


def is_a(thing: object, kinds: type | tuple[type, ...]) -> bool:
    """Ask for the type alone: `isinstance` asks the object too, which may run code of its own."""
    return issubclass(type(thing), kinds)


def has_usual_class(thing: object) -> bool:
    """Whether the class of an object can be a key: a metaclass may forbid it."""
    try:
        hash(type(thing))
    except Exception:
        return False
    return True


def named(thing: object) -> list[tuple[str, object]]:
    """Return what an object holds itself, in slots and in its dictionary, without asking the object."""
    kind = type(thing)
    slots, dictionary = _layout(kind)  # type: ignore[arg-type]
    if not slots:
        return [] if dictionary is None else [*dictionary.__get__(thing, kind).items()]
    found: list[tuple[str, object]] = []
    for name, slot in slots:
        if slot is dictionary:
            found += dictionary.__get__(thing, kind).items()
            continue
        try:
            found.append((name, slot.__get__(thing, kind)))
        except AttributeError:  # nothing in it yet
            continue
    return found


def behind_attributes(thing: object) -> list[object]:
    """Return what an object of a class in C holds besides its attributes, as the collector of garbage knows it."""
    kind = type(thing)
    attributes = [value for _, value in named(thing)]
    dictionary = _layout(kind)[1]  # type: ignore[arg-type]
    if dictionary is not None:
        attributes.append(dictionary.__get__(thing, kind))
    known = {id(kind), *map(id, attributes)}
    return [one for one in gc.get_referents(thing) if id(one) not in known]


def dictionary_alone(kind: type) -> Any:
    """Return the descriptor of the dictionary of a class, if its objects hold all in there; else None."""
    slots, dictionary = _layout(kind)
    return None if slots else dictionary


@functools.lru_cache(maxsize=4096)
def _layout(kind: type) -> tuple[tuple[tuple[str, Any], ...], Any]:
    """Return the slots of a class, and the descriptor of its dictionary, which stands among them in its turn."""
    slots: list[tuple[str, Any]] = []
    dictionary: Any = None
    for base in kind.__mro__:
        inside = attributes_of_class(base)
        if base.__flags__ & HEAP:
            slots += [
                (name, slot)
                for name, slot in inside.items()
                if type(slot) is types.MemberDescriptorType and name != "__dict__"
            ]
        entry: Any = inside.get("__dict__")
        if dictionary is None and type(entry) in (
            types.GetSetDescriptorType,
            types.MemberDescriptorType,
        ):
            dictionary = entry  # each of several bases may have a way to the one dictionary
            slots.append(("__dict__", entry))
    only_dictionary = len(slots) == 1 and dictionary is not None
    return () if only_dictionary else tuple(slots), dictionary


_VARS: Final = type.__dict__["__dict__"]


def attributes_of_class(kind: type) -> Mapping[str, object]:
    """Return the attributes of a class; a metaclass has no say in it."""
    inside: Mapping[str, object] = _VARS.__get__(kind)
    return inside


def is_transparent(module: object) -> bool:
    """Whether what lies in objects of a library is the user's: data sets, transforms, layers."""
    return isinstance(module, str) and module.startswith(_TRANSPARENT)


def _has_state(kind: type) -> bool:
    """Whether objects of a class write down their own state; a base that writes nothing does not count."""
    for name in ("state_dict", "load_state_dict"):
        owner = next((base for base in kind.__mro__ if name in attributes_of_class(base)), None)
        if owner is None or owner.__module__.startswith(_BASES_WITHOUT_STATE):
            return False
    return True


def _holds_in_c(kind: type) -> bool:
    """Whether objects of a class may hold others where neither slots nor dictionaries show them.

    So do exceptions (`args`), static methods, and what users derive from classes that are written in C.
    """
    return any(not one.__flags__ & HEAP and one not in _HOLD_NOTHING for one in kind.__mro__)


_HOLD_NOTHING: Final = frozenset({object, int, float, complex, str, bytes, types.SimpleNamespace})


def _has_extra_state(kind: type) -> bool:
    owner = next(base for base in kind.__mro__ if "get_extra_state" in attributes_of_class(base))
    return owner is not nn.Module


def is_harmless(thing: object) -> bool:
    """Whether it is a file that is closed already, or one that the process always has."""
    if not is_a(thing, io.IOBase):
        return False
    if any(thing is one for one in (sys.stdout, sys.stderr, sys.stdin)):
        return True
    return not type(thing).__flags__ & HEAP and bool(cast(io.IOBase, thing).closed)


def _unheld(kind: type) -> tuple[str, str] | None:
    """Say what an object of a type is, and what to do, if no checkpoint can hold it."""
    name, module = kind.__name__, f"{kind.__module__}"
    top = module.partition(".")[0]
    if issubclass(kind, io.IOBase):
        memory = issubclass(kind, io.BytesIO | io.StringIO)
        return ("a stream in memory" if memory else "an open file"), _OPEN
    if any(base.__name__ in ("SobolEngine", "QMCEngine") for base in kind.__mro__):
        return "a quasi-random engine", _ENGINE
    if issubclass(kind, types.GeneratorType | types.CoroutineType | types.AsyncGeneratorType):
        return "a generator function under way", _ITERATOR
    if name in ("weakproxy", "weakcallableproxy", "ProxyType", "CallableProxyType"):
        return "a weak proxy, which cannot be looked into", "keep the object, or a `weakref.ref`"
    if issubclass(kind, queue.Queue | queue.SimpleQueue) or module in _QUEUES:
        return "a queue", _WAITING
    if module == "_thread" and "lock" in name.lower():
        return "a lock", _WAITING
    if issubclass(kind, threading.Thread):
        return "a thread", _WAITING
    if top == "threading" and name in (
        "Condition",
        "Event",
        "Semaphore",
        "BoundedSemaphore",
        "Barrier",
    ):
        return f"a {name.lower()} of threads", _WAITING
    if top in ("multiprocessing", "_multiprocessing", "concurrent", "subprocess"):
        return f"a {module}.{name}", _WAITING
    if top in ("socket", "_socket", "ssl", "sqlite3", "_sqlite3"):
        return ("a socket" if "socket" in top else f"a {module}.{name}"), _OPEN
    if module == "torch.utils.data.dataloader" and name.endswith("DataLoaderIter"):
        return "the iterator of a DataLoader", _OF_LOADER
    derived = next(one for one in kind.__mro__ if not one.__flags__ & HEAP)
    if hasattr(derived, "__next__") and derived is not itertools.repeat and not _has_state(kind):
        return f"an iterator ({name})", _ITERATOR
    return None
