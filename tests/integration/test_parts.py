"""Pictures, sounds and files go along with a message of a session: to agents and models, into lists, copies and branches."""

from __future__ import annotations

import asyncio
import json
from base64 import b64encode
from collections.abc import AsyncIterator
from pathlib import Path
from random import Random
from typing import Any

import httpx2
import pytest

from tests.engines import Engines
from tests.fakes.upstream import FakeUpstream
from tests.house import House, open_house, send, session

AGENTS = '''
"""Says what it sees."""

import asyncio
import json

from app.agent import Chattable, Message


class Seer(Chattable):
    id = "seer"

    async def chat(self, message: Message) -> str:
        if message.content == "wait":
            await asyncio.sleep(1)
        if message.content == "ask":
            return await self.ask("Which?")
        return json.dumps([message.content, [part["type"] for part in message.parts]])
'''
PNG = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}}
ELSEWHERE = {"type": "image_url", "image_url": {"url": "https://pictures.test/a.png", "detail": "low"}}
SOUND = {"type": "input_audio", "input_audio": {"data": "UklGRg==", "format": "wav"}}
PAPER = {"type": "file", "file": {"filename": "a.pdf", "file_data": "data:application/pdf;base64,JVBERg=="}}
ALL = [PNG, ELSEWHERE, SOUND, PAPER]


def text(said: str) -> dict[str, str]:
    return {"type": "text", "text": said}


@pytest.fixture
async def here(running: Engines, database_url: str, tmp_path: Path) -> AsyncIterator[House]:
    (tmp_path / "seer.py").write_text(AGENTS)
    async with open_house(database_url, redis_url=running.redis_url, agents_dir=tmp_path) as house:
        yield house


