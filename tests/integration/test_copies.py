"""A session goes out as one document and comes in as another session: the same tree, state and memories under new ids."""

from __future__ import annotations

import copy
from collections.abc import AsyncIterator
from itertools import pairwise
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx2
import pytest
from sqlalchemy import text

from tests.engines import Engines
from tests.house import House, open_house, send, session

AGENTS = '''
"""Counts, remembers, and shows a picture."""

from pydantic import BaseModel

from app.agent import BaseAgent, Message


class Counted(BaseModel):
    turns: int = 0


class Counter(BaseAgent):
    id = "counter"
    state: Counted

    async def chat(self, message: Message) -> Message:
        self.state.turns += 1
        if message.content == "forget":
            self.memory.clear()
        else:
            self.memory.add_user(message.content, tags=["said"], importance=0.9)
        said = [entry.content for entry in self.memory]
        text = f"{self.state.turns} {len(self.history)} {said}"
        return Message.assistant(text, parts=[{"type": "text", "text": "seen"}], name="counter")
'''


@pytest.fixture
async def here(running: Engines, database_url: str, tmp_path: Path) -> AsyncIterator[House]:
    (tmp_path / "counter.py").write_text(AGENTS)
    async with open_house(database_url, redis_url=running.redis_url, agents_dir=tmp_path) as house:
        yield house


@pytest.fixture
async def ann(here: House) -> httpx2.AsyncClient:
    return await here.user("ann")


async def grown(client: httpx2.AsyncClient) -> str:
    """A session with branches, feedback, state and memories, some of them forgotten."""
    id = await session(client, "counter", session_params={"busy": "queue", "temperature": 0.5}, title="Números 一")
    first = (await send(client, id, "one")).json()["message_id"]
    await send(client, id, "two \u2603 {{x}}")
    await client.post(f"/api/v1/messages/{first}/regenerate", json={})
    edited = {"content": "three", "parent_id": first, "additional_kwargs": {"mine": [1, {"a": None}]}}
    third = await client.post(f"/api/v1/sessions/{id}/messages", json=edited)
    await send(client, id, "forget")
    await client.patch(f"/api/v1/messages/{third.json()['message_id']}/feedback", json={"rating": -1, "comment": "no"})
    return id


async def exported(client: httpx2.AsyncClient, id: str) -> dict[str, Any]:
    answer = await client.get(f"/api/v1/sessions/{id}/export")
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-disposition"].startswith("attachment")
    found: dict[str, Any] = answer.json()
    return found


async def imported(client: httpx2.AsyncClient, document: dict[str, Any], **headers: str) -> str:
    answer = await client.post("/api/v1/imports", json=document, headers=headers)
    assert answer.status_code == 201, answer.text
    return str(answer.json()["id"])


def without_ids(document: dict[str, Any]) -> dict[str, Any]:
    """The document with each id replaced by the number of its first place."""
    document, known = copy.deepcopy(document), dict[str, int]()
    for part in [document["session"], *document["messages"], *document["memories"]]:
        for name in ("id", "leaf_id", "parent_id", "message_id"):
            if name in part:
                part[name] = known.setdefault(part[name], len(known))
    return document


def message(**fields: Any) -> dict[str, Any]:
    return {"id": str(uuid4()), "role": "user", "content": "x", "created_at": "2026-01-01T00:00:00Z", **fields}


def document(*messages: dict[str, Any], **fields: Any) -> dict[str, Any]:
    about = {"agent": {"id": "counter"}, "created_at": "2026-01-01T00:00:00Z"}
    about |= {"leaf_id": messages[-1]["id"]} if messages else {}
    made = {"format": "chattable.session", "version": 1, "session": about, "messages": list(messages), "memories": []}
    return {**made, **fields}


async def test_an_imported_session_is_exported_as_the_one_it_came_from(ann: httpx2.AsyncClient) -> None:
    id = await grown(ann)
    one = await exported(ann, id)
    other = await imported(ann, one)
    two = await exported(ann, other)
    assert without_ids(two) == without_ids(one)
    ids = {part["id"] for part in [one["session"], *one["messages"], *one["memories"]]}
    assert not ids & {part["id"] for part in [two["session"], *two["messages"], *two["memories"]]}
    assert len(one["messages"]) == 9
    assert any(memory.get("forgotten") for memory in one["memories"])
    listed = (await ann.get(f"/api/v1/sessions/{other}/messages")).json()["data"]
    assert [each["seq"] for each in listed] == list(range(1, 10))


async def test_the_agent_goes_on_where_it_was(ann: httpx2.AsyncClient, here: House) -> None:
    id = await session(ann, "counter")
    await send(ann, id, "one")
    await send(ann, id, "two")
    bob = await here.user("bob")
    other = await imported(bob, await exported(ann, id))
    assert (await send(bob, other, "three")).json()["content"] == "3 5 ['one', 'two', 'three']"
    assert (await send(ann, id, "also")).json()["content"] == "3 5 ['one', 'two', 'also']"
    assert len((await bob.get("/api/v1/messages", params={"q": "two"})).json()["data"]) == 3
    assert (await bob.delete(f"/api/v1/sessions/{other}")).status_code == 204
    assert (await bob.get("/api/v1/messages", params={"q": "two"})).json()["data"] == []


async def test_what_an_imported_message_has_beside_its_content_counts_as_tokens(
    ann: httpx2.AsyncClient, here: House
) -> None:
    long = message(content="", parts=[{"type": "text", "text": "word " * 10_000}])
    id = await imported(ann, document(long))
    async with here.platform.engine.connect() as db:
        query = text("SELECT tokens FROM messages WHERE session_id = :id")
        assert (await db.execute(query, {"id": id})).scalar_one() > 5_000


