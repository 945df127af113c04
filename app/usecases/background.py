"""Background runs: conducted by whichever worker takes their job."""

from __future__ import annotations

from app.domain import Job, RunStatus
from app.store import runs
from app.usecases.conduct import start
from app.usecases.platform import Platform


async def conduct(platform: Platform, job: Job) -> None:
    """Begin the run of a job here, and wait for its end. One whose turn has not come, or that is cancelled, is left alone."""
    async with platform.engine.connect() as db:
        run = await runs.get(db, job.subject_id, owner=None)
    if run is None or run.status is not RunStatus.QUEUED or run.id in platform.live or platform.draining.is_set():
        return
    if begun := await platform.writer.promote(run.session_id, job.id):
        await start(platform, begun).log.ended()
