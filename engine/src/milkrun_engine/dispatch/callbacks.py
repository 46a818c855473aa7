"""
The callback duty: sends what is due in the outbox, several at once, and marks what became of it.

It marks after it has sent, so an engine that is killed in between sends again.
"""

import asyncio
import logging
from collections import Counter

from milkrun.status import CallbackState
from milkrun_engine.dispatch.delivery import Sender
from milkrun_engine.domain.callbacks import Attempt, DueCallback, next_delay
from milkrun_engine.failpoints import Point, reached
from milkrun_engine.service.signals import Signals, wait_event
from milkrun_engine.service.threads import Threads
from milkrun_engine.store import Store

log = logging.getLogger(__name__)
_ROUND_SECONDS = 1.0
_ERROR_PAUSE_SECONDS = 5.0
_GRACE_SECONDS = 2.0
_AT_ONCE = 32
_AT_ONCE_TO_ONE = 4  # a receiver that is slow keeps the others' places free
_STATES = {Attempt.delivered: CallbackState.delivered}


class Callbacks:
    """Delivers callbacks at least once, each under one id."""

    def __init__(self, *, store: Store, threads: Threads, signals: Signals, sender: Sender) -> None:
        self._store = store
        self._threads = threads
        self._signals = signals
        self._sender = sender
        self._sending: dict[str, tuple[str, asyncio.Task[None]]] = {}  # by id: receiver and task

    async def run_once(self) -> None:
        """Begin what is due and has a place, or wait until there may be some."""
        self._signals.to_call_back.clear()
        busy = Counter(receiver for receiver, _ in self._sending.values())
        full = [receiver for receiver, count in busy.items() if count >= _AT_ONCE_TO_ONE]
        due = self._store.callbacks.due
        found = await self._threads.read(due, _AT_ONCE - len(self._sending), but=list(self._sending), not_to=full)
        for callback in found:
            if busy[callback.receiver] < _AT_ONCE_TO_ONE:
                busy[callback.receiver] += 1
                self._sending[callback.id] = callback.receiver, asyncio.create_task(self._deliver(callback))
        if not found:
            await wait_event(self._signals.to_call_back, _ROUND_SECONDS)

    async def stop(self) -> None:
        """Let what is being sent end, for a moment; the rest is sent again by the next engine."""
        tasks = [task for _, task in self._sending.values()]
        if tasks:
            await asyncio.wait(tasks, timeout=_GRACE_SECONDS)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        await self._sender.close()

    async def _deliver(self, due: DueCallback) -> None:
        try:
            attempt, error = await self._sender.attempt(due)
            reached(Point.callback_sent)
            await self._mark(due, attempt, error)
        except Exception:
            extra = {"action": "callback_not_marked", "job_id": due.job_id, "callback": due.id}
            log.exception("a callback could not be marked; it is sent again", extra=extra)
            await asyncio.sleep(_ERROR_PAUSE_SECONDS)
        finally:
            del self._sending[due.id]
            self._signals.to_call_back.set()

    async def _mark(self, due: DueCallback, attempt: Attempt, error: str | None) -> None:
        delay = next_delay(due, attempt)
        state = CallbackState.pending if delay is not None else _STATES.get(attempt, CallbackState.given_up)
        extra = {
            "action": f"callback_{'late' if delay is not None else state}",
            "job_id": due.job_id,
            "callback": due.id,
            "receiver": due.receiver,
            "attempt": due.attempts + 1,
            "reason": error,
        }
        log.log(logging.WARNING if state is CallbackState.given_up else logging.INFO, "callback", extra=extra)
        await self._threads.write(self._store.callbacks.mark, due.id, state, error, delay or 0.0)
