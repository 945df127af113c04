"""Runs: shown, followed from any replica, cancelled, drained."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncEngine

from app.domain import Outcome, Page, Principal, Run, RunStatus
from app.errors import NotFound
from app.journal.log import Log
from app.store import messages, runs, sessions
from app.usecases.conduct import stored_log
from app.usecases.platform import Platform

STORE_SECONDS = 10.0
"""How long a server that ends waits for its last answers to be stored."""
CANCEL_SECONDS = 10.0
"""How long a caller waits for another replica to end a run."""


async def get(platform: Platform, principal: Principal, id: UUID) -> Run:
    """A run of the caller; one that is conducted here needs no look at the database."""
    live = platform.live.get(id)
    if live and principal.owner in (None, live.run.user_id):
        return live.run
    async with platform.engine.connect() as db:
        run = await runs.get(db, id, owner=principal.owner)
    if run is None:
        raise NotFound("run", param="run_id")
    return run


async def list_page(
    platform: Platform, principal: Principal, session_id: UUID, *, after: UUID | None, limit: int
) -> Page[Run]:
    """The runs of a session."""
    async with platform.engine.connect() as db:
        if await sessions.get(db, session_id, owner=principal.owner) is None:
            raise NotFound("session", param="session_id")
        return await runs.list_page(db, session_id, after=after, limit=limit)


@asynccontextmanager
async def following(platform: Platform, run: Run) -> AsyncIterator[Log]:
    """The log of a run while the block lasts, whoever conducts it, or as it is stored. No database connection is held meanwhile."""
    if live := platform.live.get(run.id):
        yield live.log
        return
    ended = await load(platform.engine, [run.id])
    if log := ended.get(run.id):
        yield log
        return
    async with platform.relay.following(run.id) as log:
        yield log


async def load(engine: AsyncEngine, ids: Sequence[UUID]) -> Mapping[UUID, Log]:
    """The logs of those of these runs that have ended or were erased, from what is stored."""
    async with engine.connect() as db:
        found = {run.id: run for run in await runs.ended(db, ids)}
        there = await runs.existing(db, ids)
        answers = await messages.of_runs(db, list(found))
    logs = {id: stored_log(run, answers.get(id, ())) for id, run in found.items()}
    for id in set(ids) - there:
        logs[id] = Log(id)
        logs[id].close(Outcome(_erased(id)))
    return logs


def _erased(id: UUID) -> Run:
    return Run(id, id, id, "", id, RunStatus.FAILED, error=NotFound("session").to_dict())


async def cancel(platform: Platform, principal: Principal, id: UUID) -> Run:
    """End a run early, whichever replica conducts it; what it said so far is kept. Gives its final state.

    A run that has ended stays as it is. When the other replica does not answer in time, the run is given as it is then: it ends
    as soon as that replica, or the one that reaps its runs, gets to it.
    """
    run = await get(platform, principal, id)
    if run.status.is_final:
        return run
    if live := platform.live.get(id):
        live.end("cancel")
        return (await live.log.ended()).run
    async with platform.engine.begin() as db:
        await runs.request_cancel(db, [id])
    with suppress(TimeoutError):
        async with asyncio.timeout(CANCEL_SECONDS), following(platform, run) as log:
            return (await log.ended()).run
    return await get(platform, principal, id)


async def drain(platform: Platform, seconds: float) -> None:
    """Take no more messages; let running answers end by themselves, then end them as partial, and store them all."""
    platform.draining.set()
    await _all_ended(platform, seconds)
    for live in list(platform.live.values()):
        live.end("shutdown")
    await _all_ended(platform, STORE_SECONDS)


async def _all_ended(platform: Platform, seconds: float) -> None:
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await asyncio.gather(*(live.log.ended() for live in list(platform.live.values())))
