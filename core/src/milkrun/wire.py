"""
The messages of the native API (`/api/…`), shared by client and engine.

Requests refuse unknown fields, so a typing error is told at the door; answers ignore
them, so an older client reads a newer engine. Rows never pass through these models:
they travel as raw JSON (see `SubmitRequest.rows` and the results page).
"""

import re
from datetime import datetime
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, JsonValue, model_validator

from milkrun.status import TERMINAL, CallbackKind, InputFormat, JobKind, JobStatus, OnMismatch, Reuse

MAX_INLINE_BYTES = 262_144  #: larger inputs are uploaded as a file first
_SURROGATE = re.compile("[\ud800-\udfff]")


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _is_unicode(cls, data: Any) -> Any:
        """Refuse half a surrogate pair and NUL: JSON has them, a ledger can't. Rows are kept as they were written."""
        fields = data.items() if isinstance(data, dict) else ()
        pending = [value for field in fields if field[0] != "rows" for value in field]
        while pending:  # no recursion: JSON may be nested deeply
            match pending.pop():
                case str() as text if _SURROGATE.search(text):
                    raise ValueError("a text holds half a surrogate pair, which is no character")
                case str() as text if "\0" in text:
                    raise ValueError("a text holds the character NUL")
                case dict() as members:
                    pending += [*members, *members.values()]
                case list() as values:
                    pending += values
        return data


