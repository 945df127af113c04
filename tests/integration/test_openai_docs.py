"""docs/openai.md, done as it says: its blocks are run, and its table names what the routes take."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import sys
from pathlib import Path

import pytest

from tests.engines import Engines
from tests.fakes.upstream import FakeUpstream
from tests.house import ADMIN_KEY, AGENTS, House, open_house
from tests.integration.test_openai_sdk import rows, sdk

PAGE = (Path(__file__).parents[2] / "docs/openai.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


async def run(house: House, folder: Path, *command: str) -> str:
    """What a command prints, in a folder where the administrator's key is."""
    (folder / "data").mkdir(exist_ok=True)
    (folder / "data/admin.key").write_text(f"{ADMIN_KEY}\n")
    words = [word.replace("http://127.0.0.1:8080", house.url) for word in command]
    env = {"PATH": os.environ["PATH"], "PYTHONIOENCODING": "utf-8"}
    process = await asyncio.create_subprocess_exec(
        *words, cwd=folder, env=env, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    output, errors = await process.communicate()
    assert process.returncode == 0, errors.decode()
    return output.decode()


@pytest.fixture
def agents(tmp_path: Path) -> Path:
    """The shipped agents, and the page's own."""
    folder = tmp_path / "agents"
    shutil.copytree(AGENTS, folder, ignore=shutil.ignore_patterns("__pycache__"))
    (block,) = (block for kind, block in BLOCKS if block.startswith("# agents/"))
    (folder / Path(block.partition("\n")[0].removeprefix("# ")).name).write_text(block)
    return folder


@pytest.fixture
def models(tmp_path: Path, fake: FakeUpstream) -> Path:
    file = tmp_path / "models.toml"
    aliases = [
        f'[models.{alias}]\nendpoints = [{{ base_url = "{fake.base_url}", model = "m" }}]'
        for alias in ("default", "embedding")
    ]
    file.write_text("\n".join(aliases))
    return file


async def test_the_pages_python_prints_what_it_says(
    running: Engines, database_url: str, models: Path, tmp_path: Path
) -> None:
    code = "".join(block for kind, block in BLOCKS if kind == "python" and not block.startswith("# agents/"))
    async with open_house(database_url, redis_url=running.redis_url, models_file=models) as house:
        printed = await run(house, tmp_path, sys.executable, "-c", code)
    assert printed.splitlines() == re.findall(r"^# → (.*)$", code, re.MULTILINE)


async def test_the_pages_shell_continues_a_session(house: House, tmp_path: Path) -> None:
    if not (shutil.which("bash") and shutil.which("curl")):
        pytest.skip("bash and curl are needed to follow the page")
    code = "".join(block for kind, block in BLOCKS if kind == "bash")
    printed = await run(house, tmp_path, "bash", "-euc", code)
    answers = [json.loads(line) for line in printed.splitlines()]
    assert [answer["choices"][0]["message"]["content"] for answer in answers] == ["1", "3"]


async def test_the_pages_agent_passes_a_request_on(
    database_url: str, models: Path, agents: Path, fake: FakeUpstream
) -> None:
    async with open_house(database_url, models_file=models, agents_dir=agents) as house, sdk(house) as client:
        answer = await client.chat.completions.create(
            model="relay_with_manners",
            messages=[{"role": "user", "content": "say please"}],
            temperature=0.5,
            max_tokens=9,
            extra_headers={"x-colour": "blue"},
        )
        assert answer.choices[0].message.content == "please"
        sent = fake.requests[-1].body
        stream = await client.chat.completions.create(
            model="relay_with_manners",
            messages=[{"role": "user", "content": "please [[fault: chunks=20 delay=0.1]]"}],
            tools=[{"type": "function", "function": {"name": "weather"}}],
            stream=True,
        )
        completed = [fake.completed async for chunk in stream if chunk.choices[0].delta.content]
        assert completed[0] == 1, "the first word of the second answer comes before its end"
        (step, _) = await rows(house, "SELECT name FROM steps WHERE kind = 'request'")
    assert (sent["temperature"], sent["max_tokens"], step[0]) == (0.5, 9, "relay_with_manners")
    assert [message["content"] for message in sent["messages"]] == ["Be polite.", "say please"]
