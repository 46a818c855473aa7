"""
A relay in front of an engine that counts what others send to it.
"""

import asyncio
import contextlib
import threading
import time
from typing import Self
from urllib.parse import urlsplit

_CHUNK = 1 << 16


class Relay:
    """
    Hands bytes on in both directions, in a thread of its own; remembers when each request and connection began.

    A request's head must not be split where its first line ends, as no client of ours does.
    """

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self.requests: list[float] = []
        self.connections: list[float] = []
        self.url = ""
        self._target = parts.hostname, parts.port
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, name="relay", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def __exit__(self, *_error: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    def a_minute(self, began: float, ended: float) -> float:
        """Requests a minute between two monotonic times."""
        return round(sum(began <= at < ended for at in self.requests) / (ended - began) * 60, 2)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        server = self._loop.run_until_complete(asyncio.start_server(self._serve, "127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        self._ready.set()
        self._loop.run_forever()
        server.close()
        for task in asyncio.all_tasks(self._loop):
            task.cancel()
        self._loop.run_until_complete(asyncio.sleep(0))
        self._loop.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections.append(time.monotonic())
        with contextlib.suppress(OSError):
            back_reader, back_writer = await asyncio.open_connection(*self._target)
            await asyncio.gather(self._pump(reader, back_writer, count=True), self._pump(back_reader, writer))

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, count: bool = False) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(_CHUNK):
                if count:
                    self.requests += [time.monotonic()] * data.count(b" HTTP/1.1\r\n")
                writer.write(data)
                await writer.drain()
        writer.close()
