"""
Uploaded inputs.
"""

from dataclasses import dataclass

from sqlalchemy import insert, select

from milkrun.status import InputFormat
from milkrun_engine.domain.errors import InvalidRequest
from milkrun_engine.store.database import Database, scalar
from milkrun_engine.store.schema import input_files


@dataclass(frozen=True, slots=True, kw_only=True)
class InputFileRecord:
    """An input as it came."""

    id: str
    tenant_id: str
    format: InputFormat
    bytes: int
    sha256: str
    blob: str


class InputFiles:
    """The verbs of an uploaded input."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, file: InputFileRecord) -> None:
        """Put a file whose bytes are on disk into the ledger."""
        with self._database.write() as connection:
            connection.execute(
                insert(input_files).values(
                    id=file.id,
                    tenant_id=file.tenant_id,
                    format=file.format,
                    bytes=file.bytes,
                    sha256=file.sha256,
                    blob=file.blob,
                    created_at=scalar(connection, self._database.now),
                )
            )

    def get(self, tenant_id: str, file_id: str) -> InputFileRecord:
        """
        Find an upload.

        Raises:
            InvalidRequest: this tenant has no such file.
        """
        query = select(input_files).where(input_files.c.tenant_id == tenant_id, input_files.c.id == file_id)
        with self._database.read() as connection:
            row = connection.execute(query).one_or_none()
        if row is None:
            raise InvalidRequest(f"there is no input file {file_id!r}; upload it with POST /api/files first")
        return InputFileRecord(
            id=row.id,
            tenant_id=row.tenant_id,
            format=InputFormat(row.format),
            bytes=row.bytes,
            sha256=row.sha256,
            blob=row.blob,
        )
