"""Whoever connects to the page costs the run next to nothing."""

from __future__ import annotations

import http.client
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from statemachine_trainer.page import Page
from statemachine_trainer.page.connections import ACCEPTED_AT_ONCE, MOST
from tests.page.runs import Run, until

PROC = Path("/proc/self/fd")

pytestmark = pytest.mark.skipif(not PROC.exists(), reason="counts descriptors as Linux shows them")


def descriptors() -> int:
    return len([*PROC.iterdir()])


@contextmanager
def idle_connections(page: Page, count: int) -> Iterator[list[socket.socket]]:
    with ExitStack() as stack:
        yield [
            stack.enter_context(socket.create_connection(("127.0.0.1", page.port), timeout=100))
            for _ in range(count)
        ]


def answers(page: Page) -> int:
    asking = http.client.HTTPConnection("127.0.0.1", page.port, timeout=100)
    try:
        asking.request("GET", page.url.partition(str(page.port))[2])
        return asking.getresponse().status
    finally:
        asking.close()


def is_closed(connection: socket.socket) -> bool:
    connection.setblocking(False)
    try:
        return connection.recv(1) == b""
    except BlockingIOError:
        return False
    except ConnectionError:
        return True


def test_of_many_idle_connections_the_oldest_go_and_the_page_still_answers(
    run: Run, page: Page
) -> None:
    run.begin()
    count = 4 * MOST + ACCEPTED_AT_ONCE
    before = descriptors()
    with idle_connections(page, count) as connections:
        until(
            lambda: sum(map(is_closed, connections)) >= count - MOST - ACCEPTED_AT_ONCE,
            "that the surplus is gone",
        )
        # Half of what is counted here are the ends of this test.
        assert descriptors() - before <= count + MOST + ACCEPTED_AT_ONCE
        assert answers(page) == 303
        batch = run.batch
        until(lambda: run.batch > batch, "that the training goes on")


def test_a_connection_that_asks_now_and_then_is_kept_among_many_that_do_not(
    run: Run, page: Page
) -> None:
    run.begin()
    mine = http.client.HTTPConnection("127.0.0.1", page.port, timeout=100)
    for _ in range(4):
        mine.request("GET", "/")
        assert mine.getresponse().read()
        kept = mine.sock
        with idle_connections(page, MOST // 2):
            assert mine.sock is kept
    mine.close()
