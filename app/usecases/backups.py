"""A backup is a folder: the tables as files, users' files, and a manifest that is written last and says what all of it must be.

It is taken of one moment while servers go on, and put back into an empty database: the files first, then all rows in one transaction, so
that who sees rows has their files. It knows no version of PostgreSQL: that is how data move to a newer one.
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from datetime import datetime
from functools import partial
from pathlib import Path
from uuid import UUID

import asyncpg
import msgspec

from app.domain import now
from app.errors import NotFound, SettingsError
from app.store import backup, invariants, migrations, partitions
from app.store.backup import Table
from app.store.database import asyncpg_url, connect
from app.usecases.objects import ObjectStore

FORMAT = 1
MANIFEST = "manifest.json"
TABLES = "SELECT count(*) FROM pg_class WHERE relnamespace = current_schema()::regnamespace AND relkind IN ('r', 'p')"
MIGRATED = ("groups", "grants")
"""What the migrations themselves fill: everybody's group, and what it may use."""


class KeptFile(msgspec.Struct, frozen=True):
    """A user's file, and what it must be."""

    id: UUID
    size: int
    sha256: str


class Manifest(msgspec.Struct, frozen=True):
    """What a backup is."""

    format: int
    revision: str
    created_at: datetime
    server: str
    months: list[datetime]
    tables: list[Table]
    files: list[KeptFile]
    lost: list[UUID] = []
    """The files that are left out: erased before they could be read, or their objects lost or damaged."""

    @property
    def rows(self) -> int:
        """How many rows there are in all tables."""
        return sum(table.rows for table in self.tables)

    @property
    def lost_files(self) -> int:
        """How many files are left out."""
        return len(self.lost)


async def take(url: str, objects: ObjectStore | None, folder: Path) -> Manifest:
    """Write a backup to `folder`, which must not be there yet; without `objects` users' files are left out."""
    part = folder.with_name(f"{folder.name}.part")
    try:
        _begin(folder, part)
        made = await _write(url, objects, part)
        _end(folder, part, made)
    except OSError as error:
        shutil.rmtree(part, ignore_errors=True)
        if error.errno is None or isinstance(error, ConnectionError):
            raise
        what = "is full" if error.errno == errno.ENOSPC else f"cannot be written to ({error.strerror})"
        raise SettingsError(f"{folder.parent} {what}: name a folder elsewhere. What was written is removed.") from None
    return made


def _begin(folder: Path, part: Path) -> None:
    if folder.exists():
        raise SettingsError(f"{folder} is there already: name another folder.")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(mode=0o700, parents=True)
    (part / "files").mkdir()


def _end(folder: Path, part: Path, made: Manifest) -> None:
    (part / MANIFEST).write_bytes(msgspec.json.format(msgspec.json.encode(made), indent=1))
    os.sync()
    part.rename(folder)


