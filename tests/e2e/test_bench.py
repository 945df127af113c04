"""A bench that is killed goes on by the same command, and asks nothing again that it had stored."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections import Counter
from pathlib import Path

import asyncpg
import pytest

from app.datasets import Dataset
from app.store.database import connect
from app.usecases import accounts
from tests.engines import Engines
from tests.fakes.rules import text_of
from tests.fakes.upstream import FakeUpstream
from tests.house import ADMIN_KEY, AGENTS

pytest.importorskip("duckdb")
pytestmark = pytest.mark.e2e
ROOT = Path(__file__).parents[2]
ITEMS = 600
SUITE = """
name = "killed"
cache = "off"
[dataset]
path = "rows.jsonl"
[[agents]]
id = "model"
[[scorers]]
kind = "exact"
[limits]
concurrency = 40
"""


async def test_a_killed_bench_goes_on_by_the_same_command(
    running: Engines, database_url: str, fake: FakeUpstream, tmp_path: Path
) -> None:
    engine = connect(database_url)
    await accounts.first_admin(engine, ADMIN_KEY)
    await engine.dispose()
    (tmp_path / "suite.toml").write_text(SUITE)
    rows = [{"input": f"say {number} [[fault: x delay=0.05]]", "expected": str(number)} for number in range(ITEMS)]
    Dataset(rows).write(tmp_path / "rows.jsonl")
    given = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(ROOT),
        "AGENTS_DIR": str(AGENTS),
        "DATABASE_URL": database_url,
    }
    given |= {"REDIS_URL": running.redis_url, "OPENAI_BASE_URL": fake.base_url, "OPENAI_API_KEY": "sk-x"}

    async def begin() -> asyncio.subprocess.Process:
        words = [sys.executable, "-m", "app.cli", "bench", "run", "suite.toml", "--out", "results.csv"]
        pipe = asyncio.subprocess.PIPE
        return await asyncio.create_subprocess_exec(*words, cwd=tmp_path, env=given, stdout=pipe, stderr=pipe)

    asked: Counter[str] = Counter()

    def note() -> None:
        while fake.requests:
            asked[text_of(fake.requests.popleft().body["messages"][-1])] += 1

    first = await begin()
    db = await asyncpg.connect(database_url)
    try:
        async with asyncio.timeout(240):
            while await db.fetchval("SELECT count(*) FROM bench_results") < 100:
                note()
                await asyncio.sleep(0.05)
        first.send_signal(signal.SIGKILL)
        await first.communicate()
        stored = {row["row"] for row in await db.fetch("SELECT row FROM bench_results")}
        assert 100 <= len(stored) < ITEMS
        second = await begin()
        finishing = asyncio.get_running_loop().create_task(second.communicate())
        while not finishing.done():
            note()
            await asyncio.sleep(0.05)
        output, errors = finishing.result()
        note()
        assert second.returncode == 0, errors.decode()
        assert "completed" in output.decode()
        again = [number for number in stored if asked[rows[number]["input"]] != 1]
        assert again == []
        assert (
            sum(asked.values()) <= ITEMS + 2 * 40 + 100
        )  # only what was under way, or not stored yet, was asked again
        results = list(Dataset.open(tmp_path / "results.csv"))
        assert sorted(int(row["row"]) for row in results) == list(range(ITEMS))
        assert {row["status"] for row in results} == {"completed"}
        assert float(await db.fetchval("SELECT sum(score) FROM bench_blocks")) == ITEMS
    finally:
        await db.close()
