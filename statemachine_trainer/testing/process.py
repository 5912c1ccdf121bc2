"""Resuming in another interpreter, from a checkpoint on disk."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any

import torch

from statemachine_trainer.snapshot import Store
from statemachine_trainer.testing.recording import Recording, seed_all
from statemachine_trainer.testing.testing_errors import FreshProcessFailed, NotImportable
from statemachine_trainer.testing.watched_runs import Run

_MODULE = "statemachine_trainer.testing.process"
_RUN, _END, _RESULT = "run", "end", "result.json"


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


@dataclass(frozen=True)
class Ended:
    """A run that went through other processes to its end.

    Attributes:
        signals: Signals fired since the first stop.
        end: The state at the end.
        outcome: How the fit ended.
        metrics: The metrics at the end.
    """

    signals: list[str]
    end: dict[str, Any]
    outcome: str | None
    metrics: dict[str, float]


def run_in_processes(recording: Recording, stops: Sequence[int]) -> Ended:
    """Stop at each of the stops, go on in a process of its own from each, and return the end.

    Raises:
        FreshProcessFailed: One of the processes ended with an error, which is in the message.
    """
    address = Address.of(recording.make_trainer)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        first = recording.document(stops[0]).tree()
        Store(place / _RUN).save(first, name=_name(stops[0]))
        signals: list[str] = []
        result: dict[str, Any] = {}
        for position, until in zip(stops, [*stops[1:], None], strict=True):
            result = _go_on(address, place, position, until)
            signals += result["signals"]
        loaded = Store(place / _END).newest()
        assert loaded is not None
        end: Any = loaded.tree
    return Ended(signals, end["state"], result["outcome"], end["metrics"])


def _go_on(address: Address, folder: Path, position: int, until: int | None) -> dict[str, Any]:
    """Start the process that goes on from the newest checkpoint, and wait for it."""
    request = {
        "make_trainer": asdict(address),
        "folder": str(folder),
        "position": position,
        "until": until,
        "threads": torch.get_num_threads(),
    }
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    # Sets of strings have another order than here, the same at each try.
    environment["PYTHONHASHSEED"] = str(1 + (os.environ.get("PYTHONHASHSEED") == "1"))
    done = subprocess.run(
        [sys.executable, "-m", _MODULE],
        input=json.dumps(request),
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    if done.returncode:
        raise FreshProcessFailed(
            f"The process that was to go on from boundary {position} ended with status "
            f"{done.returncode}:\n{done.stderr.strip()}"
        )
    result: dict[str, Any] = json.loads((folder / _RESULT).read_text())
    return result


def main() -> None:
    """Be the fresh process: go on, up to the next stop or to the end, and write it all down."""
    request = json.loads(sys.stdin.read())
    folder, position, until = Path(request["folder"]), request["position"], request["until"]
    torch.set_num_threads(request["threads"])
    make_trainer = Address(**request["make_trainer"]).find()
    loaded = Store(folder / _RUN).newest()
    assert loaded is not None
    seed_all(position + 1)
    state: Any = loaded.tree
    run = Run(make_trainer, state, position)
    if until is None:
        run.finish()
        end = {"state": run.state(), "metrics": dict(run.trainer.metrics)}
        Store(folder / _END).save(end, name="end")
    else:
        run.go_to(until)
        Store(folder / _RUN).save(run.trainer.state_dict(), name=_name(until))
    result = {"signals": run.signals, "outcome": run.trainer.driver.outcome}
    (folder / _RESULT).write_text(json.dumps(result))


def _name(position: int) -> str:
    return f"boundary-{position}"


if __name__ == "__main__":
    main()
