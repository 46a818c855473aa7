"""
Reading what callers upload: one value a row, and the place behind it.

A reader streams in bounded memory and can go on at any place it has told: for JSON Lines, CSV
and TSV a byte offset, for Parquet a row number. A row that can't be read becomes a
`BadRow`; a file that can't be read on raises `InputUnreadable`.
"""

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Self

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from milkrun.status import InputFormat
from milkrun_engine.domain.errors import InputUnreadable
from milkrun_engine.domain.rows import MAX_ROW_BYTES

_BATCH_ROWS = 1_024
_BOM = b"\xef\xbb\xbf"
_decode = msgspec.json.Decoder().decode
csv.field_size_limit(MAX_ROW_BYTES)


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that is no value, and why."""

    message: str


@dataclass(frozen=True, slots=True)
class Item:
    """One row's value and the place behind it; `size` is a rough byte count."""

    value: Any
    position: int
    size: int


def read(path: Path, form: InputFormat, position: int) -> Iterator[Item]:
    """
    Read rows from a place on (0 is the beginning).

    Raises:
        InputUnreadable: at the first row that can't be reached.
    """
    if not path.is_file():
        raise InputUnreadable("the input is not there any more")
    match form:
        case InputFormat.jsonl:
            return _jsonl(path, position)
        case InputFormat.csv:
            return _csv(path, position, ",")
        case InputFormat.tsv:
            return _csv(path, position, "\t")
        case InputFormat.parquet:
            return _parquet(path, position)


def columns(path: Path, form: InputFormat) -> list[str] | None:
    """
    The columns that a file's header or schema names; None where rows are free (JSON Lines).

    Raises:
        InputUnreadable: the header can't be read.
    """
    match form:
        case InputFormat.jsonl:
            return None
        case InputFormat.csv | InputFormat.tsv:
            return _header(path, "," if form is InputFormat.csv else "\t")[0]
        case InputFormat.parquet:
            try:
                return list(pq.read_schema(path).names)
            except (pa.ArrowException, OSError) as error:
                raise InputUnreadable(f"the file is not readable as Parquet: {error}") from error


def _jsonl(path: Path, position: int) -> Iterator[Item]:
    with path.open("rb") as file:
        file.seek(position)
        while line := file.readline(MAX_ROW_BYTES + 1):
            size = len(line)
            value: Any
            if size > MAX_ROW_BYTES:
                while not line.endswith(b"\n") and (line := file.readline(MAX_ROW_BYTES)):
                    size += len(line)
                value = BadRow(f"the line is longer than {MAX_ROW_BYTES:,} bytes")
            else:
                text = line.strip() if position else line.removeprefix(_BOM).strip()
                if not text:  # a blank line is no row
                    position += size
                    continue
                value = _json_value(text)
            position += size
            yield Item(value, position, size)


def _json_value(text: bytes) -> Any:
    try:
        return _decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        return BadRow(f"the line is not JSON: {error}")


class _Lines:
    """Lines of a CSV file as text, counting the bytes that were handed out."""

    def __init__(self, file: BinaryIO, position: int) -> None:
        self._file = file
        self._file.seek(position)
        self.position = position

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> str:
        line = self._file.readline(MAX_ROW_BYTES + 1)
        if not line:
            raise StopIteration
        first = self.position == 0
        self.position += len(line)
        if len(line) > MAX_ROW_BYTES:
            while not line.endswith(b"\n") and (line := self._file.readline(MAX_ROW_BYTES)):
                self.position += len(line)
            raise csv.Error(f"it is longer than {MAX_ROW_BYTES:,} bytes")
        # Bytes that are no UTF-8 become lone surrogates; the row that holds them is refused.
        return (line.removeprefix(_BOM) if first else line).decode("utf-8", "surrogateescape")


def _header(path: Path, delimiter: str) -> tuple[list[str], int]:
    with path.open("rb") as file:
        lines = _Lines(file, 0)
        try:
            names = next(csv.reader(lines, delimiter=delimiter, strict=True), [])
        except csv.Error as error:
            raise InputUnreadable(f"the header can't be read: {error}") from error
    if not all(map(_is_utf8, names)):
        raise InputUnreadable("the header is not UTF-8; save the file as UTF-8")
    if len(set(names)) != len(names):
        raise InputUnreadable(f"the header names a column twice: {', '.join(names)}")
    return names, lines.position


def _csv(path: Path, position: int, delimiter: str) -> Iterator[Item]:
    names, behind_header = _header(path, delimiter)
    with path.open("rb") as file:
        lines = _Lines(file, max(position, behind_header))
        records = csv.reader(lines, delimiter=delimiter)
        while True:
            start = lines.position
            value: Any
            try:
                record = next(records)
            except StopIteration:
                return
            except csv.Error as error:
                value = BadRow(f"the line is not CSV: {error}")
            else:
                if not record:
                    continue
                value = _table_row(names, record)
            yield Item(value, lines.position, lines.position - start)


def _is_utf8(text: str) -> bool:
    """Whether no byte of a CSV field had to become a lone surrogate."""
    return text.isascii() or not any("\udc80" <= char <= "\udcff" for char in text)


def _table_row(names: list[str], record: list[str]) -> dict[str, str] | BadRow:
    if len(record) != len(names):
        return BadRow(f"the row has {len(record)} fields, the header {len(names)}")
    if not all(map(_is_utf8, record)):
        return BadRow("the row is not UTF-8")
    return dict(zip(names, record, strict=True))


def _parquet(path: Path, position: int) -> Iterator[Item]:
    try:
        file = pq.ParquetFile(path)
        group, first = 0, 0
        while group < file.num_row_groups and first + file.metadata.row_group(group).num_rows <= position:
            first += file.metadata.row_group(group).num_rows
            group += 1
        at = first
        for batch in file.iter_batches(batch_size=_BATCH_ROWS, row_groups=range(group, file.num_row_groups)):
            rows = _rows(batch)
            size = batch.nbytes // max(1, len(rows))
            for row in rows:
                at += 1
                if at > position:
                    yield Item(row, at, size)
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the disk's trouble, not the file's: it may pass
        raise InputUnreadable(f"the file is not readable as Parquet: {error}") from error


def _rows(batch: pa.RecordBatch) -> list[Any]:
    try:
        return [_plain(row) for row in batch.to_pylist()]
    except (ValueError, OverflowError):  # one value spoils them all: bytes that are no UTF-8, a date past the year 9999
        return [_row(batch.slice(at, 1)) for at in range(batch.num_rows)]


def _row(batch: pa.RecordBatch) -> Any:
    try:
        return _plain(batch.to_pylist()[0])
    except (ValueError, OverflowError) as error:
        return BadRow(f"the row can't be read: {error}")


def _plain(row: dict[str, Any]) -> Any:
    """A table's row as JSON would have it: dates and decimals as text, bytes in base64."""
    try:
        return msgspec.to_builtins(row, enc_hook=_as_text)
    except TypeError as error:
        return BadRow(f"the row has a value that is no JSON: {error}")


def _as_text(value: Any) -> str:
    """Times to the nanosecond come as pandas' own types, which msgspec does not know."""
    if hasattr(value, "isoformat"):
        return str(value.isoformat())
    raise TypeError(f"a {type(value).__name__} has no JSON form")
