"""
Rows that a retry need not run: what its parent answered is copied into files of its own.
"""

import logging
from collections.abc import Iterator

import pyarrow as pa
import pyarrow.compute as pc

from milkrun.status import RowStatus
from milkrun_engine.blobs import chunk_files
from milkrun_engine.blobs.local import LocalBlobs
from milkrun_engine.domain.errors import BlobCorrupt
from milkrun_engine.domain.planning import CHUNK_ROWS_MAX
from milkrun_engine.store import Store

log = logging.getLogger(__name__)
_BYTES = 16_000_000  # of outputs that one copy gathers, about


def answered(store: Store, blobs: LocalBlobs, job_id: str, first: int, end: int) -> Iterator[pa.Table]:
    """
    Read the rows `first` to `end` (exclusive) of an ended job that have a result: tables for a chunk each, by index.

    Memory does not grow with the job. A result that can't be read (the job was deleted meanwhile) counts as none.
    """
    gathered: list[pa.Table] = []
    for table in _of_all(store, blobs, job_id, first, end):
        gathered.append(table)
        if sum(each.num_rows for each in gathered) >= CHUNK_ROWS_MAX or sum(each.nbytes for each in gathered) >= _BYTES:
            yield from _pieces(gathered)
            gathered = []
    if gathered:
        yield from _pieces(gathered)


def _of_all(store: Store, blobs: LocalBlobs, job_id: str, first: int, end: int) -> Iterator[pa.Table]:
    """Go on with the job before, where one is a retry that was stopped before it had taken everything over."""
    behind: str | None = job_id
    while behind is not None and first < end and (source := store.retries.source(behind)) is not None:
        yield from _succeeded(store, blobs, behind, first, min(end, source.rows))
        first = max(first, source.rows)
        behind = source.behind


def _succeeded(store: Store, blobs: LocalBlobs, job_id: str, first: int, end: int) -> Iterator[pa.Table]:
    for window in store.chunks.windows(job_id, first, end):
        for file in store.chunks.files(job_id, window):
            if file.result_blob is None or file.result_sha256 is None or file.first_index >= end:
                continue
            try:
                table = chunk_files.read_result(blobs.read(file.result_blob, file.result_sha256))
            except BlobCorrupt:
                extra = {"action": "copy_skipped", "job_id": job_id, "chunk": file.number}
                log.warning("a result can't be taken over; its rows run again", extra=extra)
                continue
            index = table.column("index")
            inside = pc.and_(pc.greater_equal(index, first), pc.less(index, end))
            found = table.filter(pc.and_(inside, pc.equal(table.column("status"), RowStatus.succeeded)))
            if found.num_rows:
                yield found


def _pieces(tables: list[pa.Table]) -> Iterator[pa.Table]:
    together = pa.concat_tables(tables).sort_by("index")
    for start in range(0, together.num_rows, CHUNK_ROWS_MAX):
        yield together.slice(start, CHUNK_ROWS_MAX)
