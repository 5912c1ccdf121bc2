"""What the server of the page answers."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Mapping
from html import escape
from importlib import resources
from typing import Any, Final, Protocol, runtime_checkable

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import BaseRoute, Mount, Route

from statemachine_trainer.graph import svg
from statemachine_trainer.graph.dot import GraphvizMissing
from statemachine_trainer.graph.folding import fold
from statemachine_trainer.graph.graph import Graph
from statemachine_trainer.graph.model import GraphState
from statemachine_trainer.graph.packing import PANE
from statemachine_trainer.graph.style import Style
from statemachine_trainer.machine.errors import StateMachineError
from statemachine_trainer.page.guard import Guard
from statemachine_trainer.page.settings import LONGEST, values_of

_FILES = {
    "page.css": "text/css",
    "compare.css": "text/css",
    "page.js": "text/javascript",
    "asking.js": "text/javascript",
    "canvas.js": "text/javascript",
    "curves.js": "text/javascript",
    "settings.js": "text/javascript",
    "compare.js": "text/javascript",
}

COUNTER: Final = "x88888k 8888 ms"
"""The widest text of a counter at an edge: how often it was taken, and how long it took."""


class Source(Protocol):
    """A run, as the page shows it."""

    def graph(self) -> Graph:
        """The graph of its loop."""

    def state(self) -> dict[str, Any]:
        """All that changes, as data that JSON can hold."""

    def about(self, path: str) -> dict[str, Any]:
        """What is known of a state or loop beside what `state` tells: its receivers, its source."""

    def press(self, button: str) -> str:
        """Do what a button says and tell what becomes of it, or raise a `PageError`."""

    def set(self, values: Mapping[str, object]) -> str:
        """Change settings and tell what becomes of it, or raise a `StateMachineError`."""


@runtime_checkable
class SeveralSources(Protocol):
    """Several runs, as the page that compares them shows them."""

    def state(self) -> dict[str, Any]:
        """The table of the runs, as data that JSON can hold."""

    def curves(self, keys: Collection[int]) -> dict[str, Any]:
        """The curves of some runs, by metric."""

    def difference(self, one: int, other: int) -> dict[str, Any]:
        """Where two of the runs part."""

    def run(self, key: int) -> Source:
        """One of the runs, for a page of its own, or raise a `PageError`."""


def make_app(shown: Source | SeveralSources, *, token: str, port: int) -> Starlette:
    """Make the application that serves a page.

    Args:
        shown: The run, or several of them.
        token: What the first address has to hold.
        port: The port that is served.
    """
    files = [Route(f"/{name}", _file(name, kind)) for name, kind in _FILES.items()]
    return Starlette(
        routes=[*_routes(shown), *files],
        middleware=[Middleware(Guard, token=token, port=port)],
        exception_handlers={StateMachineError: _told},
    )


def _routes(shown: Source | SeveralSources) -> list[BaseRoute]:
    if isinstance(shown, SeveralSources):
        return _routes_of_several(shown)
    return _routes_of_one(lambda _request: shown)


def _routes_of_one(source_of: Callable[[Request], Source]) -> list[BaseRoute]:
    """Return what is answered of one run."""

    async def state(request: Request) -> Response:
        return _json(await run_in_threadpool(lambda: source_of(request).state()))

    async def graph(request: Request) -> Response:
        closed, opened = (request.query_params.getlist(name) for name in ("closed", "opened"))
        svg = await run_in_threadpool(
            lambda: picture_of(source_of(request).graph(), closed, opened)
        )
        return Response(svg, media_type="text/html")

    async def about(request: Request) -> Response:
        path = request.query_params.get("path", "")
        return _json(await run_in_threadpool(lambda: source_of(request).about(path)))

    async def press(request: Request) -> Response:
        def pressed() -> dict[str, Any]:
            source = source_of(request)
            told = source.press(request.path_params["button"])
            return {**source.state(), "told": told}

        return _json(await run_in_threadpool(pressed))

    async def set_values(request: Request) -> Response:
        values = values_of(await _body_of(request))

        def changed() -> dict[str, Any]:
            source = source_of(request)
            told = source.set(values)
            return {**source.state(), "told": told}

        return _json(await run_in_threadpool(changed))

    return [
        Route("/", _file("page.html", "text/html")),
        Route("/state", state),
        Route("/graph", graph),
        Route("/about", about),
        Route("/press/{button}", press, methods=["POST"]),
        Route("/set", set_values, methods=["POST"]),
    ]


def _routes_of_several(shown: SeveralSources) -> list[BaseRoute]:
    """Return what is answered of several runs, and of each of them below `/run/KEY/`."""

    async def state(_request: Request) -> Response:
        return _json(await run_in_threadpool(shown.state))

    async def curves(request: Request) -> Response:
        keys = [int(one) for one in request.query_params.getlist("run") if one.isdecimal()]
        return _json(await run_in_threadpool(shown.curves, keys))

    async def difference(request: Request) -> Response:
        return _json(await run_in_threadpool(lambda: shown.difference(**request.path_params)))

    return [
        Route("/", _file("compare.html", "text/html")),
        Route("/state", state),
        Route("/curves", curves),
        Route("/difference/{one:int}/{other:int}", difference),
        Mount(
            "/run/{key:int}",
            routes=_routes_of_one(lambda request: shown.run(request.path_params["key"])),
        ),
    ]


async def _body_of(request: Request) -> bytes:
    """Read what was sent, no more than is looked at."""
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > LONGEST:
            break
    return body


async def _told(_request: Request, error: Exception) -> Response:
    return PlainTextResponse(f"{error}\n", status_code=409)


def _file(name: str, kind: str) -> Any:
    content = resources.files("statemachine_trainer.page").joinpath("static", name).read_bytes()

    async def answer(_request: Request) -> Response:
        return Response(content, media_type=kind)

    return answer


def _json(data: Any) -> Response:
    return Response(json.dumps(data, allow_nan=False), media_type="application/json")


# -- The picture of the graph ---------------------------------------------------------------------


def picture_of(graph: Graph, closed: Collection[str] = (), opened: Collection[str] = ()) -> str:
    """The graph as HTML; each state and loop has its path in `data-path`, each edge `data-source`.

    Args:
        graph: The graph.
        closed: Paths of the loops that show nothing of what is inside; unknown ones are passed over.
        opened: Paths of those that are open although another one has the same shape.
    """
    graph = fold(graph.at(None).close(*closed), opened)
    try:
        # Which state is lit changes too often to draw it anew. Counters get their room now.
        drawn = svg.render(graph, Style(room=COUNTER), shape=PANE)
        return re.sub(rf'class="([^"]*)">{COUNTER}<', r'class="\1 count"><', drawn)
    except GraphvizMissing:
        return _outline(graph)


def _outline(graph: Graph) -> str:
    return f'<div class="outline">{_box(graph, graph.root)}</div>'


def _box(graph: Graph, state: GraphState) -> str:
    steps = "".join(
        f'<li data-source="{escape(edge.source)}" data-event="{escape(edge.event)}">'
        f"{escape(edge.label)} → {escape(edge.target.rpartition('.')[2])}</li>"
        for edge in graph.edges
        if edge.source == state.path
    )
    inside = "".join(_box(graph, child) for child in state.children)
    return (
        f'<div class="box {state.kind}" data-path="{escape(state.path)}">'
        f"<b>{escape(state.name)}</b><ul>{steps}</ul>{inside}</div>"
    )
