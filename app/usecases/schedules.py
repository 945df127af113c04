"""Schedules: made, paused, resumed, deleted by their users; and the runs that they begin."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from uuid import UUID

from msgspec.structs import replace

from app.domain import Message, Page, Principal, Schedule, Scope, SessionParams, User, new_id, now
from app.errors import AppError, InvalidInput, LimitExceeded, NotAuthenticated, Unavailable, must_exist
from app.llm.tokens import count
from app.store import accounts, schedules
from app.store import sessions as stored_sessions
from app.store.operations import BeginRun, IdempotencyKey
from app.store.sessions import params_row
from app.usecases import agents, messages, sessions
from app.usecases.clock import next_time
from app.usecases.creations import claim
from app.usecases.jobs import Kind
from app.usecases.platform import Platform

MAX_SCHEDULES = 100
"""How many one user may have."""
WISH = ("name", "cron", "timezone", "input", "session_id", "agent_id", "agent_params", "params")
"""What makes two requests for a schedule equal."""


async def create(
    platform: Platform,
    principal: Principal,
    *,
    name: str,
    cron: str,
    timezone: str,
    content: str,
    session_id: UUID | None = None,
    agent_id: str | None = None,
    agent_params: Mapping[str, Any],
    params: SessionParams,
    key: str | None = None,
) -> Schedule:
    """Have `content` said at the times of `cron`: in a session of the caller, or to an agent in a new session each time.

    An agent, or preset, is looked at now and chosen anew each time, with what it is then.
    """
    if (session_id is None) == (agent_id is None):
        raise InvalidInput("agent: give either an agent or a session_id.", param="agent")
    moment = now()
    next_at = next_time(cron, timezone, moment)
    if agent_id is not None:
        await agents.choose(platform, principal.user, agent_id, agent_params, params, sees_all=principal.acts_for_all)
    elif params_row(params):
        raise InvalidInput("session_params: a session has its own.", param="session_params")
    schedule = Schedule(
        new_id(),
        principal.user.id,
        name,
        cron,
        timezone,
        content,
        session_id,
        agent_id,
        agent_params,
        params,
        _credential(principal),
        next_at,
        created_at=moment,
    )
    return await _store(platform, schedule, key)


async def _store(platform: Platform, schedule: Schedule, key: str | None) -> Schedule:
    """The schedule once it is stored, or the one that an equal wish has made."""
    owner_id, wish = schedule.user_id, [getattr(schedule, name) for name in WISH]
    async with platform.engine.begin() as db:
        if await accounts.lock_user(db, owner_id) is None:
            raise NotAuthenticated
        made = await claim(db, owner_id, key, schedule.id, "schedule", *wish)
        if made != schedule.id:
            return must_exist(await schedules.get(db, made, owner=owner_id), "schedule", param="idempotency-key")
        if schedule.session_id is not None:
            found = await stored_sessions.get(db, schedule.session_id, owner=owner_id)
            must_exist(found, "session", param="session_id")
        if await schedules.count(db, owner_id) >= MAX_SCHEDULES:
            raise LimitExceeded(f"You have {MAX_SCHEDULES} schedules already.")
        await schedules.add(db, schedule)
    return schedule


def _credential(principal: Principal) -> UUID | None:
    """The key whose budgets and end hold for the runs; a login's token lasts minutes."""
    return None if principal.login_id else principal.credential_id


async def get(platform: Platform, principal: Principal, id: UUID) -> Schedule:
    """A schedule of the caller."""
    async with platform.engine.connect() as db:
        return must_exist(await schedules.get(db, id, owner=principal.owner), "schedule", param="schedule_id")


async def list_page(platform: Platform, principal: Principal, *, after: UUID | None, limit: int) -> Page[Schedule]:
    """The caller's schedules, in the order they were made."""
    async with platform.engine.connect() as db:
        return await schedules.list_page(db, owner=principal.owner, after=after, limit=limit)


