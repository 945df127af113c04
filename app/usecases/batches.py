"""Batches: many requests in a file, which are answered when there is room, into other files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from uuid import UUID

from msgspec.structs import replace
from sqlalchemy.ext.asyncio import AsyncConnection

from app.domain import Batch, BatchStatus, Job, Page, Principal, new_id, now
from app.errors import Conflict, InvalidInput, NotAuthenticated, QuotaExceeded, must_exist
from app.store import accounts, batches, files, jobs
from app.usecases.creations import claim
from app.usecases.files import check_room
from app.usecases.platform import Platform

WINDOW = timedelta(hours=24)
"""How long a batch may take: the one window that OpenAI's protocol has."""
MAX_OPEN = 20
"""How many batches of a user may be on their way."""


async def create(
    platform: Platform,
    principal: Principal,
    *,
    endpoint: str,
    input_file_id: UUID,
    metadata: Mapping[str, str],
    output_expires_seconds: int | None = None,
    key: str | None = None,
) -> Batch:
    """Take a batch; its file is read by a job. With an idempotency `key`, once."""
    moment = now()
    batch = Batch(
        new_id(),
        principal.user.id,
        endpoint,
        input_file_id,
        BatchStatus.VALIDATING,
        moment,
        moment + WINDOW,
        credential_id=None if principal.login_id else principal.credential_id,  # a login's token lasts minutes
        metadata=metadata,
        output_expires_seconds=output_expires_seconds,
    )
    wish = ("batch", endpoint, str(input_file_id), metadata, output_expires_seconds)
    async with platform.engine.begin() as db:
        if await accounts.lock_user(db, batch.user_id) is None:
            raise NotAuthenticated
        file = must_exist(await files.get(db, input_file_id, owner=batch.user_id), "file", param="input_file_id")
        if file.purpose != "batch":
            raise InvalidInput("input_file_id: the file's purpose must be batch.", param="input_file_id")
        made = await claim(db, batch.user_id, key, batch.id, *wish)
        if made != batch.id:
            return await _existing(db, made, owner=batch.user_id)
        if await batches.unended(db, batch.user_id) >= MAX_OPEN:
            raise QuotaExceeded(f"You have {MAX_OPEN} batches on their way, the most a user may have.")
        check_room(platform.file_limits, await files.kept(db, batch.user_id))
        await batches.add(db, batch)
        await jobs.add(db, [Job(new_id(), "batch", batch.user_id, batch.id)])
    return batch


async def get(platform: Platform, principal: Principal, id: UUID) -> Batch:
    """A batch of the caller, with what has been answered until now."""
    async with platform.engine.connect() as db:
        batch = await _existing(db, id, owner=principal.owner)
        return (await _counted(db, [batch]))[0]


async def list_page(platform: Platform, principal: Principal, *, after: UUID | None, limit: int) -> Page[Batch]:
    """The caller's batches, the newest first."""
    async with platform.engine.connect() as db:
        page = await batches.list_page(db, owner=principal.owner, after=after, limit=limit)
        return replace(page, items=await _counted(db, page.items))


async def cancel(platform: Platform, principal: Principal, id: UUID) -> Batch:
    """Begin no more of its requests. Those under way are still answered, and what was answered is written into its files."""
    at = int(now().timestamp())
    async with platform.engine.begin() as db:
        batch = await _existing(db, id, owner=principal.owner)
        since = (BatchStatus.VALIDATING, BatchStatus.IN_PROGRESS)
        if not await batches.move(db, id, to=BatchStatus.CANCELLING, at=at, since=since):
            batch = await _existing(db, id, owner=principal.owner)
            if batch.status not in (BatchStatus.CANCELLING, BatchStatus.CANCELLED):
                raise Conflict(f"A batch that is {batch.status} cannot be cancelled.", param="batch_id")
        return (await _counted(db, [await _existing(db, id, owner=principal.owner)]))[0]


async def _existing(db: AsyncConnection, id: UUID, *, owner: UUID | None) -> Batch:
    return must_exist(await batches.get(db, id, owner=owner), "batch", param="batch_id")


async def _counted(db: AsyncConnection, found: Sequence[Batch]) -> list[Batch]:
    """The same with what has been answered; of one that has ended it is known."""
    counts = await batches.counts(db, [batch.id for batch in found if not batch.status.is_final])
    zero = (0, 0)
    return [
        batch
        if batch.status.is_final
        else replace(batch, completed=counts.get(batch.id, zero)[0], failed=counts.get(batch.id, zero)[1])
        for batch in found
    ]
