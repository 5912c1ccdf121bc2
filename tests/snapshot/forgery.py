"""Checkpoints as a stranger might craft them: wrong inside, with checksums that fit."""

from __future__ import annotations

import json
import zlib
from pathlib import Path

OPENING = b'{\n  "checksum": "'


def seal(checkpoint: Path) -> None:
    """Make the manifest tell the sizes and checksums that the files have now."""
    manifest = json.loads((checkpoint / "manifest.json").read_bytes())
    for name in manifest["files"]:
        content = (checkpoint / name).read_bytes()
        manifest["files"][name] = {"size": len(content), "crc32": f"{zlib.crc32(content):08x}"}
    write_manifest(checkpoint, manifest)


def write_manifest(checkpoint: Path, manifest: dict[str, object]) -> None:
    """Write a manifest with the checksum that fits it."""
    content = {key: value for key, value in manifest.items() if key != "checksum"}
    body = json.dumps(content, indent=2).removeprefix("{\n").encode()
    checksum = f"{zlib.crc32(body):08x}".encode()
    (checkpoint / "manifest.json").write_bytes(OPENING + checksum + b'",\n' + body)


def write_tensors(checkpoint: Path, header: object, data: bytes) -> None:
    """Write a file of tensors with any header, and seal it."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    content = len(text).to_bytes(8, "little") + text + data
    (checkpoint / "tensors.safetensors").write_bytes(content)
    seal(checkpoint)


def write_state(checkpoint: Path, state: object) -> None:
    """Write any state, and seal it."""
    content = state if isinstance(state, bytes) else json.dumps(state).encode()
    (checkpoint / "state.json").write_bytes(content)
    seal(checkpoint)
