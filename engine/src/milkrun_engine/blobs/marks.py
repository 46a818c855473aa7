"""
Two small files in the root of a blob folder: whose blobs these are, and that a restore into it is not finished.
"""

from pathlib import Path

from milkrun_engine.blobs.files import FileSystem

OWNER = "milkrun-ledger.txt"  #: names the ledger whose blobs these are
RESTORING = "milkrun-restoring.txt"  #: names the ledger that a restore is bringing
MARKS = frozenset({OWNER, RESTORING})


def read(root: Path, mark: str) -> str | None:
    """What a mark says; None where it is not."""
    try:
        return (root / mark).read_text().strip()
    except FileNotFoundError:
        return None


def write(root: Path, mark: str, text: str) -> None:
    """Set a mark, durably and in one step."""
    files = FileSystem()
    files.make_folder(root)
    draft = root / f"{mark}.part"
    draft.unlink(missing_ok=True)
    with files.create(draft) as file:
        file.write(f"{text}\n".encode())
        files.sync(file)
    files.rename(draft, root / mark)
    files.sync_folder(root)


def remove(root: Path, mark: str) -> None:
    """Take a mark away, durably."""
    (root / mark).unlink(missing_ok=True)
    FileSystem().sync_folder(root)
