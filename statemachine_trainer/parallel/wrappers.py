"""Wrappers around a module: `torch.compile`, `DistributedDataParallel` and the like.

A wrapper has neither the methods of the module in it nor its names: `torch.compile(model)` has no
`on_epoch_end`, and calls the weights `_orig_mod.layer.weight`. So runs work on the module itself,
and names in files are those of a model without wrappers. All knowledge of wrappers is in here.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from functools import lru_cache
from operator import is_
from types import FunctionType
from typing import Any, Final, TypeVar, cast

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.parameter import is_lazy

from statemachine_trainer.parallel.gradient_sync import Ddp
from statemachine_trainer.parallel.parallel_errors import UnsupportedWrapper

_FSDP: Final = "torch.distributed.fsdp.fully_sharded_data_parallel.FullyShardedDataParallel"
_COMPILED: Final = "torch._dynamo.eval_frame.OptimizedModule"
_INNER: Final[Mapping[str, str]] = {
    _COMPILED: "_orig_mod",
    "torch.nn.parallel.distributed.DistributedDataParallel": "module",
    "torch.nn.parallel.data_parallel.DataParallel": "module",
    "torch.distributed.algorithms._checkpoint.checkpoint_wrapper.ActivationWrapper": (
        "_checkpoint_wrapped_module"
    ),
}
"""Wrappers, and the name under which each has its module.

