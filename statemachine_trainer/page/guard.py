"""Who may see the page: whoever has the token, and no page of another site.

A page that a browser has open elsewhere can send requests to this machine too. It does not know the
token; it cannot make the browser name this address as the host or the origin; and it is sent no
cookie of ours.
"""

from __future__ import annotations

import hmac
from collections.abc import Iterable

from starlette.datastructures import URL
from starlette.requests import HTTPConnection, Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; connect-src 'self'; "
    "img-src 'self' data:; style-src 'self' 'unsafe-inline'; frame-ancestors 'none'; "
    "base-uri 'none'; form-action 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


class Guard:
    """Refuses every request that is not from the page itself.

    Args:
        app: What is guarded.
        token: What the first address has to hold; a cookie holds it after that.
        port: The port that is served.
    """

    def __init__(self, app: ASGIApp, *, token: str, port: int) -> None:
        self._app = app
        self._token = token
        self._hosts = {f"127.0.0.1:{port}", f"localhost:{port}"}
        # Cookies belong to a host and all its ports: two pages must not overwrite each other's.
        self._cookie = f"smt-{port}"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or hand on."""
        if scope["type"] != "http":  # the start and the end of the server
            await self._app(scope, receive, send)
            return
        request = Request(scope, receive)
        answer = self._refusal(request) or self._entrance(request)
        if answer is None and not self._knows_token(request):
            answer = _refused("The token is missing or wrong: open the address that was printed.")
        if answer is not None:
            answer.headers.update(_HEADERS)
            await answer(scope, receive, send)
            return

        async def send_guarded(message: dict[str, object]) -> None:
            if message["type"] == "http.response.start":
                headers: Iterable[tuple[bytes, bytes]] = message.get("headers", ())  # type: ignore[assignment]
                added = [(k.lower().encode(), v.encode()) for k, v in _HEADERS.items()]
                message["headers"] = [*headers, *added]
            await send(message)

        await self._app(scope, receive, send_guarded)  # type: ignore[arg-type]

    def _refusal(self, request: HTTPConnection) -> Response | None:
        host, origin = request.headers.get("host", ""), request.headers.get("origin")
        if host not in self._hosts:
            return _refused(f"The host {host!r} is not served here.")
        if origin is not None and origin not in {f"http://{one}" for one in self._hosts}:
            return _refused(f"Requests from {origin!r} are not answered.")
        return None

    def _entrance(self, request: Request) -> Response | None:
        """The token of the first address goes into a cookie, so that no history keeps it."""
        token = request.query_params.get("token")
        if request.method != "GET" or token is None or not self._is_token(token):
            return None
        here = URL(str(request.url)).remove_query_params("token")
        answer = RedirectResponse(here.path or "/", status_code=303)
        answer.set_cookie(self._cookie, self._token, httponly=True, samesite="strict")
        return answer

    def _knows_token(self, request: HTTPConnection) -> bool:
        return self._is_token(request.cookies.get(self._cookie, ""))

    def _is_token(self, given: str) -> bool:
        return hmac.compare_digest(given.encode(), self._token.encode())


def _refused(why: str) -> Response:
    return PlainTextResponse(f"{why}\n", status_code=403)
