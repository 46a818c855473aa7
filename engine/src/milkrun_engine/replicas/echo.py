"""
The echo replica: a real process whose answers are a function of the request alone.

It makes every story fast without a model and lets a checker prove that no row was lost,
doubled or mixed up. It obeys an instruction at the start of a row's last user text:
`fail:CODE` ends in that row error (`invalid_row` when no code is given), `slow:SECONDS`
takes that long, `hog:MIB` needs so much memory, `die:` ends the process, `lie:KIND` breaks
a replica's contract (`twice`, `foreign`, `utf8`, `nan`). The job's seed is no part of the
answer, so equal rows of two jobs answer alike. With a regex it answers plain text.

Engine arguments: `seconds_per_row` (the whole replica's pace; 0), `load_seconds` (until it is ready; 0),
`window_rows` (256), `handout_rows` (32), `context_tokens` (8192, counted in words). Where the environment names
a file in `MILKRUN_ECHO_LOG`, each executed row is appended to it at its start.
"""

import asyncio
import hashlib
import heapq
import math
import os
import re
import struct
import time
from collections.abc import AsyncIterator
from typing import Any

import msgspec

from milkrun.status import RowErrorCode
from milkrun_engine.domain.models import ModelSpec
from milkrun_engine.replicas.base import HandOut, HandOutRow, Outcome, ReplicaInfo
from milkrun_engine.replicas.instances import SchemaRejected, instance
from milkrun_engine.replicas.requests import EMBEDDING, InvalidRequest, Request, constraint, merge

_SLOW = re.compile(r"slow:(\d+(?:\.\d+)?)")
_HOG = re.compile(r"hog:(\d+)")
_LIE = re.compile(r"lie:(\w+)")
_FAIL = re.compile(r"fail:\s*(\w*)")
_DIMENSIONS = 8
_encode = msgspec.json.Encoder(order="deterministic").encode


class EchoReplica:
    """Answers at once, or at the pace that its engine arguments say."""

    def __init__(self, spec: ModelSpec) -> None:
        args = spec.engine_args
        self._seconds_per_row = float(args.get("seconds_per_row", 0))
        self._info = ReplicaInfo(
            window_rows=int(args.get("window_rows", 256)),
            handout_rows=int(args.get("handout_rows", 32)),
            context_tokens=int(args.get("context_tokens", 8_192)),
            pids=[os.getpid()],
            detail={"device": "none"},
        )
        self._load_seconds = float(args.get("load_seconds", 0))
        self._free_at = 0.0  # when the pace lets the next row finish
        self._aborts: dict[int, asyncio.Event] = {}
        self._log: int | None = None

    async def start(self) -> ReplicaInfo:
        await asyncio.sleep(self._load_seconds)
        if path := os.environ.get("MILKRUN_ECHO_LOG"):
            self._log = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        return self._info

    async def generate(self, handout: HandOut) -> AsyncIterator[list[Outcome]]:
        aborted = self._aborts[handout.id] = asyncio.Event()
        try:
            self._log_start(handout)
            due = self._schedule(handout)
            while due and not aborted.is_set():
                now = time.monotonic()
                finished = []
                while due and due[0][0] <= now:
                    _, _, row, request = heapq.heappop(due)
                    finished += _as_told(self._answer(row, request), request)
                if finished:
                    yield finished
                if due:
                    await _wait(aborted, due[0][0] - time.monotonic())
        finally:
            self._aborts.pop(handout.id, None)

    async def abort(self, handout_id: int) -> None:
        if event := self._aborts.get(handout_id):
            event.set()

    async def beat(self) -> None:
        """Whoever comes here lives."""

    async def stop(self) -> None:
        if self._log is not None:
            os.close(self._log)
            self._log = None

    def _schedule(self, handout: HandOut) -> list[tuple[float, int, HandOutRow, Request | None]]:
        """Say when each row is due, as a heap; a row that is no request is due like the others."""
        due: list[tuple[float, int, HandOutRow, Request | None]] = []
        now = time.monotonic()
        self._free_at = max(self._free_at, now)
        for place, row in enumerate(handout.rows):
            try:
                request = merge(handout, row)
            except InvalidRequest:
                request = None
            self._free_at += self._seconds_per_row
            slow = _SLOW.match(_last_text(request)) if request is not None else None
            due.append((self._free_at + (float(slow[1]) if slow else 0.0), place, row, request))
        heapq.heapify(due)
        return due

    def _answer(self, row: HandOutRow, request: Request | None) -> Outcome:
        if request is None:
            return _error(row, RowErrorCode.invalid_row, "the row is no request")
        text = _last_text(request)
        if text.startswith("die:"):
            os._exit(1)
        if hog := _HOG.match(text):
            bytearray(int(hog[1]) << 20)
        if failure := _FAIL.match(text):
            code = RowErrorCode.__members__.get(failure[1], RowErrorCode.invalid_row)
            return _error(row, code, "the row asked to fail")
        words = _count_words(request)
        context = self._info.context_tokens
        if context is not None and words > context:
            message = f"the prompt has {words} tokens; the model's context is {context}"
            return _error(row, RowErrorCode.context_length_exceeded, message)
        digest = hashlib.blake2b(
            row.endpoint.encode() + _encode({**request, "seed": None}), digest_size=4 * _DIMENSIONS
        ).digest()
        if row.endpoint == EMBEDDING:
            return Outcome(row.index, output=_encode(_vector(digest)), prompt_tokens=words)
        try:
            answer = _text_answer(request, text, digest)
        except SchemaRejected as error:
            return _error(row, RowErrorCode.schema_rejected, str(error))
        return Outcome(
            row.index,
            output=_encode(answer),
            finish_reason="stop",
            prompt_tokens=words,
            completion_tokens=len(answer.split()),
        )

    def _log_start(self, handout: HandOut) -> None:
        if self._log is None:
            return
        facts = {
            "job_id": handout.job_id,
            "chunk": handout.chunk,
            "epoch": handout.epoch,
            "pid": os.getpid(),
            "t": time.time(),
        }
        lines = b"".join(_encode({"index": row.index, **facts}) + b"\n" for row in handout.rows)
        os.write(self._log, lines)  # one write: lines of several processes never mix


