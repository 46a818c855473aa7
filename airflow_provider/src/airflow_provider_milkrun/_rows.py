"""
A task's rows on their way to the engine: out of Airflow's templates, its database and its pages.
"""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

from airflow.sdk import ObjectStoragePath, XComArg, literal

from milkrun.status import ResultFormat

_CHUNK = 1 << 20


class Rows:
    """
    Rows that Airflow neither renders nor shows.

    A template in a review ("{{ var.value.secret }}") must stay text, and what a task's page and the table of
    rendered fields show of the rows is how many they are.
    """

    def __init__(self, value: Any) -> None:
        self.value = value

    def __repr__(self) -> str:
        try:
            return f"<{len(self.value)} rows>"
        except (TypeError, AttributeError):
            return f"<rows from a {type(self.value).__name__}>"

    def resolve(self, context: Any) -> "Rows":  # noqa: ARG002 (the name by which the renderer leaves values alone)
        """Return the rows as they are."""
        return self


def covered(rows: Any) -> Any:
    """Hide rows from Airflow; what it has to render (a path, a template, another task's output) stays in sight."""
    if rows is None or isinstance(rows, str | os.PathLike | ObjectStoragePath | XComArg | Rows):
        return rows
    if next(XComArg.iter_xcom_references(rows), None) is not None:
        return _literal(rows)
    return rows if type(rows).__name__ in _UNSET else Rows(rows)


_UNSET = {"SetDuringExecution", "ArgNotSet"}  # Airflow's words for a value that is not there yet


def _literal(value: Any) -> Any:
    """Keep texts beside other tasks' outputs from being rendered."""
    match value:
        case str():
            return literal(value)
        case list() | tuple():
            return [_literal(each) for each in value]
        case dict():
            return {name: _literal(each) for name, each in value.items()}
        case _:
            return value


@contextmanager
def readable(rows: Any) -> Iterator[Any]:
    """
    Yield rows in a form that the client takes.

    A file in object storage is copied to a temporary one first. A template's text that is a JSON list counts as it.
    """
    value = rows.value if isinstance(rows, Rows) else rows
    if isinstance(value, str) and value.lstrip().startswith("["):
        value = json.loads(value)
    if isinstance(value, ObjectStoragePath) or (isinstance(value, str) and "://" in value):
        source: Any = ObjectStoragePath(value)
        with tempfile.TemporaryDirectory(prefix="milkrun-") as folder:
            copy = Path(folder) / source.name
            with source.open("rb") as remote, copy.open("wb") as file:
                shutil.copyfileobj(remote, file, _CHUNK)
            yield copy
    else:
        yield value


def check_output(path: Any) -> None:
    """
    Refuse a path whose suffix names no format, before any row is sent.

    Raises:
        ValueError: it ends in none of the known suffixes.
    """
    known = [f".{kind}" for kind in ResultFormat]
    if PurePosixPath(str(path)).suffix not in known:
        raise ValueError(f"output_path={str(path)!r}: can't tell a format from this name; known are {', '.join(known)}")


def save(results: Any, path: Any) -> None:
    """Write a job's results to a file or to object storage, streamed; a local file appears only when it is whole."""
    if not isinstance(path, ObjectStoragePath) and "://" not in str(path):
        file_path = Path(path).expanduser()
        file_path.parent.mkdir(parents=True, exist_ok=True)
        results.save(file_path)
        return
    target: Any = ObjectStoragePath(path)
    with tempfile.TemporaryDirectory(prefix="milkrun-") as folder:
        draft = results.save(Path(folder) / target.name)
        target.parent.mkdir(parents=True, exist_ok=True)
        with draft.open("rb") as file, target.open("wb") as remote:
            shutil.copyfileobj(file, remote, _CHUNK)
