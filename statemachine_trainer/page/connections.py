"""Connections to the page, bounded: whoever opens more must not take from the run what it needs itself.

Any program of this machine may connect, whether or not it knows the token, and each connection costs the process a
descriptor. Of too many, those go that have been silent longest: a browser connects again by itself.
"""

from __future__ import annotations

import asyncio
from typing import Final

from uvicorn.protocols.http.h11_impl import H11Protocol

MOST: Final = 64
"""Connections at a time."""

ACCEPTED_AT_ONCE: Final = 128
"""Connections that are accepted before the surplus goes."""

PATIENCE: Final = 10.0
"""Seconds within which whoever connects has to have asked for something."""


class BoundedProtocol(H11Protocol):
    """One connection; those of one server count together."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._heard = self.loop.time()
        self._too_late = self.loop.call_later(PATIENCE, self._give_up)
        # A connection that is given up is still among them until the loop has closed it.
        mine = [one for one in self.connections if isinstance(one, BoundedProtocol)]
        open_ones = [one for one in mine if not one.transport.is_closing()]
        if len(open_ones) > MOST:
            min(open_ones, key=lambda one: one._heard).transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._too_late.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._heard = self.loop.time()
        super().data_received(data)

    def _give_up(self) -> None:
        if self.cycle is None:  # no request came; after one, the server has a limit of its own
            self.transport.abort()
