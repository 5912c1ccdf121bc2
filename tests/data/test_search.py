"""The walk in search of state: what it finds, what it tells, what it never does, and where it ends."""

from __future__ import annotations

import io
import itertools
import multiprocessing
import queue
import random
import socket
import sys
import threading
import tracemalloc
import weakref
from collections.abc import Callable, Iterator
from functools import cached_property, partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from statemachine_trainer.snapshot.sampling import ALIKE, LARGE
from statemachine_trainer.snapshot.search import MOST, Search
from tests.data.own_generators import Behind, Noisy


class Thing:
    """An object with the attributes that it is given."""

    def __init__(self, **attributes: Any) -> None:
        self.__dict__.update(attributes)


class Stateful(Thing):
    """One that writes down its own state."""

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        raise AssertionError("nobody loads anything here")


def numbers() -> Iterator[int]:
    yield 1


def told(**attributes: Any) -> list[str]:
    return [str(one) for one in Search({"data": Thing(**attributes)}).unheld]


UNHELD: dict[str, tuple[Callable[[], Any], str]] = {
    "generator function": (numbers, "generator function"),
    "count": (itertools.count, "iterator (count)"),
    "enumerate": (lambda: enumerate([1]), "iterator (enumerate)"),
    "iterator of a list": (lambda: iter([1]), "iterator (list_iterator)"),
    "zip": (lambda: zip([1], [2], strict=True), "iterator (zip)"),
    "map": (lambda: map(str, [1]), "iterator (map)"),
    "cycle": (lambda: itertools.cycle([1]), "iterator (cycle)"),
    "queue": (queue.Queue, "queue"),
    "simple queue": (queue.SimpleQueue, "queue"),
    "lock": (threading.Lock, "lock"),
    "reentrant lock": (threading.RLock, "lock"),
    "event": (threading.Event, "event of threads"),
    "lock of processes": (multiprocessing.Lock, "multiprocessing"),
    "stream in memory": (lambda: io.StringIO("a"), "stream in memory"),
    "thread": (lambda: threading.Thread(target=print), "thread"),
    "Sobol engine": (lambda: torch.quasirandom.SobolEngine(2), "quasi-random engine"),
    "system's randomness": (random.SystemRandom, "operating system"),
}


@pytest.mark.parametrize("name", UNHELD)
def test_what_no_checkpoint_can_hold_is_named_with_its_path_and_a_way_out(name: str) -> None:
    make, what = UNHELD[name]
    (line,) = told(inside=[{"it": make()}])
    assert line.startswith("data.inside[0]['it'] is ")
    assert what in line
    assert ": " in line


