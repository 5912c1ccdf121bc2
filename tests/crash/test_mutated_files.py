"""Whatever is changed in the files of a run: no raw error, no wrong load, no run that is stopped."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.crash.mutations import Fuzzer

FINDS: tuple[int, ...] = ()
"""Changes that did harm once, as they are numbered."""

MUTATIONS = 5000
RESUMED = 10
"""After one change of so many the run is gone on with."""


def test_changes_that_did_harm_once_do_none(tmp_path: Path) -> None:
    fuzzer = Fuzzer(tmp_path)
    for number in (*FINDS, *range(40)):
        fuzzer.try_one(number, resume=number in FINDS)


@pytest.mark.slow
@pytest.mark.parametrize("part", range(5))
def test_no_change_does_harm(tmp_path: Path, part: int) -> None:
    fuzzer = Fuzzer(tmp_path)
    size = MUTATIONS // 5
    for number in range(part * size, (part + 1) * size):
        fuzzer.try_one(number, resume=number % RESUMED == 0)
