"""What is counted for Prometheus (`app/metrics.py`), and what of the whole platform is looked up when it asks."""

from __future__ import annotations

import asyncio
import resource
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from sqlalchemy.exc import SQLAlchemyError

from app import metrics
from app.domain import Principal, Run, Step, now
from app.errors import NotAllowed
from app.metrics import Metrics, Numbers, exposition, named
from app.store import overview
from app.store.database import is_passing
from app.usecases.platform import Platform

GAUGE_SECONDS = 5.0
LOOK_SECONDS = 3.0
MEMORY_FILE = Path("/proc/self/statm")


def run_ended(counted: Metrics, run: Run, steps: Sequence[Step]) -> None:
    """Count a run that this process has ended, with the calls it made."""
    counted.add(metrics.RUNS, run.agent_id, run.status.value)
    if run.created_at:
        counted.observe(metrics.RUN_SECONDS, (now() - run.created_at).total_seconds(), run.agent_id)
    for step in steps:
        if step.kind != "llm" or step.ended_at is None:
            continue
        model, usage = step.model or "none", step.usage
        counted.add(metrics.CALLS, model, step.status, str(step.from_cache).lower())
        if not step.from_cache:
            counted.observe(metrics.CALL_SECONDS, (step.ended_at - step.started_at).total_seconds(), model)
        for kind in ("prompt", "completion", "cached", "reasoning"):
            if tokens := getattr(usage, kind):
                counted.add(metrics.TOKENS, model, kind, amount=tokens)
        if usage.cost:
            counted.add(metrics.COST, model, amount=float(usage.cost))


class Gauges:
    """What this process says of itself from time to time."""

    def __init__(self, platform: Platform) -> None:
        self._platform = platform
        self._cpu = 0.0

    async def tell(self) -> None:
        """Say it."""
        here, counted = self._platform, self._platform.metrics
        used = resource.getrusage(resource.RUSAGE_SELF)
        cpu = used.ru_utime + used.ru_stime
        counted.add(metrics.CPU, amount=cpu - self._cpu)
        self._cpu = cpu
        counted.set(metrics.MEMORY, _resident())
        counted.set(metrics.LIVE, len(here.live))
        counted.set(metrics.CONNECTIONS, here.engine.pool.checkedout())  # type: ignore[attr-defined]  # a queue pool
        counted.set(metrics.DRAINING, float(here.draining.is_set()))


def _resident() -> float:
    """Bytes of this process in memory; where there is no /proc, the most it ever had."""
    with suppress(OSError):
        return float(int(MEMORY_FILE.read_text().split()[1]) * resource.getpagesize())
    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)


async def text(platform: Platform, principal: Principal | None) -> str:
    """All numbers as Prometheus reads them; `principal` is None for whoever has METRICS_KEY."""
    if principal is not None and not (principal.is_admin or principal.acts_for_all):
        raise NotAllowed("Only an administrator may do that.")
    return exposition({**platform.metrics.total(), **await _of_the_platform(platform)})


async def _of_the_platform(platform: Platform) -> Numbers:
    """What the database knows: the same from every server, so it is not to be added up over them."""
    try:
        async with asyncio.timeout(LOOK_SECONDS), platform.engine.connect() as db:
            jobs, runs = await overview.jobs_by_state(db), await overview.runs_by_status(db)
    except (OSError, TimeoutError, SQLAlchemyError) as error:
        if not is_passing(error):
            raise
        return {named(metrics.DATABASE): 0.0}
    found = {named(metrics.JOBS, state): float(count) for state, count in jobs.items()}
    found |= {named(metrics.UNENDED, status): float(count) for status, count in runs.items()}
    return found | {named(metrics.DATABASE): 1.0}
