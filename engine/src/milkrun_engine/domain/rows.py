"""
From a row of the input to a request row, or to its typed error.

Pure and cheap: this is the row path, so no pydantic and no Jinja.
"""

from dataclasses import dataclass
from typing import Any

import msgspec

from milkrun.status import JobKind, RowErrorCode
from milkrun.wire import JobSpec
from milkrun_engine.domain import templates

MAX_ROW_BYTES = 10_000_000
CHAT, COMPLETION, EMBEDDING = "/v1/chat/completions", "/v1/completions", "/v1/embeddings"
TEXT_COLUMN = "text"  #: a plain text row counts as this column in a template

_encode = msgspec.json.Encoder().encode


@dataclass(frozen=True, slots=True)
class PreparedRow:
    """A row that can be asked: its label, its pool and the request less the job's defaults."""

    index: int
    key: str | None
    pool: str
    endpoint: str
    body: bytes
    tokens: int  #: a rough estimate of prompt and answer, for sizing chunks only

    def __repr__(self) -> str:
        return f"PreparedRow(index={self.index}, pool={self.pool!r}, body=<{len(self.body)} bytes>)"


@dataclass(frozen=True, slots=True)
class RefusedRow:
    """A row that can't be asked, and why."""

    index: int
    key: str | None
    code: RowErrorCode
    message: str


class RowRefused(Exception):
    """Why a row can't be a request."""

    def __init__(self, code: RowErrorCode, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True, slots=True)
class RowReader:
    """
    Turns the values of one job's input into rows.

    Args:
        spec: the job's.
        pool: the job's own model.
        pools: every model of the engine with its kind; a row may name another one of its job's kind.
    """

    spec: JobSpec
    pool: str
    pools: dict[str, JobKind]
    template: templates.Template | None
    max_tokens: int

    @classmethod
    def of(cls, spec: JobSpec, pool: str, pools: dict[str, JobKind]) -> "RowReader":
        """
        Build the reader of a job.

        Raises:
            InvalidRequest: the template can't be parsed.
        """
        template = templates.parse(spec.prompt) if spec.prompt is not None else None
        limit = spec.sampling.get("max_tokens", spec.sampling.get("max_completion_tokens"))
        return cls(spec, pool, pools, template, limit if isinstance(limit, int) else 64)

    def read(self, index: int, value: Any) -> PreparedRow | RefusedRow:
        """Read one row; never raises for what the caller sent."""
        key: str | None = None
        try:
            key = self._key(value)
            pool, endpoint, body = self._request(value)
            if len(body) > MAX_ROW_BYTES:
                raise RowRefused(RowErrorCode.invalid_row, f"the row is larger than {MAX_ROW_BYTES:,} bytes")
        except RowRefused as refused:
            return RefusedRow(index, key, refused.code, str(refused))
        except RecursionError:  # it could just be read, and is a level too deep to be written
            return RefusedRow(index, key, RowErrorCode.invalid_row, "the row is nested too deeply")
        return PreparedRow(index, key, pool, endpoint, body, len(body) // 4 + self.max_tokens)

    def _key(self, value: Any) -> str | None:
        column = self.spec.key_column
        if column is None:
            return None
        if not isinstance(value, dict) or column not in value:
            raise RowRefused(RowErrorCode.invalid_row, f"the row has no column {column!r} (the key column)")
        key = value[column]
        return key if isinstance(key, str) or key is None else _encode(key).decode()

    def _request(self, value: Any) -> tuple[str, str, bytes]:
        if self.template is not None:
            return self.pool, *self._text_request(self._render(value))
        if isinstance(value, str):
            return self.pool, *self._text_request(value)
        if isinstance(value, list):
            if self.spec.kind is not JobKind.generate:
                raise RowRefused(RowErrorCode.invalid_row, "a row of an embed job is a text or an object with `input`")
            _check_messages(value)
            return self.pool, CHAT, _encode({"messages": value})
        if isinstance(value, dict):
            return self._object_request(value)
        raise RowRefused(
            RowErrorCode.invalid_row, f"a row is a text, a list of chat messages or an object, not {_kind_of(value)}"
        )

    def _render(self, value: Any) -> str:
        assert self.template is not None
        if isinstance(value, str):
            value = {TEXT_COLUMN: value}
        if not isinstance(value, dict):
            raise RowRefused(
                RowErrorCode.invalid_row, f"a prompt template needs an object with columns, not {_kind_of(value)}"
            )
        try:
            return self.template.render(value)
        except templates.MissingColumnError as missing:
            raise RowRefused(
                RowErrorCode.invalid_row, f"the row has no column {missing.args[0]!r} (in the prompt template)"
            ) from None

    def _text_request(self, text: str) -> tuple[str, bytes]:
        if self.spec.kind is JobKind.embed:
            return EMBEDDING, _encode({"input": text})
        return CHAT, _encode({"messages": [{"role": "user", "content": text}]})

    def _object_request(self, value: dict[str, Any]) -> tuple[str, str, bytes]:
        key_column = self.spec.key_column
        body = {name: item for name, item in value.items() if name not in ("model", key_column)}
        pool = self._pool(value["model"]) if "model" in value else self.pool
        if self.spec.kind is JobKind.embed:
            if not isinstance(body.get("input"), str):
                raise RowRefused(RowErrorCode.invalid_row, "an object row of an embed job needs a text `input`")
            return pool, EMBEDDING, _encode(body)
        if "messages" in body:
            _check_messages(body["messages"])
            return pool, CHAT, _encode(body)
        if isinstance(body.get("prompt"), str):
            return pool, COMPLETION, _encode(body)
        raise RowRefused(
            RowErrorCode.invalid_row,
            "an object row needs `messages` (a list) or `prompt` (a text); "
            "for a table of columns give the job a prompt template",
        )

    def _pool(self, model: Any) -> str:
        if not isinstance(model, str) or model not in self.pools:
            raise RowRefused(RowErrorCode.model_not_found, "the row names a model that this engine does not have")
        if self.pools[model] is not self.spec.kind:
            raise RowRefused(
                RowErrorCode.model_not_found,
                f"the row's model can't {self.spec.kind} (it is of kind {self.pools[model]})",
            )
        return model


def _check_messages(messages: Any) -> None:
    if not isinstance(messages, list) or not messages:
        raise RowRefused(RowErrorCode.invalid_row, "`messages` must be a non-empty list")
    for message in messages:
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise RowRefused(RowErrorCode.invalid_row, "every chat message must be an object with a `role`")


def _kind_of(value: Any) -> str:
    return (
        "null" if value is None else {bool: "a boolean", int: "a number", float: "a number"}.get(type(value), "a list")
    )
