"""What no longer fits into a history stands at its beginning as a summary: made once, kept with its branch, never in the way."""

from __future__ import annotations

import asyncio
import json
from itertools import pairwise
from typing import Any

import httpx2
import pytest
from sqlalchemy import text

from app.domain import new_id
from app.usecases import summaries
from tests.engines import Engines
from tests.fakes.upstream import FakeUpstream
from tests.house import House, open_house, send, session

AGENT = "simple_openai_agent"
LONG = "word " * 1000
"""1,250 tokens by the local count; the answer repeats them."""


async def fill(client: httpx2.AsyncClient, id: str, first: str = "My name is Ada.", turns: int = 2) -> list[str]:
    """So many long turns; the ids of the answers."""
    answers = []
    for turn in range(turns):
        answer = await send(client, id, f"{first if turn == 0 else f'Turn {turn}.'} {LONG}")
        assert answer.status_code == 200, answer.text
        answers.append(answer.json()["message_id"])
    return answers


def asked(fake: FakeUpstream, at: int = -1) -> list[dict[str, Any]]:
    """The messages of a request that came to the language model."""
    found: list[dict[str, Any]] = list(fake.requests)[at].body["messages"]
    return found


def summary_calls(fake: FakeUpstream) -> list[str]:
    """What was given to be summarised."""
    bodies = [request.body["messages"] for request in fake.requests]
    return [said[1]["content"] for said in bodies if said[0]["content"] == summaries.INSTRUCTIONS]


async def summaries_in(house: House, id: str) -> int:
    async with house.platform.engine.connect() as db:
        query = text("SELECT count(*) FROM messages WHERE session_id = :id AND summary IS NOT NULL")
        return int((await db.execute(query, {"id": id})).scalar_one())


async def test_what_does_not_fit_is_summarised_once_as_a_metered_step(llm_house: House, fake: FakeUpstream) -> None:
    ann = await llm_house.user("ann")
    id = await session(ann, AGENT)
    await fill(ann, id)
    assert summary_calls(fake) == []
    third = (await send(ann, id, f"And now? {LONG}")).json()
    (given,) = summary_calls(fake)
    assert "My name is Ada." in given
    assert "Turn 1." in given
    assert "And now?" not in given
    question, summary, last = asked(fake)
    assert question == {"role": "user", "content": summaries.ASKED}
    assert summary["role"] == "assistant"
    assert "My name is Ada." in summary["content"]
    assert last["content"].startswith("And now?")
    async with llm_house.platform.engine.connect() as db:
        steps = "SELECT path, kind, prompt_tokens FROM steps WHERE run_id = :id ORDER BY seq"
        found = (await db.execute(text(steps), {"id": third["run_id"]})).all()
        charged = "SELECT count(*) FROM ledger WHERE run_id = :id"
        assert (await db.execute(text(charged), {"id": third["run_id"]})).scalar_one() == 2
    assert [(step.path, step.kind) for step in found] == [
        ("/history", "summary"),
        ("/history/default", "llm"),
        ("/default", "llm"),
    ]
    assert third["usage"]["prompt"] == sum(step.prompt_tokens for step in found)


async def test_from_turn_to_turn_a_prompt_begins_with_the_same_bytes(llm_house: House, fake: FakeUpstream) -> None:
    ann = await llm_house.user("ann")
    id = await session(ann, AGENT)
    await fill(ann, id)
    prompts = []
    for turn in range(6):
        await send(ann, id, f"Turn {turn}: {'short ' * 200}")
        prompts.append(asked(fake))
    grew = [later[: len(earlier)] == earlier for earlier, later in pairwise(prompts)]
    assert len(summary_calls(fake)) == 1
    assert grew.count(False) == 1


async def test_a_turn_is_summarised_once_and_the_next_summary_goes_on_from_the_last(
    llm_house: House, fake: FakeUpstream
) -> None:
    ann = await llm_house.user("ann")
    id = await session(ann, AGENT)
    await fill(ann, id, turns=9)
    given = summary_calls(fake)
    assert len(given) > 2
    assert all(now.startswith("Summary of what was said before:") for now in given[1:])
    for turn in range(1, 9):
        said = [now.partition("What was said after it:")[2] or now for now in given]
        assert sum(f"user: Turn {turn}." in now for now in said) <= 1
    assert await summaries_in(llm_house, id) == len(given)


