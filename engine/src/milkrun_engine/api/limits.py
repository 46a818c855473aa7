"""
What passes before any route: the size of a body, a request's id, and how long nobody has called.
"""

import time

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from milkrun_engine.domain.ids import new_id

MAX_BODY_BYTES = 4_000_000  # it is read on the event loop; clients send more as a file
_UPLOADS = ("/api/files",)
_PROBES = ("/healthz", "/readyz")
_WORK = "/api"  # a page that renews itself in a forgotten tab keeps no engine alive


class BodyTooLarge(HTTPException):
    """A body went over `MAX_BODY_BYTES`; of the framework's kind, since it passes through its body parser."""

    def __init__(self) -> None:
        super().__init__(413)


class Activity:
    """When somebody last called; for a local engine that ends when nobody does."""

    def __init__(self) -> None:
        self._open = 0
        self._last = time.monotonic()

    def began(self) -> None:
        """A request came."""
        self._open += 1

    def ended(self) -> None:
        """Its answer is out."""
        self._open -= 1
        self._last = time.monotonic()

    @property
    def idle_seconds(self) -> float:
        """How long no request was open."""
        return 0.0 if self._open else time.monotonic() - self._last


class Limits:
    """ASGI middleware: counts requests, names each one, and cuts bodies that are too large."""

    def __init__(self, app: ASGIApp, activity: Activity) -> None:
        self._app = app
        self._activity = activity

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass one request on."""
        if scope["type"] != "http" or scope["path"] in _PROBES:
            await self._app(scope, receive, send)
            return
        request_id = new_id("req")
        scope.setdefault("state", {})["request_id"] = request_id
        received = 0

        async def limited() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > MAX_BODY_BYTES and scope["path"] not in _UPLOADS:
                raise BodyTooLarge
            return message

        async def named(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), (b"x-request-id", request_id.encode())]
            await send(message)

        if not scope["path"].startswith(_WORK):
            await self._app(scope, limited, named)
            return
        self._activity.began()
        try:
            await self._app(scope, limited, named)
        finally:
            self._activity.ended()
