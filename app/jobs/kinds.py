"""Which function does which kind of job."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import TypeAlias

from app.domain import Job
from app.store.jobs import RUN
from app.usecases import background
from app.usecases.platform import Platform

Work: TypeAlias = Callable[[Platform, Job], Awaitable[None]]
"""Takes the job, does it, and ends it, each in a transaction that looks whether it may; so it may be called for a job twice."""

KINDS: Mapping[str, Work] = {RUN: background.conduct}
