"""A real server of S3, and a training that is killed while it sends: another machine goes on to the same bits."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from statemachine_trainer.snapshot import BadMirror, Mirror, Store, WriteFailed
from tests.processes import ROOT

pytest.importorskip("s3fs", reason="pip install 'statemachine-trainer[remote]'")
pytest.importorskip("moto.server", reason="pip install 'moto[s3,server]'")
pytestmark = pytest.mark.slow

BUCKET = "checkpoints"


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    from moto.server import ThreadedMotoServer

    keys = {
        "AWS_ACCESS_KEY_ID": "a",
        "AWS_SECRET_ACCESS_KEY": "b",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    before = {name: os.environ.get(name) for name in keys}
    os.environ.update(keys)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    address = f"http://{host}:{port}"
    Mirror(f"s3://{BUCKET}/x", options={"endpoint_url": address})._files.mkdir(BUCKET)
    yield address
    server.stop()
    for name, value in before.items():
        if value is None:
            del os.environ[name]
        else:
            os.environ[name] = value


def trained(folder: Path, address: str, endpoint: str, before: int = 0) -> tuple[int, str]:
    """Return the exit code of a training, and the digest that it printed."""
    command = [sys.executable, "-m", "tests.crash.mirrored_training"]
    done = subprocess.run(
        [*command, str(folder), address, endpoint, str(before)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode in (0, -9), done.stderr
    return done.returncode, done.stdout.strip()


@pytest.fixture(scope="module")
def undisturbed(endpoint: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("whole")
    return trained(folder, f"s3://{BUCKET}/whole", endpoint)[1]


@pytest.mark.parametrize("before", [2, 4, 5, 7, 8, 10])
def test_what_was_sent_is_whole_and_another_machine_goes_on(
    before: int, endpoint: str, undisturbed: str, tmp_path: Path
) -> None:
    address = f"s3://{BUCKET}/killed-{before}"
    code, _ = trained(tmp_path / "first", address, endpoint, before)
    assert code == -9
    mirror = Mirror(address, options={"endpoint_url": endpoint})
    fetched = mirror.fetch(tmp_path / "looked-at")
    assert {one.name for one in fetched} == mirror.whole()
    for one in fetched:
        Store(one.parent).load(one)
    code, ends_with = trained(tmp_path / "second", address, endpoint)
    assert (code, ends_with) == (0, undisturbed)
    assert mirror.whole() == {one.name for one in (tmp_path / "second").glob("0*")}
    files = mirror._files.find(f"{BUCKET}/killed-{before}")
    assert len(files) == 3 * len(mirror.whole()) + 1, "nothing is left of what was cut off"


def test_a_bucket_that_is_not_there_is_told_before_training(endpoint: str) -> None:
    with pytest.raises(WriteFailed, match="The mirror cannot be written"):
        Mirror("s3://nowhere/run", options={"endpoint_url": endpoint}).try_to_write()
    with pytest.raises(BadMirror, match="cannot be opened"):
        Mirror("s4://nowhere/run")
