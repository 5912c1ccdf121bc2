"""Weights of a run that goes on are copied from their file, and nothing of it is in use when the run begins."""

from __future__ import annotations

import gc
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from statemachine_trainer import Trainer
from statemachine_trainer.snapshot import Damaged, Retention, Store, encode
from statemachine_trainer.snapshot.checkpoint import Loaded
from statemachine_trainer.snapshot.mapped_weights import mappable

WIDTH = 600  # so that a weight has more than a megabyte
TENSORS = "tensors.safetensors"


@pytest.fixture(autouse=True)
def nothing_left() -> None:
    """Collect what errors of other tests refer to: a mapping that nobody has closed lasts as long."""
    gc.collect()


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(WIDTH, WIDTH)
        self.norm = nn.BatchNorm1d(WIDTH)

    def training_step(self, batch: Tensor) -> Tensor:
        return self.norm(self.layer(batch)).square().mean()  # type: ignore[no-any-return]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


class Adopting(nn.Linear):
    """A layer that keeps the very tensor that it is given."""

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *rest: Any) -> None:
        self.weight.data = state_dict[f"{prefix}weight"]
        self.bias.data = state_dict[f"{prefix}bias"]


def is_mapped() -> bool:
    """Return whether a file of tensors is mapped."""
    maps = Path("/proc/self/maps")
    return maps.exists() and "tensors.safetensors" in maps.read_text()


def state_of(model: nn.Module) -> dict[str, Any]:
    """Return what a checkpoint of a fit has of a model, and where it has it."""
    return {"context": {"model": {"weights": model.state_dict()}}}


def saved(folder: Path, model: nn.Module) -> Path:
    return Store(folder).save(state_of(model), name="one")


def mapped_from(folder: Path) -> Loaded:
    """Return the newest checkpoint, of which weights still lie in the file."""
    loaded = Store(folder).newest(mmap=True)
    assert loaded is not None
    if loaded.mapped is None:
        pytest.skip("this system has no lease for a file in this folder")
    return loaded


def weights_of(loaded: Loaded) -> Mapping[str, Tensor]:
    tree: Any = loaded.tree
    weights: Mapping[str, Tensor] = tree["context"]["model"]["weights"]
    return weights


def take_over(loaded: Loaded, model: nn.Module) -> Mapping[str, Tensor]:
    """Load a model from a checkpoint, whose file is then no longer in use; return what was loaded."""
    weights = weights_of(loaded)
    with loaded.taken_over(model):
        model.load_state_dict(weights)
    assert not is_mapped()
    return weights


def data() -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(4, WIDTH, generator=generator) for _ in range(4)]


def test_a_run_goes_on_to_the_bit_though_the_file_is_emptied_as_soon_as_it_does(
    tmp_path: Path,
) -> None:
    torch.manual_seed(0)
    whole, first, second = Net(), Net(), Net()
    first.load_state_dict(whole.state_dict())
    Trainer(max_epochs=2, progress=False).fit(whole, data())
    Trainer(max_epochs=1, checkpoints=tmp_path, progress=False).fit(first, data())
    trainer = Trainer(max_epochs=2, checkpoints=tmp_path, progress=False)
    mapped = []

    def empty_files() -> None:
        mapped.append(is_mapped())
        for file in tmp_path.glob("*/tensors.safetensors"):
            os.truncate(file, 0)

    trainer.on("batch_start", empty_files)
    trainer.fit(second, data(), resume="auto")
    assert mapped == [False] * 4
    for one, other in zip(whole.state_dict().values(), second.state_dict().values(), strict=True):
        assert torch.equal(one, other)


def test_what_a_model_copies_is_mapped_until_it_has_it(tmp_path: Path) -> None:
    model, again = Net(), Net()
    saved(tmp_path, model)
    loaded = mapped_from(tmp_path)
    assert is_mapped()
    weights = take_over(loaded, again)
    assert torch.equal(again.layer.weight, model.layer.weight)
    assert weights["layer.weight"].numel() == 0  # whoever has kept it sees that it is gone
    assert weights["layer.bias"].numel() == WIDTH  # a small one was read


def test_what_a_module_may_keep_has_memory_of_its_own(tmp_path: Path) -> None:
    model, again = Adopting(WIDTH, WIDTH), Adopting(WIDTH, WIDTH)
    saved(tmp_path, model)
    take_over(mapped_from(tmp_path), again)
    assert torch.equal(again.weight, model.weight)


def test_the_state_of_a_module_that_is_no_weight_has_memory_of_its_own(tmp_path: Path) -> None:
    class Extra(nn.Linear):
        kept: Tensor = torch.ones(WIDTH, WIDTH)

        def get_extra_state(self) -> Tensor:
            return self.kept

        def set_extra_state(self, state: Tensor) -> None:
            self.kept = state

    model, again = Extra(WIDTH, WIDTH), Extra(WIDTH, WIDTH)
    saved(tmp_path, model)
    take_over(mapped_from(tmp_path), again)
    assert torch.equal(again.kept, model.kept)
    assert torch.equal(again.weight, model.weight)


def test_without_a_model_all_has_memory_of_its_own(tmp_path: Path) -> None:
    model = Net()
    saved(tmp_path, model)
    loaded = mapped_from(tmp_path)
    with loaded.taken_over():
        pass
    assert not is_mapped()
    assert torch.equal(weights_of(loaded)["layer.weight"], model.layer.weight)


