"""Which function does which kind of job."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import TypeAlias

from app.domain import Job
from app.store.jobs import RUN
from app.usecases import background, batch_work, bench_jobs, schedules, webhooks
from app.usecases.batch_work import Ask
from app.usecases.jobs import perform
from app.usecases.platform import Platform

Work: TypeAlias = Callable[[Platform, Job], Awaitable[None]]
"""Takes the job, does it, and ends it, each in a transaction that looks whether it may; so it may be called for a job twice."""


def kinds(ask: Ask) -> Mapping[str, Work]:
    """All that workers do; `ask` answers the requests of batches."""
    others = {**batch_work.KINDS, **batch_work.shards(ask), **bench_jobs.KINDS, **webhooks.KINDS, **schedules.KINDS}
    return {RUN: background.conduct} | {name: partial(perform, kind) for name, kind in others.items()}
