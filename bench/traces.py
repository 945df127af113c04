"""What looking at traces takes among a million steps: a run's page, and lists by every filter."""

from __future__ import annotations

import random
from collections.abc import Sequence
from uuid import UUID

import asyncpg

from bench.client import WrongAnswer, dial
from bench.measures import Figures
from bench.table import Row, percentile
from bench.targets import Stage

RUNS, STEPS = 50_000, 20
AGENTS, MODELS, FAILED = 5, 4, 49
"""So many of each; every so many-th run failed."""
TRIES = 60
FILL_RUNS = """
INSERT INTO runs (id, session_id, user_id, agent_id, message_id, kind, status, created_at, ended_at)
SELECT uuidv7(at - now()), $1, s.user_id, 'agent_' || i % $3, $1, 'chat', CASE WHEN i % $4 = 0 THEN 'failed' ELSE 'completed' END, at, at
FROM sessions s, generate_series(1, $2::int) i,
  LATERAL (SELECT date_trunc('month', now()) + (now() - date_trunc('month', now())) * (i::float / $2) AS at)
WHERE s.id = $1"""
FILL_STEPS = """
INSERT INTO steps (run_id, seq, started_at, ended_at, scope_id, path, kind, name, model, status)
SELECT r.id, i, r.created_at, r.created_at, r.session_id, '/call[' || i || ']', 'llm', 'call',
  'model_' || abs(hashtext(r.id::text)) % $3, 'completed'
FROM runs r, generate_series(1, $2::int) i WHERE r.session_id = $1"""


async def traces(stage: Stage, figures: Figures) -> list[Row]:
    """Over HTTP, by a user whose steps they all are; medians of one caller."""
    (session,) = await stage.platform.sessions(1)
    db = await asyncpg.connect(stage.platform.database_url)
    try:
        await db.execute(FILL_RUNS, UUID(session), RUNS, AGENTS, FAILED, timeout=600)
        await db.execute(FILL_STEPS, UUID(session), STEPS, MODELS, timeout=600)
        await db.execute("ANALYZE runs, steps", timeout=600)
        some = await db.fetch("SELECT id, created_at FROM runs WHERE session_id = $1 ORDER BY id", UUID(session))
    finally:
        await db.close()
    chosen = random.Random(1).sample(some, TRIES)  # noqa: S311 - no secret
    pages = [f"/api/v1/runs/{row['id']}/steps" for row in chosen]
    filters = "agent=agent_{}&model=model_{}&status=failed&since={:%Y-%m-%dT%H:%M:%SZ}"
    lists = [
        f"/api/v1/runs?{filters.format(at % AGENTS, at % MODELS, row['created_at'])}" for at, row in enumerate(chosen)
    ]
    found = [
        await _timed(stage, figures, "page", pages, "the steps of a run", 20),
        await _timed(stage, figures, "list", lists, "runs by agent, model, status, user and time", 100),
    ]
    return [row for rows in found for row in rows]


async def _timed(stage: Stage, figures: Figures, name: str, paths: Sequence[str], what: str, bar: float) -> list[Row]:
    caller, taken = await dial(stage.platform.program.port), []
    for path in paths:
        answer = await caller.call(stage.platform.request("GET", path))
        if answer.status != 200:
            raise WrongAnswer(answer.raw[:300].decode(errors="replace"))
        taken.append(answer.seconds * 1000)
    caller.close()
    median, late = percentile(taken, 50), percentile(taken, 95)
    figures.add("traces", name, median)
    told = f"{what}, among {RUNS * STEPS:,} steps; p95"
    return [Row(told, f"{median:.1f} ms; {late:.1f} ms", bar=f"≤ {bar} ms", met=median <= bar)]


MEASURES = {"traces": traces}
