"""
Reading results: the settled prefix of a running job, the whole of an ended one, in row order.

A reader holds one chunk file at a time, and more only where chunks of several models
interleave; its memory does not grow with the job.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeVar

import pyarrow as pa
import pyarrow.compute as pc

from milkrun.status import JobStatus, RowErrorCode
from milkrun_engine.blobs import chunk_files
from milkrun_engine.blobs.local import LocalBlobs
from milkrun_engine.domain.errors import BlobCorrupt
from milkrun_engine.domain.jobs import ChunkFiles, JobRecord, Readable
from milkrun_engine.store import Store

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class ResultReader:
    """Reads results from the ledger and the blobs; blocking."""

    store: Store
    blobs: LocalBlobs

    def readable(self, tenant_id: str, job_id: str) -> Readable:
        """
        How far the job can be read now.

        Raises:
            NotFound: this tenant has no such job.
        """
        return self.store.chunks.readable(tenant_id, job_id)

    def tables(self, readable: Readable, after: int = -1) -> Iterator[pa.Table]:
        """
        The readable rows behind row `after`, in row order, as tables of `chunk_files.RESULT_COLUMNS`.

        Raises:
            BlobCorrupt: a file is missing or has changed on disk.
            NotFound: the job was deleted meanwhile.
        """
        if after + 1 >= readable.settled:
            return
        try:
            for window in self._some(readable, self.store.chunks.windows(readable.job.id, after + 1, readable.settled)):
                yield from self._window(readable, window, after)
        except BlobCorrupt:
            self.store.jobs.get(readable.job.tenant_id, readable.job.id)
            raise

    def _some(self, readable: Readable, found: list[T]) -> list[T]:
        """What readable rows have, so that none of it is a sign of deletion and not an end."""
        if not found:
            self.store.jobs.get(readable.job.tenant_id, readable.job.id)
        return found

    def _window(self, readable: Readable, window: int, after: int) -> Iterator[pa.Table]:
        pending: pa.Table | None = None
        files = self._some(readable, self.store.chunks.files(readable.job.id, window))
        contiguous = all(file.first_index + file.rows == behind.first_index for file, behind in pairwise(files))
        for file, following in zip(files, [*files[1:], None], strict=True):
            if file.first_index >= readable.settled:
                break
            if not contiguous or file.first_index + file.rows > after + 1:
                table = self._chunk(readable.job, file)
                pending = table if pending is None else pa.concat_tables([pending, table]).sort_by("index")
            if pending is None:
                continue
            bound = readable.settled if following is None else min(following.first_index, readable.settled)
            index = pending.column("index")
            settled = pending.filter(pc.and_(pc.greater(index, after), pc.less(index, bound)))
            if settled.num_rows:
                yield settled
            rest = pending.filter(pc.greater_equal(index, bound))
            pending = rest if rest.num_rows else None

    def _chunk(self, job: JobRecord, file: ChunkFiles) -> pa.Table:
        if file.result_blob is not None and file.result_sha256 is not None:
            return chunk_files.read_result(self.blobs.read(file.result_blob, file.result_sha256))
        code = RowErrorCode.expired if job.status is JobStatus.expired else RowErrorCode.cancelled
        message = f"the job ended as {job.status} before this row was decided"
        rows = chunk_files.read_input(self.blobs.read(file.input_blob, file.input_sha256))
        undecided = [chunk_files.failed_row(row.index, row.key, code, message) for row in rows]
        return chunk_files.result_table(undecided)
