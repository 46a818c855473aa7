"""
The outbox of callbacks: a row is written by the transaction that ends its job, so none is lost.

A row is sent when it is due and marked afterwards: at least once, under one id.
"""

from collections.abc import Collection
from urllib.parse import urlsplit

from sqlalchemy import ColumnElement, Connection, and_, func, insert, or_, select, update

from milkrun.status import CallbackKind, CallbackState, JobStatus
from milkrun_engine.domain.callbacks import CallbackRecord, DueCallback, rotated, secrets_of
from milkrun_engine.domain.errors import CallbackDelivered, NotFound
from milkrun_engine.domain.ids import new_id
from milkrun_engine.store.database import Database, scalar, transaction
from milkrun_engine.store.records import SqlRow
from milkrun_engine.store.schema import callbacks, jobs

#: what `note_end` needs of the statement that ended a job
ENDED = (jobs.c.id, jobs.c.tenant_id, jobs.c.status, jobs.c.callback)


def note_end(connection: Connection, now: ColumnElement[float], ended: SqlRow) -> None:
    """Put the callback of a job that this transaction ended, if it has one, into the outbox."""
    if ended.callback is None:
        return
    at = scalar(connection, now)
    place = urlsplit(ended.callback["url"])
    connection.execute(
        insert(callbacks).values(
            id=new_id("callback"),
            job_id=ended.id,
            tenant_id=ended.tenant_id,
            receiver=f"{place.scheme}://{place.netloc}",
            state=CallbackState.pending,
            created_at=at,
            due_at=at,
        )
    )


