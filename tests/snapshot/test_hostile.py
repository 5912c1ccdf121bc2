"""Checkpoints crafted to do harm are refused with a clear error, before they cost memory."""

from __future__ import annotations

import io
import json
import os
import pickle
import sys
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from statemachine_trainer.snapshot import (
    Damaged,
    FormatTooNew,
    Loaded,
    NotACheckpoint,
    Store,
)
from tests.snapshot.forgery import seal, write_manifest, write_state, write_tensors

F32 = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return Store(tmp_path).save({"w": torch.ones(2)}, name="x", metadata={"step": 1})


def load(checkpoint: Path) -> Loaded:
    return Store(checkpoint.parent).load(checkpoint)


def manifest_of(checkpoint: Path) -> dict[str, object]:
    content: dict[str, object] = json.loads((checkpoint / "manifest.json").read_bytes())
    return content


def test_a_forged_checkpoint_that_is_in_order_is_read(checkpoint: Path) -> None:
    write_tensors(checkpoint, {"w": F32}, bytes(8))
    tree = load(checkpoint).tree
    assert isinstance(tree, dict)
    assert tree["w"].tolist() == [0.0, 0.0]


@pytest.mark.parametrize(
    "entry, complaint",
    [
        ({**F32, "data_offsets": [-8, 0]}, "malformed offsets"),
        ({**F32, "data_offsets": [0, 8, 16]}, "malformed offsets"),
        ({**F32, "data_offsets": [0, 8.0]}, "malformed offsets"),
        ({**F32, "data_offsets": [False, 8]}, "malformed offsets"),
        ({**F32, "data_offsets": [8, 0]}, "does not fit its offsets"),
        ({**F32, "data_offsets": [4, 12]}, "a gap"),
        ({**F32, "data_offsets": [0, 2**70]}, "malformed offsets"),
        ({**F32, "shape": [1 << 40], "data_offsets": [0, 1 << 42]}, "bytes of data"),
        ({**F32, "shape": [-2]}, "malformed shape"),
        ({**F32, "shape": [-2, -1]}, "malformed shape"),
        ({**F32, "shape": [2**62, 2**62]}, "beyond all memory"),
        ({**F32, "shape": [0, 2**62, 2**62], "data_offsets": [0, 0]}, "beyond all memory"),
        ({**F32, "shape": [2**80]}, "malformed shape"),
        ({**F32, "shape": [1] * 1000}, "malformed shape"),
        ({**F32, "shape": [2.0]}, "malformed shape"),
        ({**F32, "shape": 2}, "malformed shape"),
        ({**F32, "shape": [3]}, "does not fit its offsets"),
        ({**F32, "dtype": "F33"}, "unknown dtype"),
        ({**F32, "dtype": ["F32"]}, "unknown dtype"),
        ({**F32, "dtype": "X" * 10_000_000}, "unknown dtype"),
        ({**F32, "more": 1}, "malformed entry"),
        ({"dtype": "F32"}, "malformed entry"),
        ([1, 2], "malformed entry"),
    ],
)
def test_a_header_that_lies_about_a_tensor_is_refused(
    checkpoint: Path, entry: object, complaint: str
) -> None:
    write_tensors(checkpoint, {"w": entry}, bytes(8))
    with pytest.raises(Damaged, match=complaint) as caught:
        load(checkpoint)
    assert caught.value.file == checkpoint / "tensors.safetensors"
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    "header, complaint",
    [
        ({"a": F32, "b": F32}, "overlaps another"),
        ({"w": F32, "b": {**F32, "data_offsets": [4, 12]}}, "overlaps another"),
        ({}, "describes 0 bytes of data, it has 8"),
        ([], "not an object"),
        (b'{"w": {}, "w": {}}', "a key occurs twice"),
        (b'{"w": NaN}', "NaN is not JSON"),
        (b"\xff\xfe", "not a safetensors file"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"w":' * 50_000, "nested too deeply"),
        (b'{"w": ' + b"9" * 5000 + b"}", "not the JSON"),
    ],
)
def test_a_header_that_is_malformed_is_refused(
    checkpoint: Path, header: object, complaint: str
) -> None:
    write_tensors(checkpoint, header, bytes(8))
    with pytest.raises(Damaged, match=complaint):
        load(checkpoint)


