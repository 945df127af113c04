"""Sessions: create, list, change, archive, erase."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from uuid import UUID

from msgspec.structs import replace

from app.domain import Page, Principal, Session, SessionParams, Usage, User, new_id, now
from app.errors import InvalidInput, NotAllowed, NotFound, must_exist
from app.store import accounts, messages, runs, sessions
from app.store.sessions import params_row
from app.usecases import agents
from app.usecases.accounts import local_user
from app.usecases.conduct import stop_all
from app.usecases.creations import claim
from app.usecases.platform import Platform


async def resolve_user(platform: Platform, principal: Principal, named: UUID | str | None) -> User:
    """The user a request speaks for: the caller unless it names another, by id or name, which only an administrator may.

    Under `AUTH=open` the local caller may name anybody, and an unknown name makes that user.
    """
    if named is None:
        return principal.user
    if principal.acts_for_all:
        return await local_user(platform, str(named))
    if str(named) in (str(principal.user.id), principal.user.name):
        return principal.user
    if principal.is_admin:
        async with platform.engine.connect() as db:
            id, name = (named, None) if isinstance(named, UUID) else (None, named)
            found = await accounts.get_user(db, id=id, name=name)
        if found:
            return found
    raise NotFound("user", param="user_id")


async def create(
    platform: Platform,
    user: User,
    *,
    agent_id: str,
    agent_params: Mapping[str, Any],
    params: SessionParams,
    title: str | None = None,
    key: str | None = None,
    sees_all: bool = False,
) -> Session:
    """Begin a conversation of `user` with an agent; with an idempotency `key`, once, unless that one was erased.

    `sees_all`: also with a preset that `user` may not use.
    """
    chosen = await agents.choose(platform, user, agent_id, agent_params, params, sees_all=sees_all)
    session = new(user, chosen, title)
    async with platform.engine.begin() as db:
        made = await claim(db, user.id, key, session.id, "session", agent_id, agent_params, params_row(params), title)
        if made == session.id:
            await sessions.add(db, session, params_row(chosen.params))
            return session
        return must_exist(await sessions.get(db, made, owner=user.id), "session", param="idempotency-key")


def new(user: User, chosen: agents.Choice, title: str | None) -> Session:
    """A session that is to be stored."""
    moment = now()
    return Session(
        new_id(),
        user,
        chosen.agent_id,
        chosen.agent_params,
        chosen.params,
        title,
        (chosen.agent_id,),
        created_at=moment,
        updated_at=moment,
        preset_id=chosen.preset_id,
    )


async def get(platform: Platform, principal: Principal, id: UUID) -> tuple[Session, Usage]:
    """A session of the caller, and what it has used."""
    async with platform.engine.connect() as db:
        session = must_exist(await sessions.get(db, id, owner=principal.owner), "session", param="session_id")
        return session, await sessions.usage(db, id)


async def list_page(
    platform: Platform,
    principal: Principal,
    user: User,
    *,
    after: UUID | None,
    limit: int,
    archived: bool = False,
    title: str | None = None,
) -> Page[Session]:
    """A user's sessions, the last active first. Of others' one sees that they exist, not what they are about, unless one reads them."""
    if title is not None and principal.owner not in (None, user.id):
        raise NotAllowed("Titles are searched for in one's own sessions only.", param="title")
    async with platform.engine.connect() as db:
        found = await sessions.list_page(db, user.id, after=after, limit=limit, archived=archived, title=title)
    if principal.owner in (None, user.id):
        return found
    return replace(found, items=[replace(session, title=None, agent_params={}) for session in found.items])


async def update(platform: Platform, principal: Principal, id: UUID, changes: Mapping[str, Any]) -> Session:
    """Change any of `title`, `params` (those of SessionParams that change), `agent_id`, `agent_params`, `archived`, `leaf_id`.

    Another agent starts with `agent_params`, or with its defaults; a preset with what it has. Choosing a `leaf_id` makes its branch the
    active one.
    """
    before, _ = await get(platform, principal, id)
    columns: dict[str, Any] = {name: changes[name] for name in ("title", "leaf_id") if name in changes}
    if "archived" in changes:
        columns["archived_at"] = now() if changes["archived"] else None
    if "agent_id" in changes or "agent_params" in changes:
        agent_id = changes.get("agent_id", before.agent_id)
        given = changes.get("agent_params", {} if agent_id != before.agent_id else before.agent_params)
        params = replace(before.params, **changes.get("params", {}))
        chosen = await agents.choose(platform, before.user, agent_id, given, params, sees_all=principal.owner is None)
        columns |= {"agent_id": chosen.agent_id, "agent_params": chosen.agent_params}
        columns |= {"preset_id": chosen.preset_id} if "agent_id" in changes else {}
        columns |= {"params": params_row(chosen.params)} if chosen.preset_id else {}
    async with platform.engine.begin() as db:
        locked = must_exist(await sessions.get(db, id, owner=principal.owner, lock=True), "session", param="session_id")
        if "params" in changes and "params" not in columns:
            columns["params"] = params_row(replace(locked.params, **changes["params"]))
        if "leaf_id" in columns and await messages.in_session(db, columns["leaf_id"], id) is None:
            raise InvalidInput("leaf_id: there is no such message in this session.", param="leaf_id")
        if columns:
            await sessions.change(db, id, columns)
        after = await sessions.get(db, id, owner=principal.owner)
    assert after is not None  # noqa: S101 - it was locked
    return after


async def delete(platform: Platform, principal: Principal, id: UUID) -> None:
    """Erase a session with its messages, runs, steps and values. The ledger keeps its counts."""
    async with platform.engine.begin() as db:
        must_exist(await sessions.get(db, id, owner=principal.owner, lock=True), "session", param="session_id")
        active = await runs.active_in(db, id)
        await sessions.erase(db, session_id=id)
    stop_all(platform, active)
    platform.windows.forget(id)
    await platform.cache.forget_session(str(id))
