"""
`Results` and `AsyncResults`: a job's readable rows, in the caller's order, fetched when they are looked at.
"""

import os
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

from milkrun import _operations, _outputs
from milkrun._drivers import Awaiting, Blocking, Operation
from milkrun._operations import Link
from milkrun._outputs import ResultRow
from milkrun._schema import Parser
from milkrun.status import ResultFormat
from milkrun.wire import Job

PAGE_ROWS = 1_000


class _Results:
    """What both share: which rows, of which job."""

    def __init__(self, link: Link, job: Job, count: int, parse: Parser | None) -> None:
        self.job = job  #: as it stood when the results were asked for
        self._link = link
        self._count = count
        self._parse = parse

    def __len__(self) -> int:
        return self._count

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self.job.id}: {self._count} rows, job {self.job.status}>"

    def _pages(self) -> Any:
        return _operations.pages(self._link, self.job.id, count=self._count, page_rows=PAGE_ROWS)

    def _read(self, page: list[dict[str, Any]]) -> list[ResultRow]:
        return [_outputs.read_row(row, self._parse) for row in page]

    def _save(self, path: str | os.PathLike[str], kind: ResultFormat | str | None) -> Operation[Path]:
        target = Path(path).expanduser()
        chosen = ResultFormat(kind) if kind is not None else _outputs.format_of(target)
        if not target.parent.is_dir():
            raise FileNotFoundError(f"there is no folder {target.parent} to write {target.name} to")
        return _operations.save(self._link, self.job.id, target, chosen)

    def _frame(self, library: str) -> Operation[Any]:
        _outputs.need(library)  # before the export, which may be large
        with tempfile.TemporaryDirectory(prefix="milkrun-") as folder:
            path = Path(folder) / "results.parquet"
            yield from _operations.save(self._link, self.job.id, path, ResultFormat.parquet)
            return (yield from _operations.perform(lambda: _outputs.frame(library, path, self._count)))


class Results(_Results):
    """
    A job's results: as many rows as were readable when they were asked for.

    For an ended job that is all of them; while it runs, the rows up to the first undecided one.
    Iterating fetches page by page and survives dropped connections; each use reads anew.
    """

    def __init__(self, driver: Blocking, link: Link, job: Job, count: int, parse: Parser | None) -> None:
        super().__init__(link, job, count, parse)
        self._driver = driver

    def __iter__(self) -> Iterator[ResultRow]:
        for page in self._driver.iterate(self._pages()):
            yield from self._read(page)

    def to_list(self) -> list[ResultRow]:
        """Return all rows."""
        return list(self)

    def to_dicts(self) -> list[dict[str, Any]]:
        """Return all rows as flat dicts, named as in the exported files."""
        return [row.flat() for row in self]

    def to_polars(self) -> Any:
        """Return a polars DataFrame."""
        return self._driver.run(self._frame("polars"))

    def to_pandas(self) -> Any:
        """Return a pandas DataFrame."""
        return self._driver.run(self._frame("pandas"))

    def to_arrow(self) -> Any:
        """Return a pyarrow Table."""
        return self._driver.run(self._frame("pyarrow"))

    def save(self, path: str | os.PathLike[str], *, format: ResultFormat | str | None = None) -> Path:
        """Write a csv, jsonl or parquet file (by its suffix, or as told); it appears only when it is whole."""
        return self._driver.run(self._save(path, format))

    def join(self, table: Any, *, prefix: str = "") -> Any:
        """Return the caller's table (list of dicts, pandas, polars, pyarrow) with output, error, … beside each row."""
        return _outputs.join(table, self.to_list(), prefix)


class AsyncResults(_Results):
    """
    A job's results: as many rows as were readable when they were asked for.

    For an ended job that is all of them; while it runs, the rows up to the first undecided one.
    Iterating fetches page by page and survives dropped connections; each use reads anew.
    """

    def __init__(self, driver: Awaiting, link: Link, job: Job, count: int, parse: Parser | None) -> None:
        super().__init__(link, job, count, parse)
        self._driver = driver

    async def __aiter__(self) -> AsyncIterator[ResultRow]:
        async for page in self._driver.iterate(self._pages()):
            for row in self._read(page):
                yield row

    async def to_list(self) -> list[ResultRow]:
        """Return all rows."""
        return [row async for row in self]

    async def to_dicts(self) -> list[dict[str, Any]]:
        """Return all rows as flat dicts, named as in the exported files."""
        return [row.flat() async for row in self]

    async def to_polars(self) -> Any:
        """Return a polars DataFrame."""
        return await self._driver.run(self._frame("polars"))

    async def to_pandas(self) -> Any:
        """Return a pandas DataFrame."""
        return await self._driver.run(self._frame("pandas"))

    async def to_arrow(self) -> Any:
        """Return a pyarrow Table."""
        return await self._driver.run(self._frame("pyarrow"))

    async def save(self, path: str | os.PathLike[str], *, format: ResultFormat | str | None = None) -> Path:
        """Write a csv, jsonl or parquet file (by its suffix, or as told); it appears only when it is whole."""
        return await self._driver.run(self._save(path, format))

    async def join(self, table: Any, *, prefix: str = "") -> Any:
        """Return the caller's table (list of dicts, pandas, polars, pyarrow) with output, error, … beside each row."""
        return _outputs.join(table, await self.to_list(), prefix)