By their names: to import the compiler takes seconds, and most models are in no wrapper.
"""

_KEY_OF_COMPILER: Final = "_orig_mod"
_METADATA: Final = "_metadata"

T = TypeVar("T")


# -- What is around a module ---------------------------------------------------------------------


def see_through(model: Any) -> tuple[Any, Ddp | None]:
    """Return the module in its wrappers, and its `DistributedDataParallel` if it is in one.

    A compiled module stays compiled: calls of the module itself go through the compiler from now
    on, as after `module.compile()`, with the settings of the wrapper.

    Args:
        model: A module, in any number of wrappers. (Anything else comes back as it is.)

    Raises:
        UnsupportedWrapper: There is a `FullyShardedDataParallel` around it, or in it.
    """
    wrapped, compilers = None, []
    while isinstance(model, nn.Module):
        if isinstance(model, DistributedDataParallel):
            wrapped = Ddp(model)
        elif _is(model, _COMPILED):
            compilers.append(model)
        else:
            break
        model = getattr(model, _INNER[_wrapper(model)])
    if isinstance(model, nn.Module):
        _refuse_fsdp(model)
    for one in compilers:
        _compile_calls(model, one)
    if wrapped is not None:
        wrapped.module = model
    return model, wrapped


def _compile_calls(model: Any, wrapper: Any) -> None:
    """Let calls of a module go through the compiler of its wrapper, as `model.compile()` does."""
    if model._compiled_call_impl is not None:
        return

    def call(*args: Any, **kwargs: Any) -> Any:
        # A frame of ours: the compiler leaves those of torch.nn alone, as that of a bare nn.Linear.
        return model._call_impl(*args, **kwargs)

    # With a code object of its own: the compiler keeps a few versions of each, and gives up then.
    own = FunctionType(call.__code__.replace(), call.__globals__, closure=call.__closure__)
    model._compiled_call_impl = wrapper.dynamo_ctx(own)


def inner_of(module: nn.Module) -> nn.Module | None:
    """Return the module that a wrapper has in it; None if the module is no wrapper."""
    kind = _wrapper(module)
    inner: nn.Module | None = getattr(module, _INNER[kind]) if kind else None
    return inner


def is_wrapper(kind: type[nn.Module]) -> bool:
    """Whether the modules of a class have another one in them that `inner_of` returns."""
    return bool(_wrapper_of(cast(Hashable, kind)))


def _refuse_fsdp(model: nn.Module) -> None:
    if any(_is(one, _FSDP) for one in model.modules()):
        raise UnsupportedWrapper(
            f"The {type(model).__name__} has a FullyShardedDataParallel (FSDP1) in it or around it, "
            "which cuts parameters into pieces without names, so that no checkpoint could hold them. "
            "Torch has deprecated it. Use fully_shard(model) of torch.distributed.fsdp (FSDP2), or "
            "DistributedDataParallel(model) if the model fits on one device."
        )


def _wrapper(module: nn.Module) -> str:
    """Return the full name of the class by which a module is a wrapper; "" if it is none."""
    return _wrapper_of(cast(Hashable, type(module)))


@lru_cache(maxsize=1024)
def _wrapper_of(kind: Any) -> str:
    return next((name for name in map(_name, kind.__mro__) if name in _INNER), "")


def _is(module: nn.Module, name: str) -> bool:
    return any(_name(kind) == name for kind in type(module).__mro__)


def _name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


# -- Names without wrappers -----------------------------------------------------------------------


class PlainNames:
    """The names of a model's parts, without those of wrappers within the model.

    Args:
        model: The model, in which modules may be wrapped: `self.net = torch.compile(net)`.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._modules = _named_modules(model)
        self._inner = {
            name: _INNER[kind]
            for name, module in self._modules
            if (kind := _wrapper_of(type(module))) in _INNER  # type: ignore[arg-type]
        }

    def of(self, name: str) -> str:
        """Return the name that a module, parameter or buffer has without wrappers."""
        if not self._inner:
            return name
        kept, path = [], ""
        for part in name.split("."):
            if self._inner.get(path) != part:
                kept.append(part)
            path = f"{path}.{part}" if path else part
        return ".".join(kept)

    def state_dict(self) -> dict[str, Any]:
        """Return the `state_dict` of the model under plain names, with the versions of its modules."""
        state = self._model.state_dict()
        return self._renamed(state) if self._inner else state

    def load_state_dict(
        self, state: Mapping[str, Any], instead: Mapping[str, Any] | None = None
    ) -> None:
        """Load what `state_dict` returned, of this model or of one with other wrappers.

        Args:
            state: What it returned.
            instead: Weights to be loaded in the place of those of the same name.

        Raises:
            RuntimeError: It does not fit; see `torch.nn.Module.load_state_dict`.
        """
        own = self._model.state_dict()
        here = {self.of(name): name for name in own}
        moved = {name: one for name, one in own.items() if is_lazy(one)}  # in no saved state
        moved.update(
            (here.get(name, name), value)
            for name, value in {**self.known(state), **(instead or {})}.items()
        )
        metadata = getattr(state, _METADATA, None)
        if metadata is not None:
            # With the versions of modules torch tells old forms of their states.
            known = {**metadata, **{_uncompiled(name): one for name, one in metadata.items()}}
            versions = {
                name: known[plain]
                for name, _ in self._model.named_modules()
                if (plain := self.of(name)) in known
            }
            moved = type(own)(moved)
            setattr(moved, _METADATA, type(metadata)(versions))
        self._model.load_state_dict(moved)

    def known(self, state: Mapping[str, T]) -> dict[str, T]:
        """Return a saved mapping by plain names, also of one that was saved by names of wrappers."""
        mine = {self.of(name) for name in self._model.state_dict()}
        return {
            name if name in mine else self._plain_of_saved(name, mine): value
            for name, value in state.items()
        }

    def modules(self, *, wrappers: bool = True) -> list[tuple[str, nn.Module]]:
        """Return all modules; a wrapper, if those are wanted, and then the module in it, by one name."""
        if not self._inner:
            return [*self._modules]
        return [
            (self.of(name), module)
            for name, module in self._modules
            if wrappers or name not in self._inner
        ]

    def buffers(self) -> list[tuple[str, torch.Tensor]]:
        """Return all buffers, also those that are in no `state_dict`."""
        return self._members("buffers")

    def parameters(self) -> list[tuple[str, nn.Parameter]]:
        """Return all parameters."""
        return self._members("parameters")

    def _members(self, which: str) -> list[tuple[str, Any]]:
        """Return what torch yields as `named_parameters` or `named_buffers`, without walking over the modules again."""
        listed, own = f"named_{which}", getattr(nn.Module, f"named_{which}")
        if getattr(type(self._model), listed) is not own or listed in vars(self._model):
            found = getattr(self._model, listed)()
        else:
            once: dict[int, tuple[str, Any]] = {}
            for name, module in self._modules:
                before = f"{name}." if name else ""
                for key, one in getattr(module, f"_{which}").items():
                    if one is not None:
                        once.setdefault(id(one), (f"{before}{key}", one))
            found = once.values()
        return [(self.of(name), one) for name, one in found] if self._inner else [*found]

    def _plain_of_saved(self, name: str, mine: set[str]) -> str:
        plain = self.of(name)
        return plain if plain in mine else _uncompiled(name)

    def _renamed(self, state: Any) -> Any:
        made = type(state)((self.of(name), value) for name, value in state.items())
        metadata = getattr(state, _METADATA, None)
        if metadata is not None:
            # Of a wrapper and the module in it the inner one comes later, and counts.
            versions = type(metadata)((self.of(name), one) for name, one in metadata.items())
            setattr(made, _METADATA, versions)
        return made


