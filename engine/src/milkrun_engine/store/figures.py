"""
The ledger in figures, for an operator's metrics: all tenants together, one snapshot.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from sqlalchemy import func, select

from milkrun.status import JobStatus
from milkrun_engine.domain.states import ChunkState
from milkrun_engine.store.database import Database
from milkrun_engine.store.posts import DISPATCHER
from milkrun_engine.store.schema import callbacks, chunks, jobs, posts

_COUNTS = "rows_succeeded rows_failed prompt_tokens cached_tokens completion_tokens".split()


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerFigures:
    """What the ledger holds now; sums are over the jobs that were not deleted."""

    jobs: Mapping[JobStatus, int]
    of_models: Mapping[str, Mapping[str, int]]  #: by the job's model: rows_succeeded, …, completion_tokens
    chunks: Mapping[tuple[str, ChunkState], int]  #: ready and leased ones, by pool
    oldest_waiting_seconds: Mapping[str, float]  #: by pool: since the submit of the oldest job with a ready chunk
    callbacks: Mapping[str, int]  #: by state
    holder: str | None  #: who dispatches
    term: int  #: how often the dispatcher has changed


class Figures:
    """Reads them."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def read(self) -> LedgerFigures:
        """Count; one pass over the jobs and callbacks, and over the chunks that are not decided."""
        of_jobs = select(jobs.c.status, jobs.c.model, func.count().label("jobs")).group_by(jobs.c.status, jobs.c.model)
        of_jobs = of_jobs.add_columns(*(func.sum(jobs.c[name]).label(name) for name in _COUNTS))
        # One query a state: each then reads its own partial index, and no committed chunk.
        leased = (
            select(chunks.c.pool, func.count().label("chunks"))
            .where(chunks.c.state == ChunkState.leased)
            .group_by(chunks.c.pool)
        )
        ready = (
            select(chunks.c.pool, func.count().label("chunks"), func.min(jobs.c.created_at).label("oldest"))
            .add_columns(self._database.now.label("now"))
            .join_from(chunks, jobs, jobs.c.id == chunks.c.job_id)
            .where(chunks.c.state == ChunkState.ready, jobs.c.paused.is_(False))
            .group_by(chunks.c.pool)
        )
        of_callbacks = select(callbacks.c.state, func.count()).group_by(callbacks.c.state)
        dispatcher = select(posts.c.holder, posts.c.term, posts.c.expires_at >= self._database.now).where(
            posts.c.name == DISPATCHER
        )
        with self._database.read() as connection:
            by_job = connection.execute(of_jobs).all()
            waiting = connection.execute(ready).all()
            working = connection.execute(leased).all()
            outbox = connection.execute(of_callbacks).all()
            post = connection.execute(dispatcher).one_or_none()
        statuses = dict.fromkeys(JobStatus, 0)
        models: dict[str, dict[str, int]] = {}
        for row in by_job:
            statuses[JobStatus(row.status)] += row.jobs
            sums = models.setdefault(row.model, dict.fromkeys(_COUNTS, 0))
            for name in _COUNTS:
                sums[name] += int(getattr(row, name))
        return LedgerFigures(
            jobs=statuses,
            of_models=models,
            chunks={(row.pool, ChunkState.ready): row.chunks for row in waiting}
            | {(row.pool, ChunkState.leased): row.chunks for row in working},
            oldest_waiting_seconds={row.pool: max(0.0, row.now - row.oldest) for row in waiting},
            callbacks={row[0]: row[1] for row in outbox},
            holder=post[0] if post is not None and post[2] else None,
            term=post[1] if post is not None else 0,
        )
