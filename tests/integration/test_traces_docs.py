"""docs/traces.md, done as it says."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import sys
from pathlib import Path

import pytest

from app.journal import genai
from app.store import spans
from app.usecases import reruns
from tests.engines import Engines
from tests.fakes.upstream import FakeUpstream
from tests.house import ADMIN_KEY, open_house

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/traces.md").read_text()
(AGENT,), (BASH,) = (
    re.findall(rf"^```{kind}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL) for kind in ("python", "bash")
)


async def test_the_page_prints_what_it_says(
    running: Engines, database_url: str, fake: FakeUpstream, tmp_path: Path
) -> None:
    if not (shutil.which("bash") and shutil.which("curl")):
        pytest.skip("bash and curl are needed to follow the page")
    for name in ("agents", "data"):
        (tmp_path / name).mkdir()
    (tmp_path / "agents/guide.py").write_text(AGENT)
    (tmp_path / "data/admin.key").write_text(f"{ADMIN_KEY}\n")
    settings = {"redis_url": running.redis_url, "openai_base_url": fake.base_url, "openai_api_key": "sk-test"}
    block = BASH.replace("./scripts/chattable", f'"{sys.executable}" -m app.cli')
    async with open_house(database_url, agents_dir=tmp_path / "agents", **settings) as house:
        process = await asyncio.create_subprocess_exec(
            *("bash", "-euc", block.replace("http://127.0.0.1:8080", house.url)),
            cwd=tmp_path,
            env={
                "PATH": os.environ["PATH"],
                "PYTHONPATH": str(ROOT),
                "PORT": house.url.rpartition(":")[2],
                "PYTHONIOENCODING": "utf-8",
            },
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        output, errors = await process.communicate()
    assert process.returncode == 0, errors.decode()
    assert output.decode().splitlines() == re.findall(r"^# → (.*)$", BASH, re.MULTILINE)


def test_the_pages_limits_are_those_of_the_code() -> None:
    assert reruns.MAX_AT_ONCE == 10
    assert (spans.MAX_WAITING, spans.SEND_SECONDS, genai.MAX_CONTENT) == (20_000, 10, 16_000)
    assert genai.SCHEMA.rpartition("/")[2] in PAGE
