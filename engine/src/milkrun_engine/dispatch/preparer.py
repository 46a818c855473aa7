"""
The preparer: reads inputs window by window and commits each with its chunks.

Jobs take turns, the one with the fewest windows first, so a small job never waits for a large
one to be read. A crash resumes at the place of the last committed window.
"""

import logging
import time
from collections.abc import Iterator, Sequence

from sqlalchemy import exc

from milkrun.status import JobKind, RowErrorCode
from milkrun_engine.blobs import chunk_files, inputs
from milkrun_engine.blobs.inputs import BadRow, Item
from milkrun_engine.blobs.local import LocalBlobs
from milkrun_engine.dispatch import copies
from milkrun_engine.dispatch.disk import Refusals
from milkrun_engine.domain import planning
from milkrun_engine.domain.errors import DiskFull, InputUnreadable, OutcomeUnknown
from milkrun_engine.domain.ids import new_id
from milkrun_engine.domain.jobs import ChunkCounts, NewChunk, NewWindow, Preparation, Recorded, chunk_blob
from milkrun_engine.domain.models import ModelSpec
from milkrun_engine.domain.rows import PreparedRow, RefusedRow, RowReader
from milkrun_engine.failpoints import Point, reached
from milkrun_engine.service.leftovers import delete_unnamed
from milkrun_engine.service.signals import Signals, wait_event
from milkrun_engine.service.threads import Threads
from milkrun_engine.store import Store

log = logging.getLogger(__name__)
_SAFETY_SECONDS = 5.0
#: no room, no memory, and a ledger that is away: it is read again
_MAY_PASS = (DiskFull, OSError, MemoryError, exc.OperationalError, exc.InterfaceError, exc.TimeoutError)
_OPEN_INPUTS = 8


