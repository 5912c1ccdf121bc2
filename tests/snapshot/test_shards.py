"""Parts of tensors in files beside a checkpoint: read back as whole tensors, checked, and never guessed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from statemachine_trainer.snapshot import Damaged, NotACheckpoint, Store, WriteFailed
from statemachine_trainer.snapshot.checkpoint_folder import FileEntry, write_tensors
from statemachine_trainer.snapshot.filesystem import LocalFileSystem
from statemachine_trainer.snapshot.loading import load_weights
from statemachine_trainer.snapshot.marks import is_mark, take_out
from statemachine_trainer.snapshot.shards import with_parts

WEIGHT = torch.arange(15.0).reshape(5, 3)
BIAS = torch.tensor([1.0, -0.0, float("nan"), 4.0, 5.0])
PARTS = [
    {"['w']['weight']@0,0": WEIGHT[:3], "['w']['bias']@0": BIAS[:3]},
    {"['w']['weight']@3,0": WEIGHT[3:], "['w']['bias']@3": BIAS[3:]},
]
TREE = {
    "w": {
        "weight": {"cut_up": "['w']['weight']", "shape": [5, 3], "placements": ["S0"]},
        "bias": {"cut_up": "['w']['bias']", "shape": [5], "placements": ["S0"]},
    },
    "kept": [torch.ones(2), "text"],
}


def saved(folder: Path, parts: list[dict[str, torch.Tensor]], tree: Any = TREE) -> Path:
    def beside(temporary: Path) -> Mapping[str, FileEntry]:
        names = [f"shard-{rank}.safetensors" for rank in range(len(parts))]
        files = LocalFileSystem()
        return {
            name: write_tensors(files, temporary / name, part)
            for name, part in zip(names, parts, strict=True)
        }

    return Store(folder).save(tree, name="a", beside=beside)


def read(path: Path) -> Any:
    return with_parts(Store(path.parent).load(path).tree, path, nn.Linear(3, 5))


def test_parts_are_put_together_to_the_bit(tmp_path: Path) -> None:
    tree = read(saved(tmp_path, PARTS))
    assert torch.equal(tree["w"]["weight"], WEIGHT)
    assert tree["w"]["bias"].view(torch.int32).equal(BIAS.view(torch.int32))
    assert tree["kept"][1] == "text"


def test_a_part_may_be_of_any_type_and_size(tmp_path: Path) -> None:
    half = torch.randn(4, 2).bfloat16()
    parts = [{"['h']@0,0": half[:4], "['e']@0": torch.empty(0, dtype=torch.int64)}]
    tree = {
        "h": {"cut_up": "['h']", "shape": [4, 2], "placements": ["R", "S0"]},
        "e": {"cut_up": "['e']", "shape": [0], "placements": ["S0"]},
    }
    back = read(saved(tmp_path, parts, tree))
    assert torch.equal(back["h"], half)
    assert back["e"].shape == (0,)
    assert back["e"].dtype == torch.int64


def test_weights_are_loaded_into_a_whole_model(tmp_path: Path) -> None:
    tree = {"context": {"model": {"weights": TREE["w"]}}}
    path = saved(tmp_path, PARTS, tree)
    model = nn.Linear(3, 5)
    load_weights(model, path)
    assert torch.equal(model.weight, WEIGHT)


@pytest.mark.parametrize("left", [PARTS[:1], [PARTS[0], {"['w']['bias']@3": BIAS[3:]}], []])
def test_a_part_that_is_missing_is_damage(
    left: list[dict[str, torch.Tensor]], tmp_path: Path
) -> None:
    with pytest.raises(Damaged, match="part"):
        read(saved(tmp_path, left))


def test_a_name_that_says_no_place_is_damage(tmp_path: Path) -> None:
    with pytest.raises(Damaged, match="names no part"):
        read(saved(tmp_path, [{"weight": WEIGHT}]))


@pytest.mark.parametrize("change", [lambda data: data[:-1], lambda data: data[:-1] + b"x"])
def test_each_byte_of_a_part_is_checked(change: Any, tmp_path: Path) -> None:
    path = saved(tmp_path, PARTS)
    shard = path / "shard-1.safetensors"
    shard.write_bytes(change(shard.read_bytes()))
    with pytest.raises(Damaged, match=r"shard-1\.safetensors"):
        Store(tmp_path).load("a")


def test_a_file_that_is_gone_and_one_that_nobody_wrote_are_damage(tmp_path: Path) -> None:
    path = saved(tmp_path, PARTS)
    (path / "shard-2.safetensors").write_bytes(b"")
    assert "no checkpoint has such a file" in str(Store(tmp_path).list()[0].damage)
    (path / "shard-2.safetensors").unlink()
    (path / "shard-0.safetensors").unlink()
    assert "it is missing" in str(Store(tmp_path).list()[0].damage)


def test_only_checkpoints_with_parts_are_of_the_new_format(tmp_path: Path) -> None:
    plain = Store(tmp_path / "plain").save({"a": 1}, name="a")
    in_parts = saved(tmp_path / "parts", PARTS)
    formats = [
        json.loads((path / "manifest.json").read_text())["format"] for path in (plain, in_parts)
    ]
    assert formats == [1, 2]


def test_a_checkpoint_that_failed_beside_leaves_nothing(tmp_path: Path) -> None:
    def fail(_: Path) -> Mapping[str, FileEntry]:
        raise OSError(28, "No space left on device")

    store = Store(tmp_path)
    with pytest.raises(WriteFailed):
        store.save(TREE, name="a", beside=fail)
    assert not store.list()
    with pytest.raises(NotACheckpoint):
        store.load("a")


def test_a_tree_without_parts_is_itself() -> None:
    tree = {"a": [torch.ones(1)]}
    assert take_out(tree) == (tree, {})
    assert take_out(tree)[0] is tree
    assert not is_mark({"cut_up": "a"})
