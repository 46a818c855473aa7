"""
The process of a local replica: `python -m milkrun_engine.replicas.worker`, started by `local.LocalPool`.

Its standard input is a socket to the engine. It ends, with every process of its group, when
the engine stops it or is gone.
"""

import asyncio
import logging
import os
import select
import signal
import socket
import sys
import threading
import traceback
from pathlib import Path

from milkrun_engine.replicas import frames
from milkrun_engine.replicas.base import HandOut, Replica, ReplicaLoadError
from milkrun_engine.replicas.catalog import make_replica

log = logging.getLogger(__name__)
_STOP_SECONDS = 10.0


async def serve(engine: socket.socket) -> None:
    """Load the model that the engine names, and run hand-outs until it says stop or is gone."""
    reader, writer = await asyncio.open_unix_connection(sock=engine)
    first = await frames.read_command(reader)
    if not isinstance(first, frames.Load):
        return
    loaded = threading.Event()
    threading.Thread(target=_end_with, args=(engine, loaded), daemon=True).start()
    try:
        replica = make_replica(first.spec, Path(first.data_dir))
        info = await replica.start()
    except Exception as error:
        facts = {"action": "load_failed", "model": first.spec.name}
        log.exception("model not loaded", extra=facts, exc_info=not isinstance(error, ReplicaLoadError))
        writer.write(frames.pack(frames.LoadFailed(f"{error}" or type(error).__name__)))
        await writer.drain()
        return
    finally:
        loaded.set()
    writer.write(frames.pack(frames.Ready(info)))
    tasks: set[asyncio.Task[None]] = set()
    while True:
        match await frames.read_command(reader):
            case frames.Run(handout):
                tasks.add(task := asyncio.create_task(_run(replica, handout, writer)))
                task.add_done_callback(tasks.discard)
            case frames.Abort(handout_id):
                await replica.abort(handout_id)
            case _:  # stop, or the engine is gone
                break
    async with asyncio.timeout(_STOP_SECONDS):
        await replica.stop()


async def _run(replica: Replica, handout: HandOut, writer: asyncio.StreamWriter) -> None:
    try:
        async for outcomes in replica.generate(handout):
            writer.write(frames.pack(frames.Rows(handout.id, outcomes)))
            await writer.drain()
        writer.write(frames.pack(frames.End(handout.id)))
    except ConnectionError:
        pass  # the engine is gone; the command loop ends the process
    except Exception as error:
        # A replica never raises here: what it holds can't be trusted any more. The message may quote a row.
        where = "".join(traceback.format_tb(error.__traceback__))
        log.critical("replica broken: %s\n%s", type(error).__name__, where, extra={"action": "replica_broken"})
        os._exit(1)


def _end_with(engine: socket.socket, loaded: threading.Event) -> None:
    """End the process when the engine goes while the model loads, which blocks the event loop."""
    poll = select.poll()
    poll.register(engine, select.POLLRDHUP)
    while not loaded.wait(0.2):
        if poll.poll(0):
            _end_group()


def _end_group() -> None:
    """End this process and those it started; as leader of its group it can miss none that stayed in it."""
    if os.getpgrp() == os.getpid():
        os.killpg(os.getpid(), signal.SIGKILL)
    os._exit(0)


def main() -> None:
    """Take the socket from standard input, so that no child of ours inherits it, and serve."""
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
    engine = socket.socket(fileno=os.dup(0))
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the engine's to handle
    try:
        asyncio.run(serve(engine))
    finally:
        _end_group()


if __name__ == "__main__":
    main()
