"""Ranks that are forked from this process, which has imported all that they need; nothing of them outlives a test."""

from __future__ import annotations

import json
import os
import select
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from statemachine_trainer.control.requests import endpoints_in

LONGEST = 200.0
"""Seconds after which ranks hang."""


def in_ranks(
    size: int,
    folder: Path,
    act: Callable[[int], Any],
    *,
    longest: float = LONGEST,
    meanwhile: Callable[[], object] | None = None,
) -> list[Any]:
    """Do something in ranks over gloo, and wait for their ends.

    Args:
        size: How many there are.
        folder: Where they meet, and where their runs are.
        act: What each does with its number. What it returns has to fit into JSON.
        longest: Seconds after which all of them are ended.
        meanwhile: What is done here while they work.

    Returns:
        What each returned; "NAME: TEXT" of an error that it raised; None where it was killed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    store = folder / f"store-{len([*folder.glob('store-*')])}"
    store.touch()  # so that the next call takes another one
    started = [_fork(size, rank, store, act) for rank in range(size)]
    found: dict[int, bytes] = {reading: b"" for _, reading in started}
    end, waiting = time.monotonic() + longest, set(found)
    try:
        if meanwhile is not None:
            meanwhile()
        while waiting:
            ready, _, _ = select.select([*waiting], [], [], max(0.0, end - time.monotonic()))
            assert ready, "the ranks hang"
            for one in ready:
                more = os.read(one, 65536)
                found[one] += more
                if not more:
                    waiting.discard(one)
    finally:
        for child, reading in started:
            os.close(reading)
            if waiting:
                with suppress(ProcessLookupError):
                    os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        _remove_sockets(folder)
    return [json.loads(text) if text else None for text in found.values()]


def _remove_sockets(folder: Path) -> None:
    """Remove what ranks took requests by: they did not come to do it themselves."""
    for path in {one.parent for one in folder.rglob("requests-*.json")}:
        for endpoint in endpoints_in(path):
            Path(endpoint.address).unlink(missing_ok=True)


def _fork(size: int, rank: int, store: Path, act: Callable[[int], Any]) -> tuple[int, int]:
    reading, writing = os.pipe()
    child = os.fork()
    if child:
        os.close(writing)
        return child, reading
    try:
        told = json.dumps(_as_rank(size, rank, store, act)).encode()
        while told:
            told = told[os.write(writing, told) :]
    finally:
        os._exit(0)


def _as_rank(size: int, rank: int, store: Path, act: Callable[[int], Any]) -> Any:
    os.environ |= {"RANK": f"{rank}", "LOCAL_RANK": f"{rank}", "WORLD_SIZE": f"{size}"}
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    try:
        if size > 1:
            dist.init_process_group(
                "gloo",
                init_method=f"file://{store}",
                rank=rank,
                world_size=size,
                timeout=timedelta(seconds=LONGEST / 2),
            )
        return act(rank)
    except BaseException as error:
        traceback.print_exc(file=sys.stderr)
        return f"{type(error).__name__}: {error}"