async def pause(platform: Platform, principal: Principal, id: UUID) -> Schedule:
    """Begin no more runs until it is resumed; what it has begun goes on."""
    return await _changed(platform, principal, id, {"next_at": None})


async def resume(platform: Platform, principal: Principal, id: UUID) -> Schedule:
    """Go on with the next time from now; one that is not paused stays as it is."""
    schedule = await get(platform, principal, id)
    if schedule.next_at is not None:
        return schedule
    next_at = next_time(schedule.cron, schedule.timezone, now())
    fields = {"next_at": next_at, "error": None, "credential_id": _credential(principal)}
    return await _changed(platform, principal, id, fields)


async def _changed(platform: Platform, principal: Principal, id: UUID, fields: Mapping[str, Any]) -> Schedule:
    async with platform.engine.begin() as db:
        must_exist(await schedules.get(db, id, owner=principal.owner), "schedule", param="schedule_id")
        await schedules.change(db, id, fields)
        return must_exist(await schedules.get(db, id, owner=principal.owner), "schedule", param="schedule_id")


async def delete(platform: Platform, principal: Principal, id: UUID) -> None:
    """Begin no more runs. What it has begun goes on, and its sessions stay."""
    async with platform.engine.begin() as db:
        must_exist(await schedules.get(db, id, owner=principal.owner), "schedule", param="schedule_id")
        await schedules.erase(db, id)


# Its jobs


async def begin_run(platform: Platform, id: UUID) -> None:
    """Begin the run of the time that was claimed last: once, for the run has its id already."""
    async with platform.engine.connect() as db:
        schedule = await schedules.get(db, id, owner=None)
        user = await accounts.get_user(db, id=schedule.user_id) if schedule else None
    if schedule is None or schedule.run_id is None or user is None or user.status != "active":
        return
    try:
        await _begin(platform, schedule, user, schedule.run_id)
    except Unavailable:  # another time, or another server
        raise
    except AppError as error:
        async with platform.engine.begin() as db:
            if schedule.session_id is None:  # made for this run, which there is not
                await stored_sessions.erase(db, session_id=schedule.run_id)
            await schedules.note(db, schedule, error.to_dict(), pause=isinstance(error, NotAuthenticated))


async def _begin(platform: Platform, schedule: Schedule, user: User, run_id: UUID) -> None:
    session_id = schedule.session_id or await _new_session(platform, schedule, user, run_id)
    message = Message.user(schedule.input, id=new_id(), tokens=count(schedule.input))
    await messages.begin(
        platform,
        BeginRun(
            Principal(user, frozenset({Scope.CHAT}), schedule.credential_id, gives_way=True),
            session_id,
            run_id,
            message,
            platform.agents.ids,
            key=IdempotencyKey(f"schedule {run_id}", run_id.bytes),
            background=True,
        ),
    )


async def _new_session(platform: Platform, schedule: Schedule, user: User, run_id: UUID) -> UUID:
    """The session of a run: it has the run's id, so that a job which is done again makes no other."""
    assert schedule.agent_id is not None  # noqa: S101 - the table says so
    async with platform.engine.connect() as db:
        if await stored_sessions.get(db, run_id, owner=user.id):
            return run_id
    chosen = await agents.choose(platform, user, schedule.agent_id, schedule.agent_params, schedule.params)
    session = replace(sessions.new(user, chosen, schedule.name), id=run_id)
    async with platform.engine.begin() as db:
        await stored_sessions.add(db, session, params_row(session.params))
    return run_id


async def give_up(platform: Platform, id: UUID) -> None:
    """Note that the last time has no run."""
    async with platform.engine.begin() as db:
        if schedule := await schedules.get(db, id, owner=None):
            await schedules.note(db, schedule, AppError("The run could not be begun.").to_dict(), pause=False)


KINDS = {schedules.KIND: Kind(begin_run, give_up)}
"""What jobs do for schedules."""
