"""
What a local replica's process and the engine say to each other: length-prefixed msgpack over one socket.

The engine sends `Load` once, then `Run`, `Abort`, `Beat` and `Stop`; the process answers `Ready` or
`LoadFailed`, then `Rows` and one `End` for each hand-out, and `Alive` to a beat. A closed socket is the end of either.
"""

import asyncio

import msgspec

from milkrun_engine.domain.models import ModelSpec
from milkrun_engine.replicas.base import HandOut, Outcome, ReplicaInfo


class _Frame(msgspec.Struct, frozen=True, array_like=True, tag=True):
    pass


class Load(_Frame, frozen=True):
    spec: ModelSpec
    data_dir: str
    scratch: str  #: the replica's temporary folder


class Run(_Frame, frozen=True):
    handout: HandOut


class Abort(_Frame, frozen=True):
    handout_id: int


class Beat(_Frame, frozen=True):
    pass


class Stop(_Frame, frozen=True):
    pass


class Ready(_Frame, frozen=True):
    info: ReplicaInfo


class LoadFailed(_Frame, frozen=True):
    message: str


class Rows(_Frame, frozen=True):
    handout_id: int
    outcomes: list[Outcome]


class End(_Frame, frozen=True):
    handout_id: int


class Alive(_Frame, frozen=True):
    pass


Command = Load | Run | Abort | Beat | Stop
Report = Ready | LoadFailed | Rows | End | Alive

encode = msgspec.msgpack.Encoder().encode
decode_command = msgspec.msgpack.Decoder(Command).decode
decode_report = msgspec.msgpack.Decoder(Report).decode


def pack(frame: Command | Report) -> bytes:
    """Write a frame with its length in front."""
    data = encode(frame)
    return len(data).to_bytes(4) + data


async def read_command(reader: asyncio.StreamReader) -> Command | None:
    """Read the engine's next command, or None when it has gone."""
    data = await _read(reader)
    return None if data is None else decode_command(data)


async def read_report(reader: asyncio.StreamReader) -> Report | None:
    """Read the process's next report, or None when it has gone."""
    data = await _read(reader)
    return None if data is None else decode_report(data)


async def _read(reader: asyncio.StreamReader) -> bytes | None:
    try:
        return await reader.readexactly(int.from_bytes(await reader.readexactly(4)))
    except (asyncio.IncompleteReadError, ConnectionError):
        return None
