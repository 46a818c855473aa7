"""
From what a user has (lists, iterables, tables, files) to the bytes of an input.

Small inputs of rows become lines that travel inside the submit; everything else becomes a
file that is streamed. Nothing is held in memory twice: rows are spooled to a temporary file,
files go as they are.
"""

import hashlib
import io
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Self

from milkrun.hashing import row_line, rows_sha256
from milkrun.status import InputFormat
from milkrun.wire import MAX_INLINE_BYTES

_SUFFIXES: Mapping[str, InputFormat] = {
    ".csv": InputFormat.csv,
    ".tsv": InputFormat.tsv,
    ".jsonl": InputFormat.jsonl,
    ".ndjson": InputFormat.jsonl,
    ".parquet": InputFormat.parquet,
}
_ROW_GROUP = 16_384  # the engine reads a row group at a time
_FORMS = (
    "rows are a list or iterable of texts, chat message lists or dicts; a pandas, polars or pyarrow table; "
    f"or the path of a file ({', '.join(_SUFFIXES)})"
)


@dataclass(slots=True)
class Prepared:
    """An input ready to send: lines without their newline, or a file; close it when it was sent."""

    lines: list[bytes] | None = field(default=None, repr=False)
    file: IO[bytes] | None = None
    size: int = 0
    format: InputFormat = InputFormat.jsonl
    rows_sha256: str | None = None  #: of a table's rows, whose file depends on the library that wrote it

    @classmethod
    def of_file(cls, file: IO[bytes], kind: InputFormat, rows_sha256: str | None = None) -> Self:
        """Take a file that is complete and open for reading."""
        return cls(file=file, size=file.seek(0, io.SEEK_END), format=kind, rows_sha256=rows_sha256)

    def sha256(self) -> str:
        """Hash what the file counts as. Blocking."""
        if self.rows_sha256 is not None:
            return self.rows_sha256
        assert self.file is not None
        self.file.seek(0)
        digest = hashlib.sha256()
        while data := self.file.read(1 << 20):
            digest.update(data)
        return digest.hexdigest()

    def close(self) -> None:
        """Let the file go; a temporary one is deleted."""
        if self.file is not None:
            self.file.close()


def chosen(rows: Any, inputs: Any, data: Any) -> Any:
    """Return the one of three names for the rows that was used."""
    given = [value for value in (rows, inputs, data) if value is not None]
    if len(given) != 1:
        raise TypeError(f"give the rows once, as rows, inputs= or data=: {_FORMS}")
    return given[0]


def template(prompt: str | None, column: str | None) -> str | None:
    """Resolve `column`, the short way to say prompt="{column}"."""
    if column is None:
        return prompt
    if prompt is not None:
        raise ValueError('give prompt= or column=, not both: column="text" means prompt="{text}"')
    if "{" in column or "}" in column:
        raise ValueError(f"column= can't name {column!r}: a template has no way to write braces in a column's name")
    return f"{{{column}}}"


def prepare(rows: Any) -> Prepared:
    """
    Turn rows into lines or a file. Blocking; reads an iterable to its end.

    Raises:
        TypeError, ValueError: a row or the whole is in no form that we know; the message says which.
        OSError: a file can't be read.
    """
    match type(rows).__module__.partition(".")[0]:
        case "pandas" | "polars" | "pyarrow":
            return _prepare_table(rows)
        case _:
            pass
    if isinstance(rows, str | os.PathLike):
        return _prepare_path(rows)
    if isinstance(rows, Mapping | bytes) or not isinstance(rows, Iterable):
        raise TypeError(f"{type(rows).__name__} is no list of rows: {_FORMS}")
    return _prepare_rows(rows)


def _prepare_path(path: str | os.PathLike[str]) -> Prepared:
    kind = _SUFFIXES.get(Path(path).suffix.lower())
    if kind is None and isinstance(path, str):
        raise ValueError(f"a single text is no list of rows (put it in a list), and no file that we can read: {_FORMS}")
    if kind is None:
        raise ValueError(f"{path}: can't tell a format from this name; known are {', '.join(_SUFFIXES)}")
    if isinstance(path, str) and "://" in path:
        raise ValueError(f"{path}: URLs are not read yet; download the file and give its path")
    return Prepared.of_file(Path(path).expanduser().open("rb"), kind)


def _prepare_rows(rows: Iterable[Any]) -> Prepared:
    spool = tempfile.SpooledTemporaryFile(max_size=MAX_INLINE_BYTES)  # noqa: SIM115 - Prepared closes it
    try:
        for number, row in enumerate(rows):
            if not isinstance(row, str | list | dict | None):
                raise TypeError(
                    f"row {number} is {type(row).__name__}; a row is a text, a list of chat messages or a dict"
                )
            try:
                spool.write(row_line(row))
            except (TypeError, ValueError) as error:
                raise type(error)(f"row {number} can't be written as JSON: {error}") from None
        if spool.tell() > MAX_INLINE_BYTES:
            return Prepared.of_file(spool, InputFormat.jsonl)
        spool.seek(0)
        lines = spool.read().splitlines()  # bytes are cut at newlines only, and JSON escapes those inside a row
    except BaseException:
        spool.close()
        raise
    spool.close()
    return Prepared(lines=lines)


def _prepare_table(table: Any) -> Prepared:
    match type(table).__name__:
        case "Series" if type(table).__module__.startswith("polars"):
            return _prepare_rows(table.to_list())
        case "Series":
            return _prepare_rows(table.astype(object).where(table.notna(), None))
        case "Array" | "ChunkedArray" | "StringArray" | "LargeStringArray":
            return _prepare_rows(table.to_pylist())
        case "DataFrame" | "Table" | "RecordBatch":
            pass
        case name:
            raise TypeError(f"{name} is no table that we can read (call .collect() on a lazy one): {_FORMS}")
    file = tempfile.TemporaryFile()  # noqa: SIM115 - Prepared closes it
    try:
        if type(table).__module__.startswith("polars"):
            table.write_parquet(file, row_group_size=_ROW_GROUP)
            slices: Iterable[list[dict[str, Any]]] = (part.to_dicts() for part in table.iter_slices(_ROW_GROUP))
        else:
            slices = _write_arrow(table, file)
        digest = rows_sha256(row for part in slices for row in part)
    except BaseException:
        file.close()
        raise
    return Prepared.of_file(file, InputFormat.parquet, digest)


def _write_arrow(table: Any, file: IO[bytes]) -> Iterator[list[dict[str, Any]]]:
    """Write a Parquet file; return the rows, slice by slice."""
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise ImportError('sending a pandas table needs pyarrow: pip install "milkrun[frames]"') from None
    if isinstance(table, pa.RecordBatch):
        table = pa.Table.from_batches([table])
    elif not isinstance(table, pa.Table):
        table = pa.Table.from_pandas(table, preserve_index=False)
    pq.write_table(table, file, row_group_size=_ROW_GROUP)
    return (batch.to_pylist() for batch in table.to_batches(max_chunksize=_ROW_GROUP))
