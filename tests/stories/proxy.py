"""
A TCP proxy that breaks connections on demand: what stands between two processes of a story.

A fault is in force when the call that asks for it returns, for the connections that are open and for new ones, until
`heal`. It lasts longer for one kind: what a black hole silenced stays silent, as behind a router that has forgotten
it; only new connections find their way.
"""

import asyncio
import contextlib
import gc
import socket
import struct
import threading
import warnings
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Self

_PIECE_BYTES = 65_536
_PIECES = 64  # that wait in one direction
_CLOSING_TURNS = 3
_SLICES_A_SECOND = 20
_AT_ONCE = struct.pack("ii", 1, 0)  # SO_LINGER: closing sends a reset


@dataclass(eq=False)
class _Link:
    """One connection: its client's end, and the server's once there is one."""

    client: asyncio.StreamWriter
    server: asyncio.StreamWriter | None = None
    is_silent: bool = False
    sent: bytearray = field(default_factory=bytearray)  # the client's bytes that may hold the marker looked for
    markers_seen: int = 0

    def reset(self, *, only_client: bool = False) -> None:
        """End it with a reset; `only_client`: the server still reads all that was sent, then the end."""
        sock = self.client.get_extra_info("socket")
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _AT_ONCE)
        self.client.transport.abort()
        if self.server is not None:
            if only_client:
                self.server.close()
            else:
                self.server.transport.abort()


class FaultProxy:
    """
    Listens on a port of its own while its `with` block runs, and passes on what it hears.

    Args:
        host: of the server; one that begins with `/` is the path of its socket, as libpq has it.
    """

    def __init__(self, host: str, port: int | None = None) -> None:
        self.port = 0
        self.cuts = 0  #: by `cut_after`
        self.connections = 0  #: that clients have opened
        self._target = host, port
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="fault proxy", daemon=True)
        self._links: set[_Link] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._mend()

    def __enter__(self) -> Self:
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._open(), self._loop).result()
        return self

    def __exit__(self, *_error: object) -> None:
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        with warnings.catch_warnings():
            # A connection that asyncio was still accepting has a socket that nobody here knows: no test is to blame.
            warnings.simplefilter("ignore", ResourceWarning)
            gc.collect()

    def latency(self, seconds: float) -> None:
        """Pass everything on, in both directions, so much later."""
        self._now(lambda: setattr(self, "_latency", seconds))

    def bandwidth(self, bytes_per_second: int) -> None:
        """Pass on so much of each connection, in each direction."""
        self._now(lambda: setattr(self, "_rate", bytes_per_second))

    def reset(self) -> None:
        """Reset every connection, and each new one."""

        def fault() -> None:
            self._refuses = True
            for link in list(self._links):
                link.reset()

        self._now(fault)

    def black_hole(self) -> None:
        """Accept connections and pass nothing on, not even their ends."""

        def fault() -> None:
            self._swallows = True
            for link in self._links:
                link.is_silent = True

        self._now(fault)

    def cut_after(self, *markers: bytes) -> None:
        """
        Reset one connection, once, when its client has sent these in their order, before any answer to the last.

        The server gets the last one, with what came in one piece with it, and then the connection's end.
        """

        def fault() -> None:
            self._markers = markers
            for link in self._links:
                link.sent.clear()
                link.markers_seen = 0

        self._now(fault)

    def heal(self) -> None:
        """Pass everything on again."""
        self._now(self._mend)

    def _mend(self) -> None:
        self._latency = 0.0
        self._rate: int | None = None
        self._refuses = False
        self._swallows = False
        self._markers: tuple[bytes, ...] = ()

    def _now(self, fault: Callable[[], None]) -> None:
        async def call() -> None:
            fault()

        asyncio.run_coroutine_threadsafe(call(), self._loop).result()

    async def _open(self) -> None:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _close(self) -> None:
        self._server.close()
        for _ in range(_CLOSING_TURNS):  # what was being accepted comes as a task of its own, and sockets close later
            tasks = list(self._tasks)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await asyncio.sleep(0.05)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = self._loop.create_task(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(lambda _: writer.transport.abort())  # one that was cancelled at once closes nothing

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        link = _Link(writer, is_silent=self._swallows)
        self._links.add(link)
        try:
            if link.is_silent:
                await _to_end(reader)
            elif not self._refuses:
                await self._join(link, reader)
        except* OSError:
            pass
        finally:
            self._links.discard(link)
            link.reset()

    async def _join(self, link: _Link, reader: asyncio.StreamReader) -> None:
        host, port = self._target
        opened = asyncio.open_unix_connection(host) if port is None else asyncio.open_connection(host, port)
        answers, link.server = await opened
        async with asyncio.TaskGroup() as both:
            both.create_task(self._pass(link, reader, link.server, up=True))
            both.create_task(self._pass(link, answers, link.client, up=False))

    async def _pass(self, link: _Link, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, up: bool) -> None:
        """Pass on one direction, to its end."""
        waiting: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(_PIECES)
        reading = asyncio.create_task(self._read(reader, waiting))
        try:
            while True:
                due, piece = await waiting.get()
                await asyncio.sleep(due - self._loop.time())
                if link.is_silent:
                    continue  # the end too; what ends a silent connection is the proxy's end
                if not piece:
                    break
                async for part in self._parts(piece):
                    writer.write(part)
                    await writer.drain()
                if up and self._holds_marker(link, piece):
                    self.cuts += 1
                    link.reset(only_client=True)
            if writer.can_write_eof():
                writer.write_eof()
        finally:
            reading.cancel()

    async def _read(self, reader: asyncio.StreamReader, waiting: asyncio.Queue[tuple[float, bytes]]) -> None:
        piece = b"begun"
        while piece:
            try:
                piece = await reader.read(_PIECE_BYTES)
            except OSError:
                piece = b""
            await waiting.put((self._loop.time() + self._latency, piece))

    async def _parts(self, piece: bytes) -> AsyncIterator[bytes]:
        """Cut a piece as the bandwidth wants it, and wait between the parts."""
        while piece and (rate := self._rate):
            size = max(1, rate // _SLICES_A_SECOND)
            await asyncio.sleep(min(size, len(piece)) / rate)
            yield piece[:size]
            piece = piece[size:]
        if piece:
            yield piece

    def _holds_marker(self, link: _Link, piece: bytes) -> bool:
        """Whether the client has sent the last marker with this piece; the fault is over then."""
        if not self._markers:
            return False
        link.sent += piece
        while link.markers_seen < len(self._markers):
            marker = self._markers[link.markers_seen]
            at = link.sent.find(marker)
            if at < 0:
                del link.sent[: max(0, len(link.sent) - len(marker) + 1)]
                return False
            del link.sent[: at + len(marker)]
            link.markers_seen += 1
        self._markers = ()
        return True


async def _to_end(reader: asyncio.StreamReader) -> None:
    while await reader.read(_PIECE_BYTES):
        pass
