"""
The engine's settings: arguments, then `MILKRUN_*` environment variables, then defaults.
"""

import ipaddress
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Self

from milkrun.local import default_data_dir

REPLICAS = ("vllm", "echo")
POOLS = ("local", "ray")
_TRUTH = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}
DEFAULT_POOL = {"vllm": "ray", "echo": "local"}


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSettings:
    """
    What an engine is started with; frozen, and safe to print: secrets hide in its repr.

    Args:
        host: address to listen on; loopback unless somebody else is to reach it.
        port: 0 takes a free one.
        data_dir: ledger, blobs, models and logs; one engine at a time uses it.
        database_url: a Postgres database for the ledger (`postgresql://…`), which several engines may share; SQLite
            in the data directory when absent.
        blob_dir: inputs and results; one folder for all engines of a database. `blobs` in the data directory
            when absent.
        replica: what generates: vllm, or the echo stand-in for tests.
        pool: where replicas run: ray, or local child processes.
        models: a models.yaml; the default models when absent.
        admin_key: the first API key, taken as it is; a new one is made when absent.
        public_url: how others reach this engine, for links; the listening address when absent.
        is_local: the one engine that a user's clients start by themselves: it ends when idle.
        idle_seconds: how long a local engine stays without jobs and callers.
        callback_private: callbacks may go to private and loopback addresses; as `calls_private` decides when absent.
        give_up_seconds: rows end as `model_unavailable` when their model failed for so long.
        replica_load_seconds: a replica that has not loaded its model after so long is ended, and started again.
        replica_silence_seconds: a replica that runs and gives no sign of life for so long is killed, and started again.
    """

    host: str = "127.0.0.1"
    port: int = 8787
    data_dir: Path = field(default_factory=default_data_dir)
    database_url: str | None = field(default=None, repr=False)
    blob_dir: Path | None = None
    replica: str = "vllm"
    pool: str | None = None
    models: Path | None = None
    admin_key: str | None = field(default=None, repr=False)
    public_url: str | None = None
    is_local: bool = False
    idle_seconds: float = 600.0
    give_up_seconds: float = 1_800.0
    callback_private: bool | None = None
    replica_load_seconds: float = 3_600.0
    replica_silence_seconds: float = 300.0

    @classmethod
    def read(cls, environ: Mapping[str, str] = os.environ, **arguments: Any) -> Self:
        """
        Build the settings; an argument that is None counts as not given.

        Raises:
            ValueError: a value can't be used; the message names it.
        """
        values: dict[str, Any] = {}
        for known in fields(cls):
            if arguments.get(known.name) is not None:
                values[known.name] = arguments[known.name]
            elif known.name != "is_local" and (text := environ.get(f"MILKRUN_{known.name.upper()}")):
                values[known.name] = _parse(known.name, text)
        settings = cls(**values)
        for name, value, allowed in (("replica", settings.replica, REPLICAS), ("pool", settings.pool_name, POOLS)):
            if value not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}, not {value!r}")
        if settings.database_url is not None:
            if not settings.database_url.startswith(("postgresql://", "postgres://")):
                raise ValueError("database_url must begin with postgresql:// (leave it out for SQLite)")
            if settings.admin_key is None:
                raise ValueError("engines that share a database need a key in common: set MILKRUN_ADMIN_KEY")
        return settings

    @property
    def pool_name(self) -> str:
        """The pool: as given, or the usual one of the replica."""
        return self.pool or DEFAULT_POOL.get(self.replica, "local")

    @property
    def ledger(self) -> Path | str:
        """Where the ledger is, as `Store` takes it."""
        return self.database_url or self.data_dir / "milkrun.db"

    @property
    def blobs(self) -> Path:
        """The folder of inputs and results."""
        return self.blob_dir or self.data_dir / "blobs"

    @property
    def calls_private(self) -> bool:
        """Callbacks to private addresses: as given, or if only this host's own users reach the engine."""
        if self.callback_private is not None:
            return self.callback_private
        return self.is_local or is_loopback(self.host)


def is_loopback(host: str) -> bool:
    """Whether an address is this host's own, which nobody else reaches."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _parse(name: str, text: str) -> Any:
    match name:
        case "port":
            kind: Any = int
        case "idle_seconds" | "give_up_seconds" | "replica_load_seconds" | "replica_silence_seconds":
            kind = float
        case "callback_private":
            if text.lower() not in _TRUTH:
                raise ValueError(f"MILKRUN_CALLBACK_PRIVATE must be 1 or 0, not {text!r}")
            return _TRUTH[text.lower()]
        case "data_dir" | "models" | "blob_dir":
            return Path(text).expanduser()
        case _:
            return text
    try:
        return kind(text)
    except ValueError:
        raise ValueError(f"MILKRUN_{name.upper()} must be a number, not {text!r}") from None
