"""
Seeded sampling on a CPU, which vLLM 0.32 dies of; its worker processes load this module (`worker_extension_cls`).

Every sampled row has a seed, so vLLM keeps a random generator for it. When a prompt is read in parts, the token
sampled after a part is thrown away and the generator set back by an offset, which generators of a CPU do not have:
the engine core ends, with all rows in flight. Here such a generator begins anew from its seed, as if it had not been
asked: a part of a prompt comes before the row's first token. (A row that was preempted repeats its random numbers.)
"""

import functools
from collections.abc import Callable
from typing import Any

from vllm.v1.worker.gpu_model_runner import GPUModelRunner


class CpuSampling:
    """What vLLM adds to its worker's class; it is here for this module to be loaded."""


def _setting_back(bookkeep: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(bookkeep)
    def bookkeeping(self: Any, *args: Any, **options: Any) -> Any:
        generators, thrown_away = self.input_batch.generators, self.discard_request_mask.np
        held = {place: generators.pop(place) for place in list(generators) if thrown_away[place]}
        for generator in held.values():
            generator.manual_seed(generator.initial_seed())
        try:
            return bookkeep(self, *args, **options)
        finally:
            generators.update(held)

    return bookkeeping


GPUModelRunner._bookkeeping_sync = _setting_back(GPUModelRunner._bookkeeping_sync)  # noqa: SLF001 (vLLM has no hook)
