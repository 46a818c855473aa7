"""
Where blocking work runs, so that the event loop never waits.

SQLite has one writer, so writes queue for one thread; reads and files share a few; the
preparer has a thread of its own, because a large input keeps it busy.
"""

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class Threads:
    """
    The engine's threads, by what they do.

    Args:
        wrote: is told the seconds of each write, its wait for the writer included.
    """

    def __init__(self, wrote: Callable[[float], object] = lambda _seconds: None) -> None:
        self._wrote = wrote
        self._writer = ThreadPoolExecutor(1, "ledger-writer")
        self._readers = ThreadPoolExecutor(4, "ledger-reader")
        self._files = ThreadPoolExecutor(4, "files")
        self._preparer = ThreadPoolExecutor(1, "preparer")
        self._election = ThreadPoolExecutor(1, "election")

    async def write(self, verb: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a verb of the ledger that writes."""
        began = time.monotonic()
        try:
            return await _run(self._writer, verb, *args, **kwargs)
        finally:
            self._wrote(time.monotonic() - began)

    async def read(self, verb: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a verb of the ledger that only reads."""
        return await _run(self._readers, verb, *args, **kwargs)

    async def files(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Read or write blobs."""
        return await _run(self._files, work, *args, **kwargs)

    async def prepare(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Cut an input."""
        return await _run(self._preparer, work, *args, **kwargs)

    async def elect(self, verb: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a verb of an election, which must not queue behind other writes."""
        return await _run(self._election, verb, *args, **kwargs)

    def stop(self) -> None:
        """End all threads after the work that was begun."""
        for executor in (self._election, self._preparer, self._files, self._readers, self._writer):
            executor.shutdown(wait=True, cancel_futures=True)


async def _run(executor: Executor, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    return await asyncio.get_running_loop().run_in_executor(executor, lambda: work(*args, **kwargs))
