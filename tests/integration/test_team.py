"""Several agents in one session: who answers, under which names it is kept and shown, and what is refused."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from sqlalchemy import text

from tests.conftest import copy
from tests.engines import Engines
from tests.fakes.upstream import FakeUpstream
from tests.house import AGENTS, House, events, open_house, send, session
from tests.integration.test_openai_sdk import sdk

AGENTS_FILE = '''
from collections.abc import AsyncIterator
from pydantic import BaseModel
from app.agent import BaseAgent, Chattable, Chunk, Message, Participant, Reply, Talk, Team


class Turns(BaseModel):
    count: int = 0


class Writer(BaseAgent):
    """Says how often it spoke, who else is there, and what it hears."""

    id = "writer"
    state: Turns

    async def chat(self, message: Message) -> AsyncIterator[str | Chunk]:
        self.state.count += 1
        self.memory.add_user(message.content)
        yield Chunk("hm", "thinking")
        for word in (f"W{self.state.count}", f"/{len(self.memory.build_history())}", f"<{message.content}>"):
            yield word


class Critic(Chattable):
    """Tells by whom what it hears was said; or asks, or fails, or says nothing, or hands on."""

    id = "critic"

    async def chat(self, message: Message) -> str:
        if "ask" in message.content:
            return "told " + await self.ask("What?")
        if "fail" in message.content:
            raise ValueError
        if "silence" in message.content:
            return ""
        if "hand on" in message.content:
            return "over to @writer"
        return f"C({message.name or message.role}:{message.content})"


class Model(Chattable):
    id = "speaks"

    async def chat(self, message: Message) -> Reply:
        return await self.llm.acall(self.history)


class House(Talk):
    participants: list[Participant] = [Participant(id="writer"), Participant(id="critic")]


class Pair(Team):
    """A team of its author's."""

    id = "pair"
    params: House