async def listed(client: httpx2.AsyncClient, id: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = (await client.get(f"/api/v1/sessions/{id}/messages")).json()["data"]
    return found


async def test_a_model_is_shown_what_goes_along_now_and_in_later_turns(llm_house: House, fake: FakeUpstream) -> None:
    ann = await llm_house.user("ann")
    id = await session(ann, "simple_openai_agent")
    path = f"/api/v1/sessions/{id}/messages"
    first = await ann.post(path, json={"content": "What is this?", "parts": ALL})
    assert first.status_code == 200, first.text
    said = [text("What is this?"), *ALL]
    assert fake.requests[-1].body["messages"] == [{"role": "user", "content": said}]
    await send(ann, id, "And now?")
    assert fake.requests[-1].body["messages"][0]["content"] == said
    assert fake.requests[-1].body["messages"][2]["content"] == "And now?"
    edited = await ann.post(path, json={"content": "What is that?", "parts": [PNG], "parent_id": None})
    assert fake.requests[-1].body["messages"] == [{"role": "user", "content": [text("What is that?"), PNG]}]
    await ann.post(f"/api/v1/messages/{edited.json()['message_id']}/regenerate", json={})
    assert fake.requests[-1].body["messages"] == [{"role": "user", "content": [text("What is that?"), PNG]}]
    messages = await listed(ann, id)
    assert [message.get("parts") for message in messages if message["role"] == "user"] == [
        said,
        None,
        [text("What is that?"), PNG],
    ]
    assert (await ann.get(f"/api/v1/messages/{messages[0]['id']}")).json() == messages[0]


async def test_another_prompt_for_a_call_keeps_its_pictures(llm_house: House, fake: FakeUpstream) -> None:
    id = await session(llm_house.admin, "simple_openai_agent")
    run_id = (await send(llm_house.admin, id, "What is this?", parts=[PNG])).json()["run_id"]
    path = f"/api/v1/runs/{run_id}"
    (call,) = [step for step in (await llm_house.admin.get(f"{path}/steps")).json()["data"] if step["kind"] == "llm"]
    again = await llm_house.admin.post(f"{path}/rerun", json={"step": call["seq"], "set": {"prompt": "And this?"}})
    assert again.status_code == 200, again.text
    assert fake.requests[-1].body["messages"] == [{"role": "user", "content": [text("And this?"), PNG]}]


async def test_an_agent_sees_the_parts_by_either_route(here: House) -> None:
    id = await session(here.admin, "seer")
    seen = await send(here.admin, id, "look", parts=[PNG, SOUND])
    assert json.loads(seen.json()["content"]) == ["look", ["text", "image_url", "input_audio"]]
    alone = await send(here.admin, id, "", parts=[PNG])
    assert json.loads(alone.json()["content"]) == ["", ["image_url"]]
    whole = await send(here.admin, id, "", parts=[PNG, text("left"), SOUND, text(", right")])
    expected = ["left, right", ["image_url", "text", "input_audio", "text"]]
    assert json.loads(whole.json()["content"]) == expected
    assert json.loads((await send(here.admin, id, "hi", parts=[text("hi")])).json()["content"]) == ["hi", []]
    items = (await here.admin.post("/ListMessages", json={"session_id": id})).json()["items"]
    assert items[0]["parts"] == [text("look"), PNG, SOUND]
    assert "parts" not in items[1]


async def test_parts_are_kept_by_what_waits_is_copied_or_is_found(here: House) -> None:
    ann = await here.user("ann")
    id = await session(ann, "seer", session_params={"busy": "queue"})
    slow = asyncio.ensure_future(send(ann, id, "wait"))
    await here.until_live()
    waited = await send(ann, id, "a rare word", parts=[PNG])
    assert json.loads(waited.json()["content"]) == ["a rare word", ["text", "image_url"]]
    await slow
    (hit,) = [
        item
        for item in (await ann.get("/api/v1/messages", params={"q": "rare"})).json()["data"]
        if item["role"] == "user"
    ]
    assert "parts" not in hit
    exported = (await ann.get(f"/api/v1/sessions/{id}/export")).json()
    made = await ann.post("/api/v1/imports", json=exported)
    assert made.status_code == 201, made.text
    assert (await listed(ann, made.json()["id"]))[2]["parts"] == [text("a rare word"), PNG]
    bob = await here.user("bob")
    for path in (f"/api/v1/sessions/{id}/messages", f"/api/v1/messages/{hit['id']}", f"/api/v1/sessions/{id}/export"):
        assert (await bob.get(path)).status_code == 404
    assert (await bob.get("/api/v1/messages", params={"q": "rare"})).json()["data"] == []


@pytest.mark.parametrize(
    ("parts", "sentence"),
    [
        ([], "parts: List should have at least 1 item"),
        ([PNG] * 101, "parts: List should have at most 100 items"),
        (["a"], "parts.0: Input should be a valid dictionary"),
        ([{"type": ["text"]}], "parts: [0].type must be one of text, image_url, input_audio, file."),
        ([{"text": "a"}], "parts: [0].type must be one of text, image_url, input_audio, file."),
        ([PNG, {"type": "video_url"}], "parts: [1].type must be one of text, image_url, input_audio, file."),
        ([{"type": "text", "text": 5}], "parts: [0].text must be a text."),
        ([{"type": "image_url"}], "parts: [0].image_url.url must be a text."),
        *(
            (
                [{"type": "image_url", "image_url": {"url": url}}],
                "parts: [0].image_url.url must be a data: URL in base64,",
            )
            for url in (
                "",
                "file:///etc/passwd",
                "data:image/png,raw",
                "javascript:x",
                "https://a b",
                "https://a/" + "x" * 8000,
            )
        ),
        ([{"type": "input_audio", "input_audio": {"data": "AA"}}], "parts: [0].input_audio.format must be a text."),
        ([{"type": "file", "file": {"filename": "a"}}], "parts: [0].file.file_data must be a text."),
        ([PNG | {"more": "\x00"}], "parts: must not contain the NUL character."),
        ([text("other"), PNG], "parts: they have another text than content"),
    ],
)
async def test_bad_parts_are_refused_by_a_sentence(here: House, parts: list[Any], sentence: str) -> None:
    id = await session(here.admin, "seer")
    for path, body in (("/SendMessage", {"session_id": id}), (f"/api/v1/sessions/{id}/messages", {})):
        refused = await here.admin.post(path, json={**body, "content": "hi", "parts": parts})
        assert (refused.status_code, refused.json()["param"].split(".")[0]) == (400, "parts")
        assert refused.json()["detail"].startswith(sentence)
        assert len(refused.content) < 1000
    assert await listed(here.admin, id) == []


async def test_nothing_at_all_and_too_much_are_refused(here: House) -> None:
    id = await session(here.admin, "seer")
    empty = await send(here.admin, id, "")
    assert (empty.status_code, empty.json()["param"]) == (400, "content")
    large = [{"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 8_000_000}}]
    assert (await send(here.admin, id, "hi", parts=large)).status_code == 413


async def test_an_answer_to_a_question_is_a_text(here: House) -> None:
    id = await session(here.admin, "seer")
    assert (await send(here.admin, id, "ask")).json()["content"] == "Which?"
    refused = await send(here.admin, id, "this", parts=[PNG])
    assert (refused.status_code, refused.json()["param"]) == (400, "parts")
    assert (await send(here.admin, id, "this")).json()["content"] == "this"


async def test_parts_tell_requests_with_one_key_from_each_other(here: House) -> None:
    id = await session(here.admin, "seer")
    path, key = f"/api/v1/sessions/{id}/messages", {"idempotency-key": "once"}
    for _ in range(2):
        answer = await here.admin.post(path, json={"content": "look", "parts": [PNG]}, headers=key)
        assert answer.status_code == 200
    other = await here.admin.post(path, json={"content": "look", "parts": [ELSEWHERE]}, headers=key)
    assert other.status_code == 409
    assert len(await listed(here.admin, id)) == 2


async def test_a_page_of_large_parts_is_cut_and_can_be_read_on(here: House) -> None:
    id = await session(here.admin, "seer")
    noise = b64encode(Random(1).randbytes(1_300_000)).decode()
    large = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{noise}"}}
    for _ in range(3):
        assert (await send(here.admin, id, "look", parts=[large])).status_code == 200
    first = (await here.admin.get(f"/api/v1/sessions/{id}/messages")).json()
    assert first["has_more"]
    rest = await here.admin.get(f"/api/v1/sessions/{id}/messages", params={"after": first["last_id"]})
    found = [*first["data"], *rest.json()["data"]]
    assert [item["seq"] for item in found] == [1, 2, 3, 4, 5, 6]
    assert all(item["parts"] == [text("look"), large] for item in found[::2])
