"""Files, and the objects that belong to none: see `loose_objects` in `tables.py`."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any, NamedTuple
from uuid import UUID

from msgspec.structs import asdict
from sqlalchemy import ColumnElement, Row, and_, case, delete, func, insert, literal, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from app.domain import File, Page
from app.store.pages import page_by_id
from app.store.tables import files, loose_objects

LEASE = timedelta(minutes=5)
"""After so long without a sign of life an upload has ended; and a removal of which nothing is heard is tried again."""
LOOK_AGAIN = timedelta(days=1)
"""What a paused process still writes of an upload that was given up is removed after so long."""
AT_ONCE = 100


class Kept(NamedTuple):
    """What a user keeps, with what is being uploaded for him."""

    files: int
    bytes: int
    uploads: int


class Loose(NamedTuple):
    """An object to be removed; an `unfinished` one may be there in part."""

    id: UUID
    unfinished: bool


def _file(row: Row[Any]) -> File:
    return File(**row._mapping)


# Uploads


async def kept(db: AsyncConnection, user_id: UUID) -> Kept:
    """What counts for a user's limits; to be asked with his row locked."""
    stored = select(func.count(), func.coalesce(func.sum(files.c.size), 0)).where(files.c.user_id == user_id)
    coming = select(func.count(), func.coalesce(func.sum(loose_objects.c.size), 0)).where(
        loose_objects.c.user_id == user_id
    )
    stored_files, stored_bytes = (await db.execute(stored)).one()
    uploads, coming_bytes = (await db.execute(coming)).one()
    return Kept(stored_files + uploads, int(stored_bytes + coming_bytes), uploads)


async def begin(db: AsyncConnection, id: UUID, user_id: UUID, size: int) -> None:
    """An object is going to be stored for a user, of so many bytes at most."""
    row = {"id": id, "state": "uploading", "user_id": user_id, "size": size, "due_at": func.now() + LEASE}
    await db.execute(insert(loose_objects).values(row))


async def go_on(db: AsyncConnection, id: UUID) -> bool:
    """An upload is alive; false when it was given up."""
    statement = update(loose_objects).where(_uploading(id)).values(due_at=func.now() + LEASE)
    return (await db.execute(statement.returning(loose_objects.c.id))).first() is not None


async def finish(db: AsyncConnection, file: File) -> bool:
    """The object belongs to a file from now on; false when its upload was given up."""
    taken = delete(loose_objects).where(_uploading(file.id)).returning(loose_objects.c.id)
    if (await db.execute(taken)).first() is None:
        return False
    await db.execute(insert(files).values(**asdict(file)))
    return True


async def abandon(db: AsyncConnection, id: UUID) -> bool:
    """Give an upload up, for its caller to remove what there is of it; false when it has become a file."""
    given_up = {"state": "abandoned", "user_id": None, "size": 0, "due_at": func.now() + LEASE}
    statement = update(loose_objects).where(loose_objects.c.id == id).values(**given_up)
    return (await db.execute(statement.returning(loose_objects.c.id))).first() is not None


def _uploading(id: UUID) -> ColumnElement[bool]:
    return and_(loose_objects.c.id == id, loose_objects.c.state == "uploading")


# Files


def _there(owner: UUID | None) -> ColumnElement[bool]:
    there = or_(files.c.expires_at.is_(None), files.c.expires_at > func.now())
    return and_(there, files.c.user_id == owner) if owner else there


async def get(db: AsyncConnection, id: UUID, *, owner: UUID | None) -> File | None:
    """A file of the owner, or of anybody."""
    row = (await db.execute(select(files).where(files.c.id == id, _there(owner)))).first()
    return _file(row) if row else None


async def list_page(
    db: AsyncConnection,
    *,
    owner: UUID | None,
    after: UUID | None,
    limit: int,
    purpose: str | None = None,
    newest_first: bool = True,
) -> Page[File]:
    """Files of the owner, or of everybody, in the order they were begun: ids tell it."""
    query = select(files).where(_there(owner))
    if purpose is not None:
        query = query.where(files.c.purpose == purpose)
    return await page_by_id(db, query, files.c.id, _file, after=after, limit=limit, newest_first=newest_first)


async def erase(db: AsyncConnection, id: UUID, *, owner: UUID | None) -> bool:
    """Erase a file of the owner, or of anybody; false when there is none."""
    return bool(await _erase(db, and_(files.c.id == id, _there(owner))))


async def erase_of(db: AsyncConnection, user_id: UUID) -> None:
    """Erase all files of a user, and give up his uploads."""
    await _erase(db, files.c.user_id == user_id)
    given_up = {"state": "abandoned", "user_id": None, "size": 0, "due_at": func.now()}
    await db.execute(update(loose_objects).where(loose_objects.c.user_id == user_id).values(**given_up))


async def erase_expired(db: AsyncConnection) -> bool:
    """Erase some of the files whose time has come; whether there may be more."""
    chosen = select(files.c.id).where(files.c.expires_at <= func.now()).limit(AT_ONCE)
    return await _erase(db, files.c.id.in_(chosen.with_for_update(skip_locked=True))) == AT_ONCE


async def _erase(db: AsyncConnection, chosen: ColumnElement[bool]) -> int:
    gone = delete(files).where(chosen).returning(files.c.id).cte("gone")
    loose = select(gone.c.id, literal("erased"), func.now())
    statement = insert(loose_objects).from_select(["id", "state", "due_at"], loose).returning(loose_objects.c.id)
    return len((await db.execute(statement)).all())


# Removal


async def take(db: AsyncConnection) -> Sequence[Loose]:
    """Some of the objects that are due, for the caller to remove; nobody else gets them for a while."""
    due = select(loose_objects.c.id).where(loose_objects.c.due_at <= func.now()).order_by(loose_objects.c.due_at)
    chosen = loose_objects.c.id.in_(due.limit(AT_ONCE).with_for_update(skip_locked=True))
    state = case((loose_objects.c.state == "erased", "erased"), else_="abandoned")
    statement = update(loose_objects).where(chosen)
    statement = statement.values(state=state, user_id=None, size=0, due_at=func.now() + LEASE)
    rows = await db.execute(statement.returning(loose_objects.c.id, loose_objects.c.state))
    return [Loose(row.id, row.state == "abandoned") for row in rows]


async def removed(db: AsyncConnection, ids: Sequence[UUID], *, look_again: bool = False) -> None:
    """They are out of the store; with `look_again` they may come back, and are to be removed once more."""
    chosen = loose_objects.c.id.in_(ids)
    if look_again:
        later = {"state": "erased", "due_at": func.now() + LOOK_AGAIN}
        await db.execute(update(loose_objects).where(chosen).values(**later))
    else:
        await db.execute(delete(loose_objects).where(chosen))
