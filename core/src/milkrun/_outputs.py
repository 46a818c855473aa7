"""
A result as the user sees it: rows, and the columns that they become beside a caller's own table.

Pure, apart from `frame`, which reads an exported file. Frame libraries are imported only
inside the function that needs them.
"""

import importlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from milkrun._schema import Parser
from milkrun.status import ResultFormat, RowStatus
from milkrun.wire import Usage

_SUFFIXES = {f".{kind}": kind for kind in ResultFormat}
_PLAIN = "input"  # the column of rows that have no columns


@dataclass(frozen=True, slots=True, kw_only=True)
class RowError:
    """Why a row has no output."""

    code: str  #: one of `RowErrorCode`; a newer engine may know more
    message: str
    attempts: int  #: how often the row was tried


@dataclass(frozen=True, slots=True, kw_only=True)
class ResultRow:
    """
    One row's outcome; what it says never shows in a repr.

    Args:
        index: the row's place in the caller's input, from 0.
        key: the caller's own label, where the job has a key column.
        output: a text; a list of numbers for an embedding; `{"choices": [...]}` where there is more than one text.
        parsed: the text as JSON or as an instance of the pydantic model, if the schema is known and the text fits it.
    """

    index: int
    key: str | None
    status: RowStatus
    output: Any = field(repr=False)
    parsed: Any = field(repr=False)
    error: RowError | None
    finish_reason: str | None
    usage: Usage
    attempts: int  #: how often the row was tried

    @property
    def text(self) -> str | None:
        """The answer's text, that of the first choice where there are several; None for errors and embeddings."""
        return _text(self.output)

    def flat(self) -> dict[str, Any]:
        """Return the row as the exported files have it: one level, the same names."""
        return {
            "index": self.index,
            "key": self.key,
            "status": self.status.value,
            "output": self.output,
            "error_code": self.error.code if self.error else None,
            "error_message": self.error.message if self.error else None,
            "finish_reason": self.finish_reason,
            "prompt_tokens": self.usage.prompt_tokens,
            "cached_tokens": self.usage.cached_tokens,
            "completion_tokens": self.usage.completion_tokens,
            "attempts": self.attempts,
        }


def read_row(row: dict[str, Any], parse: Parser | None) -> ResultRow:
    """Read a row of a results page."""
    error, output, attempts = row.get("error"), row.get("output"), row.get("attempts") or 0
    text = _text(output) if parse else None
    return ResultRow(
        index=row["index"],
        key=row.get("key"),
        status=RowStatus(row["status"]),
        output=output,
        parsed=parse(text) if parse and text is not None else None,
        error=RowError(code=error["code"], message=error["message"], attempts=attempts) if error else None,
        finish_reason=row.get("finish_reason"),
        usage=Usage(
            prompt_tokens=row.get("prompt_tokens", 0),
            cached_tokens=row.get("cached_tokens", 0),
            completion_tokens=row.get("completion_tokens", 0),
        ),
        attempts=attempts,
    )


def _text(output: Any) -> str | None:
    match output:
        case str():
            return output
        case {"choices": [{"message": {"content": str(text)}}, *_]} | {"choices": [{"text": str(text)}, *_]}:
            return text
        case _:
            return None


def format_of(path: Path) -> ResultFormat:
    """Tell the format from a file's name."""
    kind = _SUFFIXES.get(path.suffix.lower())
    if kind is None:
        raise ValueError(f"{path}: can't tell a format from this name; known are {', '.join(_SUFFIXES)}")
    return kind


def frame(library: str, path: Path, count: int) -> Any:
    """Read the first `count` rows of an exported Parquet file as a table of a library: polars, pandas or pyarrow."""
    if library == "polars":
        return need("polars").read_parquet(path).head(count)
    table = need("pyarrow.parquet").read_table(path).slice(0, count)
    return table.to_pandas() if library == "pandas" else table


def need(module: str) -> Any:
    """Import a library that is no dependency of ours, or say how to get it."""
    try:
        return importlib.import_module(module)
    except ImportError:
        name = module.partition(".")[0]
        raise ImportError(f'this needs {name}, which is not installed: pip install "milkrun[frames]"') from None


def join(table: Any, rows: Sequence[ResultRow], prefix: str) -> Any:
    """
    Set the results beside the caller's rows, by row index; a plain text or list of messages becomes the column `input`.

    Raises:
        ValueError: the table has another length, or already has a column of a new one's name.
    """
    if len(table) != len(rows):
        raise ValueError(
            f"the table has {len(table)} rows and the results {len(rows)}: join the table that was submitted, "
            "after the job has ended"
        )
    added = {f"{prefix}{name}": values for name, values in _columns(rows).items()}
    library = type(table).__module__.partition(".")[0]
    if library not in ("pandas", "polars", "pyarrow"):
        named = [row if isinstance(row, Mapping) else {_PLAIN: row} for row in table]
        _refuse_taken(added, (name for row in named for name in row))
        return [
            {**row, **dict(zip(added, values, strict=True))}
            for row, *values in zip(named, *added.values(), strict=True)
        ]
    _refuse_taken(added, table.column_names if library == "pyarrow" else table.columns)
    if library == "pandas":
        return table.assign(**added)
    if library == "polars":
        series = importlib.import_module("polars").Series
        return table.with_columns([series(name, values) for name, values in added.items()])
    array = importlib.import_module("pyarrow").array
    for name, values in added.items():
        table = table.append_column(name, array(values))
    return table


def _columns(rows: Iterable[ResultRow]) -> dict[str, list[Any]]:
    columns: dict[str, list[Any]] = {
        name: [] for name in ("output", "status", "error", "error_message", "finish_reason")
    }
    for row in rows:
        output = json.dumps(row.output, ensure_ascii=False) if isinstance(row.output, dict) else row.output
        error = row.error
        values = (output, row.status.value, error and error.code, error and error.message, row.finish_reason)
        for column, value in zip(columns.values(), values, strict=True):
            column.append(value)
    return columns


def _refuse_taken(added: Iterable[str], present: Iterable[Any]) -> None:
    if taken := set(added) & set(present):
        raise ValueError(f'the table already has {", ".join(sorted(taken))}: give a prefix=, such as "milkrun_"')
