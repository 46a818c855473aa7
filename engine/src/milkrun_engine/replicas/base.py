"""
The seams of generation: messages, `Replica` (what generates) and `Pool` (where it runs).

Messages cross process borders as msgpack bytes (`encode_*`, `decode_*`), never as pickles.
A replica lives in a process of its own; the dispatcher talks to it through a `ReplicaHandle`
that its pool made.
"""

from collections.abc import AsyncIterator, Sequence
from typing import Protocol

import msgspec

from milkrun.status import RowErrorCode
from milkrun_engine.domain.models import ModelSpec


class HandOutRow(msgspec.Struct, frozen=True, array_like=True):
    """One row of a hand-out; its payload never shows in a repr."""

    index: int  #: the row's place in the caller's input
    endpoint: str  #: /v1/chat/completions, /v1/completions or /v1/embeddings
    body: bytes  #: the request's own JSON object, less what the job's defaults say

    def __repr__(self) -> str:
        return f"HandOutRow(index={self.index}, endpoint={self.endpoint!r}, body=<{len(self.body)} bytes>)"


class HandOut(msgspec.Struct, frozen=True, array_like=True):
    """What goes to a replica at once: 8 to 32 rows of one chunk."""

    id: int  #: unique within the dispatcher process
    job_id: str
    chunk: int
    epoch: int  #: the chunk's lease epoch
    priority: int  #: smaller is sooner; vLLM lets it jump its own waiting queue
    defaults: bytes  #: JSON object merged under every row's body (sampling, response_format, system prompt)
    rows: list[HandOutRow]


class Outcome(msgspec.Struct, frozen=True, array_like=True):
    """
    How one row of a hand-out ended: with an output, or with an error code.

    `output` is JSON: a string is the answer's text, an array of numbers an embedding, and an
    object `{"choices": [...]}` the whole OpenAI answer, kept where it says more than one text
    (several choices, tool calls, log-probabilities, reasoning).
    """

    index: int
    output: bytes | None = None
    error_code: RowErrorCode | None = None
    error_message: str | None = None
    finish_reason: str | None = None
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0

    def __repr__(self) -> str:
        return f"Outcome(index={self.index}, error_code={self.error_code}, finish_reason={self.finish_reason!r})"


class ReplicaInfo(msgspec.Struct, frozen=True):
    """What a replica says of itself once it has loaded."""

    window_rows: int  #: rows that it wants in flight, from all hand-outs together
    handout_rows: int  #: rows of one hand-out at most
    context_tokens: int | None = None
    pids: list[int] = []  #: its processes, for operators and fault tests
    detail: dict[str, str] = {}  #: dtype, device, versions


class Replica(Protocol):
    """One loaded model; lives in the replica's own process."""

    async def start(self) -> ReplicaInfo:
        """Load the model; raises when it can't be loaded."""
        ...

    def generate(self, handout: HandOut) -> AsyncIterator[list[Outcome]]:
        """
        Run a hand-out and yield lists of finished rows, each row once, in any order.

        A row that can't be answered is an outcome with an error code. A dead engine ends the
        process (`os._exit(1)`), never raises here.
        """
        ...

    async def abort(self, handout_id: int) -> None:
        """Stop the unfinished rows of a hand-out; its generator ends without them."""
        ...

    async def beat(self) -> None:
        """Return once what generates has shown that it lives, whatever it is at; a few times a minute."""
        ...

    async def stop(self) -> None:
        """Free the model before the process ends."""
        ...


class ReplicaDied(Exception):
    """The replica's process or engine is gone; its unfinished rows have no outcome."""


class ReplicaLoadError(Exception):
    """The model could not be loaded; the message says why."""


class ReplicaHandle(Protocol):
    """The dispatcher's end of one replica. After `ReplicaDied` or a failed `ready` it is of no more use than `stop`."""

    async def placed(self) -> None:
        """
        Wait until its process runs, for as long as others have its place.

        Raises:
            ReplicaLoadError: it can't be started.
        """
        ...

    async def ready(self) -> ReplicaInfo:
        """
        Wait until the model is loaded.

        Raises:
            ReplicaLoadError: it could not be loaded, or its process ended while loading.
        """
        ...

    def run(self, handout: HandOut) -> AsyncIterator[list[Outcome]]:
        """
        Send a hand-out and yield its finished rows as they come.

        Raises:
            ReplicaDied: the replica is gone; rows not yielded yet have no outcome.
        """
        ...

    async def abort(self, handout_id: int) -> None:
        """Stop the unfinished rows of a hand-out; its `run` ends. Never raises."""
        ...

    async def beat(self) -> None:
        """
        Wait for a sign of life, for ever if none comes.

        Raises:
            ReplicaDied: the replica is gone.
        """
        ...

    async def kill(self) -> None:
        """End the replica without asking it, because it does not answer; `stop` is still due. Never raises."""
        ...

    async def stop(self) -> None:
        """End the replica and all its processes. Safe to repeat; never raises."""
        ...


class Pool(Protocol):
    """Where replicas run."""

    async def start(self) -> None:
        """Make the place ready (start Ray, …)."""
        ...

    async def start_replica(self, spec: ModelSpec) -> ReplicaHandle:
        """Begin to load one replica of a model; `ready()` of the handle waits for it."""
        ...

    async def stop(self) -> None:
        """Stop every replica and free the place; leaves no process and no file behind."""
        ...


_handout_decoder = msgspec.msgpack.Decoder(HandOut)
_outcomes_decoder = msgspec.msgpack.Decoder(list[Outcome])
_encoder = msgspec.msgpack.Encoder()


def encode_handout(handout: HandOut) -> bytes:
    """Write a hand-out for another process."""
    return _encoder.encode(handout)


def decode_handout(data: bytes) -> HandOut:
    """Read a hand-out."""
    return _handout_decoder.decode(data)


def encode_outcomes(outcomes: Sequence[Outcome]) -> bytes:
    """Write finished rows for another process."""
    return _encoder.encode(outcomes)


def decode_outcomes(data: bytes) -> list[Outcome]:
    """Read finished rows."""
    return _outcomes_decoder.decode(data)
