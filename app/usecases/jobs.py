"""Doing a job: taken by one worker at a time, ended once, and given up when too many have died of it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, NamedTuple
from uuid import UUID

from app.domain import Job, JobState
from app.errors import Unavailable
from app.reports import report
from app.store import jobs
from app.store.database import is_passing
from app.usecases.conduct import patiently
from app.usecases.live import LiveJob
from app.usecases.platform import Platform

log = logging.getLogger(__name__)

PLACE_SECONDS = 120.0
"""Longer than the turn of any kind of job, after which it begins nothing new."""
WRONG = {"code": "internal", "message": "Something went wrong in the server.", "status": 500}


class Kind(NamedTuple):
    """What is done for jobs of a kind. `work` gives false when it is left for another time, the seconds until then, or `waiting` when
    it has no turn until somebody gives it one; `give_up` ends what waits for it.
    """

    work: Callable[[Platform, UUID], Awaitable[JobState | bool | float | None]]
    give_up: Callable[[Platform, UUID], Awaitable[None]]


async def perform(kind: Kind, platform: Platform, job: Job) -> None:
    """Do a job, if this worker gets it. Its subject's state tells what is still to do, so it may be begun again.

    After `PLACE_SECONDS` it goes on without a place among the jobs: it waits for batches of language models, which others need not.
    The reaper queues again what this replica has taken and does not do: the end of such a job, or its beginning, was not heard of.
    """
    if platform.draining.is_set() or job.id in platform.jobs:  # an attempt that was taken for lost goes on
        return
    live = platform.jobs[job.id] = LiveJob()
    working = platform.tasks.start(_attempt(kind, platform, job, live), name="a job's work")
    await asyncio.wait({working}, timeout=PLACE_SECONDS)
    if working.done():
        await working


async def _attempt(kind: Kind, platform: Platform, job: Job, live: LiveJob) -> None:
    try:
        async with platform.engine.begin() as db:
            taken = await jobs.take(db, job.id, platform.writer.replica)
        if taken is not None:
            await _perform(kind, platform, taken, live)
    finally:
        del platform.jobs[job.id]
        live.ended.set()


async def _perform(kind: Kind, platform: Platform, taken: Job, live: LiveJob) -> None:
    state, error, after = await _done(kind, platform, taken, live)
    if state is JobState.WAITING:
        await patiently(lambda: _set_aside(platform, taken))
    elif state is JobState.QUEUED:
        await patiently(lambda: _hand_back(platform, taken, after))
    else:
        await patiently(lambda: _end(platform, taken, state, error))


async def _done(
    kind: Kind, platform: Platform, job: Job, live: LiveJob
) -> tuple[JobState, Mapping[str, Any] | None, float | None]:
    """What becomes of a job that was taken: its state, its error, and after how many seconds it is to be taken again."""
    if job.lost >= jobs.MAX_LOST:
        await kind.give_up(platform, job.subject_id)
        return JobState.FAILED, jobs.PARKED, None
    try:
        told = await _worked(kind, platform, job, live)
    except Exception as error:
        if is_passing(error) or isinstance(error, Unavailable):
            return JobState.QUEUED, None, None
        if await _is_erased(platform, job):
            return JobState.CANCELLED, None, None
        report(log, f"a job of kind {job.kind} failed", error)
        await kind.give_up(platform, job.subject_id)
        return JobState.FAILED, WRONG, None
    after = told if isinstance(told, float) else None
    is_left = told is False or after is not None
    ended = told if isinstance(told, JobState) else JobState.COMPLETED
    return (JobState.QUEUED if is_left else ended), None, after


async def _worked(kind: Kind, platform: Platform, job: Job, live: LiveJob) -> JobState | bool | float | None:
    """What the work gives; false when it was left, which binds only until here."""
    task = asyncio.current_task()
    assert task is not None  # noqa: S101 - a coroutine always runs in a task
    if live.is_left():
        return False
    live.working = task
    try:
        return await kind.work(platform, job.subject_id)
    except asyncio.CancelledError:
        if not live.is_left() or task.uncancel():  # cancelled twice: the process ends now
            raise
        return False
    finally:
        live.working = None


async def _is_erased(platform: Platform, job: Job) -> bool:
    """Whether a job went with its user, and so failed."""
    async with platform.engine.connect() as db:
        return await jobs.get(db, job.id) is None


async def _end(platform: Platform, job: Job, state: JobState, error: Mapping[str, Any] | None) -> None:
    async with platform.engine.begin() as db:
        await jobs.end(db, job, state, error)


async def _set_aside(platform: Platform, job: Job) -> None:
    async with platform.engine.begin() as db:
        await jobs.set_aside(db, job)


async def _hand_back(platform: Platform, job: Job, after: float | None) -> None:
    """Leave it to another worker now, or when the reaper issues its ticket: in a moment, for which it takes nobody's place here."""
    async with platform.engine.begin() as db:
        await jobs.hand_back(db, job, after=0.0 if after is None and platform.draining.is_set() else after)
