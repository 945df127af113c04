"""An agent asks a person: its run waits, over restarts too, and goes on where it was with what it had done."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
from sqlalchemy import text

from app.usecases import replicas
from tests.conftest import copy
from tests.engines import Engines
from tests.fakes.upstream import FakeUpstream
from tests.house import House, events, open_house, send, session
from tests.integration.test_openai_sdk import sdk

AGENT = '''
from pydantic import BaseModel
from app.agent import Chattable, Message

CALLS = []


class Approval(BaseModel):
    ok: bool


async def fetch(name: str) -> str:
    CALLS.append(name)
    return f"page {len(CALLS)} of {name}"


class Publisher(Chattable):
    """Asks before it publishes."""

    id = "publisher"

    async def chat(self, message: Message) -> str:
        page = await self.step(fetch, message.content)
        await self.stream.send("text", f"Read: {page}. ")
        facts = await self.llm.ainvoke(f"say facts of {page}")
        if not (await self.ask("Publish?", Approval)).ok:
            return await self.tell("left")
        where = await self.ask("Where?")
        return await self.tell(f"published {facts} in {where}")

    async def tell(self, what: str) -> None:
        await self.stream.send("text", what)
'''


@asynccontextmanager
async def opened(running: Engines, url: str, fake: FakeUpstream, folder: Path, **settings: Any) -> AsyncIterator[House]:
    (folder / "publisher.py").write_text(AGENT)
    given = {"redis_url": running.redis_url, "openai_base_url": fake.base_url, "openai_api_key": "sk-x"} | settings
    async with open_house(url, agents_dir=folder, **given) as house:
        yield house


@pytest.fixture
async def here(running: Engines, template: str, fake: FakeUpstream, tmp_path: Path) -> AsyncIterator[House]:
    async with copy(running, template) as url, opened(running, url, fake, tmp_path) as house:
        yield house


async def run_of(client: httpx2.AsyncClient, id: str) -> dict[str, Any]:
    return dict((await client.get(f"/api/v1/runs/{id}")).json())


async def test_the_next_message_answers_and_nothing_is_done_twice(here: House, fake: FakeUpstream) -> None:
    ann = await here.user("ann")
    id = await session(ann, "publisher")
    asked = (await send(ann, id, "news")).json()
    assert (asked["content"], asked["additional_kwargs"]["status"]) == ("Publish?", "waiting")
    run = await run_of(ann, asked["run_id"])
    assert (run["status"], run["question"]["question"]) == ("waiting", "Publish?")
    assert run["question"]["schema"]["properties"]["ok"] == {"title": "Ok", "type": "boolean"}
    second = (await send(ann, id, "yes")).json()
    assert (second["content"], second["run_id"]) == ("Where?", asked["run_id"])
    done = (await send(ann, id, "the paper")).json()
    facts = "facts of page 1 of news"
    assert done["content"] == f"Read: page 1 of news. published {facts} in the paper"
    assert (done["run_id"], fake.hits) == (asked["run_id"], 1)
    asides = [(aside["content_type"], aside["content"]) for aside in done["additional_kwargs"]["asides"]]
    assert asides == [("question", "Publish?"), ("answer", "yes"), ("question", "Where?"), ("answer", "the paper")]
    items = (await ann.post("/ListMessages", json={"session_id": id})).json()["items"]
    assert [item["content"] for item in items] == ["news", done["content"]]
    run = await run_of(ann, asked["run_id"])
    assert (run["status"], run["question"]) == ("completed", None)
    assert done["usage"]["total"] == run["usage"]["total"] > 0
    async with here.platform.engine.connect() as db:
        steps = (await db.execute(text("SELECT kind, name, status FROM steps ORDER BY seq"))).all()
        bills = (await db.execute(text("SELECT sum(prompt_tokens + completion_tokens) FROM ledger"))).scalar_one()
    assert [tuple(step) for step in steps] == [
        ("step", "fetch", "completed"),
        ("llm", "default", "completed"),
        ("ask", "ask", "completed"),
        ("ask", "ask", "completed"),
    ]
    assert bills == run["usage"]["total"]


async def test_a_stream_ends_with_the_question_and_the_next_one_begins_after_it(here: House) -> None:
    ann = await here.user("ann")
    id = await session(ann, "publisher")
    first = await events(ann, "/SendMessage", {"session_id": id, "content": "news", "stream": True})
    assert [name for name, _, _ in first][-1] == "waiting"
    assert first[-1][2]["content"] == "Publish?"
    run_id = first[0][2]["run_id"]
    second = await events(ann, f"/api/v1/runs/{run_id}/answer", {"answer": {"ok": False}, "stream": True})
    assert [data["content"] for name, _, data in second if name == "chunk"] == ['{"ok":false}', "left"]
    assert second[-1][2]["content"] == "Read: page 1 of news. left"


async def test_a_waiting_run_can_be_read_again_and_answered_after_a_restart(
    running: Engines, template: str, fake: FakeUpstream, tmp_path: Path
) -> None:
    async with copy(running, template) as url:
        async with opened(running, url, fake, tmp_path) as house:
            ann = await house.user("ann")
            key = ann.headers["authorization"]
            id = await session(ann, "publisher")
            run_id = (await send(ann, id, "news")).json()["run_id"]
        async with opened(running, url, fake, tmp_path) as house:
            ann = await house.client(authorization=key)
            async with ann.stream("GET", f"/api/v1/runs/{run_id}/events") as answer:
                told = (await answer.aread()).decode()
            assert "Read: page 1 of news. " in told
            assert "event: waiting" in told
            assert (await send(ann, id, "no")).json()["content"] == "Read: page 1 of news. left"
        assert fake.hits == 1


async def test_an_answer_that_cannot_be_read_is_asked_for_again(here: House) -> None:
    ann = await here.user("ann")
    id = await session(ann, "publisher")
    await send(ann, id, "news")
    again = (await send(ann, id, "perhaps")).json()
    assert again["content"].startswith("I could not read your answer")
    assert (await send(ann, id, "no")).json()["content"].endswith("left")


async def test_of_two_answers_at_once_one_counts(here: House, fake: FakeUpstream) -> None:
    ann = await here.user("ann")
    id = await session(ann, "publisher")
    run_id = (await send(ann, id, "news")).json()["run_id"]
    answers = await asyncio.gather(
        *(ann.post(f"/api/v1/runs/{run_id}/answer", json={"answer": {"ok": False}}) for _ in range(5))
    )
    assert sorted(answer.status_code for answer in answers) == [200, 409, 409, 409, 409]
    assert fake.hits == 1


async def test_equal_answers_with_one_key_are_one(here: House, fake: FakeUpstream) -> None:
    ann = await here.user("ann")
    id = await session(ann, "publisher")
    run_id = (await send(ann, id, "news")).json()["run_id"]

    async def answer(content: str) -> httpx2.Response:
        body = {"session_id": id, "content": content}
        return await ann.post("/SendMessage", json=body, headers={"idempotency-key": "k"})

    answers = await asyncio.gather(*(answer("yes") for _ in range(5)))
    assert {(told.status_code, told.json()["run_id"], told.json()["content"]) for told in answers} == {
        (200, run_id, "Where?")
    }
    other = await answer("no")
    assert (other.status_code, other.json()["param"]) == (409, "idempotency-key")
    done = (await send(ann, id, "the paper")).json()
    again = (await answer("yes")).json()
    assert (again["message_id"], again["content"]) == (done["message_id"], done["content"])
    items = (await ann.post("/ListMessages", json={"session_id": id})).json()["items"]
    assert ([item["role"] for item in items], fake.hits) == (["user", "assistant"], 1)


async def test_a_run_that_waits_can_be_cancelled_and_keeps_what_it_said(here: House) -> None:
    ann = await here.user("ann")
    id = await session(ann, "publisher")
    run_id = (await send(ann, id, "news")).json()["run_id"]
    cancelled = await ann.post("/CancelRun", json={"run_id": run_id})
    assert cancelled.json()["status"] == "cancelled", cancelled.text
    items = (await ann.post("/ListMessages", json={"session_id": id})).json()["items"]
    assert items[-1]["content"] == "Read: page 1 of news. "
    assert (await ann.post(f"/api/v1/runs/{run_id}/answer", json={"answer": "x"})).status_code == 409
    assert (await send(ann, id, "other")).json()["content"] == "Publish?"


async def test_a_question_that_nobody_answers_ends_its_run(here: House, monkeypatch: pytest.MonkeyPatch) -> None:
    ann = await here.user("ann")
    id = await session(ann, "publisher")
    run_id = (await send(ann, id, "news")).json()["run_id"]
    late = "jsonb_set(pending, '{ask,expires_at}', '\"2020-01-01T00:00:00+00:00\"')"
    async with here.platform.engine.begin() as db:
        await db.execute(text(f"UPDATE runs SET pending = {late}"))
    assert (await send(ann, id, "yes")).status_code == 409
    await replicas._end_lost(here.platform)
    run = await run_of(ann, run_id)
    assert (run["status"], run["error"]["code"]) == ("partial", "unanswered")


async def test_only_its_owner_answers(here: House) -> None:
    ann, ben = await here.user("ann"), await here.user("ben")
    run_id = (await send(ann, await session(ann, "publisher"), "news")).json()["run_id"]
    assert (await ben.post(f"/api/v1/runs/{run_id}/answer", json={"answer": {"ok": True}})).status_code == 404


async def test_a_background_run_asks_and_a_worker_goes_on_with_it(here: House, fake: FakeUpstream) -> None:
    ann = await here.user("ann")
    id = await session(ann, "publisher")
    run_id = (await send(ann, id, "news", mode="background")).json()["run_id"]
    async with asyncio.timeout(20):
        while (await run_of(ann, run_id))["status"] != "waiting":
            await asyncio.sleep(0.05)
    await ann.post(f"/api/v1/runs/{run_id}/answer", json={"answer": {"ok": False}})
    async with asyncio.timeout(20):
        while (await run_of(ann, run_id))["status"] != "completed":
            await asyncio.sleep(0.05)
    assert fake.hits == 1


@pytest.mark.parametrize("end", ["cancelled", "partial"])
async def test_a_background_run_that_nobody_answers_leaves_no_job(here: House, end: str) -> None:
    ann = await here.user("ann")
    run_id = (await send(ann, await session(ann, "publisher"), "news", mode="background")).json()["run_id"]
    async with asyncio.timeout(20):
        while (await run_of(ann, run_id))["status"] != "waiting":
            await asyncio.sleep(0.05)
    if end == "cancelled":
        await ann.post("/CancelRun", json={"run_id": run_id})
    else:
        late = "jsonb_set(pending, '{ask,expires_at}', '\"2020-01-01T00:00:00+00:00\"')"
        async with here.platform.engine.begin() as db:
            await db.execute(text(f"UPDATE runs SET pending = {late}"))
        await replicas._end_lost(here.platform)
    assert (await run_of(ann, run_id))["status"] == end
    async with here.platform.engine.connect() as db:
        (job,) = (await db.execute(text("SELECT state, ended_at FROM jobs"))).all()
    assert job.state in ("cancelled", "completed")
    assert job.ended_at


async def test_clients_of_openai_see_the_question_as_the_answer(here: House) -> None:
    ann = await here.user("ann")
    id = await session(ann, "publisher")
    async with sdk(here, ann.headers["authorization"].removeprefix("Bearer ")) as client:

        async def say(content: str) -> str | None:
            answer = await client.chat.completions.create(
                model="publisher", messages=[{"role": "user", "content": content}], extra_body={"session_id": id}
            )
            return answer.choices[0].message.content

        assert await say("news") == "Read: page 1 of news. Publish?"
        assert await say("no") == "left"
