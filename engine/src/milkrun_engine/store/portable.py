"""
A ledger's rows from one database into another, whichever the two are.
"""

import secrets as random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from sqlalchemy import Connection, delete, func, insert, inspect, select, update

from milkrun.status import CallbackState, JobStatus
from milkrun_engine.domain.ids import new_id
from milkrun_engine.domain.states import ChunkState
from milkrun_engine.store.installation import LEDGER, MARKED, as_id
from milkrun_engine.store.schema import (
    callbacks,
    chunks,
    input_files,
    jobs,
    metadata,
    posts,
    secrets,
    tenants,
)

_BATCH = 100  # rows; a window's permutation may have some hundred kilobytes
HELD_BACK = "held back by a restore: it may have been sent since the backup; replay it if its receiver lacks it"


def is_empty(connection: Connection) -> bool:
    """Whether a database holds nothing of a ledger."""
    return not {*metadata.tables, "alembic_version"} & set(inspect(connection).get_table_names())


def copy_rows(source: Connection, target: Connection) -> None:
    """Copy every row but the posts, whose holders are processes, into an empty ledger of the same version."""
    for table in metadata.sorted_tables:
        if table is posts:
            continue
        result = source.execute(select(table).execution_options(yield_per=_BATCH))
        for some in result.mappings().partitions():
            target.execute(insert(table), [dict(row) for row in some])
    if target.dialect.name == "postgresql":  # a key that numbers itself goes on behind those that came
        last = select(func.coalesce(func.max(chunks.c.id), 0) + 1).scalar_subquery()
        target.execute(select(func.setval(func.pg_get_serial_sequence("chunks", "id"), last, False)))


def ledger_id(connection: Connection) -> str | None:
    """The name of the ledger in a database, if it has one."""
    if is_empty(connection):
        return None
    value = connection.execute(select(secrets.c.value).where(secrets.c.name == LEDGER)).scalar_one_or_none()
    return as_id(value) if value is not None else None


def named_blobs(connection: Connection) -> Iterator[tuple[str, str | None]]:
    """Every blob that a ledger names, with its sha256 where the ledger has one; some come more than once."""
    for query in (
        select(input_files.c.blob, input_files.c.sha256),
        select(chunks.c.input_blob, chunks.c.input_sha256),
        select(chunks.c.result_blob, chunks.c.result_sha256).where(chunks.c.result_blob.is_not(None)),
    ):
        for row in connection.execute(query.execution_options(yield_per=1_000)):
            yield row[0], row[1]
    for name in connection.execute(select(jobs.c.input_blob).execution_options(yield_per=1_000)).scalars():
        yield name, None


@dataclass(frozen=True, slots=True, kw_only=True)
class Restored:
    """What a restored ledger holds, and what was changed in it."""

    jobs: Mapping[JobStatus, int]
    rows: int
    leases_given_back: int
    callbacks_held_back: int


def new_ledger_secret() -> bytes:
    """A name for a ledger that is about to be restored."""
    return random.token_bytes(32)


def begin_anew(connection: Connection, secret: bytes) -> Restored:
    """
    Make a copy the beginning of a new ledger.

    Cursors of the old change feeds are lost, leases are given back, and callbacks that were due are held back.
    """
    for tenant_id in list(connection.execute(select(tenants.c.id)).scalars()):
        connection.execute(update(tenants).where(tenants.c.id == tenant_id).values(feed_id=new_id("feed")))
    freed = connection.execute(
        update(chunks)
        .where(chunks.c.state == ChunkState.leased)
        .values(state=ChunkState.ready, lease_owner=None, lease_expires_at=None, rows_in_hand=0)
    )
    held = connection.execute(
        update(callbacks)
        .where(callbacks.c.state == CallbackState.pending)
        .values(state=CallbackState.given_up, last_error=HELD_BACK)
    )
    connection.execute(delete(secrets).where(secrets.c.name.in_([LEDGER, MARKED])))
    connection.execute(insert(secrets), [{"name": LEDGER, "value": secret}, {"name": MARKED, "value": b""}])
    counted = connection.execute(
        select(jobs.c.status, func.count(), func.coalesce(func.sum(jobs.c.rows_read), 0)).group_by(jobs.c.status)
    ).all()
    return Restored(
        jobs={JobStatus(row[0]): row[1] for row in counted},
        rows=sum(row[2] for row in counted),
        leases_given_back=freed.rowcount,
        callbacks_held_back=held.rowcount,
    )
