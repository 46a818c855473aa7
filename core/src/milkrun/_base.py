"""
What both clients are before any I/O: their settings, and the checks of their arguments.
"""

import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Any
from uuid import uuid4

from pydantic import ValidationError

from milkrun import _inputs, _operations, _schema, _waiting, outcome, wire
from milkrun._drivers import Operation
from milkrun._operations import Link
from milkrun._options import DEFAULTS, SubmitOptions
from milkrun._waiting import Progress
from milkrun.exceptions import LocalEngineError
from milkrun.settings import Settings
from milkrun.status import FeedEvents, JobStatus, Reuse

_SPEC = ("kind", "model", "system_prompt", "key_column")
_REQUEST = (
    *("reuse", "on_mismatch", "max_failed_rows", "abort_after_failed_rows"),
    *("name", "description", "external_url", "callback"),
)
_SAID = {"priority": "job_priority", "completion_window_seconds": "completion_window"}  # the arguments' names


class BaseClient:
    """Configuration and argument checks; no I/O."""

    def __init__(
        self,
        url: str | None,
        api_key: str | None,
        local: bool | None,
        data_dir: str | os.PathLike[str] | None,
    ) -> None:
        self.settings = Settings.load(url=url, api_key=api_key, local=local, data_dir=data_dir)
        if self.settings.url is None and not self.settings.local:
            raise LocalEngineError(
                "No engine address is set, and this client may not start a local engine. "
                "Set MILKRUN_URL and MILKRUN_API_KEY, or give url= and api_key=."
            )
        self._link = Link(self.settings)
        self._closed = False

    def __repr__(self) -> str:
        where = self.settings.url or f"local engine in {self.settings.data_dir}"
        return f"<{type(self).__name__} {where}>"

    def __del__(self, warn: Callable[..., None] = warnings.warn) -> None:
        if not getattr(self, "_closed", True):
            warn(
                f"{self!r} was not closed: use it in a with statement, or call its close method",
                ResourceWarning,
                stacklevel=2,
            )

    def _submit(self, rows: Any, options: SubmitOptions) -> Operation[wire.Submitted]:
        """Check the arguments now; the operation does the rest."""
        given: dict[str, Any] = {**DEFAULTS, **{name: value for name, value in options.items() if value is not None}}
        rows = _inputs.chosen(rows, given.get("inputs"), given.get("data"))
        schema = given.get("output_schema")
        key, submission_id = given.get("idempotency_key", uuid4().hex), uuid4().hex

        def request(**source: Any) -> wire.SubmitRequest:
            with _said_of_arguments():
                spec = wire.JobSpec(
                    **{name: given[name] for name in _SPEC if name in given},
                    prompt=_inputs.template(given.get("prompt"), given.get("column")),
                    sampling=dict(given.get("sampling", {})),
                    output_schema=_schema.to_wire(schema),
                )
                return wire.SubmitRequest(
                    **{name: given[name] for name in _REQUEST if name in given},
                    **source,
                    spec=spec,
                    priority=given["job_priority"],
                    completion_window_seconds=_seconds(given.get("completion_window")),
                    labels=dict(given.get("labels", {})),
                    idempotency_key=key,
                    submission_id=submission_id,
                )

        checked = request(rows=[])
        may_exist = "idempotency_key" in given and checked.reuse is not Reuse.never
        return _operations.submit(self._link, rows, request, schema, may_exist=may_exist)

    def _retry_failed(
        self,
        job_id: str,
        name: str | None,
        labels: Mapping[str, str] | None,
        external_url: str | None,
        job_priority: int | None,
        callback: wire.Callback | Mapping[str, Any] | None,
    ) -> Operation[wire.Submitted]:
        with _said_of_arguments():
            facts = {"name": name, "external_url": external_url, "priority": job_priority, "callback": callback}
            plain = None if labels is None else dict(labels)
            request = wire.RetryRequest.model_validate({**facts, "labels": plain, "submission_id": uuid4().hex})
        return _operations.retry(self._link, job_id, request)

    def _results(self, job_id: str) -> Operation[tuple[wire.Job, int]]:
        job = yield from _operations.job(self._link, job_id)
        first = yield from _operations.page(self._link, job_id, after=-1, limit=1)
        return job, first["settled"]

    def _ended_results(
        self, job_id: str, timeout: float | None, max_failed_rows: int | None, on_progress: Progress | None
    ) -> Operation[tuple[wire.Job, int]]:
        job = yield from _waiting.wait(self._link, job_id, timeout=timeout, on_progress=on_progress)
        outcome.check(job, max_failed_rows)
        return (yield from self._results(job_id))

    def _parser(self, job_id: str, schema: Any) -> _schema.Parser | None:
        return _schema.parser(schema if schema is not None else self._link.schemas.get(job_id))

    def _attach(self, idempotency_key: str, input_hash: str | None) -> Operation[wire.Submitted]:
        return _operations.attach(
            self._link, wire.AttachRequest(idempotency_key=idempotency_key, input_hash=input_hash)
        )

    def _jobs(
        self,
        limit: int | None,
        status: JobStatus | str | Iterable[JobStatus | str] | None,
        labels: Mapping[str, str] | None,
        name: str | None,
        created_after: datetime | None,
        created_before: datetime | None,
        ids: Iterable[str] | None,
    ) -> Operation[list[wire.Job]]:
        if ids is not None:
            if isinstance(ids, str) or any((status, labels, name, created_after, created_before)):
                raise TypeError("ids= takes a list of job ids, and goes alone")
            return _operations.jobs_by_id(self._link, list(ids))
        return _operations.jobs(
            self._link,
            limit=limit,
            statuses=[JobStatus(each) for each in ([status] if isinstance(status, str) else status or ())],
            labels=labels,
            name=name,
            created_after=created_after and created_after.astimezone(),
            created_before=created_before and created_before.astimezone(),
        )

    def _changes(
        self, after: str | None, wait: float, on: FeedEvents | str, labels: Mapping[str, str] | None, limit: int | None
    ) -> Operation[wire.Changes]:
        return _operations.changes(self._link, after=after, wait=wait, on=FeedEvents(on), labels=labels, limit=limit)


def _seconds(window: float | timedelta | None) -> float | None:
    return window.total_seconds() if isinstance(window, timedelta) else window


@contextmanager
def _said_of_arguments() -> Iterator[None]:
    """Say what is wrong with a request by the name of the argument, as a ValueError."""
    try:
        yield
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(_SAID.get(str(part), str(part)) for part in first["loc"])
        raise ValueError(f"{where}: {first['msg']}" if where else first["msg"]) from None
