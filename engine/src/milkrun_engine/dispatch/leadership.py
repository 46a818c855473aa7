"""
Who dispatches: one of the processes that share a ledger, elected by a lease with a term.

The holder renews the lease; one that can't do so in time stops its crew, before another may begin. Correctness does
not hang on it (the chunks' own leases see to that): two crews would only load every model twice.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

from milkrun_engine.dispatch.crew import Crew
from milkrun_engine.failpoints import Point, reached
from milkrun_engine.service.threads import Threads
from milkrun_engine.store.posts import DISPATCHER, Post, Posts

log = logging.getLogger(__name__)
LEASE_SECONDS = 8.0
_ROUND_SECONDS = 1.0
_TRY_SECONDS = 3.0  # a database that says nothing for so long has not renewed anything
_GOODBYE_SECONDS = 5.0
_MARGIN_SECONDS = 2.0  # the crew must have stopped before the lease is over


class Leadership:
    """
    Seeks the dispatcher's post, and has a crew while it holds it.

    Args:
        me: names this process.
        make_crew: builds the crew of a new term, of this number.
        is_shared: whether other processes seek it, too; a ledger that says nothing costs no post that nobody wants.
    """

    def __init__(
        self, *, me: str, posts: Posts, threads: Threads, make_crew: Callable[[int], Crew], is_shared: bool
    ) -> None:
        self._me = me
        self._posts = posts
        self._threads = threads
        self._make_crew = make_crew
        self._is_shared = is_shared
        self._held_until = 0.0
        self._told: Mapping[str, Any] = {}
        self._starting: asyncio.Task[None] | None = None
        self.crew: Crew | None = None

    async def run_once(self) -> None:
        """One round: take, keep or lose the post."""
        try:
            await self._round()
        finally:
            await asyncio.sleep(_ROUND_SECONDS)

    async def _round(self) -> None:
        began = time.monotonic()
        post: Post | None = None
        patience = _TRY_SECONDS
        if self._is_shared and (self.crew or self._starting):  # it must stop in time, whatever the ledger says
            patience = max(0.0, min(patience, self._held_until - _MARGIN_SECONDS - began))
        try:
            async with asyncio.timeout(patience):
                facts = self.crew.facts() if self.crew else {}
                post = await self._threads.elect(self._posts.take, DISPATCHER, self._me, LEASE_SECONDS, facts)
        except Exception:
            log.warning("the ledger does not answer", exc_info=True, extra={"action": "election_failed"})
        if post is not None and post.holder == self._me:
            self._held_until = began + LEASE_SECONDS
            if self.crew is None and self._starting is None:
                reached(Point.election_taken)
                log.info("elected to dispatch", extra={"action": "elected", "term": post.term})
                # Beside the rounds that renew the lease: Ray takes longer to start than a lease lasts.
                self._starting = asyncio.create_task(self._appoint(post.term))
        elif (self.crew or self._starting) and (
            post is not None or (self._is_shared and time.monotonic() >= self._held_until - _MARGIN_SECONDS)
        ):
            log.warning("the dispatcher's post is lost", extra={"action": "post_lost"})
            await self._dismiss()
        if post is not None:
            self._told = post.facts

    def pools(self) -> Mapping[str, Mapping[str, Any]]:
        """How the pools stand: this process's own, or as their holder told last."""
        return self.crew.facts() if self.crew else self._told

    async def stop(self) -> None:
        """Give the post up."""
        try:
            await self._dismiss()
        finally:
            try:
                async with asyncio.timeout(_GOODBYE_SECONDS):
                    await self._threads.elect(self._posts.leave, DISPATCHER, self._me)
            except Exception:  # with a ledger that is away it ends by itself
                log.warning("the post was not given up", exc_info=True, extra={"action": "goodbye_failed"})

    async def _appoint(self, term: int) -> None:
        crew = self._make_crew(term)
        try:
            await crew.start()
            self.crew = crew
        except BaseException as error:
            with contextlib.suppress(Exception):
                await crew.stop()
            if not isinstance(error, Exception):
                raise
            # Another process may fare better; this one tries again when its turn comes.
            log.exception("the crew did not start", extra={"action": "crew_failed"})
            with contextlib.suppress(Exception):
                await self._threads.elect(self._posts.leave, DISPATCHER, self._me)
        finally:
            self._starting = None

    async def _dismiss(self) -> None:
        if self._starting is not None:
            self._starting.cancel()
            await asyncio.gather(self._starting, return_exceptions=True)
        crew, self.crew = self.crew, None
        if crew is not None:
            await crew.stop()
