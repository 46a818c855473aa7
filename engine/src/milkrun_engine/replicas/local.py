"""
The local pool: each replica is a child process of the engine, in a process group of its own.
"""

import asyncio
import contextlib
import logging
import os
import socket
import sys
from collections.abc import AsyncIterator
from pathlib import Path

from milkrun_engine.domain.models import ModelSpec
from milkrun_engine.replicas import frames, remains
from milkrun_engine.replicas.base import HandOut, Outcome, ReplicaDied, ReplicaInfo, ReplicaLoadError
from milkrun_engine.replicas.profiles import environment

log = logging.getLogger(__name__)
_STOP_SECONDS = 15.0  # a loaded vLLM needs a few


class LocalPool:
    """Replicas on this host, without Ray."""

    def __init__(self, data_dir: Path) -> None:
        self._data_dir = data_dir.absolute()
        self._handles: set[LocalHandle] = set()

    async def start(self) -> None:
        """Remove what a killed engine left."""
        await asyncio.to_thread(remains.sweep, self._data_dir)

    async def start_replica(self, spec: ModelSpec) -> "LocalHandle":
        """Start the process of one replica, which begins to load its model."""
        scratch = remains.make(self._data_dir)
        try:
            handle = await self._spawn(spec, scratch)
        except BaseException:  # cancelled, too: no handle will remove it
            await asyncio.to_thread(remains.remove, scratch, self._data_dir)
            raise
        self._handles = {known for known in self._handles if known.alive} | {handle}
        return handle

    async def _spawn(self, spec: ModelSpec, scratch: Path) -> "LocalHandle":
        variables = environment(spec, self._data_dir, scratch)
        ours, theirs = socket.socketpair()
        with theirs:
            reader, writer = await asyncio.open_unix_connection(sock=ours)
            try:  # the last step that waits: asyncio ends the process itself when it is cancelled here
                process = await asyncio.create_subprocess_exec(
                    sys.executable, "-m", "milkrun_engine.replicas.worker",
                    stdin=theirs.fileno(), stdout=2, env={**os.environ, **variables}, process_group=0,
                )  # fmt: skip
            except BaseException:
                writer.close()
                raise
        writer.write(frames.pack(frames.Load(spec, str(self._data_dir), str(scratch))))
        return LocalHandle(process, reader, writer, scratch, self._data_dir)

    async def stop(self) -> None:
        """Stop every replica."""
        await asyncio.gather(*(handle.stop() for handle in self._handles))
        self._handles.clear()


class LocalHandle:
    """The engine's end of one replica process."""

    def __init__(
        self,
        process: asyncio.subprocess.Process,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        scratch: Path,
        data_dir: Path,
    ) -> None:
        self._process = process
        self._reader = reader
        self._writer = writer
        self._scratch = scratch
        self._data_dir = data_dir
        self._ready: asyncio.Future[ReplicaInfo] = asyncio.get_running_loop().create_future()
        self._ready.add_done_callback(_seen)
        self._outputs: dict[int, asyncio.Queue[frames.Rows | frames.End | None]] = {}
        self._alive = asyncio.Event()
        self._gone = False
        self._tasks = [asyncio.create_task(self._read()), asyncio.create_task(self._watch())]

    @property
    def alive(self) -> bool:
        """Whether anything of the replica may still run."""
        return not self._tasks[1].done()

    async def placed(self) -> None:
        """See `ReplicaHandle`: there is always a place on this host."""

    async def ready(self) -> ReplicaInfo:
        """Wait until the model is loaded; see `ReplicaHandle`."""
        return await asyncio.shield(self._ready)

    async def run(self, handout: HandOut) -> AsyncIterator[list[Outcome]]:
        """Run a hand-out; see `ReplicaHandle`. Leaving the loop early aborts it."""
        if self._gone:
            raise ReplicaDied(f"replica process {self._process.pid} is gone")
        output = self._outputs[handout.id] = asyncio.Queue()
        ended = False
        try:
            self._writer.write(frames.pack(frames.Run(handout)))
            while not ended:
                match await output.get():
                    case frames.Rows(_, outcomes):
                        yield outcomes
                    case frames.End():
                        ended = True
                    case None:
                        raise ReplicaDied(f"replica process {self._process.pid} ended")
        finally:
            del self._outputs[handout.id]
            if not ended:
                await self.abort(handout.id)

    async def abort(self, handout_id: int) -> None:
        """Stop the unfinished rows of a hand-out; never raises."""
        if not self._gone:
            self._writer.write(frames.pack(frames.Abort(handout_id)))

    async def beat(self) -> None:
        """Wait for a sign of life; see `ReplicaHandle`."""
        if not self._gone:
            self._alive.clear()
            self._writer.write(frames.pack(frames.Beat()))
            await self._alive.wait()
        if self._gone:
            raise ReplicaDied(f"replica process {self._process.pid} is gone")

    async def kill(self) -> None:
        """End the process at once; see `ReplicaHandle`."""
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()

    async def stop(self) -> None:
        """End the process and its group: politely, then by force."""
        if not self._gone:
            self._writer.write(frames.pack(frames.Stop()))
        try:
            async with asyncio.timeout(_STOP_SECONDS if self._ready.done() else 0):
                await self._process.wait()
        except TimeoutError:
            pass
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        await asyncio.wait(self._tasks)  # unlike gather it leaves them be when this call is cancelled
        self._writer.close()

    async def _read(self) -> None:
        """Pass on what the process says, until it has gone: a hand-out without its `End` by then died with it."""
        try:
            while (report := await frames.read_report(self._reader)) is not None:
                self._take(report)
        except Exception:  # no report that can be read, or no memory for it: nobody hears this replica any more
            log.exception("a replica's report can't be read", extra={"action": "bad_report"})
            await self.kill()
        self._gone = True
        self._alive.set()
        for output in self._outputs.values():
            output.put_nowait(None)
        code = await self._process.wait()
        if not self._ready.done():
            self._ready.set_exception(ReplicaLoadError(f"the replica's process ended with {code} while loading"))

    def _take(self, report: frames.Report) -> None:
        match report:
            case frames.Ready(info):
                remains.note(self._scratch, info.pids)
                self._ready.set_result(info)
            case frames.LoadFailed(message):
                self._ready.set_exception(ReplicaLoadError(message))
            case frames.Alive():
                self._alive.set()
            case frames.Rows(handout_id) | frames.End(handout_id):
                if output := self._outputs.get(handout_id):
                    output.put_nowait(report)

    async def _watch(self) -> None:
        code = await self._process.wait()
        # A child that outlived it would keep memory and cores.
        await asyncio.to_thread(remains.end, self._process.pid, self._scratch)
        await asyncio.to_thread(remains.remove, self._scratch, self._data_dir)
        log.info("replica ended", extra={"action": "replica_ended", "pid": self._process.pid, "code": code})


def _seen(future: "asyncio.Future[ReplicaInfo]") -> None:
    """Mark a load error as seen: nobody need be waiting for it."""
    if not future.cancelled():
        future.exception()
