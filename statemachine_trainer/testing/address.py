"""How another process finds the function that makes a trainer."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import json
import sys
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

from statemachine_trainer.testing.errors import NotImportable


@dataclass(frozen=True)
class Address:
    """Where a function stands, and the plain arguments it is to be called with.

    Attributes:
        module: Name of its module.
        file: File of the module, for those that cannot be imported by name.
        name: Name within the module, with dots for what stands in classes.
        args: Positional arguments.
        kwargs: Arguments by name.
    """

    module: str
    file: str | None
    name: str
    args: list[Any]
    kwargs: dict[str, Any]

    @classmethod
    def of(cls, function: Any) -> Address:
        """Find out the address of a function, or of a `functools.partial` of one.

        Raises:
            NotImportable: It has none; the message says why.
        """
        inner, args, kwargs = function, [], {}
        if isinstance(function, functools.partial):
            inner, args, kwargs = function.func, [*function.args], dict(function.keywords)
        module, name = getattr(inner, "__module__", None), getattr(inner, "__qualname__", None)
        if module is None or name is None:
            raise _not_importable(function, "it is no function")
        if "<lambda>" in name or "<locals>" in name:
            raise _not_importable(function, "it stands inside another function")
        if module == "__main__":
            raise _not_importable(function, "it stands in the script that runs")
        home = sys.modules.get(module)
        try:
            found = attrgetter(name)(home)
        except AttributeError:
            found = None
        if found is not inner:
            raise _not_importable(function, f"{module}.{name} is something else")
        try:
            plain = json.loads(json.dumps([args, kwargs]))
        except (TypeError, ValueError) as error:
            raise _not_importable(function, f"its arguments are not plain ({error})") from None
        return cls(module, getattr(home, "__file__", None), name, *plain)

    def find(self) -> Any:
        """Import the function, and bind the arguments."""
        function = attrgetter(self.name)(self._import())
        return functools.partial(function, *self.args, **self.kwargs)

    def _import(self) -> Any:
        try:
            module = importlib.import_module(self.module)
            if self.file is None or getattr(module, "__file__", None) == self.file:
                return module
        except ImportError:
            if self.file is None:
                raise
        spec = importlib.util.spec_from_file_location(self.module, self.file)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[self.module] = module
        spec.loader.exec_module(module)
        return module


def _not_importable(function: Any, why: str) -> NotImportable:
    name = getattr(function, "__qualname__", repr(function))
    return NotImportable(
        f"{name} cannot be found by the fresh process: {why}. Move it to the top of a module that "
        "can be imported (a functools.partial of such a function, with plain arguments, will do), "
        "or leave out fresh_process=True."
    )
