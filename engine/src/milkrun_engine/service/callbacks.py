"""
The outbox of callbacks, for those who look after it: what was given up, and how it is sent again.
"""

import logging

from milkrun.status import CallbackState
from milkrun.wire import CallbackInfo, CallbackList
from milkrun_engine.domain.callbacks import CallbackRecord
from milkrun_engine.service.door import check_secret
from milkrun_engine.service.signals import Signals
from milkrun_engine.service.threads import Threads
from milkrun_engine.service.views import instant
from milkrun_engine.store import Store

log = logging.getLogger(__name__)


class CallbackService:
    """List, replay and re-sign callbacks on behalf of a tenant."""

    def __init__(self, *, store: Store, threads: Threads, signals: Signals) -> None:
        self._outbox = store.callbacks
        self._threads = threads
        self._signals = signals

    async def page(
        self, tenant_id: str, *, limit: int, before: str | None, state: CallbackState | None
    ) -> CallbackList:
        """
        List callbacks, newest first.

        Raises:
            NotFound: there is no callback `before`.
        """
        records = await self._threads.read(self._outbox.page, tenant_id, limit=limit + 1, before=before, state=state)
        more = records[limit - 1].id if len(records) > limit else None
        return CallbackList(callbacks=[_view(record) for record in records[:limit]], next=more)

    async def replay(self, tenant_id: str, callback_id: str) -> CallbackInfo:
        """
        Send a callback again, now and with all its attempts; its id stays.

        Raises:
            NotFound: this tenant has no such callback.
            CallbackDelivered: it was delivered.
        """
        record = await self._threads.write(self._outbox.replay, tenant_id, callback_id)
        log.info("callback replayed", extra={"action": "callback_replayed", "callback": callback_id})
        self._signals.to_call_back.set()
        return _view(record)

    async def replay_all(self, tenant_id: str, receiver: str) -> int:
        """Send again all that were given up on a receiver; returns how many."""
        count = await self._threads.write(self._outbox.replay_all, tenant_id, receiver)
        log.info("callbacks replayed", extra={"action": "callbacks_replayed", "count": count})
        self._signals.to_call_back.set()
        return count

    async def rotate(self, tenant_id: str, old: str, new: str) -> int:
        """
        Let what signs with the old secret sign with both; returns how many jobs' callbacks changed.

        Raises:
            InvalidRequest: one of them is no secret.
        """
        check_secret(old, "old")
        check_secret(new, "new")
        count = await self._threads.write(self._outbox.rotate, tenant_id, old, new)
        log.info("callback secret rotated", extra={"action": "callback_secret_rotated", "jobs": count})
        return count


def _view(record: CallbackRecord) -> CallbackInfo:
    return CallbackInfo(
        id=record.id,
        job_id=record.job_id,
        kind=record.kind,
        receiver=record.receiver,
        state=record.state,
        attempts=record.attempts,
        created_at=instant(record.created_at),
        next_attempt_at=instant(record.due_at) if record.state is CallbackState.pending else None,
        last_error=record.last_error,
    )
