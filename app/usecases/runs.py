"""Runs: shown, followed from any replica, cancelled, drained."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncEngine

from app.domain import Chunk, Outcome, Page, Principal, Run, RunStatus
from app.errors import Conflict, NotAuthenticated, NotFound, Unavailable, must_exist
from app.journal.log import Log
from app.store import runs, sessions, traces
from app.store.operations import AnswerRun
from app.usecases.answers import stored_log
from app.usecases.conduct import SHUTDOWN, answer_question, finish, start, unanswered
from app.usecases.live import LiveRun, Seen
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
        return must_exist(await runs.get(db, id, owner=principal.owner), "run", param="run_id")


async def list_page(
    platform: Platform,
    principal: Principal,
    session_id: UUID,
    *,
    after: UUID | None,
    limit: int,
    newest_first: bool = False,
) -> Page[Run]:
    """The runs of a session."""
    async with platform.engine.connect() as db:
        must_exist(await sessions.get(db, session_id, owner=principal.owner), "session", param="session_id")
        return await runs.list_page(db, session_id, after=after, limit=limit, newest_first=newest_first)


@asynccontextmanager
async def following(platform: Platform, run: Run) -> AsyncIterator[Log]:
    """The log of a run while the block lasts, whoever conducts it, or as it is stored. No database connection is held meanwhile."""
    if live := platform.live.get(run.id):
        yield live.log
    elif run.status.is_final:
        yield (await load(platform.engine, [run.id]))[run.id]
    elif run.status is RunStatus.WAITING:
        yield await _paused(platform.engine, run)
    elif platform.draining.is_set():
        yield _closed(_elsewhere(run.id))
    else:
        async with platform.relay.following(run.id) as log:
            yield log


async def resume(platform: Platform, principal: Principal, id: UUID) -> tuple[Run, Log | None]:
    """A run of the caller to follow, and its log when it is conducted here or has ended.

    Looks whether the caller's credential is still good, so that one who was recognised a moment ago may do. Many that come at once,
    as after a restart, are looked up together: they take one connection and not each its own.
    """
    seen = await platform.resumes.get((id, principal.credential_id))
    if seen is None or not seen.allowed:
        raise NotAuthenticated
    live = platform.live.get(id)
    run = live.run if live else seen.run
    if run is None or principal.owner not in (None, run.user_id):
        raise NotFound("run", param="run_id")
    return run, live.log if live else seen.log


async def look(engine: AsyncEngine, wanted: Sequence[runs.Sought]) -> Mapping[runs.Sought, Seen]:
    """What `resume` has to know, for many in one statement."""
    async with engine.connect() as db:
        found = dict(await runs.sought(db, wanted))
        for key, (allowed, run, _) in found.items():
            if run and run.kind == "rerun" and run.status.is_final:
                found[key] = allowed, run, (await traces.answers_of(db, [run])).get(run.id, ())
    return {
        key: Seen(allowed, run, stored_log(run, answers) if run and run.status.is_final else None)
        for key, (allowed, run, answers) in found.items()
    }


async def load(engine: AsyncEngine, ids: Sequence[UUID]) -> Mapping[UUID, Log]:
    """The logs of those of these runs that have ended or were erased, from what is stored."""
    async with engine.connect() as db:
        found = await runs.stored(db, ids)
        ended = [run for run in found.values() if run.status.is_final]
        answers = await traces.answers_of(db, ended) if ended else {}
    logs = {run.id: stored_log(run, answers.get(run.id, ())) for run in ended}
    logs |= {run.id: await _paused(engine, run) for run in found.values() if run.status is RunStatus.WAITING}
    return logs | {id: _closed(_erased(id)) for id in ids if id not in found}


async def _paused(engine: AsyncEngine, run: Run) -> Log:
    """The log of a run that waits for a person."""
    async with engine.connect() as db:
        said = await runs.said(db, run.id)
    made = Log(run.id)
    for content_type, content in said:
        made.append(Chunk(content, content_type))
    made.close(Outcome(run))
    return made


def _closed(outcome: Outcome) -> Log:
    made = Log(outcome.run.id)
    made.close(outcome)
    return made


def _erased(id: UUID) -> Outcome:
    return Outcome(Run(id, id, id, "", id, RunStatus.FAILED, error=NotFound("session").to_dict()))


def _elsewhere(id: UUID) -> Outcome:
    """What who follows a run is told by a server that ends before the run does."""
    return Outcome(Run(id, id, id, "", id, RunStatus.QUEUED, error=SHUTDOWN))


async def answer(platform: Platform, principal: Principal, id: UUID, given: Any) -> LiveRun | Run:
    """Answer the question of a run of the caller: the run goes on, here unless a worker is to."""
    run = await get(platform, principal, id)
    if platform.draining.is_set():
        raise Unavailable("The server is shutting down.", retry_after=1)
    if run.status is not RunStatus.WAITING:
        raise Conflict("The run does not wait for an answer.", param="run_id")
    return await answer_question(platform, AnswerRun(run.session_id, id, given))


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
        asking = await runs.claim_waiting(db, id, platform.writer.replica)
        if asking is None:
            await runs.request_cancel(db, [id])
    if asking:
        finished = await finish(platform, await unanswered(platform, *asking))
        if finished.promoted:
            start(platform, finished.promoted)
        return finished.outcome.run
    run = await get(platform, principal, id)
    if run.status.is_final:  # it waited its turn
        await _next_turn(platform, run.session_id)
        return run
    with suppress(TimeoutError):
        async with asyncio.timeout(CANCEL_SECONDS), following(platform, run) as log:
            await log.ended()
    return await get(platform, principal, id)


async def _next_turn(platform: Platform, session_id: UUID) -> None:
    """Begin what waited for a run that waited itself."""
    if not platform.draining.is_set() and (begun := await platform.writer.promote(session_id)):
        start(platform, begun)


async def drain(platform: Platform, seconds: float) -> None:
    """Take no more messages and jobs; let what runs end by itself, then end it, and store it all.

    Answers that were ended are partial. Background runs, and other jobs, are queued again instead.

    Runs that wait, and those of other replicas, go on; who follows them here is told to follow them elsewhere.
    """
    platform.draining.set()
    await _all_ended(platform, seconds)
    for live in list(platform.live.values()):
        live.end("shutdown")
    for job in list(platform.jobs.values()):
        job.leave()
    await _all_ended(platform, STORE_SECONDS)
    platform.relay.let_go(_elsewhere)


async def _all_ended(platform: Platform, seconds: float) -> None:
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            while platform.live or platform.jobs:  # a run may begin whose message was on its way
                ends = [live.log.ended() for live in platform.live.values()]
                await asyncio.gather(*ends, *(job.ended.wait() for job in platform.jobs.values()))