async def test_a_long_session_goes_out_page_by_page(ann: httpx2.AsyncClient) -> None:
    said = [message(content=f"number {index}") for index in range(1200)]
    for before, after in pairwise(said):
        after["parent_id"] = before["id"]
    said[3]["content"] = "x" * 3_000_000
    said[4]["content"] = "y" * 3_000_000
    given = document(*said)
    found = await exported(ann, await imported(ann, given))
    del found["session"]["id"], found["session"]["session_params"]
    assert without_ids(found) == without_ids(given)


async def test_a_key_makes_one_session(ann: httpx2.AsyncClient) -> None:
    given = document(message())
    key = {"idempotency-key": "once"}
    assert await imported(ann, given, **key) == await imported(ann, given, **key)
    answer = await ann.post("/api/v1/imports", json=document(), headers=key)
    assert answer.status_code == 409


async def test_another_users_session_is_not_exported(ann: httpx2.AsyncClient, here: House) -> None:
    id = await grown(ann)
    for client in (await here.user("bob"), here.admin):
        foreign = await client.get(f"/api/v1/sessions/{id}/export")
        unknown = await client.get(f"/api/v1/sessions/{uuid4()}/export")
        assert (foreign.status_code, foreign.text) == (unknown.status_code, unknown.text)
        assert foreign.status_code == 404


ONE = message()
MEMORY: dict[str, Any] = {
    "id": str(uuid4()),
    "agent_id": "counter",
    "memory_id": "default",
    "role": "user",
    "content": "x",
}
MEMORY |= {"score": 0.5, "importance": 0.5, "created_at": "2026-01-01T00:00:00Z", "used_at": "2026-01-01T00:00:00Z"}
CALL = {"tool_calls": [{"id": 1, "function": {"name": "f", "arguments": "{}"}}]}
REFUSED = [
    (document(version=2), "version"),
    (document(format="other"), "format"),
    (document(extra=1), "body"),
    ({"version": 1}, "body"),
    (document(session={"agent": {"id": "counter"}, "created_at": "yesterday"}), "session.created_at"),
    (
        document(session={"agent": {"id": "counter"}, "created_at": ONE["created_at"], "leaf_id": str(uuid4())}),
        "session.leaf_id",
    ),
    (document(message(role="boss")), "messages[0].role"),
    (document(ONE, ONE), "messages[1].id"),
    (document(message(parent_id=str(uuid4()))), "messages[0].parent_id"),
    (document({**ONE, "parent_id": ONE["id"]}), "messages[0].parent_id"),
    (document(message(), message(content="a\x00b")), "messages[1].content"),
    (document(message(state={"a": ["\x00"]})), "messages[0].state"),
    (document(message(created_at="0001-01-01T00:00:00+10:00")), "messages[0].created_at"),
    (document(message(rating=1)), "messages[0].rating"),
    (document(message(name="x" * 1000)), "messages[0].name"),
    (document(message(parts=[{"type": 5}])), "messages[0].parts[0].type"),
    (document(message(role="assistant", additional_kwargs=CALL)), "messages[0].additional_kwargs.tool_calls[0].id"),
    (document(memories=[{**MEMORY, "message_id": str(uuid4())}]), "memories[0].message_id"),
    (document(ONE, memories=[{**MEMORY, "message_id": ONE["id"]}] * 2), "memories[1].id"),
    (document(ONE, memories=[{**MEMORY, "message_id": ONE["id"], "score": 2}]), "memories[0].score"),
]


@pytest.mark.parametrize(("given", "field"), REFUSED, ids=[field for _, field in REFUSED])
async def test_what_is_wrong_is_named_and_nothing_is_stored(
    ann: httpx2.AsyncClient, given: dict[str, Any], field: str
) -> None:
    answer = await ann.post("/api/v1/imports", json=given)
    assert answer.status_code == 400, answer.text
    assert answer.json()["param"] == field
    assert (await ann.get("/api/v1/sessions")).json()["data"] == []


async def test_what_is_no_document_is_refused(ann: httpx2.AsyncClient) -> None:
    unknown = document()
    unknown["session"]["agent"]["id"] = "nobody"
    answer = await ann.post("/api/v1/imports", json=unknown)
    assert (answer.status_code, answer.json()["param"]) == (404, "agent.id")
    json = {"content-type": "application/json"}
    for body in (b"", b"{", b"[" * 100_000, b"\xff", b'{"version": "\\ud800"}', b"5"):
        refused = await ann.post("/api/v1/imports", content=body, headers=json)
        assert refused.status_code == 400, body[:9]
    large = await ann.post("/api/v1/imports", content=b" " * 32_000_001, headers=json)
    assert large.status_code == 413
    assert "32000000" in large.json()["detail"]


@pytest.mark.parametrize("name", ["additional_kwargs", "state"])
async def test_what_is_nested_deeper_than_answers_can_be_is_refused(ann: httpx2.AsyncClient, name: str) -> None:
    document = await exported(ann, await grown(ann))
    deep: dict[str, Any] = {}
    for _ in range(400):
        deep = {"a": deep}
    document["messages"][-1][name] = deep
    answer = await ann.post("/api/v1/imports", json=document)
    if answer.status_code == 201:
        listed = await ann.get(f"/api/v1/sessions/{answer.json()['id']}/messages")
        again = await ann.get(f"/api/v1/sessions/{answer.json()['id']}/export")
        assert (listed.status_code, again.status_code) == (200, 200)
    at = len(document["messages"]) - 1
    assert (answer.status_code, answer.json()["param"]) == (400, f"messages[{at}].{name}")
