"""A run goes on, and keeps its checkpoints, whichever write of a file beside them fails."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.crash.failing_writes import COMPILER, ERRORS, KILL, SHORT, build, sweep
from tests.crash.processes import fast_folder

pytestmark = pytest.mark.skipif(COMPILER is None, reason="a C compiler lets the writes fail")


def check(tmp_path: Path, error: int, *, lasting: bool, stride: int) -> int:
    with fast_folder() as folder:
        report = sweep(build(tmp_path), folder, error, lasting=lasting, stride=stride)
    assert not report["wrong"], report["wrong"][:3]
    assert report["count"] > 100
    return int(report["count"])


@pytest.mark.parametrize("lasting", [False, True], ids=["once", "from-then-on"])
def test_some_writes_fail(tmp_path: Path, lasting: bool) -> None:
    check(tmp_path, ERRORS[0], lasting=lasting, stride=31)


@pytest.mark.slow
@pytest.mark.parametrize("lasting", [False, True], ids=["once", "from-then-on"])
@pytest.mark.parametrize("error", ERRORS)
def test_each_write_fails_in_turn(tmp_path: Path, error: int, lasting: bool) -> None:
    count = check(tmp_path, error, lasting=lasting, stride=1)
    print(f"{count} writes, each with error {error}, {'and all after it' if lasting else 'once'}")


@pytest.mark.slow
@pytest.mark.parametrize("error", [KILL, SHORT], ids=["killed", "cut short"])
def test_each_write_is_the_last_or_is_cut_short(tmp_path: Path, error: int) -> None:
    print(f"{check(tmp_path, error, lasting=False, stride=1)} writes, each killed or cut short")