def _as_told(outcome: Outcome, request: Request | None) -> list[Outcome]:
    """The outcome, or what the row wants said in its place."""
    lie = _LIE.match(_last_text(request)) if request is not None else None
    match lie and lie[1]:
        case "twice":
            return [outcome, outcome]
        case "foreign":
            return [msgspec.structs.replace(outcome, index=outcome.index + 1_000_000)]
        case "utf8":
            return [msgspec.structs.replace(outcome, output=b'"\xff"')]
        case "nan":
            return [msgspec.structs.replace(outcome, output=b"[NaN]")]
    return [outcome]


def _text_answer(request: Request, text: str, digest: bytes) -> str:
    number = int.from_bytes(digest[:4])
    match constraint(request):
        case ("choice", [*choices]) if choices:
            return str(choices[number % len(choices)])
        case ("choice", _):
            raise SchemaRejected("choice must be a list of texts")
        case ("json", schema):
            return _encode(instance(_parsed(schema), number)).decode()
    return f"echo {digest[:8].hex()}: {text[:40]}"


def _parsed(schema: Any) -> Any:
    if not isinstance(schema, str | bytes):
        return schema
    try:
        return msgspec.json.decode(schema)
    except msgspec.DecodeError as error:
        raise SchemaRejected("the schema is not valid JSON") from error


def _vector(digest: bytes) -> list[float]:
    numbers = [value / 2**31 - 1 for value in struct.unpack(f"<{_DIMENSIONS}I", digest)]
    norm = math.sqrt(sum(value * value for value in numbers)) or 1.0
    return [value / norm for value in numbers]


def _last_text(request: Request) -> str:
    for name in ("prompt", "input"):
        if name in request:
            return _text_of(request[name])
    messages = request.get("messages")
    for message in reversed(messages if isinstance(messages, list) else []):
        if isinstance(message, dict) and message.get("role") == "user":
            return _text_of(message.get("content"))
    return ""


def _text_of(content: Any) -> str:
    if isinstance(content, str):
        return content
    if isinstance(content, list):  # content parts, or several inputs
        return " ".join(
            part if isinstance(part, str) else _text_of(part.get("text"))
            for part in content
            if isinstance(part, str | dict)
        )
    return ""


def _count_words(request: Request) -> int:
    messages = request.get("messages")
    if not isinstance(messages, list):
        return len(_last_text(request).split())
    return sum(len(_text_of(message.get("content")).split()) for message in messages if isinstance(message, dict))


def _error(row: HandOutRow, code: RowErrorCode, message: str) -> Outcome:
    return Outcome(row.index, error_code=code, error_message=message)


async def _wait(event: asyncio.Event, seconds: float) -> None:
    try:
        async with asyncio.timeout(max(seconds, 0)):
            await event.wait()
    except TimeoutError:
        pass
