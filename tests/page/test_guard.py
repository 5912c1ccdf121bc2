"""Nobody sees the page, or steers the run, but who was given its address."""

from __future__ import annotations

import http.client
from typing import Any
from urllib.parse import urlsplit

import pytest

from statemachine_trainer.control.control_errors import PageError
from statemachine_trainer.page import Page, serve
from tests.page.runs import Run


class Client:
    """Speaks HTTP with every header under control."""

    def __init__(self, page: Page) -> None:
        self.port = page.port
        self.address = urlsplit(page.url)
        self.cookie = ""

    def ask(self, path: str, method: str = "GET", **headers: str) -> http.client.HTTPResponse:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        connection.putrequest(method, path, skip_host=True)
        sent = {"Host": f"127.0.0.1:{self.port}", "Cookie": self.cookie, **headers}
        for name, value in sent.items():
            connection.putheader(name, value)
        connection.endheaders()
        answer = connection.getresponse()
        self.body = answer.read().decode()
        connection.close()
        return answer

    def enter(self) -> http.client.HTTPResponse:
        answer = self.ask(f"/?{self.address.query}")
        self.cookie = (answer.getheader("Set-Cookie") or "").partition(";")[0]
        return answer


@pytest.fixture
def client(page: Page) -> Client:
    return Client(page)


def test_the_token_opens_the_page_and_leaves_the_address(client: Client) -> None:
    answer = client.enter()
    assert answer.status == 303
    assert answer.getheader("Location") == "/"
    cookie = answer.getheader("Set-Cookie") or ""
    assert "HttpOnly" in cookie
    assert "samesite=strict" in cookie.lower()
    assert client.ask("/").status == 200
    assert "script-src 'self'" in (
        client.ask("/page.js").getheader("Content-Security-Policy") or ""
    )


@pytest.mark.parametrize("path", ["/", "/state", "/graph", "/page.js"])
def test_without_the_token_nothing_is_shown(client: Client, path: str) -> None:
    assert client.ask(path).status == 403
    assert "The token is missing or wrong" in client.body
    assert client.ask(f"{path}?token=wrong").status == 403
    client.cookie = f"smt-{client.port}=wrong"
    assert client.ask(path).status == 403


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "127.0.0.1", ""])
def test_a_request_for_another_host_is_refused(client: Client, host: str) -> None:
    client.enter()
    assert client.ask("/state", Host=host).status == 403
    assert "is not served here" in client.body


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://127.0.0.1:1"])
def test_a_request_from_another_origin_is_refused(client: Client, run: Run, origin: str) -> None:
    client.enter()
    assert client.ask("/press/stop", "POST", Origin=origin).status == 403
    assert run.trainer.driver.posted == []


def test_buttons_are_pressed_by_post_alone_and_only_where_they_are_not_greyed(
    client: Client, run: Run
) -> None:
    client.enter()
    run.begin()
    assert client.ask("/press/stop").status == 405
    assert client.ask("/press/step", "POST").status == 409
    assert "Only a run that is held can be stepped" in client.body
    assert client.ask("/press/format", "POST").status == 409
    assert "There is no button or event 'format'" in client.body
    origin = f"http://127.0.0.1:{client.port}"
    assert client.ask("/press/stop", "POST", Origin=origin).status == 200
    run.thread.join(100)
    assert run.trainer.path is None


def test_only_this_machine_can_reach_it_and_a_taken_port_is_said(page: Page, run: Run) -> None:
    assert page.url.startswith("http://127.0.0.1:")
    with pytest.raises(PageError, match=f"Port {page.port} cannot be served"):
        serve(run.trainer, port=page.port)


def test_what_is_no_port_is_refused(run: Run) -> None:
    port: Any = "http"
    with pytest.raises(PageError, match="port='http'"):
        serve(run.trainer, port=port)