@pytest.mark.parametrize("length", [9, 100_000_001, 2**40, 2**63, 2**64 - 1])
def test_a_header_longer_than_the_file_costs_no_memory(checkpoint: Path, length: int) -> None:
    (checkpoint / "tensors.safetensors").write_bytes(length.to_bytes(8, "little") + b"{}      ")
    seal(checkpoint)
    tracemalloc.start()
    try:
        with pytest.raises(Damaged, match="not a safetensors file"):
            load(checkpoint)
        assert tracemalloc.get_traced_memory()[1] < 10_000_000
    finally:
        tracemalloc.stop()


def test_a_sparse_file_of_terabytes_in_the_place_of_state_is_not_read(checkpoint: Path) -> None:
    manifest = manifest_of(checkpoint)
    os.truncate(checkpoint / "state.json", 2**40)
    manifest["files"]["state.json"]["size"] = 2**40  # type: ignore[index]
    write_manifest(checkpoint, manifest)
    with pytest.raises(Damaged, match=f"it has {2**40} bytes, and {2**28} are allowed"):
        load(checkpoint)
    os.truncate(checkpoint / "manifest.json", 2**40)
    with pytest.raises(Damaged, match=f"it has {2**40} bytes, and {2**24} are allowed"):
        load(checkpoint)


class Harm:
    """Runs code when unpickled, as any pickle may."""

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return (sys.exit, ("a pickle was opened",))


def as_zip(content: object) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("data.pkl", pickle.dumps(content))
    return file.getvalue()


@pytest.mark.parametrize("disguise", [pickle.dumps, as_zip, lambda harm: pickle.dumps(harm, 2)])
@pytest.mark.parametrize("name", ["tensors.safetensors", "state.json", "manifest.json"])
def test_a_pickle_in_disguise_is_never_opened(
    checkpoint: Path, disguise: Callable[[object], bytes], name: str
) -> None:
    (checkpoint / name).write_bytes(disguise(Harm()))
    if name != "manifest.json":
        seal(checkpoint)
    with pytest.raises(Damaged) as caught:
        load(checkpoint)
    assert caught.value.file == checkpoint / name
    if name == "tensors.safetensors":
        assert "a pickle or a zip archive in disguise" in str(caught.value)


def test_a_file_of_torch_save_is_no_checkpoint(tmp_path: Path) -> None:
    torch.save({"w": 1}, tmp_path / "model.pt")
    with pytest.raises(NotACheckpoint, match="a pickle, which can run code when opened"):
        Store(tmp_path).load(tmp_path / "model.pt")


@pytest.mark.parametrize(
    "files",
    [
        {"../../secret": {"size": 1, "crc32": "0"}},
        {"/etc/passwd": {"size": 1, "crc32": "0"}},
        {"state.json": {"size": 1, "crc32": "0"}, "../x": {"size": 1, "crc32": "0"}},
        {"state.json": {"size": 1, "crc32": "0"}, "tensors.safetensors\0": {}},
        {"state.json": {"size": -1, "crc32": "0"}, "tensors.safetensors": {}},
        {"state.json": {"size": True, "crc32": "0"}, "tensors.safetensors": {}},
        {"state.json": [], "tensors.safetensors": {}},
        {"state.json": {"size": 1}, "tensors.safetensors": {"size": 1}},
        {},
        [],
    ],
)
def test_a_manifest_names_no_other_files(checkpoint: Path, files: object) -> None:
    write_manifest(checkpoint, {**manifest_of(checkpoint), "files": files})
    with pytest.raises(Damaged, match="it is not a manifest"):
        load(checkpoint)