class Callbacks:
    """Reading the outbox, and marking what became of a row."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def due(self, limit: int, *, but: Collection[str] = (), not_to: Collection[str] = ()) -> list[DueCallback]:
        """The callbacks to send now, the longest due first, but these and none to these receivers."""
        query = (
            select(callbacks, (self._database.now - callbacks.c.created_at).label("age"), jobs.c.callback)
            .add_columns(jobs.c.status, jobs.c.finished_at, jobs.c.labels)
            .add_columns(jobs.c.rows_total, jobs.c.rows_succeeded, jobs.c.rows_failed)
            .join_from(callbacks, jobs, jobs.c.id == callbacks.c.job_id)
            .where(callbacks.c.state == CallbackState.pending, callbacks.c.due_at <= self._database.now)
            .where(jobs.c.callback.is_not(None))
            .where(callbacks.c.id.not_in(but), callbacks.c.receiver.not_in(not_to))
            .order_by(callbacks.c.due_at)
            .limit(limit)
        )
        with self._database.read() as connection:
            return [_due(row) for row in connection.execute(query)]

    @transaction
    def mark(self, callback_id: str, state: CallbackState, error: str | None, delay_seconds: float = 0.0) -> None:
        """
        Count an attempt and say what became of it; a pending one is due again after the delay.

        What a delivered one was made of is forgotten: its headers hold keys of the receiver's.
        """
        with self._database.write() as connection:
            if state is CallbackState.delivered:
                its_job = select(callbacks.c.job_id).where(callbacks.c.id == callback_id).scalar_subquery()
                connection.execute(update(jobs).where(jobs.c.id == its_job).values(callback=None))
            # An engine that slept over its mark may find that another has given up: delivered is delivered.
            since = {CallbackState.pending, *([CallbackState.given_up] if state is CallbackState.delivered else [])}
            connection.execute(
                update(callbacks)
                .where(callbacks.c.id == callback_id, callbacks.c.state.in_(since))
                .values(
                    state=state,
                    attempts=callbacks.c.attempts + 1,
                    due_at=self._database.now + delay_seconds,
                    last_error=error,
                )
            )

    def pending_soon(self, within_seconds: float, younger_than_seconds: float) -> int:
        """How many callbacks are due within this time, of jobs that ended not longer ago than that."""
        query = select(func.count()).where(
            callbacks.c.state == CallbackState.pending,
            callbacks.c.due_at < self._database.now + within_seconds,
            callbacks.c.created_at > self._database.now - younger_than_seconds,
        )
        with self._database.read() as connection:
            return connection.execute(query).scalar_one()

    def page(
        self, tenant_id: str, *, limit: int, before: str | None = None, state: CallbackState | None = None
    ) -> list[CallbackRecord]:
        """
        List callbacks, newest first, those after callback `before` on the list.

        Raises:
            NotFound: this tenant has no callback `before`.
        """
        query = (
            select(callbacks, jobs.c.callback)
            .join_from(callbacks, jobs, jobs.c.id == callbacks.c.job_id)
            .where(callbacks.c.tenant_id == tenant_id)
            .order_by(callbacks.c.created_at.desc(), callbacks.c.id.desc())
            .limit(limit)
        )
        if state is not None:
            query = query.where(callbacks.c.state == state)
        with self._database.read() as connection:
            if before is not None:
                at = _found(connection, tenant_id, before)
                same = and_(callbacks.c.created_at == at.created_at, callbacks.c.id < at.id)
                query = query.where(or_(callbacks.c.created_at < at.created_at, same))
            return [_record(row) for row in connection.execute(query)]

    @transaction
    def replay(self, tenant_id: str, callback_id: str) -> CallbackRecord:
        """
        Let a callback be due now, with all its attempts before it.

        Raises:
            NotFound: this tenant has no such callback.
            CallbackDelivered: it was delivered.
        """
        with self._database.write() as connection:
            mine = (callbacks.c.tenant_id == tenant_id, callbacks.c.id == callback_id)
            if not self._replay(connection, *mine):
                _found(connection, tenant_id, callback_id)
                raise CallbackDelivered(f"callback {callback_id} was delivered; what it was made of is forgotten")
            return _record(_found(connection, tenant_id, callback_id))

    @transaction
    def replay_all(self, tenant_id: str, receiver: str) -> int:
        """Let all callbacks that were given up on a receiver be due now; returns how many."""
        given_up = callbacks.c.state == CallbackState.given_up
        with self._database.write() as connection:
            return self._replay(
                connection, given_up, callbacks.c.tenant_id == tenant_id, callbacks.c.receiver == receiver
            )

    def _replay(self, connection: Connection, *matching: ColumnElement[bool]) -> int:
        changed = connection.execute(
            update(callbacks)
            .where(*matching, callbacks.c.state != CallbackState.delivered)
            .values(state=CallbackState.pending, attempts=0, due_at=self._database.now)
        )
        return changed.rowcount

    @transaction
    def rotate(self, tenant_id: str, old: str, new: str) -> int:
        """
        Let what signs with the old secret sign with the new one as well; returns how many jobs' callbacks changed.

        That is every callback which is not delivered, of jobs that run and of jobs that ended.
        """
        mine = (jobs.c.tenant_id == tenant_id, jobs.c.callback.is_not(None))
        with self._database.write() as connection:
            found = connection.execute(
                select(jobs.c.id, jobs.c.callback).where(*mine).order_by(jobs.c.id).with_for_update()
            ).all()
            changed = 0
            for job in found:
                before = secrets_of(job.callback.get("secret"))
                after = rotated(before, old, new)
                if after != before:
                    callback = {**job.callback, "secret": list(after)}
                    connection.execute(update(jobs).where(jobs.c.id == job.id).values(callback=callback))
                    changed += 1
            return changed


def _found(connection: Connection, tenant_id: str, callback_id: str) -> SqlRow:
    row = connection.execute(
        select(callbacks, jobs.c.callback)
        .join_from(callbacks, jobs, jobs.c.id == callbacks.c.job_id)
        .where(callbacks.c.tenant_id == tenant_id, callbacks.c.id == callback_id)
    ).one_or_none()
    if row is None:
        raise NotFound(f"there is no callback {callback_id!r}")
    return row


def _record(row: SqlRow) -> CallbackRecord:
    return CallbackRecord(
        id=row.id,
        job_id=row.job_id,
        kind=CallbackKind(row.callback["kind"]) if row.callback is not None else None,
        receiver=row.receiver,
        state=CallbackState(row.state),
        attempts=row.attempts,
        created_at=row.created_at,
        due_at=row.due_at,
        last_error=row.last_error,
    )


def _due(row: SqlRow) -> DueCallback:
    # No pydantic here: its errors quote what they refuse, and that has secrets.
    given = row.callback
    return DueCallback(
        id=row.id,
        job_id=row.job_id,
        receiver=row.receiver,
        attempts=row.attempts,
        age_seconds=row.age,
        kind=CallbackKind(given["kind"]),
        url=given["url"],
        secrets=secrets_of(given.get("secret")),
        headers=given.get("headers") or {},
        status=JobStatus(row.status),
        finished_at=row.finished_at,
        labels=row.labels,
        rows_total=row.rows_total,
        rows_succeeded=row.rows_succeeded,
        rows_failed=row.rows_failed,
    )