def test_what_stands_elsewhere_in_the_state_too_is_not_mapped() -> None:
    model = Net()
    weights = model.state_dict()
    names = {f"context.model.weights.{name}" for name in weights}
    assert mappable(encode(state_of(model))[0]) == names
    state = {**state_of(model), "callbacks": [{"best": weights["layer.weight"]}]}
    state["context"] = {"model": {"weights": weights}}
    assert mappable(encode(state)[0]) == names - {"context.model.weights.layer.weight"}
    weights["layer._extra_state"] = {"also": weights["layer.bias"]}
    assert "context.model.weights.layer.bias" not in mappable(encode(state)[0])
    assert mappable(encode({"model": weights})[0]) == frozenset()
    assert mappable(encode([1])[0]) == frozenset()


@pytest.mark.parametrize("write", [os.O_WRONLY, os.O_RDWR, os.O_WRONLY | os.O_TRUNC])
def test_whoever_would_write_to_the_file_waits_and_it_is_read(tmp_path: Path, write: int) -> None:
    model, again = Net(), Net()
    path = saved(tmp_path, model) / TENSORS
    loaded = mapped_from(tmp_path)
    with pytest.raises(BlockingIOError):
        os.open(path, write | os.O_NONBLOCK)
    take_over(loaded, again)
    assert torch.equal(again.layer.weight, model.layer.weight)
    os.close(os.open(path, write | os.O_NONBLOCK))  # it is held back no longer


def test_what_was_copied_while_somebody_came_to_write_is_copied_once_more(tmp_path: Path) -> None:
    model, again = Net(), Net()
    path = saved(tmp_path, model) / TENSORS
    loaded = mapped_from(tmp_path)
    with loaded.taken_over(again):
        again.load_state_dict(weights_of(loaded))
        with pytest.raises(BlockingIOError):
            os.open(path, os.O_WRONLY | os.O_NONBLOCK)
        with torch.no_grad():
            again.layer.weight.zero_()  # as if it had written already
    assert torch.equal(again.layer.weight, model.layer.weight)
    assert not is_mapped()


@pytest.mark.parametrize("copied", [False, True])
def test_what_somebody_has_changed_under_a_lease_is_damaged(tmp_path: Path, copied: bool) -> None:
    path = saved(tmp_path, Net()) / TENSORS
    loaded, again = mapped_from(tmp_path), Net()

    def write() -> None:
        """Come to write; the change is made by another file in its place, because nobody may wait for 45 s."""
        with pytest.raises(BlockingIOError):
            os.open(path, os.O_WRONLY | os.O_NONBLOCK)
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.unlink()
        path.write_bytes(content)

    def load() -> None:
        with loaded.taken_over(again):
            again.load_state_dict(weights_of(loaded))
            if copied:
                write()

    if not copied:
        write()
    with pytest.raises(Damaged, match="checksum") as caught:
        load()
    assert caught.value.file == path
    assert not is_mapped()


def test_a_file_that_somebody_is_writing_to_is_read(tmp_path: Path) -> None:
    model = Net()
    path = saved(tmp_path, model) / TENSORS
    with path.open("r+b"):
        loaded = Store(tmp_path).newest(mmap=True)
    assert loaded is not None
    assert loaded.mapped is None
    assert torch.equal(weights_of(loaded)["layer.weight"], model.layer.weight)


def test_a_checkpoint_that_is_deleted_meanwhile_is_taken_over(tmp_path: Path) -> None:
    model, again = Net(), Net()
    path = saved(tmp_path, model)
    loaded = mapped_from(tmp_path)
    for file in path.iterdir():
        file.unlink()
    path.rmdir()
    take_over(loaded, again)
    assert torch.equal(again.layer.weight, model.layer.weight)


def test_a_flipped_bit_in_what_would_be_mapped_is_found(tmp_path: Path) -> None:
    path = saved(tmp_path, Net()) / TENSORS
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    for mmap in (False, True):
        with pytest.raises(Damaged, match="checksum") as caught:
            Store(tmp_path).load("one", mmap=mmap)
        assert caught.value.file == path
    os.close(os.open(path, os.O_RDWR | os.O_NONBLOCK))


def test_a_checkpoint_that_is_passed_over_is_given_back(tmp_path: Path) -> None:
    store = Store(tmp_path, retention=Retention(last=2))
    paths = [store.save(state_of(Net()), name=name) for name in ("one", "two")]

    def misfit(loaded: Loaded) -> str | None:
        return "no" if loaded.path == paths[1] else None

    with pytest.warns(UserWarning, match="Passing over"):
        loaded = Store(tmp_path).newest(misfit=misfit, mmap=True)
    assert loaded is not None
    assert loaded.path == paths[0]
    os.close(os.open(paths[1] / TENSORS, os.O_RDWR | os.O_NONBLOCK))
    loaded.close()


def test_tied_weights_stay_tied(tmp_path: Path) -> None:
    model, again = (nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)) for _ in "12")
    for one in (model, again):
        one[1].weight = one[0].weight
    saved(tmp_path, model)
    take_over(mapped_from(tmp_path), again)
    assert again[1].weight is again[0].weight
    assert torch.equal(again.state_dict()["1.weight"], model.state_dict()["0.weight"])
