"""
Run an engine in this process until a signal, or until a local one is idle.
"""

import asyncio
import logging
import os
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn

from milkrun.local import EngineFile
from milkrun_engine import __version__
from milkrun_engine.app import Engine
from milkrun_engine.dispatch.duty import repeat
from milkrun_engine.lock import DataDirLock
from milkrun_engine.settings import EngineSettings

log = logging.getLogger(__name__)
_GRACE_SECONDS = 5
_IDLE_CHECK_SECONDS = 5.0
# Python lets a busy thread run 5 ms before another gets its turn: while a large input is read, every step of a
# transaction would wait that long, and dispatch would crawl.
_SWITCH_SECONDS = 0.000_5


class _Server(uvicorn.Server):
    """Uvicorn, with signals left to us: long-polls must be answered before it can stop."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Capture nothing."""
        yield


async def serve(settings: EngineSettings) -> None:
    """
    Serve until SIGTERM or SIGINT.

    Raises:
        DataDirInUse: another engine has the data directory.
        OSError: the address can't be listened on.
    """
    sys.setswitchinterval(_SWITCH_SECONDS)
    lock = DataDirLock(settings.data_dir)
    lock.acquire()
    try:
        with socket.create_server((settings.host, settings.port), backlog=2_048) as listener:
            port = listener.getsockname()[1]
            host = "127.0.0.1" if settings.host in ("0.0.0.0", "::") else settings.host  # noqa: S104
            url = f"http://{host}:{port}"
            await _serve(settings, listener, url)
    finally:
        lock.release()


async def _serve(settings: EngineSettings, listener: socket.socket, url: str) -> None:
    loop = asyncio.get_running_loop()
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    engine = Engine(settings, settings.public_url or url)
    config = uvicorn.Config(
        engine.app,
        log_config=None,
        access_log=False,
        lifespan="off",
        timeout_graceful_shutdown=_GRACE_SECONDS,
        timeout_keep_alive=75,
    )
    server = _Server(config)
    await engine.start()
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    serving.add_done_callback(lambda _task: stopping.set())
    file = EngineFile(
        instance_id=engine.instance_id, url=url, api_key=engine.api_key, pid=os.getpid(), version=__version__
    )
    file.write(settings.data_dir)
    log.info("engine ready", extra={"action": "engine_ready", "url": url, "settings": str(settings)})
    idle = asyncio.create_task(_stop_when_idle(engine, stopping)) if settings.is_local else None
    try:
        await stopping.wait()
    finally:
        log.info("engine stopping", extra={"action": "engine_stopping"})
        if idle is not None:
            idle.cancel()
        engine.refuse()
        server.should_exit = True
        await asyncio.gather(serving, return_exceptions=True)
        try:
            await engine.stop()
        finally:
            (settings.data_dir / "engine.json").unlink(missing_ok=True)
        log.info("engine stopped", extra={"action": "engine_stopped"})


async def _stop_when_idle(engine: Engine, stopping: asyncio.Event) -> None:
    """A local engine ends when nobody has called for a while, no job is unfinished and no callback is due soon."""
    idle_seconds = engine.settings.idle_seconds

    async def look() -> None:
        await asyncio.sleep(min(_IDLE_CHECK_SECONDS, idle_seconds))
        is_idle = engine.activity.idle_seconds >= idle_seconds
        if is_idle and not await engine.service.unfinished() and not await engine.service.undelivered():
            log.info("idle", extra={"action": "engine_idle", "seconds": idle_seconds})
            stopping.set()

    await repeat("idle watch", look)
