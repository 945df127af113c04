"""The toolkit on the platform: the same agent, its LLM from the server, its acts in the journal."""

from __future__ import annotations

from pathlib import Path
from uuid import UUID

from sqlalchemy import text

from tests.engines import Engines
from tests.fakes.upstream import FakeUpstream
from tests.house import open_house, send, session

AGENT = '''
"""Answers with a template beside it, after it has asked for the weather."""

from pydantic import BaseModel

from app.agent import BaseAgent, Completion, JsonKeyExtractorPP, Message, ReplacePP, tool


class City(BaseModel):
    city: str


@tool
def weather(city: str) -> str:
    """Current weather in a city."""
    return f"sunny in {city}"


class Guide(BaseAgent):
    id = "guide"
    tools = [weather]

    async def chat(self, message: Message) -> Completion:
        found = await (await self.run_tools(message)).text()
        place = await self.create_prompt("say {city: '{{query}}'}").acall("Oslo", schema=City)
        prompt = self.derive(Guide).create_prompt(template_path="guide.tmpl")
        prompt.update_placeholder(found=found, place=place.value.city)
        mask = JsonKeyExtractorPP("told") >> ReplacePP({"sunny": "fine"})
        return await prompt.acall(is_stream=True, postprocessor=mask)


class SyncTalker(BaseAgent):
    id = "sync_talker"

    def chat(self, message: Message) -> str:
        return self.create_prompt("{{query}}").call(message)


class Talker(BaseAgent):
    id = "talker"
'''


async def test_an_agent_of_the_toolkit_works_on_the_platform(
    running: Engines, database_url: str, fake: FakeUpstream, tmp_path: Path
) -> None:
    (tmp_path / "guide.py").write_text(AGENT)
    (tmp_path / "guide.tmpl").write_text('say {"told": "{{ found }} at {{ place }}"}')
    settings = {"redis_url": running.redis_url, "openai_base_url": fake.base_url, "openai_api_key": "sk-test"}
    async with open_house(database_url, agents_dir=tmp_path, **settings) as house:
        answer = await send(house.admin, await session(house.admin, "guide"), 'call weather {"city": "Rome"}')
        assert answer.status_code == 200, answer.text
        assert answer.json()["content"] == "The tool said: fine in Rome at Oslo"
        async with house.platform.engine.connect() as db:
            query = text("SELECT kind, name FROM steps WHERE run_id = :run_id ORDER BY seq")
            steps = (await db.execute(query, {"run_id": UUID(answer.json()["run_id"])})).all()
        assert [step.kind for step in steps] == [
            "llm",
            "tool",
            "llm",
            "prompt",
            "llm",
            "postprocess",
            "prompt",
            "llm",
            "postprocess",
        ]
        assert steps[1].name == "weather"

        for agent in ("talker", "sync_talker"):
            chat = await session(house.admin, agent)
            assert (await send(house.admin, chat, "say hello")).json()["content"] == "hello"
        again = await send(house.admin, chat, "what was the first thing I said")
        assert again.json()["content"] == "what was the first thing I said"  # it sends its prompt, and no history
