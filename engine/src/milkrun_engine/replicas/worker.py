"""
The process of a local replica: `python -m milkrun_engine.replicas.worker`, started by `local.LocalPool`.

Its standard input is a socket to the engine. It ends, with every process of its group, when
the engine stops it or is gone.
"""

import asyncio
import atexit
import os
import select
import signal
import socket
import threading
from pathlib import Path

from milkrun_engine.replicas import frames, hosting, remains
from milkrun_engine.replicas.base import HandOut, Replica, ReplicaLoadError

_STOP_SECONDS = 10.0


async def serve(engine: socket.socket) -> None:
    """Load the model that the engine names, and run hand-outs until it says stop or is gone."""
    reader, writer = await asyncio.open_unix_connection(sock=engine)
    first = await frames.read_command(reader)
    if not isinstance(first, frames.Load):
        return
    data_dir = Path(first.data_dir)
    scratch = Path(first.scratch)
    atexit.register(remains.remove, scratch, data_dir)  # a killed engine can't; a living one does so again
    loaded = threading.Event()
    threading.Thread(target=_end_with, args=(engine, loaded, scratch), daemon=True).start()
    try:
        replica, info = await hosting.load(first.spec, data_dir)
    except ReplicaLoadError as error:
        writer.write(frames.pack(frames.LoadFailed(str(error))))
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
            case frames.Beat():
                tasks.add(task := asyncio.create_task(_beat(replica, writer)))
                task.add_done_callback(tasks.discard)
            case _:  # stop, or the engine is gone
                break
    # An orderly end frees shared memory; a thread of vLLM's must not hold it up for ever.
    last = threading.Timer(_STOP_SECONDS, _end_now, (scratch,))
    last.daemon = True
    last.start()
    await replica.stop()


async def _run(replica: Replica, handout: HandOut, writer: asyncio.StreamWriter) -> None:
    try:
        async for finished in hosting.outcomes(replica, handout):
            writer.write(frames.pack(frames.Rows(handout.id, finished)))
            await writer.drain()
        writer.write(frames.pack(frames.End(handout.id)))
    except ConnectionError:
        pass  # the engine is gone: the command loop ends the process
    except Exception:
        os._exit(1)  # the hand-out would stay open for ever; so its rows go back


async def _beat(replica: Replica, writer: asyncio.StreamWriter) -> None:
    try:
        await replica.beat()
        writer.write(frames.pack(frames.Alive()))
    except ConnectionError:
        pass  # the engine is gone: the command loop ends the process
    except Exception:
        os._exit(1)  # the engine would wait for this beat until it takes the replica for frozen


def _end_with(engine: socket.socket, loaded: threading.Event, scratch: Path) -> None:
    """End the process when the engine goes while the model loads, which blocks the event loop."""
    poll = select.poll()
    poll.register(engine, select.POLLRDHUP)
    while not loaded.wait(0.2):
        if poll.poll(0):
            _end_now(scratch)


def _end_now(scratch: Path) -> None:
    """End this process and those it started, whatever they are at."""
    if os.getpgrp() == os.getpid():  # else the group is not ours to end
        remains.end(os.getpid(), scratch)
    os._exit(0)


def main() -> None:
    """Take the socket from standard input, so that no child of ours inherits it, and serve."""
    engine = socket.socket(fileno=os.dup(0))
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the engine's to handle
    asyncio.run(serve(engine))


if __name__ == "__main__":
    main()
