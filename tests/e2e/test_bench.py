"""A bench that is killed goes on by the same command, and asks nothing again that it had stored."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

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


BATCHED = (
    SUITE.replace('cache = "off"', 'cache = "off"\nmode = "batch"')
    .replace("= 40", "= 16")
    .replace('"model"', '"default"')
)
IN_BATCH = 48


class Command:
    """`chattable bench run` in a folder, as often as it is begun."""

    def __init__(self, folder: Path, running: Engines, database_url: str, fake: FakeUpstream) -> None:
        self._folder = folder
        self._begun: list[asyncio.subprocess.Process] = []
        self._env = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "AGENTS_DIR": str(AGENTS)}
        self._env |= {"DATABASE_URL": database_url, "REDIS_URL": running.redis_url}
        self._env |= {"OPENAI_BASE_URL": fake.base_url, "OPENAI_API_KEY": "sk-x"}

    async def begin(self) -> asyncio.subprocess.Process:
        words = [sys.executable, "-m", "app.cli", "bench", "run", "suite.toml", "--out", "results.csv"]
        pipe = asyncio.subprocess.PIPE
        made = await asyncio.create_subprocess_exec(*words, cwd=self._folder, env=self._env, stdout=pipe, stderr=pipe)
        self._begun.append(made)
        return made

    async def end(self) -> None:
        """Leave none behind."""
        for each in self._begun:
            if each.returncode is None:
                each.kill()
                await each.communicate()

    def results(self) -> list[dict[str, Any]]:
        return list(Dataset.open(self._folder / "results.csv"))


@pytest.fixture
async def command(running: Engines, database_url: str, fake: FakeUpstream, tmp_path: Path) -> AsyncIterator[Command]:
    engine = connect(database_url)
    await accounts.first_admin(engine, ADMIN_KEY)
    await engine.dispose()
    made = Command(tmp_path, running, database_url, fake)
    yield made
    await made.end()


async def test_a_killed_bench_goes_on_by_the_same_command(
    command: Command, database_url: str, fake: FakeUpstream, tmp_path: Path
) -> None:
    (tmp_path / "suite.toml").write_text(SUITE)
    rows = [{"input": f"say {number} [[fault: x delay=0.05]]", "expected": str(number)} for number in range(ITEMS)]
    Dataset(rows).write(tmp_path / "rows.jsonl")
    asked: Counter[str] = Counter()

    def note() -> None:
        while fake.requests:
            asked[text_of(fake.requests.popleft().body["messages"][-1])] += 1

    first = await command.begin()
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
        second = await command.begin()
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
        results = command.results()
        assert sorted(int(row["row"]) for row in results) == list(range(ITEMS))
        assert {row["status"] for row in results} == {"completed"}
        assert float(await db.fetchval("SELECT sum(score) FROM bench_blocks")) == ITEMS
    finally:
        await db.close()


async def test_a_killed_bench_in_mode_batch_waits_for_the_batch_that_was_sent_and_sends_no_line_twice(
    command: Command, database_url: str, fake: FakeUpstream, tmp_path: Path
) -> None:
    (tmp_path / "suite.toml").write_text(BATCHED)
    endpoint = f'{{ base_url = "{fake.base_url}", model = "fake", batch = true }}'
    price = "price = { prompt = 1000, completion = 1000, batch = 0.5 }"
    (tmp_path / "models.toml").write_text(f"[models.default]\nendpoints = [{endpoint}]\n{price}\n")
    rows = [{"input": f"say {number}", "expected": str(number)} for number in range(IN_BATCH)]
    Dataset(rows).write(tmp_path / "rows.jsonl")
    first = await command.begin()
    db = await asyncpg.connect(database_url)
    try:
        async with asyncio.timeout(240):
            while not fake.batches.batches:
                await asyncio.sleep(0.05)
            fake.batches.fault = "never"  # of those that come now
            while not await db.fetchval("SELECT count(*) FROM bench_results"):
                await asyncio.sleep(0.05)
            while not await db.fetchval(
                "SELECT count(*) FROM llm_batches WHERE provider_id <> '' AND ended_at IS NULL"
            ):
                await asyncio.sleep(0.05)
        first.send_signal(signal.SIGKILL)
        await first.communicate()
        stored, sent = await db.fetchval("SELECT count(*) FROM bench_results"), len(fake.batches.lines)
        assert 0 < stored < sent < IN_BATCH
        fake.batches.fault = ""
        for batch in fake.batches.batches.values():
            batch.fault = ""
        second = await command.begin()
        output, errors = await second.communicate()
        assert second.returncode == 0, errors.decode()
        assert "completed" in output.decode()
        asked = Counter(text_of(line["messages"][-1]) for line in fake.batches.lines)
        assert asked == Counter(row["input"] for row in rows)
        assert fake.hits == 0
        results = command.results()
        assert sorted(int(row["row"]) for row in results) == list(range(IN_BATCH))
        assert {row["status"] for row in results} == {"completed"}
        assert float(await db.fetchval("SELECT sum(score) FROM bench_blocks")) == IN_BATCH
        paid = await db.fetchrow("SELECT count(*) AS calls, sum(cost) AS cost FROM ledger")
        assert (paid["calls"], float(paid["cost"])) == (IN_BATCH, pytest.approx(IN_BATCH * 0.0015))
    finally:
        await db.close()