@pytest.mark.parametrize(
    "change",
    [
        {"format": "1"},
        {"format": 0},
        {"format": True},
        {"created": "yesterday"},
        {"versions": []},
        {"name": 1},
        {"metadata": [1]},
        {"metadata": {"$tensor": "w"}},
    ],
)
def test_a_manifest_of_another_shape_is_refused(
    checkpoint: Path, change: dict[str, object]
) -> None:
    write_manifest(checkpoint, {**manifest_of(checkpoint), **change})
    with pytest.raises(Damaged, match="it is not a manifest"):
        load(checkpoint)


def test_a_later_format_is_an_error_and_not_a_damage(checkpoint: Path) -> None:
    write_manifest(checkpoint, {**manifest_of(checkpoint), "format": 2})
    store = Store(checkpoint.parent)
    with pytest.raises(FormatTooNew, match="of format 2, and this version reads 1"):
        load(checkpoint)
    with pytest.raises(FormatTooNew):
        store.newest()
    damage = store.list()[0].damage
    assert damage is not None
    assert "format 2" in damage


@pytest.mark.parametrize("name", ["tensors.safetensors", "state.json", "manifest.json"])
@pytest.mark.parametrize("target", ["copy", "/dev/zero", "nowhere"])
def test_links_are_not_followed(checkpoint: Path, name: str, target: str) -> None:
    (checkpoint / name).rename(checkpoint.parent / "copy")
    place = target if target.startswith("/") else checkpoint.parent / target
    (checkpoint / name).symlink_to(place)
    with pytest.raises(Damaged, match="it is a link"):
        load(checkpoint)


def test_pipes_and_folders_are_not_read(checkpoint: Path) -> None:
    (checkpoint / "state.json").unlink()
    os.mkfifo(checkpoint / "state.json")
    with pytest.raises(Damaged, match="not a regular file"):
        load(checkpoint)
    (checkpoint / "state.json").unlink()
    (checkpoint / "state.json").mkdir()
    with pytest.raises(Damaged, match="not a regular file"):
        load(checkpoint)


def test_a_checkpoint_that_is_a_link_is_not_listed(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "000009-link").symlink_to(checkpoint)
    assert [info.name for info in Store(tmp_path).list()] == ["x"]


@pytest.mark.parametrize("name", ["extra.pkl", ".hidden", "tensors-2.safetensors"])
def test_a_file_too_many_is_refused(checkpoint: Path, name: str) -> None:
    (checkpoint / name).write_bytes(b"")
    with pytest.raises(Damaged, match="no checkpoint has such a file"):
        load(checkpoint)


DETAIL: dict[str, object] = {"w": {}}


