"""docs/bench.md, done as it says, with its 2,125 questions."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import sys
from pathlib import Path

import pytest

from app.store.database import connect
from app.suites import suite
from app.usecases import accounts, bench_items, bench_work
from tests.engines import Engines
from tests.house import ADMIN_KEY

pytest.importorskip("duckdb")
ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/bench.md").read_text()


def blocks(kind: str) -> list[str]:
    return re.findall(rf"^```{kind}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


async def test_the_page_does_what_it_says(running: Engines, database_url: str, tmp_path: Path) -> None:
    if not shutil.which("bash"):
        pytest.skip("bash is needed to follow the page")
    agent, rows = blocks("python")
    (tmp_path / "agents").mkdir()
    (tmp_path / "agents/entities.py").write_text(agent)
    (tmp_path / "suite.toml").write_text(blocks("toml")[0])
    given = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "LC_ALL": "C.UTF-8"}
    given |= {"DATABASE_URL": database_url, "REDIS_URL": running.redis_url}
    engine = connect(database_url)
    await accounts.first_admin(engine, ADMIN_KEY)
    await engine.dispose()
    script = "\n".join([*blocks("bash"), f".venv/bin/python <<'END'\n{rows}\nEND"])
    python = {"./scripts/chattable": f'"{sys.executable}" -m app.cli', ".venv/bin/python": f'"{sys.executable}"'}
    script = re.sub("|".join(map(re.escape, python)), lambda found: python[found[0]], script)
    process = await asyncio.create_subprocess_exec(
        *("bash", "-euo", "pipefail", "-c", script),
        cwd=tmp_path,
        env=given,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    output, errors = await process.communicate()
    assert process.returncode == 0, errors.decode()
    *told, first, second = output.decode().splitlines()
    assert told == re.findall(r"^# → (.*)$", "\n".join(blocks("bash")), re.MULTILINE)
    assert (first, second) == ("entities rare=False 2125 0.697", "entities rare=True 2125 1.0")
    report = (tmp_path / "report.html").read_text()
    assert report.count("<svg") == 2
    assert (tmp_path / "two.csv").read_text() == "a\n1\n2\n"


def test_the_page_names_every_scorer_and_the_limits_of_the_code() -> None:
    assert [kind for kind in suite.KINDS if f"| `{kind}` |" not in PAGE] == []
    assert (suite.BLOCK, bench_items.TRIES, bench_work.FLUSH_SECONDS) == (200, 4, 1)
