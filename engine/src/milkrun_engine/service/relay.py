"""
News between the processes that share a database.

What happens in one is told to the others in small batches; each hears its own news only once, directly.
"""

import asyncio
import contextlib
import logging
from threading import Event, Thread

from milkrun_engine.service.signals import News, Signals
from milkrun_engine.service.threads import Threads
from milkrun_engine.store.database import Database

log = logging.getLogger(__name__)
_BATCH_SECONDS = 0.02
_RETRY_SECONDS = 1.0
_STOP_SECONDS = 5.0


class Relay:
    """
    Tells other processes, and listens to them.

    Args:
        me: names this process; without spaces.
    """

    def __init__(self, *, me: str, database: Database, threads: Threads, signals: Signals) -> None:
        self._me = me
        self._database = database
        self._threads = threads
        self._signals = signals
        self._waiting: dict[str, None] = {}  # in order, each once
        self._wake = asyncio.Event()
        self._stopped = Event()
        self._listener: Thread | None = None

    def start(self) -> None:
        """Begin to listen and to take news; nothing to do for a database of one process."""
        if self._database.is_shared:
            self._signals.relay = self._take
            loop = asyncio.get_running_loop()
            self._listener = Thread(target=self._listen, args=(loop,), name="relay", daemon=True)
            self._listener.start()

    async def run_once(self) -> None:
        """Tell what has come together, or wait for it."""
        await self._wake.wait()
        await asyncio.sleep(_BATCH_SECONDS)
        self._wake.clear()
        messages, self._waiting = list(self._waiting), {}
        try:
            await self._threads.read(self._database.tell, messages)
        except Exception:
            self._waiting = dict.fromkeys(messages) | self._waiting
            self._wake.set()
            raise

    def stop(self) -> None:
        """Stop listening."""
        self._signals.relay = None
        self._stopped.set()
        if self._listener is not None:
            self._listener.join(_STOP_SECONDS)

    def _take(self, news: News, name: str) -> None:
        self._waiting[f"{self._me} {news} {name}"] = None
        self._wake.set()

    def _listen(self, loop: asyncio.AbstractEventLoop) -> None:
        while not self._stopped.is_set():
            try:
                for message in self._database.listen(self._stopped):
                    with contextlib.suppress(RuntimeError):  # the loop is closing
                        loop.call_soon_threadsafe(self._hear, message)
            except Exception:
                log.warning("not listening for a moment", exc_info=True, extra={"action": "relay_lost"})
                self._stopped.wait(_RETRY_SECONDS)

    def _hear(self, message: str) -> None:
        if not message:  # it listens from now on
            self._signals.missed()
            return
        sender, news, name = message.split(" ", 2)
        if sender != self._me and news in set(News):  # a newer process may have news of its own
            self._signals.hear(News(news), name)
