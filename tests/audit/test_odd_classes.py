"""Classes of users that do not behave as others do are looked into, or told of; they end no fit."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from statemachine_trainer import Trainer
from statemachine_trainer.audit.report import NotHeld
from statemachine_trainer.snapshot.search import Search


def never(*_: object, **__: object) -> NoReturn:
    raise RuntimeError("nobody may call this")


class Unhashable(type):
    """A metaclass with `__eq__` and without `__hash__`."""

    def __eq__(cls, other: object) -> bool:
        return True


class HashRaises(type):
    __hash__ = never


class Hidden(type):
    def __getattribute__(cls, name: str) -> Any:
        if name in ("__mro__", "__module__", "__name__"):
            raise RuntimeError(name)
        return super().__getattribute__(name)


METACLASSES: tuple[type, ...] = (Unhashable, HashRaises, Hidden)


class Liar:
    """Says of itself that it is a list, as a mock of one does."""

    __class__ = list  # type: ignore[assignment]


class NoClass:
    __class__ = property(never)


class NoDict:
    __dict__ = property(never)


class Answers:
    def __getattr__(self, name: str) -> Any:
        return Answers()


class AnswersNothing:
    __getattribute__ = never


class ArrayLike:
    """Compares element by element, as arrays do."""

    def __eq__(self, other: object) -> Any:
        return np.array([True, False])

    __hash__ = None  # type: ignore[assignment]


class Number(int):
    __eq__ = __hash__ = __lt__ = __bool__ = __repr__ = never


class Text(str):
    __eq__ = __len__ = __repr__ = never
    __hash__ = str.__hash__


class Table(dict[Any, Any]):
    __eq__ = __len__ = __iter__ = __getitem__ = keys = items = __repr__ = __bool__ = never


class Row(list[Any]):
    __eq__ = __len__ = __iter__ = __getitem__ = __repr__ = __bool__ = never


class Picture(torch.Tensor):
    __torch_function__: Any = classmethod(never)


class Side:
    """Properties that do something when they are asked."""

    state_dict = load_state_dict = module = __wrapped__ = __func__ = __self__ = property(never)


def odd_object(metaclass: type) -> Any:
    return metaclass("Odd", (), {})()


def plain(**attributes: Any) -> Any:
    return type("Plain", (), attributes)()


ODD: dict[str, Callable[[], Any]] = {
    **{one.__name__: partial(odd_object, one) for one in METACLASSES},
    **{f"class of {one.__name__}": partial(one, "Odd", (), {}) for one in METACLASSES},
    **{one.__name__: one for one in (Liar, NoClass, NoDict, Answers, AnswersNothing, ArrayLike, Side)},
    "number": lambda: Number(5),
    "text": lambda: Text("x"),
    "dict": lambda: Table(one=1),
    "list": lambda: Row([1]),
    "key": lambda: {Text("x"): 1},
    "tensor": lambda: torch.zeros(2).as_subclass(Picture),
    "too many decimals": lambda: 10**5000,
    "no module": lambda: plain(__module__=None),
    "a number for a module": lambda: plain(__module__=5),
    "repr": lambda: plain(__repr__=never),
    "bool and len": lambda: plain(__bool__=never, __len__=never),
}  # fmt: skip


class Net(nn.Module):
    def __init__(self, odd: Any = None) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 1)
        self.__dict__["odd"] = odd

    def training_step(self, batch: Any) -> torch.Tensor:
        return self.layer(batch).square().mean()  # type: ignore[no-any-return]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Data(Dataset[torch.Tensor]):
    def __init__(self, odd: Any) -> None:
        self.odd = odd

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.full((2,), float(index))


class Keeps:
    """A callback that has it as a setting, in a list, and in the closure of a function."""

    def __init__(self, odd: Any) -> None:
        self.odd, self.many, self.function = odd, [odd, odd, None], lambda: odd

    def on_batch_end(self) -> None:
        self.last = self.odd


@pytest.mark.parametrize("name", ODD)
def test_a_run_with_it_is_saved_and_goes_on(tmp_path: Path, name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotHeld)
        for epochs in (1, 2):
            odd = ODD[name]()
            trainer = Trainer(
                max_epochs=epochs,
                checkpoints=tmp_path,
                progress=False,
                callbacks=[Keeps(odd)],
                hparams={"odd": odd, "rate": 0.1},
            )
            trainer.fit(Net(odd), DataLoader(Data(odd), 1), resume="auto")
    assert trainer.context.counts.epoch == 2


@pytest.mark.parametrize("metaclass", METACLASSES)
def test_what_cannot_be_looked_into_is_told_and_the_rest_is_searched(metaclass: type) -> None:
    holder = SimpleNamespace(odd=odd_object(metaclass), rng=random.Random(0))
    search = Search({"data": holder})
    assert [*search.places] == ["data.rng"]
    assert ["data.odd is something that cannot be looked into" in str(one) for one in search.unheld]
    assert len(search.unheld) == 1
