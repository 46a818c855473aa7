"""
A file layer that writes down when something became durable, among ledger commits and answers.

A blob is durable once its bytes were synced under its temporary name, it was renamed, and its
folder synced after that: in this order, or a power cut may leave a name without bytes, or
nothing at all.
"""

from pathlib import Path
from typing import BinaryIO

from sqlalchemy import event

from milkrun_engine.blobs.files import FileSystem
from milkrun_engine.store import Store

COMMIT = "the ledger committed"


class Journal(FileSystem):
    """The calls of the operating system, recorded; `lines` tells what was so, in its order."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self._synced: dict[Path, int] = {}  # bytes on disk, by the name at that time
        self._renamed: dict[Path, set[Path]] = {}  # by folder: names with all their bytes, not yet on disk themselves

    def watch(self, store: Store) -> None:
        """Write down the ledger's commits too."""
        event.listen(store.database.writer, "commit", lambda _connection: self.tell(COMMIT))

    def tell(self, line: str) -> None:
        """Write down that something is so now."""
        self.lines.append(line)

    def sync(self, file: BinaryIO) -> None:
        super().sync(file)
        path = Path(file.name)
        if path.exists():
            self._synced[path] = path.stat().st_size

    def rename(self, source: Path, target: Path) -> None:
        whole = self._synced.get(source) == source.stat().st_size
        super().rename(source, target)
        if whole:
            self._renamed.setdefault(target.parent, set()).add(target)

    def sync_folder(self, folder: Path) -> None:
        super().sync_folder(folder)
        for path in sorted(self._renamed.pop(folder, ())):
            self.tell(durable(path.name))

    def place(self, line: str) -> int:
        """Where a line stands; behind the last one if it never came true."""
        return self.lines.index(line) if line in self.lines else len(self.lines)


def durable(name: str) -> str:
    """The line of a blob's last step."""
    return f"{Path(name).name} is on disk"