'''


@pytest.fixture
async def here(running: Engines, template: str, fake: FakeUpstream, tmp_path: Path) -> AsyncIterator[House]:
    (tmp_path / "several.py").write_text(AGENTS_FILE)
    (tmp_path / "team.py").write_text((AGENTS / "team.py").read_text())
    given = {"redis_url": running.redis_url, "openai_base_url": fake.base_url, "openai_api_key": "sk-x"}
    async with copy(running, template) as url, open_house(url, agents_dir=tmp_path, **given) as house:
        yield house


@pytest.fixture
async def ann(here: House) -> httpx2.AsyncClient:
    return await here.user("ann")


async def team(client: httpx2.AsyncClient, *participants: Any, **params: Any) -> str:
    chosen = list(participants) or ["writer", "critic"]
    return await session(client, "team", {"participants": chosen, **params})


async def spoken(client: httpx2.AsyncClient, id: str, content: str) -> list[tuple[str, str]]:
    """Who said what in answer to a message."""
    answer = await send(client, id, content)
    assert answer.status_code == 200, answer.text
    return [(each["name"], each["content"]) for each in answer.json()["messages"]]


async def listed(client: httpx2.AsyncClient, id: str) -> list[dict[str, Any]]:
    return list((await client.post("/ListMessages", json={"session_id": id})).json()["items"])


async def test_who_is_mentioned_answers_and_else_who_spoke_last(ann: httpx2.AsyncClient) -> None:
    id = await team(ann)
    assert await spoken(ann, id, "hello") == [("writer", "W1/1<hello>")]
    assert await spoken(ann, id, "And you, @Critic?") == [("critic", "C(user:And you, @Critic?)")]
    assert await spoken(ann, id, "why? a@writer.org @nobody") == [("critic", "C(user:why? a@writer.org @nobody)")]
    both = await spoken(ann, id, "@critic, @writer: hi")
    assert [name for name, _ in both] == ["critic", "writer"]
    assert both[1][1] == "W2/2<C(user:@critic, @writer: hi)>"


async def test_an_agent_hands_on_by_mentioning_another(ann: httpx2.AsyncClient) -> None:
    id = await team(ann)
    handed = [("critic", "over to @writer"), ("writer", "W1/1<over to @writer>")]
    assert await spoken(ann, id, "@critic hand on") == handed
    once = await team(ann, turns=1)
    assert await spoken(ann, once, "@critic hand on") == handed[:1]


async def test_in_turn_each_speaks_after_the_one_before(ann: httpx2.AsyncClient) -> None:
    id = await team(ann, policy="round-robin", turns=3)
    first = await spoken(ann, id, "go")
    assert first == [("writer", "W1/1<go>"), ("critic", "C(writer:W1/1<go>)"), ("writer", "W2/2<C(writer:W1/1<go>)>")]
    second = await spoken(ann, id, "on")
    assert [name for name, _ in second] == ["critic", "writer", "critic"]
    assert second[1][1].startswith("W3/3<")


async def test_a_moderator_picks_by_a_call_that_is_a_step(
    here: House, ann: httpx2.AsyncClient, fake: FakeUpstream
) -> None:
    id = await team(ann, {"id": "writer", "about": "writes"}, "critic", policy="moderator", turns=2)
    said = await spoken(
        ann, id, "critic before writer"
    )  # the fake says what it is told, so the first of these is picked
    assert said == [("critic", "C(user:critic before writer)"), ("writer", "W1/1<C(user:critic before writer)>")]
    moderated = fake.requests[0].body["messages"]
    assert "writer (writes), critic" in moderated[0]["content"]
    assert moderated[1]["content"] == "user: critic before writer\n\nWho is next?"
    async with here.platform.engine.connect() as db:
        steps = (await db.execute(text("SELECT kind, path FROM steps ORDER BY seq"))).all()
    picked = [("llm", "/default"), ("agent", "/critic"), ("llm", "/default"), ("agent", "/writer")]
    assert [tuple(step) for step in steps] == picked


async def test_a_moderator_who_picks_nobody_ends_it_but_somebody_answers(ann: httpx2.AsyncClient) -> None:
    id = await team(ann, policy="moderator", turns=5)
    assert await spoken(ann, id, "hello") == [("writer", "W1/1<hello>")]


async def test_each_answer_is_a_message_under_its_speakers_name(ann: httpx2.AsyncClient) -> None:
    id = await team(ann, policy="round-robin")
    answer = (await send(ann, id, "go")).json()
    items = await listed(ann, id)
    assert [(item["role"], item["name"], item["content"]) for item in items] == [
        ("user", None, "go"),
        ("assistant", "writer", "W1/1<go>"),
        ("assistant", "critic", "C(writer:W1/1<go>)"),
    ]
    assert [item["parent_id"] for item in items] == [None, items[0]["id"], items[1]["id"]]
    assert items[1]["additional_kwargs"]["asides"] == [{"content_type": "thinking", "content": "hm"}]
    assert answer["content"] == "writer: W1/1<go>\n\ncritic: C(writer:W1/1<go>)"
    assert (answer["message_id"], answer["run_id"]) == (items[-1]["id"], items[-1]["run_id"])
    again = await ann.post(f"/api/v1/messages/{items[-1]['id']}/regenerate", json={})
    assert again.json()["content"] == answer["content"]
    assert (await listed(ann, id))[3]["parent_id"] == items[0]["id"]


async def test_a_run_is_streamed_and_read_again_alike(ann: httpx2.AsyncClient) -> None:
    id = await team(ann, policy="round-robin")
    live = await events(ann, "/SendMessage", {"session_id": id, "content": "go", "stream": True})
    async with ann.stream("GET", f"/api/v1/runs/{live[0][2]['run_id']}/events") as answer:
        stored = (await answer.aread()).decode()
    chunks = [(data["content_type"], data["content"]) for name, _, data in live if name == "chunk"]
    assert chunks[:2] == [("speaker", "writer"), ("thinking", "hm")]
    assert chunks[-2:] == [("speaker", "critic"), ("text", "C(writer:W1/1<go>)")]
    again = [json.loads(line[6:]) for line in stored.splitlines() if line.startswith('data: {"content":')]
    assert [(each["content_type"], each["content"]) for each in again if "content_type" in each] == [
        ("speaker", "writer"),
        ("thinking", "hm"),
        ("text", "W1/1<go>"),
        *chunks[-2:],
    ]


async def test_a_speakers_question_waits_and_those_before_it_are_not_asked_again(ann: httpx2.AsyncClient) -> None:
    id = await team(ann)
    asked = (await send(ann, id, "@writer then @critic ask")).json()
    assert (asked["content"], asked["additional_kwargs"]["status"]) == ("What?", "waiting")
    assert await spoken(ann, id, "this") == [("writer", "W1/1<@writer then @critic ask>"), ("critic", "told this")]


async def test_what_was_said_before_a_speaker_failed_is_kept(ann: httpx2.AsyncClient) -> None:
    id = await team(ann)
    failed = await send(ann, id, "@writer, @critic fail")
    assert (failed.status_code, failed.json()["detail"]) == (502, "The agent failed: ValueError.")
    assert [(item["name"], item["content"][:2]) for item in await listed(ann, id)] == [(None, "@w"), ("writer", "W1")]


async def test_who_says_nothing_leaves_no_message(ann: httpx2.AsyncClient) -> None:
    id = await team(ann)
    assert [name for name, _ in await spoken(ann, id, "@critic silence, @writer")] == ["writer"]
    empty = (await send(ann, id, "@critic silence")).json()
    assert (empty["content"], "messages" in empty) == ("", False)


async def test_a_language_model_hears_the_others_as_speakers_to_it(ann: httpx2.AsyncClient, fake: FakeUpstream) -> None:
    id = await team(ann, {"id": "speaks", "name": "one"}, {"id": "speaks", "name": "two"}, policy="round-robin")
    await spoken(ann, id, "say hi")
    first, second = (request.body["messages"] for request in fake.requests)
    assert [(each["role"], each.get("name"), each["content"]) for each in second[1:]] == [
        ("user", None, "say hi"),
        ("user", "one", "hi"),
    ]
    assert first[0]["content"].startswith("You are one, in a conversation with a user and two.")


async def test_clients_of_openai_see_who_speaks(here: House, ann: httpx2.AsyncClient) -> None:
    id = await team(ann, policy="round-robin")
    async with sdk(here, ann.headers["authorization"].removeprefix("Bearer ")) as client:
        ask: Any = {"model": "team", "messages": [{"role": "user", "content": "go"}], "extra_body": {"session_id": id}}
        answer = await client.chat.completions.create(**ask)
        assert answer.model == "team"
        assert answer.choices[0].message.content == "writer: W1/1<go>\n\ncritic: C(writer:W1/1<go>)"
        ask["messages"] = [{"role": "user", "content": "@critic, you?"}]
        pieces = [piece async for piece in await client.chat.completions.create(**ask, stream=True)]
        assert "".join(piece.choices[0].delta.content or "" for piece in pieces) == "critic: C(user:@critic, you?)"
        talk = (await client.conversations.create()).id
        response = await client.responses.create(model="pair", conversation=talk, input="@writer and @critic")
        items = [item.content[0].text for item in response.output if item.type == "message"]
        assert items == ["writer: W1/1<@writer and @critic>", "critic: C(writer:W1/1<@writer and @critic>)"]
        stored = await client.conversations.items.list(talk)
        texts = [item.content[0].text for item in stored.data if item.type == "message"]
        assert texts == ["@writer and @critic", *items][::-1]


async def test_a_teams_participants_can_be_changed_and_be_its_authors(ann: httpx2.AsyncClient) -> None:
    id = await session(ann, "pair")
    assert [name for name, _ in await spoken(ann, id, "@critic and @writer")] == ["critic", "writer"]
    agent = {"id": "team", "params": {"participants": [{"id": "critic", "name": "judge"}]}}
    assert (await ann.patch(f"/api/v1/sessions/{id}", json={"agent": agent})).status_code == 200
    assert await spoken(ann, id, "@critic, and now?") == [("judge", "C(user:@critic, and now?)")]


@pytest.mark.parametrize(
    ("params", "status", "sentence"),
    [
        ({}, 400, "Field required."),
        ({"participants": []}, 400, "List should have at least 1 item after validation, not 0."),
        ({"participants": ["critic"] * 9}, 400, "List should have at most 8 items after validation, not 9."),
        (
            {"participants": ["critic", "critic"]},
            400,
            "Two participants have one name: give one of them a `name` of its own.",
        ),
        (
            {"participants": [{"id": "critic", "name": "a b"}]},
            400,
            "The name of a participant is 1 to 64 letters, digits, _, . and -.",
        ),
        ({"participants": ["critic", "nobody"]}, 404, "There is no such agent as participant 2 of the team."),
        ({"participants": ["pair"]}, 400, "Participant 1 of the team is a team itself."),
        (
            {"participants": [{"id": "critic", "params": {"x": 1}}]},
            400,
            "Participant 1 of the team: This agent has no parameters.",
        ),
        ({"participants": ["critic"], "turns": 21}, 400, "Input should be less than or equal to 20."),
        (
            {"participants": ["critic"], "policy": "loud"},
            400,
            "Input should be 'mention', 'round-robin' or 'moderator'.",
        ),
    ],
)
async def test_what_a_team_cannot_be_is_one_sentence(
    ann: httpx2.AsyncClient, params: dict[str, Any], status: int, sentence: str
) -> None:
    refused = await ann.post("/CreateSession", json={"agent": {"id": "team", "params": params}})
    assert (refused.status_code, refused.json()["detail"]) == (status, sentence)
    assert refused.json()["param"].startswith("agent.params")


async def test_nobody_brings_an_agent_in_that_he_may_not_use(here: House, ann: httpx2.AsyncClient) -> None:
    id = await team(ann)
    groups = (await here.admin.get("/api/v1/groups")).json()["data"]
    everyone = next(group for group in groups if group["name"] == "everyone")["id"]
    await here.admin.delete(f"/api/v1/groups/{everyone}/agents/*")
    for agent in ("team", "writer"):
        await here.admin.put(f"/api/v1/groups/{everyone}/agents/{agent}")
    params = {"participants": ["writer", "critic"]}
    refused = await ann.post("/CreateSession", json={"agent": {"id": "team", "params": params}})
    sentence = "Participant 2 of the team is an agent that you may not use."
    assert (refused.status_code, refused.json()["detail"]) == (403, sentence)
    assert (await send(ann, id, "@critic")).json()["detail"] == "You may not use this agent."
    assert [name for name, _ in await spoken(ann, id, "@writer")] == ["writer"]