async def _write(url: str, objects: ObjectStore | None, folder: Path) -> Manifest:
    revision = await migrations.current(url)
    if revision is None:
        raise SettingsError("The database is empty: there is nothing to keep.")
    async with _connected(url) as db, db.transaction(isolation="repeatable_read", readonly=True):
        _room(folder, await db.fetchval("SELECT pg_database_size(current_database())") // 10, "a backup")
        server = await db.fetchval("SHOW server_version")
        months = await backup.months(db)
        found = [await backup.write(db, table, _path(folder, table)) for table in await backup.tables(db)]
        query = "SELECT id, size, encode(sha256, 'hex') AS sha256 FROM files ORDER BY id"
        files = [KeptFile(row["id"], row["size"], row["sha256"]) for row in (await db.fetch(query) if objects else [])]
    kept, lost = [], []
    if objects:
        _room(folder, sum(file.size for file in files), "users' files")
        for file in files:
            if await _kept(objects, file, folder):
                kept.append(file)
            else:
                lost.append(file.id)
    return Manifest(FORMAT, revision, now(), server, months, found, kept, lost)


async def _kept(objects: ObjectStore, file: KeptFile, folder: Path) -> bool:
    """Whether a file was to be had whole, and is copied."""
    path = _file_path(folder, file)
    with path.open("wb") as out:
        is_whole = await _is_whole(objects, file, out.write)
    if not is_whole:
        path.unlink()
    return is_whole


async def _is_whole(objects: ObjectStore, file: KeptFile, write: Callable[[bytes], object]) -> bool:
    """Whether an object is there and what its file must be; its pieces are written as they are read."""
    size, digest = 0, hashlib.sha256()
    try:
        async with aclosing(objects.get(file.id)) as pieces:
            async for piece in pieces:
                size += len(piece)
                digest.update(piece)
                write(piece)
    except NotFound:
        return False
    return (size, digest.hexdigest()) == (file.size, file.sha256)


def read_manifest(folder: Path) -> Manifest:
    """What a folder says it is; a `SettingsError` when it is no backup, or one of another format."""
    try:
        found = msgspec.json.decode((folder / MANIFEST).read_bytes(), type=Manifest)
    except OSError:
        raise SettingsError(f"{folder} is no backup: it has no {MANIFEST}.") from None
    except msgspec.MsgspecError:
        raise backup.damaged(folder / MANIFEST) from None
    if found.format != FORMAT:
        raise SettingsError(
            f"{folder} has the format {found.format}, and this version reads {FORMAT}: use a newer one."
        )
    return found


def check_files(folder: Path) -> Manifest:
    """Read a whole backup; a `SettingsError` names the file that is not what was written."""
    manifest = read_manifest(folder)
    for table in manifest.tables:
        backup.check(table, _path(folder, table))
    for file in manifest.files:
        path = _file_path(folder, file)
        if not path.is_file() or (path.stat().st_size, _sha256(path)) != (file.size, file.sha256):
            raise backup.damaged(path)
    return manifest


async def restore(
    url: str, objects: ObjectStore, folder: Path, *, prepare: Callable[[str], None] | None = None
) -> Manifest:
    """Put a backup into an empty database; then it holds what was kept, at the newest schema, and every invariant.

    `prepare` is called with the URL before there are tables. What fails before all rows are there leaves none but those that migrations
    make, and may be repeated.
    """
    manifest = await asyncio.to_thread(check_files, folder)
    if manifest.revision > migrations.HEAD:
        raise SettingsError(
            f"The backup is of schema {manifest.revision}, and this version knows {migrations.HEAD}: use the version that made it."
        )
    if not await _is_empty(url, manifest.revision):
        raise SettingsError(
            "The database is not empty: restore into a new one, with another DATABASE_URL or, for the one that "
            "`chattable serve` starts, another DATA_DIR."
        )
    if prepare:
        await asyncio.to_thread(prepare, url)
    await asyncio.to_thread(migrations.upgrade, url, manifest.revision)
    for file in manifest.files:
        await _put(objects, file, folder)
    await _fill(url, manifest, folder)
    await asyncio.to_thread(migrations.upgrade, url)
    if broken := await check(url):
        raise SettingsError("\n".join(f"Does not hold, {count} times: {said}" for said, count in broken.items()))
    return manifest


async def _is_empty(url: str, revision: str) -> bool:
    """Whether a database has no tables, or those of a restore that broke off, without rows."""
    async with _connected(url) as db:
        if not await db.fetchval(TABLES):
            return True
        if await migrations.current(url) != revision:
            return False
        names = [table.name for table in await backup.tables(db) if table.name not in MIGRATED]
        rows = " UNION ALL ".join(f'SELECT FROM "{name}"' for name in names)
        return not await db.fetchval(f"SELECT EXISTS ({rows})")


async def _put(objects: ObjectStore, file: KeptFile, folder: Path) -> None:
    """Put a file into the store, unless a restore that broke off has; what that left of it goes."""
    if not await _is_whole(objects, file, lambda _: None):
        await objects.delete([file.id], unfinished=True)
        await objects.put(file.id, _read(_file_path(folder, file)))


async def _fill(url: str, manifest: Manifest, folder: Path) -> None:
    engine = connect(url)
    try:
        async with engine.begin() as db:
            for month in manifest.months:
                await partitions.ensure(db, month)
    finally:
        await engine.dispose()
    async with _connected(url) as target, target.transaction():
        await target.execute(f"TRUNCATE {', '.join(table.name for table in manifest.tables)}")
        for table in manifest.tables:
            await backup.read(target, table, _path(folder, table))


async def check(url: str) -> dict[str, int]:
    """What does not hold of the database, and how often; nothing, when all is well."""
    engine = connect(url)
    try:
        async with engine.connect() as db:
            return await invariants.violations(db)
    finally:
        await engine.dispose()


@asynccontextmanager
async def _connected(url: str) -> AsyncIterator[asyncpg.Connection]:
    """A connection whose statements may take as long as they do."""
    dsn = asyncpg_url(url).set(drivername="postgresql").render_as_string(hide_password=False)
    db = await asyncpg.connect(dsn, timeout=10)
    try:
        yield db
    except asyncpg.DiskFullError:
        raise SettingsError("The database's disk is full. Nothing was changed.") from None
    finally:
        await db.close()


def _room(folder: Path, size: int, what: str) -> None:
    if shutil.disk_usage(folder).free < size:
        raise OSError(errno.ENOSPC, f"there is no room for {what}")


def _path(folder: Path, table: Table) -> Path:
    return folder / f"{table.name}.copy.gz"


def _file_path(folder: Path, file: KeptFile) -> Path:
    return folder / "files" / file.id.hex


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


async def _read(path: Path) -> AsyncIterator[bytes]:
    with path.open("rb") as file:
        for piece in iter(partial(file.read, backup.PIECE), b""):
            yield piece
