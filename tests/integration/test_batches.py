"""Batches by OpenAI's own client: every status, every endpoint, what was answered once and what was not."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any
from uuid import UUID

import httpx2
import openai
import pytest
from openai import AsyncOpenAI
from openai.types import Batch
from sqlalchemy import text

from app.api import batches as batches_api
from app.domain import FileLimits, Job, new_id
from app.store import batches as rows
from app.store import jobs
from app.store.batches import Item
from app.usecases import batch_work, batches, conduct, files
from tests.engines import Engines
from tests.fakes.upstream import FakeUpstream
from tests.house import House, open_house, send, session
from tests.integration.test_openai_sdk import sdk

CHAT = "/v1/chat/completions"


@pytest.fixture
async def ann(llm_house: House) -> httpx2.AsyncClient:
    return await llm_house.user("ann")


@pytest.fixture
async def client(llm_house: House, ann: httpx2.AsyncClient) -> AsyncIterator[AsyncOpenAI]:
    async with sdk(llm_house, ann.headers["authorization"].removeprefix("Bearer ")) as made:
        yield made


def chat(content: str, **fields: Any) -> dict[str, Any]:
    return {"model": "default", "messages": [{"role": "user", "content": content}]} | fields


async def submit(client: AsyncOpenAI, bodies: list[Any], endpoint: Any = CHAT, **fields: Any) -> Batch:
    lines = [
        {"custom_id": f"request {at}", "method": "POST", "url": endpoint, "body": body}
        for at, body in enumerate(bodies)
    ]
    content = "\n".join(map(json.dumps, lines)).encode()
    file = await client.files.create(file=("requests.jsonl", content), purpose="batch")
    return await client.batches.create(input_file_id=file.id, endpoint=endpoint, completion_window="24h", **fields)


async def until(client: AsyncOpenAI, batch: Batch, *states: str) -> Batch:
    async with asyncio.timeout(30):
        while (found := await client.batches.retrieve(batch.id)).status not in states:
            await asyncio.sleep(0.05)
    return found


async def lines(client: AsyncOpenAI, file_id: str | None) -> dict[str, Any]:
    assert file_id
    content = (await client.files.content(file_id)).text
    return {line["custom_id"]: line for line in map(json.loads, content.splitlines())}


async def test_lines_wait_for_what_others_hold_of_a_budget(
    llm_house: House, ann: httpx2.AsyncClient, client: AsyncOpenAI
) -> None:
    budget = {"scope": "user", "id": ann.headers["x-test-user"], "period": "day", "tokens": 10_000}
    assert (await llm_house.admin.post("/api/v1/budgets", json=budget)).status_code == 201
    batch = await until(client, await submit(client, [chat(f"say {at}") for at in range(20)]), "completed", "failed")
    assert batch.request_counts
    assert (batch.status, batch.request_counts.completed, batch.request_counts.failed) == ("completed", 20, 0)


async def test_a_batch_is_answered_into_a_file(client: AsyncOpenAI, fake: FakeUpstream) -> None:
    batch = await submit(client, [chat(f"say answer {at}") for at in range(5)], metadata={"for": "test"})
    assert (batch.object, batch.status, batch.endpoint, batch.metadata) == (
        "batch",
        "validating",
        CHAT,
        {"for": "test"},
    )
    done = await until(client, batch, "completed")
    assert done.request_counts
    assert done.request_counts.to_dict() == {"total": 5, "completed": 5, "failed": 0}
    assert done.in_progress_at
    assert done.finalizing_at
    assert done.completed_at
    assert done.error_file_id is None
    found = await lines(client, done.output_file_id)
    for at in range(5):
        response = found[f"request {at}"]["response"]
        assert response["status_code"] == 200
        assert response["body"]["choices"][0]["message"]["content"] == f"answer {at}"
    assert fake.hits == 5
    assert done.usage
    assert done.usage.output_tokens == 10
    output = await client.files.retrieve(str(done.output_file_id))
    assert (output.purpose, output.filename) == ("batch_output", f"{batch.id}_output.jsonl")


@pytest.mark.parametrize(
    ("endpoint", "body", "field"),
    [
        ("/v1/completions", {"model": "default", "prompt": "say yes"}, "choices"),
        ("/v1/embeddings", {"model": "default", "input": "a text"}, "data"),
        ("/v1/responses", {"model": "default", "input": "say yes", "background": True}, "output"),
        (
            CHAT,
            {"model": "fake_echo_agent", "messages": [{"role": "user", "content": "hi"}], "stream": True},
            "choices",
        ),
    ],
)
async def test_every_endpoint_answers_as_its_route_does(
    client: AsyncOpenAI, endpoint: str, body: dict[str, Any], field: str
) -> None:
    done = await until(client, await submit(client, [body], endpoint), "completed")
    found = await lines(client, done.output_file_id)
    assert found["request 0"]["response"]["body"][field]


async def test_a_request_that_is_refused_is_in_the_error_file(client: AsyncOpenAI, fake: FakeUpstream) -> None:
    bodies = [chat("say yes"), {"model": "default"}, chat("x", temperature=9), chat("[[fault: 400]]")]
    done = await until(client, await submit(client, bodies), "completed")
    assert done.request_counts
    assert (done.request_counts.completed, done.request_counts.failed) == (1, 3)
    found = await lines(client, done.error_file_id)
    assert {at: line["response"]["status_code"] for at, line in found.items()} == {
        "request 1": 400,
        "request 2": 400,
        "request 3": 400,
    }
    assert "temperature" in found["request 2"]["response"]["body"]["error"]["message"]


async def test_where_there_is_no_room_a_request_is_made_again(client: AsyncOpenAI, fake: FakeUpstream) -> None:
    fake.fail("503", times=6)
    done = await until(client, await submit(client, [chat("say yes")]), "completed")
    assert (await lines(client, done.output_file_id))["request 0"]["response"]["status_code"] == 200


async def test_what_ended_with_its_server_is_asked_again(
    llm_house: House, client: AsyncOpenAI, fake: FakeUpstream
) -> None:
    batch = await submit(client, [chat("say as far as it came [[fault: slow delay=0.1]]")])
    live = llm_house.platform.live[UUID(await llm_house.until_live())]
    async with asyncio.timeout(10):
        while not live.log.events:
            await asyncio.sleep(0.01)
    live.end("shutdown")
    done = await until(client, batch, "completed")
    answer = (await lines(client, done.output_file_id))["request 0"]["response"]
    assert (answer["status_code"], fake.hits) == (200, 2)
    assert answer["body"]["choices"][0]["message"]["content"] == "as far as it came"


async def test_a_file_that_is_no_batch_fails_it_with_its_lines(client: AsyncOpenAI, fake: FakeUpstream) -> None:
    content = (
        b'{"custom_id": "a"}\n' + json.dumps({"custom_id": "b", "method": "POST", "url": "/", "body": {}}).encode()
    )
    file = await client.files.create(file=("requests.jsonl", content), purpose="batch")
    batch = await client.batches.create(input_file_id=file.id, endpoint=CHAT, completion_window="24h")
    failed = await until(client, batch, "failed")
    assert failed.failed_at
    assert failed.errors
    assert failed.errors.data
    assert [(error.code, error.line) for error in failed.errors.data] == [("invalid_json_line", 1), ("invalid_url", 2)]
    assert (failed.output_file_id, fake.hits) == (None, 0)


async def test_a_batch_whose_file_the_store_has_lost_fails_for_good(llm_house: House, client: AsyncOpenAI) -> None:
    file = await client.files.create(file=("requests.jsonl", json.dumps(chat("say 1")).encode()), purpose="batch")
    await llm_house.platform.objects.delete([UUID(file.id.removeprefix("file-"))])
    batch = await client.batches.create(input_file_id=file.id, endpoint=CHAT, completion_window="24h")
    failed = await until(client, batch, "failed")
    assert failed.errors
    assert failed.errors.data
    assert [error.message for error in failed.errors.data] == ["The object store has lost this file's content."]


async def test_a_cancelled_batch_begins_nothing_more_and_keeps_what_it_has(
    client: AsyncOpenAI, fake: FakeUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_work, "AT_ONCE", 2)
    monkeypatch.setattr(batch_work, "LOOK_SECONDS", 0.05)
    batch = await submit(client, [chat(f"say {at} [[fault: slow first=0.2]]") for at in range(40)])
    await until(client, batch, "in_progress")
    await fake.until(lambda: fake.completed >= 2)
    cancelling = await client.batches.cancel(batch.id)
    assert cancelling.status in ("cancelling", "cancelled")
    assert cancelling.cancelling_at
    done = await until(client, batch, "cancelled")
    assert done.request_counts
    assert 2 <= done.request_counts.completed == len(await lines(client, done.output_file_id)) < 40
    rest = await lines(client, done.error_file_id)
    assert len(rest) == 40 - done.request_counts.completed
    assert {line["error"]["code"] for line in rest.values()} == {"batch_cancelled"}
    assert fake.hits < 40
    assert (await client.batches.cancel(batch.id)).status == "cancelled"


async def test_a_batch_whose_time_is_over_ends_with_what_it_has(
    client: AsyncOpenAI, fake: FakeUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_work, "AT_ONCE", 1)
    monkeypatch.setattr(batch_work, "LOOK_SECONDS", 0.05)
    monkeypatch.setattr(batches, "WINDOW", timedelta(seconds=1.5))
    done = await until(client, await submit(client, [chat("say x [[fault: slow first=0.3]]")] * 20), "expired")
    assert done.expired_at
    assert done.request_counts
    assert 0 < done.request_counts.completed < 20


async def test_requests_whose_worker_died_before_it_kept_the_answer_find_it_in_their_run(
    llm_house: House, client: AsyncOpenAI, fake: FakeUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost: list[int] = []
    keep = rows.answer

    async def forgetful(db: Any, id: Any, line: int, **fields: Any) -> None:
        if line not in lost:
            lost.append(line)
            raise RuntimeError("the worker dies here")
        await keep(db, id, line, **fields)

    monkeypatch.setattr(rows, "answer", forgetful)
    monkeypatch.setattr(batch_work, "AT_ONCE", 1)
    monkeypatch.setattr("app.usecases.jobs.is_passing", lambda error: True)
    batch = await submit(client, [chat("say one"), chat("say two")])
    done = await until(client, batch, "completed")
    assert len(await lines(client, done.output_file_id)) == 2
    assert (lost, fake.hits) == ([1, 2], 2)


async def test_nobody_sees_another_users_batch(llm_house: House, client: AsyncOpenAI) -> None:
    batch = await submit(client, [chat("say x")])
    other = await llm_house.user("ben")
    async with sdk(llm_house, other.headers["authorization"].removeprefix("Bearer ")) as ben:
        for wanted in (ben.batches.retrieve(batch.id), ben.batches.cancel(batch.id)):
            with pytest.raises(openai.NotFoundError):
                await wanted
        assert [each.id async for each in ben.batches.list()] == []
        with pytest.raises(openai.NotFoundError):
            await ben.batches.create(input_file_id=batch.input_file_id, endpoint=CHAT, completion_window="24h")
    await until(client, batch, "completed")


async def test_batches_are_listed_in_pages_the_newest_first(client: AsyncOpenAI) -> None:
    made = [(await submit(client, [chat("say x")])).id for _ in range(3)]
    assert [each.id async for each in client.batches.list(limit=2)] == made[::-1]
    assert [each.id for each in (await client.batches.list(after=made[1])).data] == made[:1]


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"endpoint": "/v1/moderations"}, "endpoint"),
        ({"completion_window": "1h"}, "completion_window"),
        ({"metadata": {"x" * 65: "y"}}, "metadata"),
        ({"metadata": {str(at): "y" for at in range(17)}}, "metadata"),
    ],
)
async def test_what_is_no_batch_is_refused_by_its_field(
    client: AsyncOpenAI, changes: dict[str, Any], param: str
) -> None:
    file = await client.files.create(file=("requests.jsonl", b"{}"), purpose="batch")
    wanted: dict[str, Any] = {"input_file_id": file.id, "endpoint": CHAT, "completion_window": "24h"}
    with pytest.raises(openai.BadRequestError) as refused:
        await client.batches.create(**wanted | changes)
    assert str(refused.value.param).startswith(param)


async def test_a_file_of_another_purpose_is_no_batch(client: AsyncOpenAI) -> None:
    file = await client.files.create(file=("requests.jsonl", b"{}"), purpose="user_data")
    with pytest.raises(openai.BadRequestError) as refused:
        await client.batches.create(input_file_id=file.id, endpoint=CHAT, completion_window="24h")
    assert refused.value.param == "input_file_id"


async def test_a_user_may_have_so_many_on_their_way(client: AsyncOpenAI, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "MAX_OPEN", 1)
    batch = await submit(client, [chat("say x [[fault: slow first=1]]")])
    with pytest.raises(openai.RateLimitError):
        await submit(client, [chat("say y")])
    await until(client, batch, "completed")


async def test_equal_submissions_with_one_key_are_one(client: AsyncOpenAI) -> None:
    file = await client.files.create(
        file=("r.jsonl", json.dumps({"custom_id": "a", "method": "POST", "url": CHAT, "body": chat("say x")}).encode()),
        purpose="batch",
    )
    made = await asyncio.gather(
        *(
            client.batches.create(
                input_file_id=file.id,
                endpoint=CHAT,
                completion_window="24h",
                extra_headers={"Idempotency-Key": "once"},
            )
            for _ in range(5)
        )
    )
    assert len({each.id for each in made}) == 1
    await until(client, made[0], "completed")


async def test_a_batch_goes_with_its_user(llm_house: House, client: AsyncOpenAI, ann: httpx2.AsyncClient) -> None:
    batch = await submit(client, [chat("say x [[fault: slow first=0.5]]")] * 3)
    await until(client, batch, "in_progress")
    gone = await llm_house.admin.delete(f"/api/v1/users/{ann.headers['x-test-user']}")
    assert gone.status_code == 204
    async with llm_house.platform.engine.connect() as db:
        for table in ("batches", "batch_items", "batch_shards"):
            assert (await db.execute(text(f"SELECT count(*) FROM {table}"))).scalar_one() == 0


async def test_jobs_of_dead_workers_go_to_others_until_too_many_have_died(
    llm_house: House, client: AsyncOpenAI
) -> None:
    batch = await submit(client, [chat("say x")])
    done = await until(client, batch, "completed")
    platform = llm_house.platform
    async with platform.engine.begin() as db:
        await db.execute(text("UPDATE batches SET status = 'validating', total = 0"))
        owner_id, subject_id = (await db.execute(text("SELECT user_id, id FROM batches"))).one()
        job = Job(new_id(), "batch", owner_id, subject_id)
        await jobs.add(db, [job])
        for lost in range(jobs.MAX_LOST):
            taken = await jobs.take(db, job.id, new_id())  # a worker that never beats
            assert taken
            assert (taken.attempt, taken.lost) == (lost + 1, lost)
            await jobs.requeue_lost(db, 15, platform.writer.replica, [])
    batch = await until(client, done, "failed")
    assert batch.errors
    assert batch.errors.data
    assert batch.errors.data[0].code == "server_error"
    query = text("SELECT error->>'code' FROM jobs WHERE id = :id")
    async with asyncio.timeout(10), platform.engine.connect() as db:
        while (await db.execute(query, {"id": job.id})).scalar_one() != "parked":
            await asyncio.sleep(0.05)


async def test_a_batch_outlives_the_token_of_the_login_that_made_it(
    llm_house: House, ann: httpx2.AsyncClient, client: AsyncOpenAI
) -> None:
    id = ann.headers["x-test-user"]
    await llm_house.admin.patch(f"/api/v1/users/{id}", json={"password": "a long password"})
    login = {"username": "ann", "password": "a long password"}
    token = (await ann.post("/api/v1/auth/token", data=login)).json()["access_token"]
    async with sdk(llm_house, token) as logged_in:
        batch = await submit(logged_in, [chat("say x [[fault: slow first=0.5]]")] * 2)
    async with llm_house.platform.engine.begin() as db:
        await db.execute(text("UPDATE credentials SET expires_at = now() WHERE kind = 'access'"))
    done = await until(client, batch, "completed")
    assert done.request_counts
    assert done.request_counts.completed == 2


async def test_a_revoked_key_answers_no_more_of_its_batch(
    llm_house: House, client: AsyncOpenAI, fake: FakeUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_work, "AT_ONCE", 1)
    batch = await submit(client, [chat("say x [[fault: slow first=0.5]]")] * 4)
    await fake.until(lambda: fake.hits >= 1)
    async with llm_house.platform.engine.begin() as db:
        key = "SELECT credential_id FROM batches"
        await db.execute(text(f"UPDATE credentials SET revoked_at = now() WHERE id = ({key})"))
    other = await llm_house.admin.post(f"/api/v1/users/{await _owner(llm_house)}/keys", json={"name": "other"})
    async with sdk(llm_house, other.json()["key"]) as again:
        done = await until(again, batch, "completed")
        refused = await lines(again, done.error_file_id)
    assert {line["response"]["status_code"] for line in refused.values()} == {401}
    assert fake.hits < 4


async def _owner(house: House) -> str:
    async with house.platform.engine.connect() as db:
        return str((await db.execute(text("SELECT user_id FROM batches"))).scalar_one())


async def test_answers_are_written_whatever_their_user_keeps_by_then(
    llm_house: House, client: AsyncOpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = await submit(client, [chat("say x [[fault: slow first=0.5]]")])
    monkeypatch.setattr(files, "UPLOADS_AT_ONCE", 0)
    full = FileLimits(1, 1, 1)
    object.__setattr__(llm_house.platform, "file_limits", full)
    done = await until(client, batch, "completed", "failed")
    assert (await lines(client, done.output_file_id))["request 0"]["response"]["status_code"] == 200
    with pytest.raises(openai.RateLimitError) as refused:
        await client.batches.create(input_file_id=batch.input_file_id, endpoint=CHAT, completion_window="24h")
    assert refused.value.code == "insufficient_quota"


async def test_a_request_that_fails_as_nobody_expected_stops_no_others(
    client: AsyncOpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask = batches_api.ANSWERS[CHAT]

    async def fragile(platform: Any, principal: Any, body: Any, headers: Any) -> Any:
        if body["messages"][0]["content"] == "poison":
            raise RuntimeError("nobody expected this")
        return await ask(platform, principal, body, headers)

    monkeypatch.setitem(batches_api.ANSWERS, CHAT, fragile)  # type: ignore[arg-type]  # a Mapping to the others
    done = await until(client, await submit(client, [chat("poison"), chat("say x")]), "completed")
    assert done.request_counts
    assert (done.request_counts.completed, done.request_counts.failed) == (1, 1)
    failed = (await lines(client, done.error_file_id))["request 0"]["response"]
    assert (failed["status_code"], "expected" in str(failed["body"])) == (500, False)


async def test_a_shard_whose_database_was_away_for_long_is_gone_on_with(
    client: AsyncOpenAI, fake: FakeUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conduct, "PATIENCE_SECONDS", 0)
    keep, failures = rows.answer, iter([True, True, True])

    async def away(*given: Any, **fields: Any) -> None:
        if next(failures, False):
            raise ConnectionError
        await keep(*given, **fields)

    monkeypatch.setattr(rows, "answer", away)
    done = await until(client, await submit(client, [chat(f"say {at}") for at in range(4)]), "completed")
    assert len(await lines(client, done.output_file_id)) == 4
    assert fake.hits == 4


async def test_a_job_that_its_living_worker_lost_sight_of_is_done_all_the_same(
    llm_house: House, ann: httpx2.AsyncClient
) -> None:
    platform, job = llm_house.platform, Job(new_id(), "nothing", UUID(ann.headers["x-test-user"]), new_id())
    replica = platform.writer.replica
    async with platform.engine.begin() as db:
        await jobs.add(db, [job])
        await jobs.take(db, job.id, replica)
        await db.execute(text("UPDATE jobs SET started_at = now() - interval '1 minute'"))
    for held, state in (([job.id], "running"), ([], "queued")):
        async with platform.engine.begin() as db:
            await jobs.requeue_lost(db, 15, replica, held)
            found = await jobs.get(db, job.id)
        assert found
        assert (found.state, found.lost) == (state, 0)


async def test_nothing_is_asked_when_the_time_is_over(
    llm_house: House, client: AsyncOpenAI, fake: FakeUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches, "WINDOW", timedelta(seconds=-1))
    batch = await until(client, await submit(client, [chat("say x")]), "expired")
    assert (batch.expired_at is None, fake.hits) == (False, 0)
    id, shard = UUID(batch.id.removeprefix("batch_")), new_id()
    async with llm_house.platform.engine.begin() as db:
        await rows.add_items(db, id, [Item(1, "late", b"{}")])
        await rows.add_shards(db, id, {shard: 0})
        await db.execute(text("UPDATE batches SET status = 'in_progress', total = 1"))
    await batch_work.answer_shard(batches_api.ask, llm_house.platform, shard)
    late = await until(client, batch, "expired")
    assert {line["error"]["code"] for line in (await lines(client, late.error_file_id)).values()} == {"batch_expired"}


async def test_few_large_requests_are_in_memory_at_once(client: AsyncOpenAI, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_work, "LARGE_BYTES", 1)
    monkeypatch.setattr(batch_work, "LARGE_AT_ONCE", 1)
    monkeypatch.setattr(batch_work, "PART_BYTES", 1)
    done = await until(client, await submit(client, [chat(f"say {at}") for at in range(5)]), "completed")
    assert len(await lines(client, done.output_file_id)) == 5


async def test_a_batch_whose_model_is_away_keeps_no_other_jobs_from_being_done(
    running: Engines, database_url: str, fake: FakeUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_work, "TURN_SECONDS", 0.2)
    monkeypatch.setattr(batch_work, "LOOK_SECONDS", 0.05)
    given: dict[str, Any] = {"redis_url": running.redis_url, "openai_base_url": fake.base_url}
    async with open_house(database_url, jobs=1, **given) as house:
        ann = await house.user("ann")
        async with sdk(house, ann.headers["authorization"].removeprefix("Bearer ")) as client:
            fake.fail("503", times=1000)
            batch = await submit(client, [chat("say x")])
            await fake.until(lambda: fake.hits >= 1)
            accepted = await send(ann, await session(ann), "repeat: done", mode="background")
            async with asyncio.timeout(20):
                while not (await ann.get(f"/api/v1/runs/{accepted.json()['run_id']}")).json()["ended_at"]:
                    await asyncio.sleep(0.05)
            assert (await client.batches.retrieve(batch.id)).status == "in_progress"
            await client.batches.cancel(batch.id)
            await until(client, batch, "cancelled")


async def begun(client: AsyncOpenAI) -> tuple[Batch, UUID]:
    """A batch of which all but one request were answered."""
    slow = chat("say x [[fault: slow first=8]]")
    batch = await submit(client, [*(chat(f"say {at}") for at in range(3)), slow])
    await until_answered(client, batch, 3)
    return batch, UUID(batch.id.removeprefix("batch_"))


async def until_answered(client: AsyncOpenAI, batch: Batch, number: int) -> None:
    async with asyncio.timeout(20):
        while (counts := (await client.batches.retrieve(batch.id)).request_counts) is None or counts.completed < number:
            await asyncio.sleep(0.05)


async def test_a_batch_that_another_worker_has_begun_is_not_ended_by_one_that_was_paused(
    llm_house: House, client: AsyncOpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, paused, goes_on = batch_work._begin, asyncio.Event(), asyncio.Event()

    async def begin(*given: Any) -> None:
        if not paused.is_set():
            paused.set()
            await goes_on.wait()
        await real(*given)

    monkeypatch.setattr(batch_work, "_begin", begin)
    batch = await submit(client, [*(chat(f"say {at}") for at in range(3)), chat("say x [[fault: slow first=3]]")])
    async with asyncio.timeout(20):
        await paused.wait()
    await batch_work.validate(llm_house.platform, UUID(batch.id.removeprefix("batch_")))
    await until_answered(client, batch, 3)
    goes_on.set()
    done = await until(client, batch, "completed", "cancelled")
    assert done.request_counts
    assert (done.status, done.request_counts.completed) == ("completed", 4)
    assert len(await lines(client, done.output_file_id)) == 4


async def test_a_cancelled_batch_keeps_what_it_has_though_its_file_is_read_again(
    llm_house: House, client: AsyncOpenAI
) -> None:
    batch, id = await begun(client)
    await client.batches.cancel(batch.id)
    await batch_work.validate(llm_house.platform, id)  # the job of a worker that died before the job's end
    assert (await client.batches.retrieve(batch.id)).status == "cancelling"
    await until_answered(client, batch, 3)


async def test_a_batch_goes_on_when_the_job_that_has_begun_it_is_given_up(
    llm_house: House, client: AsyncOpenAI
) -> None:
    batch, id = await begun(client)
    await batch_work.KINDS["batch"].give_up(llm_house.platform, id)
    assert (await client.batches.retrieve(batch.id)).status == "in_progress"
    await until_answered(client, batch, 3)
