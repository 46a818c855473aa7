"""
What a row really asks: the job's defaults with the row's own body over them.

Pure; every replica starts here, so that echo and vLLM answer the same request.
"""

import hashlib
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, TypeAlias

import msgspec

from milkrun_engine.replicas.base import HandOut, HandOutRow

CHAT, COMPLETION, EMBEDDING = "/v1/chat/completions", "/v1/completions", "/v1/embeddings"

Request: TypeAlias = dict[str, Any]  #: an effective request in the OpenAI shape

_CONSTRAINTS = {"choices": "choice", "json_schema": "json", "regex": "regex"}  # our names → vLLM's structured_outputs


class InvalidRequest(ValueError):
    """The row's body can't be a request; the message never quotes it."""


class _Defaults(msgspec.Struct, frozen=True):
    system_prompt: str | None = None
    sampling: dict[str, Any] = {}
    output_schema: dict[str, Any] | None = None

    @property
    def structured_outputs(self) -> dict[str, Any] | None:
        schema = self.output_schema or {}
        return {_CONSTRAINTS[name]: value for name, value in schema.items() if value is not None} or None


def merge(handout: HandOut, row: HandOutRow) -> Request:
    """
    Write out the request of one row.

    The row's own parameters win over the job's, its own output format over the job's schema.
    The job's system prompt goes first, unless the row's messages bring one. A generation
    without a seed gets a stable one of its own, so a row that runs again asks the same.

    Raises:
        InvalidRequest: the body is no JSON object, or its messages are no list of objects.
    """
    defaults = _decode_defaults(handout.defaults)
    try:
        body = msgspec.json.decode(row.body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidRequest("the row is not valid JSON") from error
    if not isinstance(body, dict):
        raise InvalidRequest("the row is not a JSON object")
    request: Request = {**defaults.sampling, **body}
    request.pop("stream", None)  # a row is answered whole
    request.pop("stream_options", None)
    if row.endpoint == EMBEDDING:
        return request
    if "response_format" not in body and "structured_outputs" not in body and (outputs := defaults.structured_outputs):
        request.pop("response_format", None)
        request["structured_outputs"] = outputs
    if defaults.system_prompt is not None:
        _put_system_prompt(request, row.endpoint, defaults.system_prompt)
    if request.get("seed") is None:
        request["seed"] = _seed(handout.job_id, row.index)
    return request


def constraint(request: Mapping[str, Any]) -> tuple[str, Any] | None:
    """Tell what the answer must look like: (choice | json | regex | …, its value), or None when it is free text."""
    for name, value in (request.get("structured_outputs") or {}).items():
        if value is not None:
            return name, value
    match request.get("response_format"):
        case {"type": "json_schema", "json_schema": {"schema": schema}}:
            return "json", schema
        case {"type": "json_object"}:
            return "json", {"type": "object"}
    return None


def _put_system_prompt(request: Request, endpoint: str, prompt: str) -> None:
    if endpoint == CHAT:
        messages = request.get("messages")
        if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
            raise InvalidRequest("messages must be a list of objects")
        if not any(message.get("role") in ("system", "developer") for message in messages):
            request["messages"] = [{"role": "system", "content": prompt}, *messages]
    elif isinstance(text := request.get("prompt"), str):  # a bare completion has no roles
        request["prompt"] = f"{prompt}\n\n{text}"


def _seed(job_id: str, index: int) -> int:
    return int.from_bytes(hashlib.blake2b(f"{job_id}/{index}".encode(), digest_size=4).digest())


@lru_cache(maxsize=64)  # one decode a hand-out, and mostly one a job
def _decode_defaults(data: bytes) -> _Defaults:
    return msgspec.json.decode(data, type=_Defaults)
