"""
`MilkrunResults`: what a flow passes on instead of rows, small enough for any result storage.
"""

import asyncio
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self, TypeVar

from pydantic import BaseModel, ConfigDict, PrivateAttr

import milkrun as mr
from prefect_milkrun.credentials import MilkrunCredentials

T = TypeVar("T")


class MilkrunResults(BaseModel):
    """
    A job's results by reference; rows are fetched when they are looked at.

    It survives result storage without its API key: elsewhere it reads the engine with the block that it
    came from, or with `MILKRUN_API_KEY`.

    Example:
        results = infer(reviews, prompt="Classify: {text}")
        frame = results.to_polars()
    """

    model_config = ConfigDict(frozen=True)

    job_id: str
    status: mr.JobStatus
    rows_total: int | None
    rows_succeeded: int
    rows_failed: int
    prompt_tokens: int
    completion_tokens: int
    seconds: float | None
    url: str  #: the job's page
    base_url: str | None = None  #: the engine
    block_name: str | None = None  #: the credentials block to read with

    _credentials: MilkrunCredentials | None = PrivateAttr(default=None)

    @classmethod
    def of(cls, job: mr.Job, credentials: MilkrunCredentials) -> Self:
        """Refer to the results of a job."""
        results = cls(
            job_id=job.id,
            status=job.status,
            rows_total=job.rows_total,
            rows_succeeded=job.rows_succeeded,
            rows_failed=job.rows_failed,
            prompt_tokens=job.usage.prompt_tokens,
            completion_tokens=job.usage.completion_tokens,
            seconds=job.seconds,
            url=job.url,
            base_url=credentials.url,
            block_name=credentials.block_name,
        )
        return results.bound(credentials)

    def bound(self, credentials: MilkrunCredentials) -> Self:
        """Read with these credentials from now on."""
        self._credentials = credentials
        return self

    def __getstate__(self) -> dict[Any, Any]:
        return {**super().__getstate__(), "__pydantic_private__": {"_credentials": None}}  # the key stays here

    @contextmanager
    def opened(self, schema: Any = None) -> Iterator[mr.Results]:
        """Give core's results, with all that they can; `schema` fills `row.parsed`."""
        credentials = self._credentials or MilkrunCredentials.of(self.block_name)
        if credentials.base_url is None and self.base_url is not None:
            credentials = MilkrunCredentials.model_validate({"base_url": self.base_url, "api_key": credentials.api_key})
        with credentials.get_client() as client:
            yield client.results(self.job_id, schema)

    def rows(self, schema: Any = None) -> Iterator[mr.ResultRow]:
        """Yield the rows in the caller's order, fetched page by page."""
        with self.opened(schema) as results:
            yield from results

    def to_list(self, schema: Any = None) -> list[mr.ResultRow]:
        """Return all rows."""
        return list(self.rows(schema))

    def to_polars(self) -> Any:
        """Return a polars DataFrame."""
        return self._read(mr.Results.to_polars)

    def to_pandas(self) -> Any:
        """Return a pandas DataFrame."""
        return self._read(mr.Results.to_pandas)

    def to_arrow(self) -> Any:
        """Return a pyarrow Table."""
        return self._read(mr.Results.to_arrow)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write a csv, jsonl or parquet file, by its suffix."""
        return self._read(lambda results: results.save(path))

    async def ato_list(self, schema: Any = None) -> list[mr.ResultRow]:
        """Return all rows."""
        return await asyncio.to_thread(self.to_list, schema)

    async def ato_polars(self) -> Any:
        """Return a polars DataFrame."""
        return await asyncio.to_thread(self.to_polars)

    async def ato_pandas(self) -> Any:
        """Return a pandas DataFrame."""
        return await asyncio.to_thread(self.to_pandas)

    async def ato_arrow(self) -> Any:
        """Return a pyarrow Table."""
        return await asyncio.to_thread(self.to_arrow)

    async def asave(self, path: str | os.PathLike[str]) -> Path:
        """Write a csv, jsonl or parquet file, by its suffix."""
        return await asyncio.to_thread(self.save, path)

    def _read(self, how: Callable[[mr.Results], T]) -> T:
        with self.opened() as results:
            return how(results)
