"""An HTTP application that can be exchanged while it answers."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from starlette.types import Receive, Scope, Send


class LiveApp:
    """Passes each request to the application of that moment, in which it also ends."""

    def __init__(self, current: FastAPI) -> None:
        self.current = current

    @property
    def routes(self) -> list[Any]:
        return self.current.routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.current(scope, receive, send)
