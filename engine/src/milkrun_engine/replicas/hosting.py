"""
What every process that hosts a replica does, whichever pool started it.
"""

import logging
import os
import re
import sys
import traceback
from collections.abc import AsyncIterator
from pathlib import Path

from milkrun_engine.domain.models import ModelSpec
from milkrun_engine.replicas.base import HandOut, Outcome, Replica, ReplicaInfo, ReplicaLoadError
from milkrun_engine.replicas.catalog import make_replica

log = logging.getLogger(__name__)
_MAX_LOG_BYTES = 4 << 20


async def load(spec: ModelSpec, data_dir: Path) -> tuple[Replica, ReplicaInfo]:
    """
    Make and load a replica; from here on the process and its children write to the model's log.

    Raises:
        ReplicaLoadError: with a message for the operator, which names the log.
    """
    path = _write_to_log(spec, data_dir)
    try:
        replica = make_replica(spec, data_dir)
        return replica, await replica.start()
    except ReplicaLoadError as error:
        log.error("model not loaded: %s", error, extra={"action": "load_failed"})  # noqa: TRY400 (it says all)
        raise ReplicaLoadError(f"{error} (log: {path})") from error
    except Exception as error:
        log.exception("model not loaded", extra={"action": "load_failed"})
        raise ReplicaLoadError(f"model {spec.name} could not be loaded: {error!r} (log: {path})") from error


async def outcomes(replica: Replica, handout: HandOut) -> AsyncIterator[list[Outcome]]:
    """Run a hand-out; a replica that raises has broken its promise and can't be trusted any more, so it ends here."""
    try:
        async for finished in replica.generate(handout):
            yield finished
    except Exception as error:
        where = "".join(traceback.format_tb(error.__traceback__))  # the message itself may quote a row
        log.critical("replica broken: %s\n%s", type(error).__name__, where, extra={"action": "replica_broken"})
        os._exit(1)


def _write_to_log(spec: ModelSpec, data_dir: Path) -> Path:
    folder = data_dir / "logs"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / (re.sub(r"[^\w.-]", "_", spec.name) + ".log")
    if path.exists() and path.stat().st_size > _MAX_LOG_BYTES:
        path.replace(path.with_suffix(".log.1"))
    with path.open("ab") as file:
        os.dup2(file.fileno(), sys.stdout.fileno())
        os.dup2(file.fileno(), sys.stderr.fileno())
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, format="%(asctime)s %(levelname)s %(message)s")
    return path
