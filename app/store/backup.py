"""Tables as files and back: PostgreSQL's own COPY text, compressed, which every version reads.

Which tables and columns there are is asked of the catalogs, so that a backup is of the schema that the database has.
"""

from __future__ import annotations

import gzip
import hashlib
import zlib
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import datetime
from graphlib import TopologicalSorter
from pathlib import Path
from typing import BinaryIO, Literal, cast

import asyncpg

from app.errors import SettingsError

LEFT_OUT = ("alembic_version", "replicas")
"""Made by the migrations, and of processes that are gone; PgQueuer's tables only wake workers up."""
PIECE = 1_048_576
COLUMNS = """
SELECT c.relname AS name, array_agg(a.attname ORDER BY a.attnum) AS columns FROM pg_class c
JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = ''
WHERE c.relnamespace = current_schema()::regnamespace AND c.relkind IN ('r', 'p') AND NOT c.relispartition
  AND c.relname <> ALL($1) AND c.relname NOT LIKE 'pgqueuer%'
GROUP BY c.relname"""
REFERENCES = """
SELECT DISTINCT f.relname AS of, t.relname AS to FROM pg_constraint k
JOIN pg_class f ON f.oid = k.conrelid JOIN pg_class t ON t.oid = k.confrelid
WHERE k.contype = 'f' AND k.connamespace = current_schema()::regnamespace AND f.oid <> t.oid"""


@dataclass(frozen=True, slots=True)
class Table:
    """A table as a backup has it: what was written of it, and the SHA-256 of that before it was compressed."""

    name: str
    columns: Sequence[str]
    rows: int = 0
    sha256: str = ""


async def tables(db: asyncpg.Connection) -> list[Table]:
    """What is to be kept, each after those it refers to."""
    columns = {row["name"]: row["columns"] for row in await db.fetch(COLUMNS, list(LEFT_OUT))}
    order: TopologicalSorter[str] = TopologicalSorter({name: set() for name in sorted(columns)})
    for row in await db.fetch(REFERENCES):
        if row["of"] in columns and row["to"] in columns:
            order.add(row["of"], row["to"])
    return [Table(name, columns[name]) for name in order.static_order()]


async def months(db: asyncpg.Connection) -> list[datetime]:
    """A moment of each month that has steps."""
    query = "SELECT DISTINCT date_trunc('month', started_at AT TIME ZONE 'UTC') AT TIME ZONE 'UTC' FROM steps"
    return [row[0] for row in await db.fetch(query)]


class _Measured:
    """A compressed file, with the SHA-256 of what went in or came out."""

    def __init__(self, path: Path, mode: Literal["rb", "wb"]) -> None:
        self._file = gzip.GzipFile(path, mode, compresslevel=1)
        self.digest = hashlib.sha256()

    def write(self, piece: bytes) -> None:
        """Put this behind what is there."""
        self.digest.update(piece)
        self._file.write(piece)

    def read(self, size: int) -> bytes:
        """The next bytes."""
        piece = self._file.read(size)
        self.digest.update(piece)
        return piece

    def close(self) -> None:
        """Write what is left."""
        self._file.close()


async def write(db: asyncpg.Connection, table: Table, path: Path) -> Table:
    """Write a table to a file, row by row as they come."""
    columns = ", ".join(f'"{column}"' for column in table.columns)
    query = f'SELECT {columns} FROM "{table.name}"'  # noqa: S608 - names of the catalogs
    with closing(_Measured(path, "wb")) as file:
        status = await db.copy_from_query(query, output=cast(BinaryIO, file))
    return Table(table.name, table.columns, int(status.removeprefix("COPY ")), file.digest.hexdigest())


async def read(db: asyncpg.Connection, table: Table, path: Path) -> None:
    """Fill an empty table from a file; a `SettingsError` when that is not what was written."""
    with _whole(path), closing(_Measured(path, "rb")) as file:
        status = await db.copy_to_table(table.name, source=cast(BinaryIO, file), columns=table.columns)
    if (int(status.removeprefix("COPY ")), file.digest.hexdigest()) != (table.rows, table.sha256):
        raise damaged(path)


def check(table: Table, path: Path) -> None:
    """Read a file as `read` does, without a database."""
    with _whole(path), closing(_Measured(path, "rb")) as file:
        while file.read(PIECE):
            pass
    if file.digest.hexdigest() != table.sha256:
        raise damaged(path)


@contextmanager
def _whole(path: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise SettingsError(f"{path} is missing from the backup. Nothing was changed.") from None
    except (EOFError, gzip.BadGzipFile, zlib.error):
        raise damaged(path) from None


def damaged(path: Path) -> SettingsError:
    """What to say of a file that is not as it was written."""
    return SettingsError(f"{path} is damaged: it is not what the backup wrote. Nothing was changed.")
