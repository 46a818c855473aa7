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
    """
    Hide rows from Airflow; what it has to render (a path, a template, another task's output) stays in sight.

    A text that is a JSON list counts as the list: so a template's outcome is hidden as soon as it is rendered.
    """
    if isinstance(rows, str):
        return Rows(_listed(rows)) if rows.lstrip().startswith("[") else rows
    if rows is None or isinstance(rows, os.PathLike | ObjectStoragePath | Rows) or hasattr(rows, "iter_references"):
        return rows  # the last are XComs, DAG parameters, a mapped group's arguments
    if next(XComArg.iter_xcom_references(rows), None) is not None:
        return _literal(rows)
    return rows if type(rows).__name__ in _UNSET else Rows(rows)


def _listed(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise ValueError(
            f"rows is a text that begins like a list and is no JSON ({error}). A template that gives a list needs "
            "`| tojson`; another task's rows are best passed as its output, without a template"
        ) from None


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

    A file in object storage is copied to a temporary one first.
    """
    value = rows.value if isinstance(rows, Rows) else rows
    if isinstance(value, ObjectStoragePath) or (isinstance(value, str) and "://" in value):
        source = _storage(value)
        with tempfile.TemporaryDirectory(prefix="milkrun-") as folder:
            copy = Path(folder) / source.name
            with source.open("rb") as remote, copy.open("wb") as file:
                shutil.copyfileobj(remote, file, _CHUNK)
            yield copy
    else:
        yield value


def check_output(path: Any) -> None:
    """
    Refuse a path to which no results can go, before any row is sent.

    Raises:
        ValueError: it ends in none of the known suffixes, or nothing here can write to such a place.
    """
    known = [f".{kind}" for kind in ResultFormat]
    if PurePosixPath(str(path)).suffix.lower() not in known:
        raise ValueError(f"output_path={str(path)!r}: can't tell a format from this name; known are {', '.join(known)}")
    if isinstance(path, ObjectStoragePath) or "://" in str(path):
        _storage(path)


def _storage(path: Any) -> Any:
    """Return a path in object storage whose file system is installed."""
    try:
        found: Any = ObjectStoragePath(path)
        found.fs  # noqa: B018 (finds the file system)
    except (ImportError, ValueError) as error:
        raise ValueError(
            f"nothing here can read or write {str(path)!r} ({error}). Install the provider of such places: "
            "apache-airflow-providers-amazon[s3fs] for s3, apache-airflow-providers-google for gs, "
            "apache-airflow-providers-microsoft-azure for abfs"
        ) from None
    return found


def save(results: Any, path: Any) -> None:
    """Write a job's results to a file or to object storage, streamed; a local file appears only when it is whole."""
    if not isinstance(path, ObjectStoragePath) and "://" not in str(path):
        file_path = Path(path).expanduser()
        file_path.parent.mkdir(parents=True, exist_ok=True)
        results.save(file_path)
        return
    target = _storage(path)
    with tempfile.TemporaryDirectory(prefix="milkrun-") as folder:
        draft = results.save(Path(folder) / target.name)
        target.parent.mkdir(parents=True, exist_ok=True)
        with draft.open("rb") as file, target.open("wb") as remote:
            shutil.copyfileobj(file, remote, _CHUNK)
