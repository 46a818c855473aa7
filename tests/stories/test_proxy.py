"""
The proxy of the stories breaks exactly what it is told to.
"""

import socket
import socketserver
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from stories.proxy import FaultProxy
from stories.server import wait_for

pytestmark = pytest.mark.engine
_PATIENCE_SECONDS = 10.0


class _Echo(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        while True:
            try:
                data = self.request.recv(65_536)
            except ConnectionError:
                data = b""
            self.server.heard += data or b"<end>"  # type: ignore[attr-defined]
            if not data:
                return
            self.request.sendall(data)


class _EchoServer(socketserver.ThreadingTCPServer):
    daemon_threads = True
    allow_reuse_address = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Echo)
        self.heard = bytearray()


@pytest.fixture
def echo() -> Iterator[_EchoServer]:
    """A server that answers with what it hears."""
    with _EchoServer() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def proxy(echo: _EchoServer) -> Iterator[FaultProxy]:
    """In front of it."""
    with FaultProxy(*echo.server_address) as opened:
        yield opened


def _connect(proxy: FaultProxy, *, patience: float = _PATIENCE_SECONDS) -> socket.socket:
    return socket.create_connection(("127.0.0.1", proxy.port), timeout=patience)


def _ask(connection: socket.socket, data: bytes) -> bytes:
    connection.sendall(data)
    heard = bytearray()
    while len(heard) < len(data):
        piece = connection.recv(65_536)
        assert piece, "the connection ended"
        heard += piece
    return bytes(heard)


def test_it_passes_everything_on_in_order(proxy: FaultProxy) -> None:
    """Large data, several connections, and the end."""
    data = bytes(range(256)) * 4_000
    with _connect(proxy) as one, _connect(proxy) as two:
        assert (b"hello", b"there") == (_ask(one, b"hello"), _ask(two, b"there"))
        writer = threading.Thread(target=one.sendall, args=(data,))
        writer.start()
        heard = bytearray()
        while len(heard) < len(data):
            heard += one.recv(65_536)
        writer.join()
        assert data == heard
        one.shutdown(socket.SHUT_WR)
        assert b"" == one.recv(1)


def test_latency_is_added_and_healed(proxy: FaultProxy) -> None:
    """Each direction comes later, on open connections too."""
    with _connect(proxy) as connection:
        _ask(connection, b"warm")
        proxy.latency(0.2)
        began = time.monotonic()
        assert b"slow" == _ask(connection, b"slow")
        assert time.monotonic() - began >= 0.4
        proxy.heal()
        connection.settimeout(0.3)
        assert b"fast" == _ask(connection, b"fast")


def test_reset_ends_open_and_new_connections_until_healed(proxy: FaultProxy) -> None:
    """With a reset, not with an end."""
    with _connect(proxy) as open_before:
        _ask(open_before, b"warm")
        proxy.reset()
        with pytest.raises(ConnectionResetError):
            open_before.recv(1)
    with pytest.raises(ConnectionResetError), _connect(proxy) as opened_after:
        opened_after.recv(1)
    proxy.heal()
    with _connect(proxy) as healed:
        assert b"again" == _ask(healed, b"again")


def test_a_black_hole_swallows_in_silence(proxy: FaultProxy, echo: _EchoServer) -> None:
    """Open and new connections stay open and hear nothing, after the heal as well; newer ones work."""
    with _connect(proxy, patience=0.2) as open_before:
        _ask(open_before, b"warm")
        proxy.black_hole()
        with _connect(proxy, patience=0.2) as opened_after:
            for connection in (open_before, opened_after):
                connection.sendall(b"lost")
                with pytest.raises(TimeoutError):
                    connection.recv(1)
            proxy.heal()
            for connection in (open_before, opened_after):
                connection.sendall(b"lost")
                with pytest.raises(TimeoutError):
                    connection.recv(1)
    with _connect(proxy) as healed:
        assert b"again" == _ask(healed, b"again")
    assert bytes(echo.heard).startswith(b"warmagain"), "neither the swallowed bytes nor the end were passed on"


def test_a_cut_comes_once_after_the_markers_in_their_order(proxy: FaultProxy, echo: _EchoServer) -> None:
    """The server hears the last marker, the client no answer to it; other connections go on, and so does its next."""
    proxy.cut_after(b"BEGIN", b"COMMIT")
    with _connect(proxy) as other, _connect(proxy) as victim:
        assert b"COMMIT" == _ask(other, b"COMMIT")
        assert b"BEG" == _ask(victim, b"BEG")
        assert b"IN; x" == _ask(victim, b"IN; x")
        echo.heard.clear()
        victim.sendall(b"COMMIT;")
        with pytest.raises(ConnectionResetError):
            victim.recv(1)
        wait_for(lambda: echo.heard == b"COMMIT;<end>", what="the marker and the end at the server")
        assert b"on" == _ask(other, b"on")
    with _connect(proxy) as later:
        assert b"BEGINCOMMIT" == _ask(later, b"BEGINCOMMIT")
    assert 1 == proxy.cuts


def test_bandwidth_is_bounded(proxy: FaultProxy) -> None:
    """So many bytes take so long at least, until it is healed."""
    proxy.bandwidth(10_000)
    with _connect(proxy) as connection:
        began = time.monotonic()
        assert b"x" * 3_000 == _ask(connection, b"x" * 3_000)
        assert time.monotonic() - began >= 0.3
        connection.sendall(b"x" * 100_000)
        proxy.heal()
        heard = 0
        while heard < 100_000:
            heard += len(connection.recv(65_536))


def test_a_silent_client_does_not_hold_up_the_end(echo: _EchoServer) -> None:
    """The proxy ends with connections open, silent or not."""
    before = threading.active_count()
    with FaultProxy(*echo.server_address) as proxy:
        first = _connect(proxy)
        _ask(first, b"warm")
        proxy.black_hole()
        second = _connect(proxy)
    first.close()
    second.close()
    wait_for(lambda: threading.active_count() <= before, what="the end of all threads")


def test_postgres_is_reached_by_port(postgres: Any) -> None:
    """The proxy passes on to a server that listens on a socket only."""
    import psycopg

    url = postgres.database()
    try:
        with FaultProxy(*postgres.address) as proxy, psycopg.connect(postgres.at(url, proxy.port)) as connection:
            assert (1,) == connection.execute("SELECT 1").fetchone()
            proxy.cut_after(b"SELECT 2")
            with pytest.raises(psycopg.OperationalError):
                connection.execute("SELECT 2")
            assert 1 == proxy.cuts
    finally:
        postgres.drop(url)
