"""
Blobs that were written for the ledger, which may not have taken them.
"""

from collections.abc import Sequence

from milkrun_engine.blobs.local import LocalBlobs
from milkrun_engine.failpoints import Point, reached
from milkrun_engine.store import Store


def delete_unnamed(store: Store, blobs: LocalBlobs, names: Sequence[str]) -> int:
    """
    Delete those of the blobs that no row of the ledger names; returns how many. Blocking.

    It asks first, because a commit whose answer was an error may have happened.
    """
    unnamed = set(names) - store.named_blobs(names)
    for name in unnamed:
        reached(Point.leftover_found)
        blobs.delete(name)
    return len(unnamed)
