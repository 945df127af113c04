"""Files: uploads into the object store, and what becomes of their objects.

An object is known to the database before its first byte is stored (`loose_objects`), and until its file is erased and it is removed: so
whenever a process dies, some other one finds what it left. The object comes first, then the file's row; in the end the row goes first.
"""

from __future__ import annotations

import hashlib
import logging
import sys
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncConnection

from app.domain import File, FileLimits, Page, Principal, new_id, now
from app.errors import (
    ContentLost,
    NotAuthenticated,
    NotFound,
    QuotaExceeded,
    RateLimited,
    TooLarge,
    Unavailable,
    must_exist,
)
from app.store import accounts, files
from app.store.database import is_passing
from app.usecases.creations import claim
from app.usecases.platform import Platform
from app.usecases.vectors import forget_soon

log = logging.getLogger(__name__)

SWEEP_SECONDS = 60.0
SIGN_SECONDS = 60.0
"""How often an upload shows that it lives."""
UPLOADS_AT_ONCE = 8
"""How many uploads of one user may be under way."""
OCTETS = "application/octet-stream"


class Upload:
    """Content on its way into the store. It becomes a file by `keep`, which comes after `take`, or goes with its block."""

    def __init__(self, platform: Platform, principal: Principal, id: UUID, room: int) -> None:
        self._platform = platform
        self._principal = principal
        self._room = room
        self._digest = hashlib.sha256()
        self._began = now()
        self.id = id
        self.size = 0
        self.is_kept = False

    async def take(self, chunks: AsyncIterator[bytes]) -> None:
        """Store the content while it comes."""
        await self._platform.objects.put(self.id, self._measured(chunks))

    async def _measured(self, chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        sign = time.monotonic() + SIGN_SECONDS
        async for chunk in chunks:
            self.size += len(chunk)
            if self.size > self._room:
                raise _too_large(self._platform.file_limits, self.size)
            self._digest.update(chunk)
            if time.monotonic() > sign:
                await self._go_on()
                sign = time.monotonic() + SIGN_SECONDS
            yield chunk

    async def _go_on(self) -> None:
        try:
            async with self._platform.engine.begin() as db:
                is_alive = await files.go_on(db, self.id)
        except Exception as error:
            if not is_passing(error):
                raise
            return  # the next sign will do
        if not is_alive:
            raise _given_up()

    async def keep(
        self,
        name: str,
        purpose: str,
        *,
        media_type: str = OCTETS,
        expires_seconds: int | None = None,
        key: str | None = None,
    ) -> File:
        """Make a file of what was taken; with an idempotency `key` equal uploads are one file. It expires so long after it was begun."""
        expires = self._began + timedelta(seconds=expires_seconds) if expires_seconds else None
        owner, digest = self._principal.user.id, self._digest.digest()
        file = File(self.id, owner, name, purpose, self.size, digest, media_type, self._began, expires)
        wish = ("file", name, purpose, media_type, digest.hex(), expires_seconds)
        async with self._platform.engine.begin() as db:
            if await accounts.lock_user(db, owner) is None:
                raise NotAuthenticated
            made = await claim(db, owner, key, self.id, *wish)
            if made != self.id:
                return await _existing(db, made, owner=owner, param="idempotency-key")
            if not await files.finish(db, file):
                raise _given_up()
        self.is_kept = True
        return file


@asynccontextmanager
async def uploading(
    platform: Platform, principal: Principal, *, at_most: int | None = None, is_owed: bool = False
) -> AsyncIterator[Upload]:
    """Begin an upload of `at_most` so many bytes, if that is known. What it has stored is removed if it does not become a file.

    No limit holds up what `is_owed` to the user, who had room when he ordered it.
    """
    id = new_id()
    limits = platform.file_limits
    async with platform.engine.begin() as db:
        if await accounts.lock_user(db, principal.user.id) is None:
            raise NotAuthenticated
        room = sys.maxsize if is_owed else _room(limits, await files.kept(db, principal.user.id), at_most)
        await files.begin(db, id, principal.user.id, 0 if is_owed else room)
    upload = Upload(platform, principal, id, room)
    try:
        yield upload
    finally:
        if not upload.is_kept:
            platform.tasks.start(_give_up(platform, id), name="an upload's remains")


def _room(limits: FileLimits, kept: files.Kept, at_most: int | None) -> int:
    """How many bytes an upload may have, or why none."""
    if kept.uploads >= UPLOADS_AT_ONCE:
        raise RateLimited(f"At most {UPLOADS_AT_ONCE} of your uploads can go on at once.", retry_after=5)
    check_room(limits, kept)
    room = min(limits.bytes, limits.user_bytes - kept.bytes)
    return room if at_most is None else min(room, at_most)


def check_room(limits: FileLimits, kept: files.Kept) -> None:
    """`QuotaExceeded` when a user may keep no more files."""
    if kept.files >= limits.user_files:
        raise QuotaExceeded(f"You have {limits.user_files} files, the most a user may keep: delete some first.")
    if kept.bytes >= limits.user_bytes:
        raise _full(limits)


def _full(limits: FileLimits) -> QuotaExceeded:
    return QuotaExceeded(f"A user may keep {limits.user_bytes} bytes of files, and this is more: delete some first.")


def _too_large(limits: FileLimits, size: int) -> TooLarge | QuotaExceeded:
    return too_large(limits.bytes) if size > limits.bytes else _full(limits)


def too_large(max_bytes: int) -> TooLarge:
    """The refusal of a file that is larger than any may be."""
    return TooLarge(f"file: at most {max_bytes} bytes are taken.", param="file")


def _given_up() -> Unavailable:
    return Unavailable("The upload was given up: the server did not hear of it for too long.", retry_after=1)


async def open(platform: Platform, principal: Principal, id: UUID) -> File:
    """A file of the caller."""
    async with platform.engine.connect() as db:
        return await _existing(db, id, owner=principal.owner)


async def content(platform: Platform, file: File) -> AsyncGenerator[bytes, None]:
    """A file's bytes, in pieces. A refusal comes before the first; who does not read to the end closes it (`aclosing`)."""
    pieces = platform.objects.get(file.id)
    try:
        async for piece in pieces:
            yield piece
    except NotFound:
        async with platform.engine.connect() as db:
            await _existing(db, file.id, owner=file.user_id)  # erased meanwhile
        log.error("file %s has no object: is DATA_DIR, or MINIO_BUCKET, that of the server which took it?", file.id)
        raise ContentLost from None
    finally:
        await pieces.aclose()


async def list_page(
    platform: Platform,
    principal: Principal,
    *,
    after: UUID | None,
    limit: int,
    purpose: str | None = None,
    newest_first: bool = True,
) -> Page[File]:
    """The caller's files."""
    async with platform.engine.connect() as db:
        return await files.list_page(
            db, owner=principal.owner, after=after, limit=limit, purpose=purpose, newest_first=newest_first
        )


async def delete(platform: Platform, principal: Principal, id: UUID) -> None:
    """Erase a file, now; its object goes in a moment."""
    async with platform.engine.begin() as db:
        if not await files.erase(db, id, owner=principal.owner):
            raise NotFound("file", param="file_id")
    sweep_soon(platform)
    forget_soon(platform, principal.user.id)


async def _existing(db: AsyncConnection, id: UUID, *, owner: UUID | None, param: str = "file_id") -> File:
    return must_exist(await files.get(db, id, owner=owner), "file", param=param)


# Removal


def sweep_soon(platform: Platform) -> None:
    """Have the objects of what was just erased removed. If this process dies before that, another one does it."""
    platform.tasks.start(sweep(platform), name="erased objects")


async def sweep(platform: Platform) -> None:
    """Erase the files that have expired, and remove all objects that are due."""
    try:
        await _sweep(platform)
    except Exception as error:
        _tell(error)


async def _sweep(platform: Platform) -> None:
    more = True
    while more:
        async with platform.engine.begin() as db:
            more = await files.erase_expired(db)
    while loose := await _take(platform):
        for unfinished in (False, True):
            if ids := [each.id for each in loose if each.unfinished is unfinished]:
                await _remove(platform, ids, unfinished=unfinished, look_again=unfinished)


async def _take(platform: Platform) -> Sequence[files.Loose]:
    async with platform.engine.begin() as db:
        return await files.take(db)


async def _remove(platform: Platform, ids: Sequence[UUID], *, unfinished: bool, look_again: bool = False) -> None:
    await platform.objects.delete(ids, unfinished=unfinished)
    async with platform.engine.begin() as db:
        await files.removed(db, ids, look_again=look_again)


async def _give_up(platform: Platform, id: UUID) -> None:
    """Remove what an upload has stored that failed here, unless it became a file and only nobody heard of it."""
    try:
        async with platform.engine.begin() as db:
            is_ours = await files.abandon(db, id)
        if is_ours:
            await _remove(platform, [id], unfinished=True)
    except Exception as error:
        _tell(error)


def _tell(error: Exception) -> None:
    """A store or database that is away is no fault of the sweep's, which comes again."""
    if not (isinstance(error, Unavailable) or is_passing(error)):
        raise error
    log.warning("objects could not be removed now (%s); it is tried again", type(error).__name__)
