"""
Results as bytes: a JSON page, and whole files in every format, streamed.
"""

import csv
import io
from collections.abc import Iterator
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from milkrun.status import JobKind, ResultFormat
from milkrun_engine.blobs.chunk_files import RESULT_COLUMNS
from milkrun_engine.domain.jobs import Readable
from milkrun_engine.service.results import ResultReader

EXPORT_COLUMNS = (
    "index key status output error_code error_message finish_reason prompt_tokens cached_tokens completion_tokens "
    "attempts"
).split()
MEDIA_TYPES = {
    ResultFormat.jsonl: "application/x-ndjson",
    ResultFormat.csv: "text/csv; charset=utf-8",
    ResultFormat.parquet: "application/vnd.apache.parquet",
}
_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder().decode


def page(reader: ResultReader, readable: Readable, after: int, limit: int) -> bytes:
    """One page of rows behind row `after` as the native API's JSON, and whether it is the last one ever."""
    rows: list[dict[str, Any]] = []
    for table in reader.tables(readable, after):
        rows.extend(_page_row(row) for row in _rows(table, limit - len(rows)))
        if len(rows) >= limit:
            break
    reached = rows[-1]["index"] if rows else after
    complete = readable.complete and reached + 1 >= readable.settled
    return _encode({"rows": rows, "next_after": reached, "settled": readable.settled, "complete": complete})


def export(reader: ResultReader, readable: Readable, form: ResultFormat) -> Iterator[bytes]:
    """The whole readable result as a file."""
    tables = reader.tables(readable)
    match form:
        case ResultFormat.jsonl:
            return _jsonl(tables)
        case ResultFormat.csv:
            return _csv(tables)
        case ResultFormat.parquet:
            return _parquet(tables, readable.job.kind)


def _rows(table: pa.Table, limit: int | None = None) -> Iterator[dict[str, Any]]:
    columns = [column.to_pylist() for column in (table if limit is None else table.slice(0, limit)).columns]
    for values in zip(*columns, strict=True):
        yield dict(zip(RESULT_COLUMNS, values, strict=True))


def _page_row(row: dict[str, Any]) -> dict[str, Any]:
    code, message, output = row.pop("error_code"), row.pop("error_message"), row["output"]
    row["output"] = None if output is None else msgspec.Raw(output)
    row["error"] = None if code is None else {"code": code, "message": message}
    return row


def _jsonl(tables: Iterator[pa.Table]) -> Iterator[bytes]:
    for table in tables:
        yield b"".join(map(_line, _rows(table)))  # a slow reader holds it for long, so it is held once


def _line(row: dict[str, Any]) -> bytes:
    ordered = {name: row[name] for name in EXPORT_COLUMNS}
    ordered["output"] = None if row["output"] is None else msgspec.Raw(row["output"])
    return _encode(ordered) + b"\n"


def _csv(tables: Iterator[pa.Table]) -> Iterator[bytes]:
    sink = io.StringIO()
    writer = csv.writer(sink)  # RFC 4180; with its line ends a carriage return in an answer is quoted too
    writer.writerow(EXPORT_COLUMNS)
    for table in tables:  # the header goes with the first rows, so that what fails with them is no file at all
        for row in _rows(table):
            row["output"] = _text(row["output"])
            writer.writerow([row[name] for name in EXPORT_COLUMNS])
        yield sink.getvalue().encode()
        sink.seek(0)
        sink.truncate()
    yield sink.getvalue().encode()


def _text(output: bytes | None) -> str | None:
    """An answer as a cell of a table: its text, or its JSON where it is no text."""
    if output is None:
        return None
    value = _decode(output)
    return value if isinstance(value, str) else output.decode()


class _Sink(io.RawIOBase):
    """A file that only remembers what was written since the last `take`."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self._position = 0

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def write(self, data: Any) -> int:
        piece = bytes(data)
        self._pieces.append(piece)
        self._position += len(piece)
        return len(piece)

    def take(self) -> bytes:
        pieces, self._pieces = self._pieces, []
        return b"".join(pieces)


def _parquet(tables: Iterator[pa.Table], kind: JobKind) -> Iterator[bytes]:
    output_type = pa.list_(pa.float32()) if kind is JobKind.embed else pa.string()
    sink = _Sink()
    writer: pq.ParquetWriter | None = None
    for table in tables:
        values = table.column("output").to_pylist()
        convert = _vector if kind is JobKind.embed else _text
        output = pa.array([convert(value) for value in values], output_type)
        at = table.schema.get_field_index("output")
        exported = table.set_column(at, pa.field("output", output_type), output).select(EXPORT_COLUMNS)
        if writer is None:
            writer = pq.ParquetWriter(sink, exported.schema, compression="zstd")
        writer.write_table(exported)
        yield sink.take()
    if writer is None:
        writer = pq.ParquetWriter(sink, _empty_schema(output_type), compression="zstd")
    writer.close()
    yield sink.take()


def _vector(output: bytes | None) -> list[float] | None:
    value = None if output is None else _decode(output)
    return value if isinstance(value, list) else None


def _empty_schema(output_type: pa.DataType) -> pa.Schema:
    types = {name: pa.int64() for name in ("index", "prompt_tokens", "cached_tokens", "completion_tokens")}
    types |= {"output": output_type, "attempts": pa.int32()}
    return pa.schema([(name, types.get(name, pa.string())) for name in EXPORT_COLUMNS])
