"""Conversations: sessions, as the Conversations API of OpenAI sees them, of which one is made without an agent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from uuid import UUID

from app.agent.relay import ModelRelay
from app.domain import Message, Page, Principal, Run, Session, new_id, now
from app.errors import InvalidInput, SessionBusy, must_exist
from app.store import messages, runs, sessions
from app.usecases import sessions as sessions_usecase
from app.usecases.calls import answered_in, made_in
from app.usecases.creations import claim
from app.usecases.platform import Platform


async def create(
    platform: Platform,
    principal: Principal,
    metadata: Mapping[str, str],
    said: Sequence[Message],
    key: str | None = None,
) -> Session:
    """A conversation that holds what was said. The platform's own agent answers in it where no request names another.

    With a `key`, equal wishes make one.
    """
    moment, agent_id = now(), ModelRelay.id
    session = Session(
        new_id(),
        principal.user,
        agent_id,
        participants=(agent_id,),
        created_at=moment,
        updated_at=moment,
        metadata=metadata,
    )
    if unknown := answered_in(said) - made_in(said):
        raise InvalidInput(f"There is no call of a tool with the id {min(unknown)[:64]}.", param="items")
    wish = (metadata, [(message.role, message.content, message.parts, message.additional_kwargs) for message in said])
    async with platform.engine.begin() as db:
        made = await claim(db, principal.user.id, key, session.id, "conversation", *wish)
        if made != session.id:
            found = await sessions.get(db, made, owner=principal.owner)
            return must_exist(found, "conversation", param="idempotency-key")
        await sessions.add(db, session, {})
        if said:
            await sessions.append(db, session, said)
    return session


async def get(platform: Platform, principal: Principal, id: UUID) -> Session:
    """A conversation of the caller."""
    async with platform.engine.connect() as db:
        return must_exist(await sessions.get(db, id, owner=principal.owner), "conversation", param="conversation_id")


async def update(platform: Platform, principal: Principal, id: UUID, metadata: Mapping[str, str]) -> Session:
    """Keep this with a conversation, instead of what was kept."""
    await get(platform, principal, id)
    async with platform.engine.begin() as db:
        await sessions.change(db, id, {"metadata": dict(metadata)})
    return await get(platform, principal, id)


async def delete(platform: Platform, principal: Principal, id: UUID) -> None:
    """Erase a conversation with all that was said in it."""
    await get(platform, principal, id)
    await sessions_usecase.delete(platform, principal, id)


async def append(platform: Platform, principal: Principal, id: UUID, said: Sequence[Message]) -> Sequence[Message]:
    """Add messages that nobody is to answer; not while an answer is on its way, which would not follow them."""
    async with platform.engine.begin() as db:
        session = must_exist(
            await sessions.get(db, id, owner=principal.owner, lock=True), "conversation", param="conversation_id"
        )
        if await runs.active_in(db, id):
            raise SessionBusy
        return await sessions.append(db, session, said)


async def page(
    platform: Platform, principal: Principal, id: UUID, *, after: UUID | None, limit: int, newest_first: bool
) -> tuple[Page[Message], Mapping[UUID, Run]]:
    """The messages of the active branch, and the runs that gave the answers among them.

    `after` is the id of a message, or of the run that gave it, with which the page begins.
    """
    session = await get(platform, principal, id)
    if session.leaf_id is None:
        return Page([], False), {}
    async with platform.engine.connect() as db:
        found = await messages.branch_page(db, session.leaf_id, after=after, limit=limit, newest_first=newest_first)
        return found, await runs.stored(db, [message.run_id for message in found.items if message.run_id])