class _Answer(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


class OutputSchema(_Request):
    """What an answer must look like; exactly one of the three is given."""

    choices: list[str] | None = None  #: the answer is one of these texts
    json_schema: dict[str, JsonValue] | None = None  #: the answer is JSON that fits this schema
    regex: str | None = None  #: the answer matches this pattern

    @model_validator(mode="after")
    def _exactly_one(self) -> "OutputSchema":
        given = [name for name in ("choices", "json_schema", "regex") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError("output_schema takes exactly one of choices, json_schema, regex")
        if self.choices is not None and (not self.choices or len(set(self.choices)) != len(self.choices)):
            raise ValueError("choices must be a non-empty list of distinct texts")
        return self


class InputRef(_Request):
    """An input that was uploaded with `POST /api/files`."""

    file_id: str
    rows_sha256: str | None = Field(
        default=None, pattern="^[0-9a-f]{64}$"
    )  #: what the file's rows count as, where its bytes depend on who wrote them; from `milkrun.hashing.rows_sha256`


class JobSpec(_Request):
    """
    All that changes a job's answers, beside the rows; it is compared when a key is used again.

    `prompt` is a template over the row's columns: `{text}` is replaced by the column `text`,
    `{{` and `}}` are literal braces. Without a template a row is a text, a list of chat
    messages, or an object in the OpenAI request shape (`messages`, `prompt` or `input`, and
    parameters of its own).
    """

    kind: JobKind = JobKind.generate
    model: str | None = None  #: the engine's default model of that kind when absent
    prompt: str | None = None
    system_prompt: str | None = None
    sampling: dict[str, JsonValue] = Field(default_factory=dict)  #: OpenAI parameter names; a row's own win
    output_schema: OutputSchema | None = None
    key_column: str | None = None  #: the column that labels a row in the results


class Callback(_Request):
    """
    Where to say that a job has ended, however it ended.

    The body of a `generic` one is `{"type": "job.succeeded", "timestamp": …, "data": {"id": …, "status": …}}`,
    signed with `secret` as https://www.standardwebhooks.com says; the receiver reads the job from the engine.
    """

    kind: CallbackKind = CallbackKind.generic
    url: str = Field(max_length=2_000, pattern="^https?://")
    secret: str | None = Field(default=None, repr=False)  #: `whsec_` and base64; a generic one without it is not signed
    headers: dict[str, str] = Field(default_factory=dict, max_length=16, repr=False)  #: such as Authorization


class SubmitRequest(_Request):
    """`POST /api/jobs`."""

    spec: JobSpec = Field(default_factory=JobSpec)
    rows: list[Any] | None = None  #: small inputs; exactly one of `rows` and `input`
    input: InputRef | None = None
    priority: int = Field(default=1, ge=0, le=10)  #: smaller is sooner
    idempotency_key: str | None = Field(default=None, min_length=1, max_length=512)
    submission_id: str | None = Field(default=None, max_length=64)  #: one call of submit: its repeats get its job
    reuse: Reuse = Reuse.inputs_match
    on_mismatch: OnMismatch = OnMismatch.fail
    name: str | None = Field(default=None, max_length=200)
    description: str | None = Field(default=None, max_length=2_000)
    labels: dict[str, str] = Field(default_factory=dict, max_length=32)
    external_url: str | None = Field(default=None, max_length=2_000)  #: back to the orchestrator's run
    callback: Callback | None = None

    @model_validator(mode="after")
    def _one_input(self) -> "SubmitRequest":
        if (self.rows is None) == (self.input is None):
            raise ValueError("a submit takes exactly one of rows and input")
        if self.external_url is not None and not self.external_url.startswith(("http://", "https://")):
            raise ValueError("external_url must start with http:// or https://")
        return self


class AttachRequest(_Request):
    """`POST /api/jobs/attach`: find a key's job without sending its rows again."""

    idempotency_key: str = Field(min_length=1, max_length=512)
    input_hash: str | None = None  #: from `milkrun.hashing.input_hash`; another one is 409 `inputs_differ`


class CancelRequest(_Request):
    """`POST /api/jobs/{id}/cancel`."""

    claim: int | None = Field(
        default=None, ge=0, le=2**53
    )  #: from submit or attach; a stale one is 409 `stale_claim`; absent always cancels


class CancelLabelledRequest(_Request):
    """`POST /api/jobs/cancel`: stop every live job that carries all of the labels."""

    labels: dict[str, str] = Field(min_length=1, max_length=32)


class Usage(_Answer):
    """Tokens of the committed rows."""

    prompt_tokens: int = 0
    cached_tokens: int = 0  #: the part of `prompt_tokens` that the prefix cache served
    completion_tokens: int = 0


class JobFailure(_Answer):
    """Why a job failed."""

    code: str
    message: str


class Job(_Answer):
    """A job as it stands."""

    id: str
    kind: Annotated[JobKind | str, Field(union_mode="left_to_right")]  #: a newer engine may know more
    model: str
    status: JobStatus
    failure: JobFailure | None = None
    waiting_reason: str | None = None  #: why no row runs just now: model_loading, …
    paused: bool = False
    name: str | None = None
    description: str | None = None
    labels: dict[str, str] = Field(default_factory=dict)
    external_url: str | None = None
    priority: int
    idempotency_key: str | None = None
    input_hash: str
    retry_of: str | None = None  #: the ended job whose key this one took
    created_at: datetime
    started_at: datetime | None = None  #: its first chunk was leased
    finished_at: datetime | None = None
    rows_total: int | None = None  #: unknown until the input is read
    rows_read: int = 0  #: rows of the input that were read so far
    rows_succeeded: int = 0
    rows_failed: int = 0
    rows_cancelled: int = 0  #: undecided when the job was stopped
    rows_done: int = 0  #: decided rows and, while it runs, finished rows that wait for their chunk (advisory)
    row_errors: dict[str, int] = Field(
        default_factory=dict
    )  #: failed rows by `RowErrorCode`; only in `GET /api/jobs/{id}`
    input_complete: bool = False  #: the whole input was read
    usage: Usage = Field(default_factory=Usage)
    url: str  #: the job's page

    @property
    def is_terminal(self) -> bool:
        """Whether the job can never change again."""
        return self.status in TERMINAL

    @property
    def seconds(self) -> float | None:
        """From submit to end, or None while it is not over."""
        return (self.finished_at - self.created_at).total_seconds() if self.finished_at else None


class Submitted(_Answer):
    """The answer of submit and attach."""

    job: Job
    claim: int  #: hand it to cancel, so that an older attempt can't cancel this one's job
    cursor: str  #: the change feed's place before this answer: wait from here
    reused: bool = False  #: an existing job was returned
    replaced: str | None = None  #: the job that lost the key to this one


class JobList(_Answer):
    """`GET /api/jobs`: newest first."""

    jobs: list[Job]
    next: str | None = None  #: pass as `before` for the next page


class Changes(_Answer):
    """`GET /api/changes`: each changed job once, in its latest state."""

    jobs: list[Job]
    deleted: list[str] = Field(default_factory=list)  #: ids of jobs that were deleted
    cursor: str  #: always advanced; pass as `after`
    more: bool = False  #: the limit cut the answer: ask again at once


class InputFile(_Answer):
    """`POST /api/files`."""

    id: str
    format: InputFormat
    bytes: int
    sha256: str


class ModelInfo(_Answer):
    """`GET /api/models`: a model that jobs may name."""

    name: str
    kind: JobKind
    is_default: bool = False
    context_tokens: int | None = None  #: known once a replica has loaded it
    state: str  #: stopped, loading, ready, failing
    detail: str | None = None


class ModelList(_Answer):
    """All models."""

    models: list[ModelInfo]


class Health(_Answer):
    """`GET /healthz`."""

    status: str
    instance_id: str
    version: str


class Problem(_Answer):
    """
    Every error answer (RFC 9457 problem details, `application/problem+json`).

    `code` is stable and what programs look at: invalid_request, missing_column, unknown_model, unauthenticated,
    not_found, idempotency_mismatch, inputs_differ, stale_claim, cursor_lost, input_too_large, outcome_unknown,
    shutting_down, integrity, internal.
    """

    type: str = "about:blank"
    title: str
    status: int
    code: str
    detail: str
    request_id: str | None = None
