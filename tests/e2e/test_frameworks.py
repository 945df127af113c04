"""docs/frameworks.md: agents of other frameworks, in a server that has them installed. Each of their calls is a step of its run."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import asyncpg
import pytest

from tests.e2e.test_serve import ROOT, Serve, serving
from tests.environments import environment
from tests.fakes.upstream import FakeUpstream

pytestmark = [pytest.mark.e2e, pytest.mark.clients, pytest.mark.heavy]
PAGE = (ROOT / "docs/frameworks.md").read_text()
AGENTS = re.findall(r"^```python\n# agents/(\w+\.py)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
ASKED = {
    "chained": ("Wort", "In French: Wort is a word", 2),
    "autogen_team": ('call add {"a": 1, "b": 2}', "You said: The tool said: 3", 3),
    "framework_agent": ('call weather {"city": "Oslo"}', "The tool said: sunny in Oslo", 2),
}
"""What each is asked, what it answers, and how many calls that takes."""


async def test_every_framework_of_the_page_works_and_its_calls_are_steps(
    database_url: str, fake: FakeUpstream, tmp_path: Path
) -> None:
    folder = tmp_path / "agents"
    folder.mkdir()
    for name, source in AGENTS:
        (folder / name).write_text(source)
    assert {Path(name).stem for name, _ in AGENTS} == ASKED.keys()
    given = {"DATABASE_URL": database_url, "AGENTS_DIR": str(folder), "OPENAI_BASE_URL": fake.base_url}
    python = await asyncio.to_thread(lambda: environment("frameworks") / "python")

    def ask() -> None:
        with serving(tmp_path, tmp_path / "data", python, **given) as serve:
            serve.ready()
            for agent, (content, answer, _) in ASKED.items():
                assert said(serve, agent, content) == answer

    await asyncio.to_thread(ask)
    db = await asyncpg.connect(database_url)
    try:
        rows = await db.fetch(
            "SELECT r.agent_id, r.status, count(*) AS calls, sum(s.prompt_tokens) AS prompt, min(r.prompt_tokens) AS total "
            "FROM steps s JOIN runs r ON r.id = s.run_id WHERE s.kind = 'llm' GROUP BY r.id, r.agent_id, r.status"
        )
    finally:
        await db.close()
    assert {row["agent_id"]: row["calls"] for row in rows} == {agent: calls for agent, (_, _, calls) in ASKED.items()}
    assert all(row["status"] == "completed" and row["prompt"] == row["total"] > 0 for row in rows)


def said(serve: Serve, agent: str, content: str) -> str:
    return str(serve.say(content, agent))