async def test_an_abandoned_branch_takes_its_summary_with_it(llm_house: House, fake: FakeUpstream) -> None:
    ann = await llm_house.user("ann")
    id = await session(ann, AGENT)
    first, second = await fill(ann, id)
    third = (await send(ann, id, f"Third {LONG}")).json()["message_id"]
    await ann.post(f"/api/v1/messages/{third}/regenerate", json={})
    assert len(summary_calls(fake)) == 1
    assert asked(fake)[0]["content"] == summaries.ASKED
    edited = {"content": "say edited", "parent_id": first}
    assert (await ann.post(f"/api/v1/sessions/{id}/messages", json=edited)).status_code == 200
    assert [said["role"] for said in asked(fake)] == ["user", "assistant", "user"]
    assert asked(fake)[0]["content"].startswith("My name is Ada.")
    assert await ann.patch(f"/api/v1/sessions/{id}", json={"leaf_id": second})
    await send(ann, id, "say back")
    assert asked(fake)[0]["content"] == summaries.ASKED
    assert len(summary_calls(fake)) == 1


async def test_a_message_whose_own_branch_was_summarised_is_answered_again_from_what_was_before_it(
    llm_house: House, fake: FakeUpstream
) -> None:
    ann = await llm_house.user("ann")
    id = await session(ann, AGENT)
    _, second = await fill(ann, id)
    await send(ann, id, f"Third {LONG}")
    await ann.post(f"/api/v1/messages/{second}/regenerate", json={})
    assert asked(fake)[0]["content"].startswith("My name is Ada.")
    assert asked(fake)[-1]["content"].startswith("Turn 1.")


async def test_a_rerun_of_a_rerun_has_the_history_of_the_first_run(llm_house: House, fake: FakeUpstream) -> None:
    ann = await llm_house.user("ann")
    id = await session(ann, AGENT)
    await fill(ann, id)
    run = (await ann.get("/api/v1/runs")).json()["data"][0]["id"]
    async with llm_house.platform.engine.begin() as db:  # of the message before that run's, made after it
        query = "UPDATE messages SET summary = CAST(:made AS jsonb) WHERE session_id = :id AND seq = 2"
        later = {"content": "Otherwise.", "tokens": 3, "run_id": str(new_id())}
        await db.execute(text(query), {"id": id, "made": json.dumps(later)})
    for _ in range(3):
        again = (await ann.post(f"/api/v1/runs/{run}/rerun", json={})).json()
        assert again["status"] == "completed", again
        run = again["id"]


async def test_a_summary_that_fails_does_not_fail_the_answer_and_is_not_tried_at_every_message(
    llm_house: House, fake: FakeUpstream
) -> None:
    ann = await llm_house.user("ann")
    id = await session(ann, AGENT)
    await fill(ann, id)
    before = fake.hits
    fake.fail("400")
    answer = await send(ann, id, f"Third {LONG}")
    assert answer.status_code == 200
    assert "Third" in answer.json()["content"]
    assert fake.hits == before + 2
    assert [said["role"] for said in asked(fake)][-1] == "user"
    await send(ann, id, "say fourth")
    assert fake.hits == before + 3
    assert await summaries_in(llm_house, id) == 0


async def test_an_answer_waits_for_a_summary_no_longer_than_the_deadline(
    llm_house: House, fake: FakeUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(summaries, "SECONDS", 0.3)
    ann = await llm_house.user("ann")
    id = await session(ann, AGENT)
    await fill(ann, id)
    fake.fail("hang")
    async with asyncio.timeout(15):
        answer = await send(ann, id, f"Third {LONG}")
    assert answer.status_code == 200
    assert "Third" in answer.json()["content"]
    assert await summaries_in(llm_house, id) == 0


async def test_a_session_or_an_agent_does_without_summaries(llm_house: House, fake: FakeUpstream) -> None:
    ann = await llm_house.user("ann")
    id = await session(ann, AGENT, session_params={"summary": False})
    await fill(ann, id, turns=3)
    echo = await session(ann, "fake_echo_agent")
    await fill(ann, echo, turns=3)
    assert summary_calls(fake) == []
    assert (await ann.get(f"/api/v1/sessions/{id}")).json()["session_params"]["summary"] is False
    await ann.patch(f"/api/v1/sessions/{id}", json={"session_params": {"summary": True}})
    await send(ann, id, "say now")
    assert "My name is Ada." in summary_calls(fake)[0]


async def test_another_server_goes_on_from_the_same_summary(
    llm_house: House, fake: FakeUpstream, database_url: str, running: Engines
) -> None:
    ann = await llm_house.user("ann")
    id = await session(ann, AGENT)
    await fill(ann, id, turns=3)
    given = {"redis_url": running.redis_url, "openai_base_url": fake.base_url, "openai_api_key": "sk-test-canary-key"}
    async with open_house(database_url, **given) as other:
        there = await other.client(ann.headers["authorization"].removeprefix("Bearer "))
        await send(there, id, "say there")
    assert asked(fake)[0]["content"] == summaries.ASKED
    assert len(summary_calls(fake)) == 1
    assert (await ann.delete(f"/api/v1/sessions/{id}")).status_code == 204
    assert await summaries_in(llm_house, id) == 0
