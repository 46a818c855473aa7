"""
Chunk files: the rows of one chunk, asked and answered, as Parquet.

Never nested types: a request's and an answer's JSON are bytes, so arbitrary JSON survives.
The result carries the key too, so that a result is read from one file and outlives its input.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from milkrun.status import RowErrorCode, RowStatus
from milkrun_engine.domain.jobs import ChunkCounts
from milkrun_engine.domain.rows import PreparedRow, RefusedRow

_INPUT = pa.schema(
    [
        ("index", pa.int64()),
        ("key", pa.string()),
        ("endpoint", pa.dictionary(pa.int8(), pa.string())),
        ("body", pa.binary()),
    ]
)
_RESULT = pa.schema(
    [
        ("index", pa.int64()),
        ("key", pa.string()),
        ("status", pa.string()),
        ("error_code", pa.string()),
        ("error_message", pa.string()),
        ("output", pa.binary()),
        ("finish_reason", pa.string()),
        ("prompt_tokens", pa.int64()),
        ("cached_tokens", pa.int64()),
        ("completion_tokens", pa.int64()),
        ("attempts", pa.int32()),
    ]
)
RESULT_COLUMNS: list[str] = _RESULT.names
_ROW_GROUP = 256
_COMPRESSION = "zstd"


@dataclass(frozen=True, slots=True)
class InputRow:
    """A row as its chunk file has it."""

    index: int
    key: str | None
    endpoint: str
    body: bytes

    def __repr__(self) -> str:
        return f"InputRow(index={self.index}, body=<{len(self.body)} bytes>)"


@dataclass(frozen=True, slots=True)
class ResultRow:
    """How a row ended, as its chunk file has it; `output` is JSON (see `replicas.base.Outcome`)."""

    index: int
    key: str | None
    status: RowStatus
    error_code: RowErrorCode | None
    error_message: str | None
    output: bytes | None
    finish_reason: str | None
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    attempts: int

    def __repr__(self) -> str:
        return f"ResultRow(index={self.index}, status={self.status}, error_code={self.error_code})"


def failed_row(index: int, key: str | None, code: RowErrorCode, message: str, attempts: int = 0) -> ResultRow:
    """A row that ended without ever having an answer."""
    return ResultRow(index, key, RowStatus.failed, code, message, None, None, 0, 0, 0, attempts)


def write_input(rows: Sequence[PreparedRow]) -> bytes:
    """Write a chunk's rows, in slot order."""
    columns = [
        pa.array([row.index for row in rows], pa.int64()),
        pa.array([row.key for row in rows], pa.string()),
        pa.array([row.endpoint for row in rows], pa.string()).dictionary_encode().cast(_INPUT.field("endpoint").type),
        pa.array([row.body for row in rows], pa.binary()),
    ]
    return _write(pa.Table.from_arrays(columns, schema=_INPUT))


def read_input(data: bytes) -> list[InputRow]:
    """Read a chunk's rows, in slot order."""
    columns = _read(data).to_pydict()
    return [InputRow(*row) for row in zip(*(columns[name] for name in _INPUT.names), strict=True)]


def refused(rows: Sequence[RefusedRow]) -> list[ResultRow]:
    """The result of rows that were refused in preparation."""
    return [failed_row(row.index, row.key, row.code, row.message) for row in rows]


def result_table(rows: Sequence[ResultRow]) -> pa.Table:
    """A chunk's outcomes, sorted by index."""
    ordered = sorted(rows, key=lambda row: row.index)
    columns = [pa.array([getattr(row, name) for row in ordered], _RESULT.field(name).type) for name in _RESULT.names]
    return pa.Table.from_arrays(columns, schema=_RESULT)


def write_result(rows: Sequence[ResultRow]) -> bytes:
    """Write a chunk's outcomes, sorted by index, in small row groups."""
    return write_table(result_table(rows))


def write_table(table: pa.Table) -> bytes:
    """Write outcomes that are a table already (`result_table`), in small row groups."""
    return _write(table)


def read_result(data: bytes) -> pa.Table:
    """Read a chunk's outcomes, sorted by index."""
    return _read(data)


def count(rows: Sequence[ResultRow]) -> ChunkCounts:
    """Add up a chunk's outcomes."""
    errors: dict[str, int] = {}
    for row in rows:
        if row.error_code is not None:
            errors[row.error_code] = errors.get(row.error_code, 0) + 1
    failed = sum(errors.values())
    return ChunkCounts(
        rows_succeeded=len(rows) - failed,
        rows_failed=failed,
        rows_unavailable=errors.get(RowErrorCode.model_unavailable, 0),
        prompt_tokens=sum(row.prompt_tokens for row in rows),
        cached_tokens=sum(row.cached_tokens for row in rows),
        completion_tokens=sum(row.completion_tokens for row in rows),
        errors=errors,
    )


def _write(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink, row_group_size=_ROW_GROUP, compression=_COMPRESSION, write_statistics=False)
    return sink.getvalue()


def _read(data: bytes) -> pa.Table:
    # A chunk is small: handing it to Arrow's threads costs more than it saves.
    return pq.ParquetFile(io.BytesIO(data)).read(use_threads=False)
