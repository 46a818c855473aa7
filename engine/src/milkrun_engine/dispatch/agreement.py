"""
Whether the engines of one ledger declare the same models: each has a file of its own, and one may be older.

Nothing fails for it: what the dispatching engine does not declare waits for one that does.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import Any

from milkrun_engine.domain.models import ModelSpec

log = logging.getLogger(__name__)
_ROUND_SECONDS = 10.0
DECLARED = "declared"  #: among the facts of a pool: the fingerprint of its model


def differences(mine: Mapping[str, ModelSpec], told: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """
    In words, how the dispatching engine's models differ from these; nothing when it has not told them.

    Args:
        told: the facts of its pools.
    """
    if not told:
        return []
    found = [f"it lacks {name}" for name in sorted(mine.keys() - told.keys())]
    found += [f"only it has {name}" for name in sorted(told.keys() - mine.keys())]
    for name in sorted(mine.keys() & told.keys()):
        if told[name].get(DECLARED, mine[name].fingerprint) != mine[name].fingerprint:
            found.append(f"it declares {name} otherwise")
    return found


class Agreement:
    """Warns in the log when this engine's models and the dispatching one's differ, once for each difference."""

    def __init__(self, models: Mapping[str, ModelSpec], told: Callable[[], Mapping[str, Mapping[str, Any]]]) -> None:
        self._models = models
        self._told = told
        self._known: list[str] = []

    async def run_once(self) -> None:
        """Look once, then pause."""
        found = differences(self._models, self._told())
        if found and found != self._known:
            extra = {"action": "models_differ", "differences": found}
            log.warning("the dispatching engine reads another models.yaml", extra=extra)
        self._known = found
        await asyncio.sleep(_ROUND_SECONDS)
