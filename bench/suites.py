"""What a test bench costs: many items, 200 at once, an upstream that takes 50 ms, in one process on the engines of the benchmark.

`python -m bench.suites ITEMS AT_ONCE` is that process; it reads the settings of a server and prints what it took as JSON.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import psutil
import uvloop

from app.datasets import Dataset
from app.domain import Principal, Scope
from app.main import opened
from app.settings import load
from app.store import accounts
from app.suites.suite import Suite
from app.tasks import Tasks
from app.usecases import benches
from app.usecases.bench_work import Work

SETTLED = 0.2
"""From this part of the items on memory must not grow."""


async def measure(items: int, at_once: int) -> dict[str, float]:
    """Run a suite of so many items, whose answers are 50 ms away, without the cache."""
    settings = load()
    assert settings.database_url  # noqa: S101 - the benchmark has set it
    rows = Dataset({"input": f"Question {number} [[1 0.05]]"} for number in range(items))
    given = {
        "name": f"benchmark {time.time()}",
        "dataset": {"path": "rows.jsonl"},
        "agents": [{"id": "simple_openai_agent"}],
        "scorers": [{"kind": "regex", "pattern": r"\d"}],
        "cache": "off",
        "limits": {"concurrency": at_once},
    }
    async with opened(settings, settings.database_url.get_secret_value()) as platform:
        async with platform.engine.connect() as db:
            user = await accounts.get_user(db, name="admin")
        assert user  # noqa: S101 - `serve` has made it
        made = Dataset(list(rows))
        bench = await benches.order(
            platform, Principal(user, frozenset({Scope.CHAT})), Suite.model_validate(given), made, Path()
        )
        del made, rows
        work, process = Work(platform, bench, None), psutil.Process()
        memory: list[tuple[float, int]] = []

        async def look() -> None:
            memory.append((work.progress.done / items, process.memory_info().rss))

        tasks = Tasks()
        tasks.repeat(look, 0.5, name="memory")
        began, cpu = time.monotonic(), time.process_time()
        done = await work.run()
        seconds, cpu = time.monotonic() - began, time.process_time() - cpu
        await tasks.close()
    if done.status != "completed" or work.progress.done != items or work.progress.failed:
        raise RuntimeError(f"{done.status}: {work.progress}")
    late = [size for share, size in memory if share >= SETTLED] or [memory[-1][1]]
    return {"seconds": seconds, "cpu": cpu, "peak": max(late), "grown": late[-1] - late[0]}


if __name__ == "__main__":
    sys.stdout.write(json.dumps(uvloop.run(measure(int(sys.argv[1]), int(sys.argv[2])))) + "\n")
