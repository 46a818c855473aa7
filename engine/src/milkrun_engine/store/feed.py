"""
The change feed: who changed since a cursor, each job once, in its latest state.

A transaction that changed jobs calls `stamp` as its last statement, so numbers become
visible in their order. A cursor is `<feed id>.<number>`: it names the feed, so that one of a
restored backup is known as lost.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import BindParameter, Connection, bindparam, select, update

from milkrun.status import TERMINAL, FeedEvents
from milkrun_engine.domain.errors import CursorLost
from milkrun_engine.domain.jobs import JobRecord
from milkrun_engine.store.database import Database, transaction
from milkrun_engine.store.records import job_columns, job_record, labelled
from milkrun_engine.store.schema import deleted_jobs, jobs, tenants

_CURSOR_DIGITS = 19  # of the largest number that the ledger holds


@dataclass(frozen=True, slots=True, kw_only=True)
class ChangePage:
    """Changed jobs in the order of their changes, and where to go on."""

    jobs: list[JobRecord]
    deleted: list[str]  #: ids of jobs that are gone
    cursor: str
    more: bool


def stamp(connection: Connection, tenant_id: str, job_ids: Sequence[str], *, status: bool) -> None:
    """Number a change of jobs whose rows this transaction has locked; the last thing it does."""
    last = connection.execute(
        update(tenants)
        .where(tenants.c.id == tenant_id)
        .values(change_number=tenants.c.change_number + len(job_ids))
        .returning(tenants.c.change_number)
    ).scalar_one()
    # Each job gets a number of its own, so that a page may end, and a cursor stand, behind any of them.
    number: BindParameter[int] = bindparam("number")
    numbers = {"change_number": number, "status_number": number} if status else {"change_number": number}
    connection.execute(
        update(jobs).where(jobs.c.id == bindparam("job_id")).values(**numbers),
        [{"job_id": job_id, "number": last - at} for at, job_id in enumerate(reversed(job_ids))],
    )


def number_of_change(connection: Connection, tenant_id: str) -> int:
    """The number of a change that no job's row can carry; the last thing that its transaction locks."""
    return int(
        connection.execute(
            update(tenants)
            .where(tenants.c.id == tenant_id)
            .values(change_number=tenants.c.change_number + 1)
            .returning(tenants.c.change_number)
        ).scalar_one()
    )


def raise_floor(connection: Connection, tenant_id: str, floor: int) -> None:
    """Forget the changes up to here: an older cursor is lost."""
    connection.execute(
        update(tenants).where(tenants.c.id == tenant_id, tenants.c.change_floor < floor).values(change_floor=floor)
    )


def lock(connection: Connection, job_ids: Sequence[str]) -> list[tuple[str, str]]:
    """Lock jobs in the order of their ids, before anything else; returns id and tenant of each that exists."""
    query = select(jobs.c.id, jobs.c.tenant_id).where(jobs.c.id.in_(job_ids)).order_by(jobs.c.id).with_for_update()
    return [(row.id, row.tenant_id) for row in connection.execute(query)]


def stamp_owners(connection: Connection, owned: Iterable[tuple[str, str]], *, status: bool) -> list[str]:
    """`stamp` for jobs of several tenants, given by id and tenant; returns the tenants."""
    by_tenant: dict[str, list[str]] = {}
    for job_id, tenant_id in owned:
        by_tenant.setdefault(tenant_id, []).append(job_id)
    for tenant_id, ids in sorted(by_tenant.items()):
        stamp(connection, tenant_id, ids, status=status)
    return sorted(by_tenant)


def cursor_of(connection: Connection, tenant_id: str) -> str:
    """The feed's end, as this transaction sees it."""
    feed = connection.execute(select(tenants).where(tenants.c.id == tenant_id)).one()
    return f"{feed.feed_id}.{feed.change_number}"


class Feed:
    """Reading the feed, and publishing progress into it."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def cursor(self, tenant_id: str) -> str:
        """The feed's end: changes from now on come after it."""
        with self._database.read() as connection:
            return cursor_of(connection, tenant_id)

    def changes(self, tenant_id: str, after: str, on: FeedEvents, labels: Mapping[str, str], limit: int) -> ChangePage:
        """
        Read the jobs that changed after a cursor.

        Raises:
            CursorLost: of another feed, forgotten, or from the future.
        """
        numbered = jobs.c.change_number if on is FeedEvents.progress else jobs.c.status_number
        with self._database.read() as connection:
            feed = connection.execute(select(tenants).where(tenants.c.id == tenant_id)).one()
            number = _number(after, feed.feed_id, feed.change_floor, feed.change_number)
            query = (
                select(*job_columns(), numbered.label("number"))
                .where(jobs.c.tenant_id == tenant_id, numbered > number)
                .order_by(numbered)
                .limit(limit + 1)
            )
            if on is FeedEvents.end:
                query = query.where(jobs.c.status.in_(TERMINAL))
            gone = (  # told to everybody: what labels it had is forgotten, too
                select(deleted_jobs.c.job_id, deleted_jobs.c.change_number.label("number"))
                .where(deleted_jobs.c.tenant_id == tenant_id, deleted_jobs.c.change_number > number)
                .order_by(deleted_jobs.c.change_number)
                .limit(limit + 1)
            )
            changed = connection.execute(labelled(query, labels)).all()
            deleted = connection.execute(gone).all()
        found = sorted([*changed, *deleted], key=lambda row: int(row.number))
        more = len(found) > limit
        reached = found[limit - 1].number if more else feed.change_number
        return ChangePage(
            jobs=[job_record(row) for row in changed if row.number <= reached],
            deleted=[row.job_id for row in deleted if row.number <= reached],
            cursor=f"{feed.feed_id}.{reached}",
            more=more,
        )

    @transaction
    def publish_progress(self, job_ids: Sequence[str]) -> list[str]:
        """Tell readers of progress about these jobs, in one transaction; returns the tenants concerned."""
        with self._database.write() as connection:
            return stamp_owners(connection, lock(connection, job_ids), status=False)


def _number(cursor: str, feed_id: str, floor: int, last: int) -> int:
    name, _, digits = cursor.rpartition(".")
    is_number = digits.isascii() and digits.isdigit() and len(digits) <= _CURSOR_DIGITS
    if name != feed_id or not is_number or not floor <= int(digits) <= last:
        raise CursorLost("the change feed does not know this cursor; read your jobs by id and go on from a new cursor")
    return int(digits)
