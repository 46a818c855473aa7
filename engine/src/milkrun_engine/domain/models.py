"""
A model as the operator declares it, once, in `models.yaml`.
"""

import hashlib
import json
from dataclasses import asdict, dataclass, field
from typing import Any

from milkrun.status import JobKind


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """
    One model with its engine arguments: what a pool serves.

    Args:
        name: what jobs call it; also the pool's name.
        weights: a folder, a hub id, or `package:<distribution>` for weights that ship in a Python package.
        kind: what its replicas answer.
        replica: which replica class runs it: `vllm` or `echo`.
        engine_args: passed on to vLLM's `AsyncEngineArgs`, over the profile of the device.
        is_default: jobs of this kind that name no model get it.
        replicas: how many replicas its pool keeps while it has work.
        tokens_per_second: a first guess of one replica's throughput; sizes chunks (about 20 s each).
        idle_seconds: a replica with no work is stopped after this long.
    """

    name: str
    weights: str
    kind: JobKind = JobKind.generate
    replica: str = "vllm"
    engine_args: dict[str, Any] = field(default_factory=dict)
    is_default: bool = False
    replicas: int = 1
    tokens_per_second: int = 2_000
    idle_seconds: float = 600.0

    @property
    def fingerprint(self) -> str:
        """Differs when anything in the declaration does."""
        declared = json.dumps(asdict(self), sort_keys=True, default=str)
        return hashlib.sha256(declared.encode()).hexdigest()[:16]
