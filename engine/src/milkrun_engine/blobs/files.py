"""
The file-system calls that durability rests on, in one place so that a test can record them.
"""

import os
from pathlib import Path
from typing import BinaryIO


class FileSystem:
    """The calls of the operating system."""

    def create(self, path: Path) -> BinaryIO:
        """Open a new file for writing; fails if it exists."""
        return path.open("xb")

    def sync(self, file: BinaryIO) -> None:
        """Put a file's bytes on disk."""
        file.flush()
        os.fsync(file.fileno())

    def rename(self, source: Path, target: Path) -> None:
        """Give a file its final name, atomically."""
        source.replace(target)

    def sync_folder(self, folder: Path) -> None:
        """Put a folder's names on disk: without it a rename may be lost in a power cut."""
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def make_folder(self, folder: Path) -> None:
        """Make a folder with its parents, each one's name on disk before its child's."""
        if folder.is_dir():
            return
        self.make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        self.sync_folder(folder.parent)
