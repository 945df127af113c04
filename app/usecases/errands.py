"""Errands: made, given to an agent, executed in the background, watched. Seed 004 calls them tasks, which here are asyncio's.

An errand is a message that waits: once it has an agent it has a session, and its executions are runs of that message there. So all
that holds for sessions and runs holds for it: budgets, rights, metering, cancelling, events, erasure.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncConnection

from app.domain import Errand, Message, Outcome, Page, Principal, RunStatus, SessionParams, Step, new_id, now
from app.errors import Conflict, must_exist
from app.llm.tokens import count
from app.store import errands, messages, traces
from app.store import sessions as stored_sessions
from app.store.operations import BeginRun, IdempotencyKey
from app.store.sessions import params_row
from app.usecases import agents, runs, sessions
from app.usecases import messages as sending
from app.usecases.agents import Choice
from app.usecases.creations import claim
from app.usecases.platform import Platform


async def create(
    platform: Platform,
    principal: Principal,
    *,
    name: str,
    content: str,
    agent_id: str | None = None,
    agent_params: Mapping[str, Any],
    params: SessionParams,
    key: str | None = None,
) -> Errand:
    """Write down what is to be done, by this agent or by one that is assigned later; with an idempotency `key`, once."""
    chosen = await _chosen(platform, principal, agent_id, agent_params, params) if agent_id else None
    session = sessions.new(principal.user, chosen, name) if chosen else None
    errand = Errand(new_id(), principal.user.id, name, content, session, created_at=now())
    wish = (name, content, agent_id, agent_params, params_row(params))
    async with platform.engine.begin() as db:
        made = await claim(db, principal.user.id, key, errand.id, "errand", *wish)
        if made != errand.id:
            return await _existing(db, principal, made, param="idempotency-key")
        if session:
            await stored_sessions.add(db, session, params_row(session.params))
        await errands.add(db, errand)
    return errand


async def get(platform: Platform, principal: Principal, id: UUID) -> Errand:
    """An errand of the caller, as it stands."""
    async with platform.engine.connect() as db:
        return await _existing(db, principal, id)


async def list_page(platform: Platform, principal: Principal, *, after: UUID | None, limit: int) -> Page[Errand]:
    """The caller's errands, the newest first."""
    async with platform.engine.connect() as db:
        return await errands.list_page(db, principal.owner, after=after, limit=limit)


async def assign(
    platform: Platform,
    principal: Principal,
    id: UUID,
    *,
    agent_id: str,
    agent_params: Mapping[str, Any],
    params: SessionParams,
) -> Errand:
    """Give an errand to an agent; to another one as long as none is at it or has done it."""
    await get(platform, principal, id)
    chosen = await _chosen(platform, principal, agent_id, agent_params, params)
    async with platform.engine.begin() as db:
        await errands.lock(db, id)
        errand = await _existing(db, principal, id)
        _check_open(errand)
        if errand.session is None:
            session = sessions.new(principal.user, chosen, errand.name)
            await stored_sessions.add(db, session, params_row(chosen.params))
            await errands.set_session(db, id, session.id)
        else:
            columns = {"agent_id": chosen.agent_id, "agent_params": chosen.agent_params, "preset_id": chosen.preset_id}
            columns["params"] = params_row(chosen.params)
            await stored_sessions.change(db, errand.session.id, columns)
        return await _existing(db, principal, id)


async def execute(platform: Platform, principal: Principal, id: UUID) -> Errand:
    """Have the agent do it in the background; once more if it failed, was cancelled or broke off. Two calls at once are one execution."""
    errand = await get(platform, principal, id)
    if errand.session is None:
        raise Conflict("The task has no agent yet: assign one.", param="task_id")
    _check_open(errand)
    async with platform.engine.connect() as db:
        stored = await messages.get(db, id, owner=principal.owner)
    message = stored or Message.user(errand.content, id=id, tokens=count(errand.content))
    attempt = IdempotencyKey(f"errand {id} {errand.runs}", id.bytes)
    wanted = BeginRun(
        principal,
        errand.session.id,
        new_id(),
        message,
        platform.agents.ids,
        again=stored is not None,
        key=attempt,
        background=True,
    )
    await sending.begin(platform, wanted)
    return await get(platform, principal, id)


async def cancel(platform: Platform, principal: Principal, id: UUID) -> Errand:
    """End the execution early; one that has ended stays as it is."""
    errand = await get(platform, principal, id)
    if errand.run is None:
        raise Conflict("The task is not being executed.", param="task_id")
    await runs.cancel(platform, principal, errand.run.id)
    return await get(platform, principal, id)


async def delete(platform: Platform, principal: Principal, id: UUID) -> None:
    """Erase an errand with its session and everything in it."""
    async with platform.engine.begin() as db:
        await errands.lock(db, id)
        errand = await _existing(db, principal, id)
        if errand.session is None:
            await errands.erase(db, id)
    if errand.session is not None:
        await sessions.delete(platform, principal, errand.session.id)


async def result(platform: Platform, errand: Errand) -> str | None:
    """What the last execution has answered, as far as it came; None before its end."""
    if errand.run is None or not errand.run.status.is_final:
        return None
    async with platform.engine.connect() as db:
        answers = await messages.of_runs(db, [errand.run.id])
    return Outcome(errand.run, answers.get(errand.run.id, ())).text


async def steps(platform: Platform, errand: Errand, *, after: int, limit: int) -> Page[Step]:
    """The recorded acts of the last execution; they are stored with its end."""
    if errand.run is None:
        return Page([], False)
    async with platform.engine.connect() as db:
        return await traces.steps_page(db, errand.run, after=after, limit=limit)


async def _chosen(
    platform: Platform, principal: Principal, agent_id: str, agent_params: Mapping[str, Any], params: SessionParams
) -> Choice:
    return await agents.choose(
        platform, principal.user, agent_id, agent_params, params, sees_all=principal.acts_for_all
    )


def _check_open(errand: Errand) -> None:
    """Raise when it is being done, or is done."""
    if errand.run is None:
        return
    if not errand.run.status.is_final:
        raise Conflict("The task is being executed.", param="task_id")
    if errand.run.status is RunStatus.COMPLETED:
        raise Conflict("The task is completed.", param="task_id")


async def _existing(db: AsyncConnection, principal: Principal, id: UUID, *, param: str = "task_id") -> Errand:
    return must_exist(await errands.get(db, id, owner=principal.owner), "task", param=param)