@pytest.mark.parametrize(
    "state",
    [
        b"",
        b"[" * 100_000,
        b'{"tree":' * 10_000,
        b"\xff",
        b'{"tree": Infinity, "tensors": {"w": {}}}',
        [],
        {"tree": 1},
        {"tree": 1, "tensors": []},
        {"tree": 1, "tensors": {}},
        {"tree": 1, "tensors": {"w": {}, "v": {}}},
        {"tree": 1, "tensors": {"w": []}},
        {"tree": 1, "tensors": {"w": {"unknown": 1}}},
        {"tree": 1, "tensors": {"w": {"order": [1]}}},
        {"tree": 1, "tensors": {"w": {"order": [2**70]}}},
        {"tree": 1, "tensors": {"w": {"order": [0, 0]}}},
        {"tree": 1, "tensors": {"w": {"order": [False]}}},
        {"tree": 1, "tensors": {"w": {"order": "0"}}},
        {"tree": 1, "tensors": {"w": {"strides": "0"}}},
        {"tree": 1, "tensors": {"w": {"strides": [0]}}},
        {"tree": 1, "tensors": {"w": {"strides": [2]}}},
        {"tree": 1, "tensors": {"w": {"strides": [True]}}},
        {"tree": 1, "tensors": {"w": {"strides": [-1]}}},
        {"tree": 1, "tensors": {"w": {"strides": [2**70]}}},
        {"tree": 1, "tensors": {"w": {"strides": [1, 1]}}},
        {"tree": 1, "tensors": {"w": {"dtype": "complex128"}}},
        {"tree": 1, "tensors": {"w": {"dtype": "load"}}},
        {"tree": 1, "tensors": {"w": {"dtype": []}}},
        {"tree": 1, "tensors": {"w": {"array": "O"}}},
        {"tree": 1, "tensors": {"w": {"array": "<f8"}}},
        {"tree": 1, "tensors": {"w": {"array": "<f4,<f4"}}},
        {"tree": 1, "tensors": {"w": {"device": 1}}},
        {"tree": {"$tensor": "v"}, "tensors": DETAIL},
        {"tree": {"$tensor": []}, "tensors": DETAIL},
        {"tree": {"$pickle": "x"}, "tensors": DETAIL},
        {"tree": {"$tuple": [], "more": 1}, "tensors": DETAIL},
        {"tree": {"$tuple": 1}, "tensors": DETAIL},
        {"tree": {"$dict": [[1]]}, "tensors": DETAIL},
        {"tree": {"$dict": [[[], 1]]}, "tensors": DETAIL},
        {"tree": {"$dict": {}}, "tensors": DETAIL},
        {"tree": {"$set": [[1]]}, "tensors": DETAIL},
        {"tree": {"$ordered": [1, 2]}, "tensors": DETAIL},
        {"tree": {"$int": "one"}, "tensors": DETAIL},
        {"tree": {"$int": 1}, "tensors": DETAIL},
        {"tree": {"$float": "x"}, "tensors": DETAIL},
        {"tree": {"$float": "nan:00"}, "tensors": DETAIL},
        {"tree": {"$bytes": "!"}, "tensors": DETAIL},
        {"tree": {"$str": "/w=="}, "tensors": DETAIL},
        {"tree": {"$size": [1.5]}, "tensors": DETAIL},
        {"tree": {"$dtype": "load"}, "tensors": DETAIL},
        {"tree": {"$device": "nonsense"}, "tensors": DETAIL},
        {"tree": {"$path": ["Popen", "x"]}, "tensors": DETAIL},
        {"tree": {"$path": ["Path", {"x": 1}]}, "tensors": DETAIL},
        {"tree": {"$datetime": ["never", 0]}, "tensors": DETAIL},
        {"tree": {"$timedelta": [2**70, 0, 0]}, "tensors": DETAIL},
        {"tree": {"$timedelta": [1, 2, 3, 4]}, "tensors": DETAIL},
        {"tree": {"$scalar": ["O", "00"]}, "tensors": DETAIL},
        {"tree": {"$scalar": ["<f8", "00"]}, "tensors": DETAIL},
    ],
)
def test_a_state_that_no_tree_was_encoded_to_is_refused(checkpoint: Path, state: object) -> None:
    write_state(checkpoint, state)
    with pytest.raises(Damaged) as caught:
        load(checkpoint)
    assert caught.value.file == checkpoint / "state.json"


def test_gradients_are_not_asked_of_integers(checkpoint: Path) -> None:
    write_tensors(checkpoint, {"w": {**F32, "dtype": "I32"}}, bytes(8))
    write_state(checkpoint, {"tree": 1, "tensors": {"w": {"requires_grad": True}}})
    with pytest.raises(Damaged, match="cannot ask for gradients"):
        load(checkpoint)


def test_a_tree_nested_to_the_limit_of_python_is_refused_or_read(checkpoint: Path) -> None:
    for opening, closing in [(b"[", b"]"), (b'{"$tuple":[', b"]}"), (b'{"a":', b"}")]:
        for depth in range(50, 1200, 50):
            tree = opening * depth + b"1" + closing * depth
            write_state(checkpoint, b'{"tensors":{"w":{}},"tree":' + tree + b"}")
            try:
                load(checkpoint)
                damage = None
            except Damaged as error:
                damage = error.damage
            assert damage is None or (depth > 100 and "nested too deeply" in damage)