def modules_of(model: nn.Module) -> list[nn.Module]:
    """Return the modules of a model as its `modules()` yields them, in less time."""
    if type(model).modules is not nn.Module.modules:
        return [*model.modules()]
    return [module for _, module in _named_modules(model)]


def _named_modules(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Return what `named_modules` of a model yields; torch's own takes a step of a generator for each level."""
    found: list[tuple[str, nn.Module]] = []
    seen: set[nn.Module] = set()
    left = [("", model)]
    while left:
        name, module = left.pop()
        if module in seen:
            continue
        kind = type(module)
        if kind.named_modules is not nn.Module.named_modules or "named_modules" in vars(module):
            found += module.named_modules(seen, name)
            continue
        seen.add(module)
        found.append((name, module))
        if inside := module._modules:
            before = f"{name}." if name else ""
            left += [
                (f"{before}{key}", one) for key, one in [*inside.items()][::-1] if one is not None
            ]
    return found


class KnownParameters:
    """The parameters of a model by plain names, for whoever asks in every batch.

    Names are made when the model is first seen, and again when modules or parameters in it are others.
    """

    def __init__(self) -> None:
        self._modules: list[nn.Module] = []
        self._names: list[object] = []
        self._held: list[object] = []
        self._named: list[tuple[str, nn.Parameter]] = []

    def __reduce__(self) -> tuple[type[KnownParameters], tuple[()]]:
        return KnownParameters, ()  # a copy is made without the model

    def of(self, model: nn.Module) -> list[tuple[str, nn.Parameter]]:
        """Return the parameters, as `PlainNames.parameters` yields them: the same list while they are the same."""
        if not self._modules or self._modules[0] is not model:
            self._modules = [model]
            self._names = []
        names, held = self._contents()
        # By identity: two parameters are not compared by their values.
        if names != self._names or not all(map(is_, held, self._held)):
            self._modules = [*model.modules()]
            self._names, self._held = self._contents()
            self._named = [*PlainNames(model).parameters()]
        return self._named

    def _contents(self) -> tuple[list[object], list[object]]:
        """Return the names in the known modules, with a mark after those of each, and what they stand for."""
        names: list[object] = []
        held: list[object] = []
        for module in self._modules:  # kept short: it runs in every batch
            for inside in (module._parameters, module._modules):
                if inside:
                    names += inside.keys()
                    held += inside.values()
                names.append(None)
        return names, held


def _uncompiled(name: str) -> str:
    """Take out of a saved name what compilers had put in, in files of earlier versions."""
    return ".".join(part for part in name.split(".") if part != _KEY_OF_COMPILER)
