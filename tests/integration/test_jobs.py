"""Background runs: accepted at once, conducted by a job, followed, cancelled, counted."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx2
from sqlalchemy import text

from tests.house import House, send, session


async def rows(house: House, query: str, **values: Any) -> list[Any]:
    async with house.platform.engine.connect() as db:
        return list((await db.execute(text(query), values)).all())


async def ended(client: httpx2.AsyncClient, run_id: str) -> dict[str, Any]:
    """The run when it has ended."""
    async with asyncio.timeout(20):
        while True:
            run: dict[str, Any] = (await client.get(f"/api/v1/runs/{run_id}")).json()
            if run["ended_at"]:
                return run
            await asyncio.sleep(0.02)


async def in_background(client: httpx2.AsyncClient, session_id: str, content: str, **fields: Any) -> str:
    """Send a message that is accepted; its run's id."""
    accepted = await send(client, session_id, content, mode="background", **fields)
    assert accepted.status_code == 202, accepted.text
    return str(accepted.json()["run_id"])


async def test_a_background_message_is_accepted_at_once_and_answered_by_a_job(llm_house: House) -> None:
    client = await llm_house.user("ann")
    id = await session(client, "simple_openai_agent")
    accepted = await send(client, id, "say hello", mode="background")
    assert accepted.status_code == 202
    body = accepted.json()
    assert (body["status"], body["session_id"]) == ("queued", id)
    run = await ended(client, body["run_id"])
    assert (run["status"], run["background"], run["message_id"]) == ("completed", True, body["message_id"])
    assert run["usage"]["completion"] > 0
    assert accepted.headers["location"] == f"/api/v1/runs/{body['run_id']}"
    items = (await client.post("/ListMessages", json={"session_id": id})).json()["items"]
    assert [item["content"] for item in items] == ["say hello", "hello"]
    (job,) = await rows(llm_house, "SELECT kind, state, attempt, lost FROM jobs")
    assert tuple(job) == ("run", "completed", 1, 0)
    (bill,) = await rows(llm_house, "SELECT completion_tokens FROM ledger")
    assert bill[0] == run["usage"]["completion"]
