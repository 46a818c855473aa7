"""
A real HTTP server on a port of its own: it notes what it hears and answers as it is told.
"""

import ssl
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self


@dataclass(frozen=True)
class Heard:
    """One request."""

    at: float  #: monotonic
    method: str
    path: str
    headers: dict[str, str]  #: names in lower case
    body: bytes


@dataclass(frozen=True)
class Reply:
    """One answer."""

    status: int = 200
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    after_seconds: float = 0.0
    repeat_body: int = 1


class Receiver:
    """
    Answers with what `answer` makes of a request, and says 204 without it.

    Args:
        answer: is called in the server's threads.
        tls: serves https.
    """

    def __init__(
        self,
        answer: Callable[[Heard], Reply] = lambda _heard: Reply(204),
        *,
        host: str = "127.0.0.1",
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.heard: list[Heard] = []
        self.sent_bytes = 0  #: of bodies, as far as the other side took them
        self._answer = answer
        self._server = _Server((host, 0), self._handler())
        if tls is not None:
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True)
        self.port: int = self._server.server_address[1]
        self.url = f"{'https' if tls else 'http'}://{host}:{self.port}"
        self._released = threading.Event()

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._released.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def wait(self, count: int, *, seconds: float = 30.0) -> list[Heard]:
        """Wait until so many requests were heard."""
        deadline = time.monotonic() + seconds
        while len(self.heard) < count:
            assert time.monotonic() < deadline, f"{len(self.heard)} of {count} requests came within {seconds:.0f} s"
            time.sleep(0.01)
        return list(self.heard)

    def _handler(receiver) -> type[BaseHTTPRequestHandler]:  # noqa: N805  # two selves
        class Handler(BaseHTTPRequestHandler):
            def _hear(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length") or 0))
                headers = {name.lower(): value for name, value in self.headers.items()}
                heard = Heard(time.monotonic(), self.command, self.path, headers, body)
                receiver.heard.append(heard)
                reply = receiver._answer(heard)
                receiver._released.wait(reply.after_seconds)
                try:
                    self.send_response(reply.status)
                    for name, value in reply.headers.items():
                        self.send_header(name, value)
                    self.send_header("content-length", str(len(reply.body) * reply.repeat_body))
                    self.end_headers()
                    for _ in range(reply.repeat_body):
                        self.wfile.write(reply.body)
                        receiver.sent_bytes += len(reply.body)
                except OSError:
                    self.close_connection = True

            do_GET = do_POST = _hear  # noqa: N815  # as the library calls them

            def log_message(self, *_arguments: Any) -> None:
                """Say nothing."""

        return Handler


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, *_arguments: Any) -> None:
        """A peer that hangs up is no error of a test."""
