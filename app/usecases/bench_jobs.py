"""What jobs do for benches that were ordered over REST: load their rows, and have items answered, several jobs at once."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from contextlib import aclosing
from pathlib import Path
from tempfile import TemporaryDirectory
from uuid import UUID

from app.datasets import Dataset
from app.domain import Bench, BenchStatus
from app.errors import AppError, Unavailable
from app.store import accounts, benches
from app.suites.suite import Suite
from app.usecases import files
from app.usecases.bench_work import Work, principal_of
from app.usecases.benches import SessionAnswers, add_shares, file_id, load, suite_of
from app.usecases.jobs import Kind
from app.usecases.platform import Platform

TURN_SECONDS = 60.0
"""After so long a job gives way to others."""
AT_ONCE = 16
"""Items under way at once in one job: several share a bench, and a process does several jobs."""


async def load_ordered(platform: Platform, id: UUID) -> None:
    """Store the rows of a bench that was ordered over REST, and have others work on it."""
    async with platform.engine.connect() as db:
        bench = await benches.get(db, id, owner=None)
    if bench is None or bench.status is not BenchStatus.LOADING:
        return
    suite = suite_of(bench)
    with TemporaryDirectory(prefix="chattable-bench-") as folder:
        try:
            await load(platform, bench, await _dataset(platform, bench, suite, Path(folder)))
        except AppError as error:
            if isinstance(error, Unavailable):
                raise
            await _fail(platform, id, error.message)
            return
    async with platform.engine.begin() as db:
        if await accounts.lock_user(db, bench.user_id) is not None:
            await add_shares(db, bench)


async def _dataset(platform: Platform, bench: Bench, suite: Suite, folder: Path) -> Dataset:
    part = suite.dataset
    if part.rows is not None:
        return Dataset(part.rows, skip_bad=part.skip_bad)
    if part.sessions is not None:
        source = SessionAnswers(platform, bench.user_id)
        return Dataset.from_sessions(source, feedback=part.sessions.feedback, agent=part.sessions.agent)
    principal = await principal_of(platform, bench)
    file = await files.open(platform, principal, file_id(part))
    path = folder / f"data{Path(file.name).suffix}"
    async with aclosing(files.content(platform, file)) as pieces:
        with path.open("wb") as written:
            async for piece in pieces:
                written.write(piece)
    return Dataset.open(path, skip_bad=part.skip_bad)


async def _fail(platform: Platform, id: UUID, reason: str) -> None:
    async with platform.engine.begin() as db:
        if await benches.move(db, id, to=BenchStatus.FAILED, since=benches.OPEN, reason=reason):
            await benches.erase_unasked(db, id)


async def work_on(platform: Platform, id: UUID) -> bool:
    """Have items answered for a while; false when there are more."""
    async with platform.engine.connect() as db:
        bench = await benches.get(db, id, owner=None)
    if bench is None or bench.status is not BenchStatus.RUNNING:
        return True
    try:
        suite = suite_of(bench)
        most = suite.limits.concurrency if suite.mode == "batch" else AT_ONCE
        work = Work(platform, bench, None, at_once=min(most, suite.limits.concurrency), patience=math.inf)
        bench = await work.run(wait=False, until=time.monotonic() + TURN_SECONDS)
    except AppError as error:
        await _fail(platform, id, error.message)
        return True
    return bench.status is not BenchStatus.RUNNING or work.is_exhausted


async def give_up(platform: Platform, id: UUID) -> None:
    """Whoever tried has died of it."""
    await _fail(platform, id, "It could not be done: every process that tried it has failed.")


KINDS: Mapping[str, Kind] = {"bench_load": Kind(load_ordered, give_up), "bench": Kind(work_on, give_up)}
"""What jobs do for benches."""
