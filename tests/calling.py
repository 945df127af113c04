"""An agent that makes the LLM calls its message asks for, and what tests look up about them."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2

from tests.engines import Engines
from tests.house import House, open_house, send, session

AGENT = '''
"""Makes calls: {"say": text, "times": 1, "embed": [texts], …options}."""

import asyncio
import json

from app.agent import Chattable, Message


class Calling(Chattable):
    id = "calling"
    shares_cache = False

    async def chat(self, message: Message) -> str:
        options = json.loads(message.content)
        embed, times, said = options.pop("embed", []), options.pop("times", 1), options.pop("say", None)
        answers = [str(vector) for vector in await self.embed(embed)]
        calls = [self.llm.ainvoke(said, **options) for _ in range(times)] if said else []
        for answer in await asyncio.gather(*calls, return_exceptions=True):
            if isinstance(answer, BaseException) and times == 1:
                raise answer
            answers.append(str(answer) if isinstance(answer, str) else type(answer).__name__)
        return "|".join(answers)
'''


def agents(folder: Path, **agents: dict[str, Any]) -> Path:
    """A folder of such agents, each with its changes: `shares_cache`, or a `note` that makes another version."""
    place = folder / "agents"
    place.mkdir(exist_ok=True)
    for id, changes in (agents or {"calling": {}}).items():
        text = AGENT.replace('"calling"', f'"{id}"') + f"\n# {changes.get('note')}\n"
        if changes.get("shares_cache"):
            text = text.replace("shares_cache = False", "shares_cache = True")
        (folder / "new").write_text(text)
        (folder / "new").replace(place / f"{id}.py")  # never half of it is there, or two versions would be loaded
    return place


@asynccontextmanager
async def calling_house(
    running: Engines, database_url: str, folder: Path, models: str, **given: Any
) -> AsyncIterator[House]:
    """A platform with the agent `calling` and these models."""
    file = folder / "models.toml"
    file.write_text(models)
    given = {"redis_url": running.redis_url, "agents_dir": agents(folder), "models_file": file, **given}
    async with open_house(database_url, **given) as house:
        yield house


async def call(client: httpx2.AsyncClient, id: str = "", *, agent: str = "calling", **asked: Any) -> dict[str, Any]:
    """Have the agent make calls, in this session or a new one: the run's answer."""
    answer = await send(client, id or await session(client, agent), json.dumps(asked))
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found
