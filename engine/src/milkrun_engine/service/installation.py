"""
One ledger, one folder of blobs: an engine that sees another one must not start.
"""

from pathlib import Path

from milkrun_engine.blobs import marks
from milkrun_engine.store import Store


class WrongBlobs(ValueError):
    """The folder of blobs is not this ledger's; the message says what to do."""


def claim_blobs(store: Store, root: Path) -> None:
    """
    Make sure that these are the ledger's blobs; the first engine of a ledger puts its name into the folder.

    Raises:
        WrongBlobs: they are another ledger's, or the folder that the ledger knows is somewhere else.
    """
    mine = store.installation.id

    def mark() -> None:  # the first engine may have ended between the mark and the ledger's note of it
        if marks.read(root, marks.OWNER) is None:
            marks.write(root, marks.OWNER, mine)

    store.installation.mark_first(mark)
    check_blobs(store, root)


def check_blobs(store: Store, root: Path) -> None:
    """
    Refuse a folder that bears another name than its ledger, or none although it should.

    Raises:
        WrongBlobs: saying which it is.
    """
    found = marks.read(root, marks.OWNER)
    mine = store.installation.id
    if found is not None and found != mine:
        raise WrongBlobs(
            f"the blobs in {root} are of another ledger ({found}, this one is {mine}): MILKRUN_BLOB_DIR and "
            "MILKRUN_DATABASE_URL or --data-dir do not belong together; an empty folder belongs to a new ledger"
        )
    if found is None and store.installation.has_marked:
        raise WrongBlobs(
            f"the ledger's blobs are not in {root}, which lacks the file {marks.OWNER}: all engines of a ledger need "
            "the same MILKRUN_BLOB_DIR, and a mount that is away must be there first. If these are its blobs all "
            f"the same, write {mine} into that file"
        )


def check_restored(root: Path) -> None:
    """
    Refuse a folder that a restore has not finished.

    Raises:
        WrongBlobs: saying how it is finished.
    """
    if marks.read(root, marks.RESTORING) is not None:
        raise WrongBlobs(f"a restore into {root} was not finished; run the same `milkrun restore` again")