def test_files_and_sockets_are_named_while_they_are_open(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("a\nb\n")
    with path.open() as file, socket.socket() as connection:
        assert len(told(file=file, connection=connection)) == 2
    assert told(file=file, out=sys.stdout) == []


def test_a_file_in_memory_that_may_be_written_is_named(tmp_path: Path) -> None:
    path = tmp_path / "numbers"
    np.arange(4.0).tofile(path)
    for mode, lines in (("r", 0), ("c", 0), ("r+", 1)):
        assert len(told(numbers=np.memmap(path, mode=mode))) == lines, mode  # type: ignore[call-overload]


class Cached:
    @cached_property
    def rng(self) -> random.Random:
        return random.Random(0)


def test_the_lock_of_a_cached_property_is_its_own() -> None:
    search = Search({"data": Cached()})
    assert search.unheld == []


def test_the_iterator_of_a_loader_is_named_unless_the_loader_keeps_it() -> None:
    loader: DataLoader[Any] = DataLoader([1, 2])  # type: ignore[arg-type]
    loader._iterator = iter(loader)  # as one with persistent workers does
    assert told(loader=loader) == []
    (line,) = told(batches=iter(loader))
    assert line.startswith("data.batches is the iterator of a DataLoader: give `fit` both loaders")


def test_generators_in_a_set_of_several_are_told() -> None:
    one, other = random.Random(0), random.Random(1)
    assert len(told(inside={one, other})) == 2
    assert [*Search({"data": {one}}).places] == ["data{...}"]


def test_what_lies_in_an_object_with_a_state_is_its_own_business() -> None:
    inside = Stateful(count=itertools.count(), rng=random.Random(0))
    search = Search({"callback": inside})
    assert search.unheld == []
    assert [*search.places] == ["callback.rng"]


def test_a_module_of_torch_does_not_count_as_one_with_a_state() -> None:
    class Counting(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.calls = itertools.count()

    assert [one.path for one in Search({"model": Counting()}).unheld] == ["model.calls"]


def test_the_globals_of_the_process_are_not_found_again() -> None:
    things = [random.random, np.random.rand, random._inst, torch.default_generator]
    search = Search({"data": Thing(draw=things)})
    assert search.places == {}
    assert search.unheld == []


class Watched:
    """An object that tells of any code of its own that runs."""

    ran: ClassVar[list[str]] = []

    def __init__(self) -> None:
        object.__setattr__(self, "rng", random.Random(0))

    def __getattribute__(self, name: str) -> Any:
        Watched.ran.append(name)
        return object.__getattribute__(self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        raise AssertionError(name)

    def __iter__(self) -> Iterator[int]:
        raise AssertionError("iterated")

    def __len__(self) -> int:
        raise AssertionError("asked for its length")

    def __bool__(self) -> bool:
        raise AssertionError("asked for its truth")

    def __eq__(self, other: object) -> bool:
        raise AssertionError("compared")

    def __hash__(self) -> int:
        raise AssertionError("hashed")

    def __repr__(self) -> str:
        raise AssertionError("shown")


class OddDict(dict[str, Any]):
    """A dict whose methods are its own."""

    def items(self) -> Any:
        raise AssertionError("its items were asked for")

    def __iter__(self) -> Any:
        raise AssertionError("iterated")


def test_no_code_of_users_runs_and_nothing_is_imported() -> None:
    watched = Watched()
    odd = OddDict({"rng": random.Random(1)})
    Watched.ran.clear()
    modules = {*sys.modules}
    search = Search({"data": [watched, odd, Behind(), weakref.ref(watched)]})
    assert Watched.ran == []
    assert {*sys.modules} == modules
    assert [*search.places] == ["data[0].rng", "data[1]['rng']", "data[2]._inside"]


def test_a_million_objects_cost_no_more_than_the_first_of_each_type() -> None:
    class Sample:
        def __init__(self, index: int) -> None:
            self.index = index

    samples = [Sample(index) for index in range(10_000)] * 100
    search = Search({"dataset": Thing(samples=samples)})
    assert search.visited <= ALIKE + 10
    assert search.complete
    assert search.sampling.partly == {"dataset.samples": 1_000_000}


def test_a_million_plain_values_cost_one_object() -> None:
    labels = {"file": "a", "label": 1}
    plain = dict.fromkeys(range(1_000_000), labels)
    search = Search({"dataset": Thing(plain=plain, numbers=[*range(1_000_000)])})
    assert search.visited <= 6


def test_one_odd_element_of_many_is_found() -> None:
    elements: list[Any] = [*range(50_000)]
    elements[40_000] = random.Random(0)
    assert [*Search({"data": elements}).places] == ["data[40000]"]


def test_where_an_element_has_a_generator_all_elements_are_visited() -> None:
    things = [Thing(rng=random.Random(index)) for index in range(LARGE + 200)]
    assert len(Search({"data": things}).places) == LARGE + 200


def test_an_element_of_another_type_hides_no_generator() -> None:
    things = [
        *(Thing(rng=random.Random(index)) for index in range(LARGE + 200)),
        {"last": [Thing()]},
    ]
    assert len(Search({"data": things}).places) == LARGE + 200


def test_a_generator_beside_a_large_container_is_not_taken_for_one_in_it() -> None:
    things = [Thing() for _ in range(LARGE + 200)]
    search = Search({"data": Thing(things=things, things_rng=random.Random(0))})
    assert [*search.places] == ["data.things_rng"]
    assert search.sampling.partly == {"data.things": LARGE + 200}


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_a_module_compiled_by_script_is_no_obstacle() -> None:
    script = torch.jit.script(torch.nn.Linear(2, 2))
    model = torch.nn.Sequential(script, torch.nn.Identity())
    model[1].rng = random.Random(0)  # type: ignore[assignment]
    assert [*Search({"model": model}).places] == ["model.1.rng"]


@pytest.mark.parametrize("module", ["logging_helpers", "my.queues", "torchlike", "types_of_mine"])
def test_a_module_of_users_is_looked_into_whatever_it_is_called(module: str) -> None:
    kind = type("Mine", (Thing,), {"__module__": module})
    search = Search({"data": kind(rng=random.Random(0))})
    assert [*search.places] == ["data.rng"]
    assert search.unheld == []


def test_more_defaults_than_parameters_are_read_from_the_end() -> None:
    def draw(first: Any, rng: Any = None) -> None: ...

    draw.__defaults__ = (1, 2, random.Random(0))
    assert [*Search({"draw": draw}).places] == ["draw(rng)"]


def test_the_walk_ends_and_says_so() -> None:
    chain: Any = None
    for _ in range(MOST + 5):
        chain = Thing(next=chain)
    tracemalloc.start()
    search = Search({"data": chain})
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert search.visited == MOST
    assert most < 100 << 20  # the paths of all of them together would take gigabytes
    assert not search.complete
    assert search.places == {}


def test_cycles_end() -> None:
    one: Any = Thing(rng=random.Random(0))
    one.me = [one, {"me": one}]
    assert [*Search({"data": one}).places] == ["data.rng"]


def test_a_generator_of_two_roots_has_the_path_of_the_first() -> None:
    rng = torch.Generator()
    search = Search({"sampler": Thing(generator=rng), "loader": Thing(generator=rng)})
    assert [*search.places] == ["sampler.generator"]
    assert [step.holder for step in search.places["sampler.generator"].also] == ["loader"]


def test_hooks_of_modules_are_numbered_by_their_place_and_not_by_the_process() -> None:
    def model() -> torch.nn.Module:
        rng = random.Random(0)
        made = torch.nn.Linear(1, 1)
        made.register_forward_pre_hook(lambda module, inputs: (inputs[0] * rng.random(),))
        return made

    paths = [[*Search({"model": model()}).places] for _ in range(2)]
    assert paths[0] == paths[1] == ["model._forward_pre_hooks[0](rng)"]


def test_slots_of_bases_and_the_dictionary_of_subclasses_are_read() -> None:
    class Base:
        __slots__ = ("rng", "unset")

    class Derived(Base):
        pass

    thing: Any = Derived()
    thing.rng = random.Random(0)
    thing.more = np.random.RandomState(1)
    assert [*Search({"data": thing}).places] == ["data.more", "data.rng"]


def test_names_in_partials_closures_and_bound_methods_are_readable() -> None:
    rng = random.Random(0)

    def draw() -> float:
        return rng.random()

    noisy = Noisy(partial(draw))
    assert [*Search({"receiver": noisy.__getitem__}).places] == ["receiver.__self__.draw.func(rng)"]
