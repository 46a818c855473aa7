"""
How a duty runs: over and over, and an error in one round is logged and slows it, never ends it.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable

log = logging.getLogger(__name__)
_ERROR_PAUSE_SECONDS = 1.0


async def repeat(name: str, run_once: Callable[[], Awaitable[None]]) -> None:
    """Run rounds until cancelled; a round waits by itself when there is nothing to do."""
    while True:
        try:
            await run_once()
        except asyncio.CancelledError:
            raise
        except Exception:
            log.exception("a duty failed; it goes on", extra={"action": "duty_failed", "duty": name})
            await asyncio.sleep(_ERROR_PAUSE_SECONDS)
