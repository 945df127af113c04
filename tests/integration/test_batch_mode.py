"""Mode batch on the whole platform: sessions, messages, tasks, our own batches, benches, what it costs, and what is erased."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import text

from app.datasets import Dataset
from app.domain import Principal, Scope, new_id, now
from app.llm.outstanding import Outstanding, Sought
from app.store import accounts, llm_batches
from app.suites.suite import Suite
from app.usecases import benches
from app.usecases.bench_work import Work
from app.usecases.llm_batches import StoredBatches
from tests.calling import call, calling_house
from tests.engines import Engines
from tests.fakes.upstream import FakeUpstream
from tests.house import House, send, session
from tests.paths import model

ROOT = Path(__file__).parents[2]
PRICE = "{ prompt = 1000, completion = 1000, batch = 0.5 }"


@pytest.fixture
async def house(running: Engines, database_url: str, tmp_path: Path, fake: FakeUpstream) -> AsyncIterator[House]:
    models = model("default", f"{fake.base_url}, batch = true", price=PRICE) + model("plain", fake.base_url)
    async with calling_house(running, database_url, tmp_path, models) as opened:
        yield opened


async def rows(house: House, statement: str) -> list[Any]:
    async with house.platform.engine.connect() as db:
        return [tuple(row) for row in await db.execute(text(statement))]


async def until(condition: Callable[[], Awaitable[object]]) -> None:
    async with asyncio.timeout(60):
        while not await condition():
            await asyncio.sleep(0.1)


async def ended(house: House, run_id: str) -> Any:
    async with asyncio.timeout(60):
        while not (run := (await house.admin.get(f"/api/v1/runs/{run_id}")).json())["ended_at"]:
            await asyncio.sleep(0.1)
    return run


async def test_a_call_a_message_and_a_session_in_mode_batch_are_one_batch_and_cost_half(
    house: House, fake: FakeUpstream
) -> None:
    id, mine = (
        await session(house.admin, "calling"),
        await session(house.admin, "calling", session_params={"mode": "batch"}),
    )
    now_too = send(house.admin, mine, json.dumps({"say": "say at once"}), mode="realtime")
    by_message = await send(house.admin, id, json.dumps({"say": "say by message"}), mode="batch")
    by_session = await send(house.admin, mine, json.dumps({"say": "say by session", "times": 2}))
    assert (by_message.status_code, by_session.status_code) == (202, 202)
    by_call = call(house.admin, say="say by call", mode="batch")
    assert (await by_call)["content"] == "by call"
    assert (await ended(house, by_session.json()["run_id"]))["usage"]["cost"] == "0.005"
    assert (await ended(house, by_message.json()["run_id"]))["usage"]["cost"] == "0.0025"
    assert (fake.hits, len(fake.batches.batches), len(fake.batches.lines)) == (0, 1, 4)
    assert (await now_too).json()["content"] == "at once"
    assert fake.hits == 1
    costs = await rows(house, "SELECT cost FROM ledger ORDER BY cost")
    assert [float(cost) for (cost,) in costs] == [0.0025] * 4 + [0.005]
    output = await house.admin.get(f"/api/v1/runs/{by_message.json()['run_id']}/steps/1/output")
    assert "batch" in output.text


async def test_the_page_about_models_shows_an_agent_and_a_file_that_work(
    house: House, fake: FakeUpstream, tmp_path: Path
) -> None:
    page = (ROOT / "docs/models.md").read_text(encoding="utf-8")
    section = page[page.index("## Batches") : page.index("## Cache")]
    (agent,), (models,) = (re.findall(rf"^```{kind}\n(.*?)^```$", section, re.M | re.S) for kind in ("python", "toml"))
    models = models.replace("https://api.openai.com/v1", fake.base_url).replace('api_key_env = "OPENAI_API_KEY", ', "")
    (tmp_path / "models.toml").write_text(models)
    (tmp_path / "agents/patient_translator.py").write_text(agent)

    async def is_loaded() -> bool:
        deadline = house.platform.catalog().models["default"].endpoints[0].batch_deadline
        return "patient_translator" in house.platform.agents.ids and deadline == 43_200

    await until(is_loaded)
    answer = await send(house.admin, await session(house.admin, "patient_translator"), "hello")
    assert answer.json()["content"] == "hello in French, in good style"
    assert (fake.hits, [line["model"] for line in fake.batches.lines]) == (0, ["gpt-4o-mini"] * 2)


async def test_a_task_of_a_session_in_mode_batch(house: House, fake: FakeUpstream) -> None:
    path, params = "/api/v1/agents/tasks", {"mode": "batch"}
    body = {"name": "one", "input": json.dumps({"say": "say done"}), "agent": {"id": "calling"}}
    made = await house.admin.post(path, json=body | {"session_params": params})
    assert made.status_code == 201, made.text
    assert (await house.admin.post(f"{path}/{made.json()['id']}/execute")).status_code == 202

    async def is_done() -> bool:
        return bool((await house.admin.get(f"{path}/{made.json()['id']}")).json()["status"] == "completed")

    await until(is_done)
    assert (fake.hits, len(fake.batches.lines)) == (0, 1)


async def test_our_own_batches_go_into_those_of_the_server_where_it_has_any(house: House, fake: FakeUpstream) -> None:
    bodies = [
        {"model": ("default", "plain")[n % 2], "messages": [{"role": "user", "content": f"say {n}"}]} for n in range(80)
    ]
    lines = [
        {"custom_id": str(n), "method": "POST", "url": "/v1/chat/completions", "body": body}
        for n, body in enumerate(bodies)
    ]
    content = "\n".join(map(json.dumps, lines)).encode()
    file = await house.admin.post("/v1/files", files={"file": ("in.jsonl", content)}, data={"purpose": "batch"})
    wanted = {"input_file_id": file.json()["id"], "endpoint": "/v1/chat/completions", "completion_window": "24h"}
    batch = (await house.admin.post("/v1/batches", json=wanted)).json()

    async def is_over() -> bool:
        batch.update((await house.admin.get(f"/v1/batches/{batch['id']}")).json())
        return batch["status"] == "completed"

    await until(is_over)
    assert (fake.hits, len(fake.batches.lines), len(fake.batches.batches)) == (40, 40, 1)
    output = (await house.admin.get(f"/v1/files/{batch['output_file_id']}/content")).text
    found = {line["custom_id"]: line["response"]["body"] for line in map(json.loads, output.splitlines())}
    assert {id: body["choices"][0]["message"]["content"] for id, body in found.items()} == {
        str(n): str(n) for n in range(80)
    }


@pytest.mark.parametrize("journal", [False, True])
async def test_a_bench_in_mode_batch_is_the_same_bench(house: House, fake: FakeUpstream, journal: bool) -> None:
    pytest.importorskip("duckdb")
    async with house.platform.engine.connect() as db:
        user = await accounts.get_user(db, name="admin")
    assert user
    given = {
        "name": "b",
        "dataset": {"path": "rows.jsonl"},
        "agents": [{"id": "default"}],
        "scorers": [{"kind": "exact"}],
    }
    given |= {"journal": journal, "limits": {"concurrency": 40, "seconds": 1}}
    suite, other = Suite.model_validate(given | {"mode": "batch"}), Suite.model_validate(given)
    assert suite.identity() == other.identity()
    found = await benches.order(
        house.platform,
        Principal(user, frozenset({Scope.CHAT})),
        suite,
        Dataset([{"input": f"say {n}", "expected": str(n)} for n in range(40)]),
        Path(),
    )
    fake.batches.seconds = 1.0  # longer than one answer may take
    work = Work(house.platform, found, None)
    assert (await work.run()).status == "completed"
    assert (work.progress.done, work.progress.failed, fake.hits, len(fake.batches.lines)) == (40, 0, 0, 40)
    assert float(work.progress.cost) == pytest.approx(40 * 0.0015)


async def test_who_is_erased_leaves_nothing_in_a_batch(house: House, fake: FakeUpstream) -> None:
    fake.batches.fault = "never"
    ann, bob = await house.user("ann"), await house.user("bob")
    kept, gone = await session(bob, "calling"), await session(bob, "calling")
    for client, id in ((ann, await session(ann, "calling")), (bob, kept), (bob, gone)):
        assert (await send(client, id, json.dumps({"say": "say it"}), mode="batch")).status_code == 202

    async def are_sent() -> bool:
        return (
            len(
                await rows(
                    house,
                    "SELECT key FROM llm_batch_calls JOIN llm_batches b ON b.id = batch_id WHERE provider_id <> ''",
                )
            )
            == 3
        )

    await until(are_sent)
    assert (await house.admin.delete(f"/api/v1/users/{ann.headers['x-test-user']}")).status_code == 204
    assert (await bob.delete(f"/api/v1/sessions/{gone}")).status_code == 204
    assert await rows(house, "SELECT session_id FROM llm_batch_calls") == [(UUID(kept),)]
    assert (await bob.delete(f"/api/v1/sessions/{kept}")).status_code == 204

    async def is_over() -> bool:
        return not await rows(house, "SELECT id FROM llm_batches")

    await until(is_over)
    assert [batch.status for batch in fake.batches.batches.values()] == ["cancelled"]
    assert fake.batches.files == {}


async def test_a_call_is_left_to_its_process_and_to_nobody_else(house: House) -> None:
    engine, here = house.platform.engine, house.platform.writer.replica
    async with engine.connect() as db:
        user = await accounts.get_user(db, name="admin")
    assert user
    mine, dead = StoredBatches(engine, here), StoredBatches(engine, new_id())
    sought = Sought(b"key", user.id, None, new_id())
    batch, late = (Outstanding(new_id(), "endpoint", now() + timedelta(hours=1)) for _ in range(2))
    one, two, three = new_id(), new_id(), new_id()
    await mine.add(batch, {one: sought})
    await dead.add(late, {two: sought, three: sought._replace(key=b"other")})
    assert await dead.adopt(sought) is None, "its process beats"
    assert await dead.take(batch.id) is None
    assert await mine.adopt(sought._replace(owner_id=new_id())) is None, "it is another user's"
    found = await mine.adopt(sought)
    assert found
    assert (found.id, found.batch_id, found.status) == (two, late.id, None)
    assert await mine.adopt(sought) is None
    assert await mine.take(late.id) == late
    await mine.answer([(two, 200, b"{}"), (one, 400, b"no")])
    await mine.answer([(two, 500, b"later")])
    assert await mine.look(two) == found._replace(status=200, answer=b"{}")
    assert (await mine.awaited(late.id), await mine.awaited(batch.id)) == (1, 0)
    await mine.end(late.id)
    assert (await mine.look(three)) == (three, late.id, None, None, True)
    await mine.release([one])
    assert (await dead.adopt(sought)) == (one, batch.id, 400, b"no", False)
    await mine.forget([one, two, three])
    assert [id for (id,) in await rows(house, "SELECT id FROM llm_batches")] == [batch.id]
    await mine.end(batch.id, unsent=True)
    async with engine.begin() as db:
        await llm_batches.sweep(db)
    assert await rows(house, "SELECT id FROM llm_batches") == []
