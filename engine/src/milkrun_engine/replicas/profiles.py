"""
The measured settings of each device: engine arguments and process environment for vLLM, in one place.

Explicit, because vLLM's own defaults differ between its entry points: an `AsyncLLM` without
them runs with an eighth of the offline scheduler's budget. A model's `engine_args` win over
the profile, a variable that the operator has set over the environment.
"""

import os
import sys
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from milkrun.status import JobKind
from milkrun_engine.domain.models import ModelSpec
from milkrun_engine.replicas.weights import is_local

HANDOUT_ROWS = 16
DEFAULT_MAX_TOKENS = 1_024  #: of an answer whose row and job set no `max_tokens`

_COMMON: dict[str, Any] = {
    "trust_remote_code": False,
    "load_format": "safetensors",  # never a pickle
    "enable_prompt_tokens_details": True,  # cached tokens are counted
    "disable_log_stats": True,
}
_GENERATE: dict[str, Any] = {
    "enable_prefix_caching": True,
    "scheduling_policy": "priority",  # a sooner row jumps vLLM's waiting queue
    # A small model fills JSON with white space up to its last token.
    "structured_outputs_config": {"backend": "xgrammar", "disable_any_whitespace": True},
}
# Two Xeon cores, SmolLM2-135M, 96 rows: 19.7 s by default; 13.1 s with float32 (bfloat16 is slow without AMX);
# 9.8 s with blocks of 32 (128 by default: a prefix is cached in whole blocks only). 512 and 2,048 batched tokens
# are equal in throughput; 512 gives shorter steps. Compiling gains 2 to 6 % for 79 s of start.
_CPU: dict[str, Any] = {
    "enforce_eager": True,
    "distributed_executor_backend": "mp",
    "kv_cache_memory_bytes": 2 << 30,  # else a fraction of all memory, which fails where memory is busy
}
_CPU_GENERATE: dict[str, Any] = {
    "worker_extension_cls": "milkrun_engine.replicas.vllm_cpu.CpuSampling",  # without it seeded rows end the engine
    "block_size": 32,
    "max_num_batched_tokens": 512,
    "max_num_seqs": 64,
}
_CPU_EMBED: dict[str, Any] = {"max_num_seqs": 64, "kv_cache_memory_bytes": 256 << 20}
# What vLLM's offline class takes on a GPU of ordinary size; not measured by us.
_GPU_GENERATE: dict[str, Any] = {"max_num_batched_tokens": 8_192, "max_num_seqs": 256}


@cache
def device() -> str:
    """Tell whether the installed vLLM is built for the `cpu` or a `gpu`, without importing it."""
    try:
        version("vllm-cpu")
    except PackageNotFoundError:
        try:
            return "cpu" if "cpu" in version("vllm") else "gpu"
        except PackageNotFoundError:
            pass
    return "cpu"


def engine_arguments(spec: ModelSpec) -> dict[str, Any]:
    """Write out the arguments of a model's engine, by their names in vLLM."""
    generates = spec.kind is JobKind.generate
    profile = _COMMON | (_GENERATE if generates else {"runner": "pooling"})
    if device() == "cpu":
        profile |= _CPU | {"dtype": _cpu_dtype()} | (_CPU_GENERATE if generates else _CPU_EMBED)
    elif generates:
        profile |= _GPU_GENERATE
    return profile | spec.engine_args


def environment(spec: ModelSpec, data_dir: Path, scratch: Path) -> dict[str, str]:
    """Name the variables that a replica's process needs from its first instruction on."""
    if spec.replica != "vllm":
        return {}
    variables = {
        "VLLM_CACHE_ROOT": str(data_dir / "cache" / "vllm"),
        "TORCHINDUCTOR_CACHE_DIR": str(data_dir / "cache" / "torch"),
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
        "VLLM_HOST_IP": "127.0.0.1",  # its own sockets stay on this host
        "GLOO_SOCKET_IFNAME": "lo",
    }
    if is_local(spec.weights):
        variables |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    if device() == "cpu":
        cores = len(os.sched_getaffinity(0))
        variables |= {
            "VLLM_CPU_OMP_THREADS_BIND": "auto",
            "VLLM_CPU_NUM_OF_RESERVED_CPU": "0" if cores <= 2 else "1",  # by default half of a small machine
        }
        if engine_arguments(spec)["enforce_eager"]:
            # Its sampler compiles parts even so: 30 s before the first sampled row, and a need of g++.
            variables["TORCH_COMPILE_DISABLE"] = "1"
        if libraries := _preloads():
            variables["LD_PRELOAD"] = ":".join(libraries)
    return {name: value for name, value in variables.items() if name not in os.environ} | {"TMPDIR": str(scratch)}


def _cpu_dtype() -> str:
    """Choose bfloat16 only where the CPU has tiles for it."""
    info = Path("/proc/cpuinfo")
    return "bfloat16" if info.exists() and "amx_bf16" in info.read_text() else "float32"


def _preloads() -> list[str]:
    """Find the allocator and the OpenMP runtime that vLLM is fastest with (10 %), where they are installed."""
    found = [
        next(iter(sorted(folder.glob("libtcmalloc_minimal.so.*"))), None)
        for folder in (Path("/usr/lib/x86_64-linux-gnu"), Path("/usr/lib/aarch64-linux-gnu"))
    ]
    openmp = Path(sys.prefix) / "lib" / "libiomp5.so"  # of the package intel-openmp
    return [str(path) for path in (*found, openmp) if path is not None and path.exists()]
