"""
A lease: the right to work a chunk until a time on the database's clock.
"""

from dataclasses import dataclass, field

LEASE_SECONDS = 10.0
HEARTBEAT_SECONDS = 3.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Suspicion:
    """How often a row was in flight when its replica died."""

    deaths: int = 0
    alone: int = 0  #: of those, the times it ran alone

    @property
    def is_guilty(self) -> bool:
        """A row that kills alone twice becomes `engine_crash`."""
        return self.alone >= 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """A claimed chunk: what to work on, and the two epochs that its commit must still find."""

    chunk_id: int
    number: int  #: the chunk's place in its job
    job_id: str
    tenant_id: str
    pool: str
    rank: float
    priority: int
    epoch: int
    job_epoch: int
    attempts: int
    rows: int
    input_blob: str
    input_sha256: str
    defaults: bytes
    suspects: dict[int, Suspicion] = field(default_factory=dict)  #: by slot
