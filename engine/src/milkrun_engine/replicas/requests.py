"""
What a row really asks: the job's defaults with the row's own body over them.

Pure; every replica starts here, so that echo and vLLM answer the same request.
"""

import hashlib
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, TypeAlias

import msgspec

from milkrun_engine.domain import rows
from milkrun_engine.replicas.base import HandOut, HandOutRow

CHAT, COMPLETION, EMBEDDING = rows.CHAT, rows.COMPLETION, rows.EMBEDDING  #: the endpoints of a request

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
    request.pop("request_id", None)
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


def refuse_unfit(request: Mapping[str, Any]) -> None:
    """
    Refuse what OpenAI's shape allows and a row may not ask.

    Raises:
        InvalidRequest: the request holds several inputs, brings a chat template for the engine to
            run, or media for it to fetch.
    """
    for name in ("prompt", "input"):
        value = request.get(name)
        if isinstance(value, list) and len(value) > 1 and not all(isinstance(token, int) for token in value):
            raise InvalidRequest("a row is one input, not several")
    if "chat_template" in request:
        raise InvalidRequest("a row can't bring a chat template")
    messages = request.get("messages")
    for message in messages if isinstance(messages, list) else ():
        content = message.get("content") if isinstance(message, dict) else None
        for part in content if isinstance(content, list) else ():
            media = [value for name, value in part.items() if name.endswith("_url")] if isinstance(part, dict) else []
            if not all(_is_inline(value) for value in media):
                raise InvalidRequest("media must come as data: URLs; the engine fetches no addresses")


def _is_inline(media: Any) -> bool:
    url = media.get("url") if isinstance(media, dict) else media
    return isinstance(url, str) and url.startswith("data:")


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
