"""Background runs: conducted by whichever worker takes their job."""

from __future__ import annotations

import asyncio

from app.domain import Job, RunStatus
from app.store import runs
from app.usecases.conduct import start
from app.usecases.live import LiveRun
from app.usecases.platform import Platform


async def conduct(platform: Platform, job: Job) -> None:
    """Begin the run of a job here, and wait for its end. One whose turn has not come, or that is cancelled, is left alone."""
    async with platform.engine.connect() as db:
        run = await runs.get(db, job.subject_id, owner=None)
    if run is None or run.status is not RunStatus.QUEUED or run.id in platform.live or platform.draining.is_set():
        return
    if begun := await platform.writer.promote(run.session_id, job.id):
        await _place_taken(platform, start(platform, begun))


async def _place_taken(platform: Platform, live: LiveRun) -> None:
    """Until a run has ended, or waits for a call in mode batch: from then on it needs no place among the jobs."""
    ended = platform.tasks.start(live.log.ended(), name="end of a background run")
    if live.waits is None or len(platform.live) >= platform.max_runs // 2:
        await ended
        return
    waits = platform.tasks.start(live.waits.begun.wait(), name="batch of a background run")
    try:
        await asyncio.wait({ended, waits}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        waits.cancel()
        ended.cancel()