class Preparer:
    """Turns accepted inputs into committed windows."""

    def __init__(
        self, *, store: Store, blobs: LocalBlobs, threads: Threads, signals: Signals, models: dict[str, ModelSpec]
    ) -> None:
        self._store = store
        self._blobs = blobs
        self._threads = threads
        self._signals = signals
        self._models = models
        self._kinds: dict[str, JobKind] = {name: model.kind for name, model in models.items()}
        self.disk = Refusals()
        self._postponed: dict[str, float] = {}  # until when, by job
        self._open: dict[str, tuple[int, Iterator[Item]]] = {}  # by job: the place reached, the reader there

    async def run_once(self) -> None:
        """Prepare one window, or wait until there is one to prepare."""
        self._signals.to_prepare.clear()
        self._postponed = {job_id: until for job_id, until in self._postponed.items() if until > time.monotonic()}
        work = await self._threads.read(self._store.jobs.next_to_prepare, list(self._postponed))
        if work is None:
            await wait_event(self._signals.to_prepare, _SAFETY_SECONDS)
            return
        if work.model not in self._models:  # of an engine whose file is newer: it waits for that one
            self._postponed[work.job_id] = time.monotonic() + _SAFETY_SECONDS
            return
        try:
            window = await self._threads.prepare(self._cut, work)
        except InputUnreadable as error:
            message = f"the input could not be read behind row {work.rows_read}: {error}"
            await self._fail(work, "input_unreadable", message)
            return
        except _MAY_PASS as error:
            self._postpone(work, error)
            return
        except Exception as error:  # our own fault, and it would happen again: other jobs must not wait behind it
            log.exception("preparation failed", extra={"action": "prepare_failed", "job_id": work.job_id})
            await self._fail(work, "internal", f"the engine could not prepare the input ({type(error).__name__})")
            return
        await self._commit(work, window)

    async def _commit(self, work: Preparation, window: NewWindow) -> None:
        try:
            recorded = await self._threads.write(self._store.jobs.commit_window, work, window)
        except OutcomeUnknown:  # the next round reads how far the job is; the sweeper deletes what it did not take
            self._signals.to_dispatch.set()
            self._signals.to_call_back.set()
            self._signals.changed(work.tenant_id)
            raise
        except Exception as error:  # the next try writes files of its own: a full ledger must not fill the disk, too
            names = [chunk.input_blob for chunk in window.chunks]
            await self._threads.files(delete_unnamed, self._store, self._blobs, names)
            if not isinstance(error, DiskFull):
                raise
            self._postpone(work, error)
            return
        reached(Point.window_committed)
        if not recorded.accepted:
            await self._threads.files(self._discard, window.chunks)
        if not recorded.accepted or window.last:
            self._open.pop(work.job_id, None)
        self._announce(work, window, recorded)

    def _postpone(self, work: Preparation, error: Exception) -> None:
        """Let a job wait for what may pass, a full disk most likely; others may find room."""
        if isinstance(error, DiskFull):
            self.disk.note()
        extra = {"action": "prepare_postponed", "job_id": work.job_id}
        log.warning("preparation waits", exc_info=error, extra=extra)
        self._postponed[work.job_id] = time.monotonic() + _SAFETY_SECONDS

    def _announce(self, work: Preparation, window: NewWindow, recorded: Recorded) -> None:
        if recorded.accepted:
            self._signals.to_dispatch.set()
            if window.number == 0 or recorded.ended is not None:
                self._signals.changed(work.tenant_id)
            if recorded.ended is not None:
                self._signals.stopped(work.job_id)

    async def _fail(self, work: Preparation, code: str, message: str) -> None:
        self._open.pop(work.job_id, None)
        log.warning("job failed in preparation", extra={"action": "job_failed", "job_id": work.job_id, "code": code})
        if await self._threads.write(self._store.jobs.fail, work.job_id, work.epoch, code, message):
            self._signals.changed(work.tenant_id)
            self._signals.stopped(work.job_id)

    def _cut(self, work: Preparation) -> NewWindow:
        """Read the next window and write its chunk files; blocking."""
        rows, position, last = self._read(work)
        reached(Point.window_planned)
        chunks: list[NewChunk] = []
        try:
            places = self._copy(work, len(rows), chunks)
            copied = {index for indices in places for index in indices}
            places += self._write(work, [row for row in rows if row.index not in copied], chunks)
        except BaseException:  # a full disk must not be kept full by what has no ledger row
            self._discard(chunks)
            raise
        return NewWindow(
            number=work.next_window,
            first_index=work.rows_read,
            rows=len(rows),
            permutation=planning.pack_permutation(work.rows_read, len(rows), places),
            position=position,
            last=last,
            chunks=chunks,
        )

    def _copy(self, work: Preparation, rows: int, chunks: list[NewChunk]) -> list[list[int]]:
        """Take over what the parent of a retry answered of a window's rows; as `_write`."""
        places: list[list[int]] = []
        if work.rows_from is None:
            return places
        first = work.rows_read
        for table in copies.answered(self._store, self._blobs, work.rows_from, first, first + rows):
            indices = table.column("index").to_pylist()
            # Its tokens are the parent's: what a job used is what it ran.
            counts = ChunkCounts(rows_succeeded=table.num_rows)
            number = work.next_chunk + len(chunks)
            chunks.append(self._decided_chunk(work, number, indices[0], chunk_files.write_table(table), counts))
            places.append(indices)
        return places

    def _write(
        self, work: Preparation, rows: list[PreparedRow | RefusedRow], chunks: list[NewChunk]
    ) -> list[list[int]]:
        """Write a window's chunk files, adding each to `chunks`; returns the row indices of each."""
        askable = [row for row in rows if isinstance(row, PreparedRow)]
        refused = [row for row in rows if isinstance(row, RefusedRow)]
        places: list[list[int]] = []
        for planned in planning.plan_chunks(askable, len(rows), self._models):
            number = work.next_chunk + len(chunks)
            blob = chunk_blob(work.job_id, number, new_id("in"))
            sha256 = self._blobs.put(blob, chunk_files.write_input(planned.rows))
            chunks.append(
                NewChunk(
                    number=number,
                    pool=planned.pool,
                    rows=len(planned.rows),
                    first_index=planned.first_index,
                    input_blob=blob,
                    input_sha256=sha256,
                )
            )
            places.append([row.index for row in planned.rows])
        for start in range(0, len(refused), planning.CHUNK_ROWS_MAX):
            some = refused[start : start + planning.CHUNK_ROWS_MAX]
            number = work.next_chunk + len(chunks)
            results = chunk_files.refused(some)
            counts = chunk_files.count(results)
            chunks.append(self._decided_chunk(work, number, some[0].index, chunk_files.write_result(results), counts))
            places.append([row.index for row in some])
        return places

    def _read(self, work: Preparation) -> tuple[list[PreparedRow | RefusedRow], int, bool]:
        reached, items = self._open.pop(work.job_id, (-1, iter(())))
        if reached != work.position:
            items = inputs.read(self._blobs.path(work.input_blob), work.input_format, work.position)
        reader = RowReader.of(work.spec, work.model, self._kinds)
        most = planning.window_rows(work.next_window)
        rows: list[PreparedRow | RefusedRow] = []
        position, size = work.position, 0
        last = True
        for item in items:
            index = work.rows_read + len(rows)
            if isinstance(item.value, BadRow):
                rows.append(RefusedRow(index, None, RowErrorCode.invalid_row, item.value.message))
            else:
                rows.append(reader.read(index, item.value))
            position = item.position
            size += max(item.size, _bytes(rows[-1]))
            if len(rows) >= most or size >= planning.WINDOW_BYTES:
                last = False
                break
        if not last:
            while len(self._open) >= _OPEN_INPUTS:
                self._open.pop(next(iter(self._open)))
            self._open[work.job_id] = (position, items)
        return rows, position, last

    def _decided_chunk(
        self, work: Preparation, number: int, first_index: int, result: bytes, counts: ChunkCounts
    ) -> NewChunk:
        """Rows that are not to run, because they can't be asked or have a result: a chunk that is born committed."""
        blob = chunk_blob(work.job_id, number, new_id("out"))
        sha256 = self._blobs.put(blob, result)
        return NewChunk(
            number=number,
            pool=work.model,
            rows=counts.rows,
            first_index=first_index,
            input_blob=blob,
            input_sha256=sha256,
            result_blob=blob,
            result_sha256=sha256,
            counts=counts,
        )

    def _discard(self, chunks: Sequence[NewChunk]) -> None:
        """Drop the files of a window that is not in the ledger."""
        for chunk in chunks:
            self._blobs.delete(chunk.input_blob)


def _bytes(row: PreparedRow | RefusedRow) -> int:
    """What a row takes in memory, roughly: a long prompt template makes it much larger than its input."""
    return len(row.body) if isinstance(row, PreparedRow) else 0
