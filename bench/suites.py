"""What a test bench costs: many items, 200 at once, an upstream that takes 50 ms, by processes that share it.

`python -m bench.suites NAME ITEMS AT_ONCE` is one of them; it reads the settings of a server and prints what it took as JSON.
"""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import uvloop

from app.cli import garbage
from app.datasets import Dataset
from app.domain import Principal, Scope
from app.main import opened
from app.settings import load
from app.store import accounts
from app.suites.suite import Suite
from app.tasks import Tasks
from app.usecases import benches
from app.usecases.bench_work import Work
from bench.measures import Figures
from bench.table import Row
from bench.targets import ENVIRONMENT, ROOT, Stage, models

ITEMS, AT_ONCE, PROCESSES = 100_000, 200, 2
SETTLED = 0.2
"""From this part of the items on memory must not grow."""


class Questions:
    """So many rows, made as they are read."""

    def __init__(self, count: int) -> None:
        self._count = count

    def __iter__(self) -> Iterator[dict[str, str]]:
        for number in range(self._count):
            yield {"input": f"Question {number} [[1 0.05]]"}


async def measure(name: str, items: int, at_once: int) -> dict[str, float]:
    """Take part in a suite of so many items, whose answers are 50 ms away, without the cache."""
    settings = load()
    assert settings.database_url  # noqa: S101 - the benchmark has set it
    given = {
        "name": name,
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
        bench = await benches.order(
            platform,
            Principal(user, frozenset({Scope.CHAT})),
            Suite.model_validate(given),
            Dataset(Questions(items)),
            Path(),
        )
        garbage.settle()
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
    peak, grown = max(late) / 2**20, (late[-1] - late[0]) / 2**20
    return {"seconds": seconds, "cpu": cpu, "asked": work.asked, "peak": peak, "grown": grown}


async def suite(stage: Stage, figures: Figures) -> list[Row]:
    """A bench of 100,000 items, shared by two processes with 100 at once each; the first reads the rows, the other waits for it."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="chattable-bench-suite-") as folder:
        made = [await _begin(stage, Path(folder), f"benchmark {began}") for _ in range(PROCESSES)]
        told = [json.loads((await each.communicate())[0]) for each in made]
    rate = ITEMS / max(each["seconds"] for each in told)
    peak, cpu = max(each["peak"] for each in told), sum(each["cpu"] for each in told) / ITEMS * 1e6
    figures.add("suite", "rate", rate)
    figures.add("suite", "memory", peak)
    what = f"test bench of {ITEMS:,} items, {AT_ONCE} at once, 50 ms upstream, {PROCESSES} processes"
    return [
        Row(what, f"{rate:,.0f}/s", bar="≥ 1,500/s", met=rate >= 1500),
        Row("its CPU for an item, all processes of ours", f"{cpu:.0f} µs"),
        Row(
            "its memory, the larger process; growth after the first fifth",
            f"{peak:.0f} MiB; {max(each['grown'] for each in told):+.0f} MiB",
            bar="≤ 200 MiB",
            met=peak <= 200,
        ),
    ]


async def _begin(stage: Stage, folder: Path, name: str) -> asyncio.subprocess.Process:
    env = ENVIRONMENT | {
        "PYTHONPATH": str(ROOT),
        "DATABASE_URL": stage.platform.database_url,
        "OPENAI_API_KEY": "bench",
    }
    env |= {"MODELS_FILE": str(models(folder, stage.upstream.program.url)), "AGENTS_DIR": str(ROOT / "agents")}
    words = [sys.executable, "-m", "bench.suites", name, str(ITEMS), str(AT_ONCE // PROCESSES)]
    return await asyncio.create_subprocess_exec(*words, env=env, cwd=folder, stdout=asyncio.subprocess.PIPE)


MEASURES = {"suite": suite}


if __name__ == "__main__":
    sys.stdout.write(json.dumps(uvloop.run(measure(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))) + "\n")
