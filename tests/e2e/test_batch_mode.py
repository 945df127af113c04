"""Background runs in mode batch: hundreds wait in one batch, their worker is killed, and no line is sent twice."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
import pytest_asyncio

from tests.e2e.cluster import Caller, Cluster, Server, cluster, until

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="module")]
RUNS = 30
CHAT = "/v1/chat/completions"
TWICE_AGENT = '''
"""Asks twice, one after the other, and two questions side by side that are the same."""
import asyncio
from app.agent import Chattable, Message

class Twice(Chattable):
    id = "twice_agent"

    async def chat(self, message: Message) -> str:
        first = await self.llm.ainvoke(f"say {message.content}")
        same = await asyncio.gather(*(self.llm.ainvoke(f"say after {first}") for _ in range(2)))
        return " ".join(same)
'''


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def made(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[tuple[Cluster, Server]]:
    """One server that does no jobs, and a model whose server has batches."""
    folder = tmp_path_factory.mktemp("batches")
    async with cluster(folder, 1, JOBS="0") as it:
        (folder / "agents/twice_agent.py").write_text(TWICE_AGENT)
        endpoint = f'{{ base_url = "{it.fake.base_url}", model = "fake", batch = true }}'
        price = "price = { prompt = 1000, completion = 1000, batch = 0.5 }"
        (folder / "models.toml").write_text(f"[models.default]\nendpoints = [{endpoint}]\n{price}\n")
        (folder / "data").symlink_to(folder / "server0")  # workers read the files of the server
        server = it.servers[0]

        async def is_loaded() -> bool:
            listed = await it.admin.post(server, "/ListAgents", {})
            return "twice_agent" in {agent["id"] for agent in listed["items"]}

        await until(is_loaded, 20, "the agent is loaded")
        yield it, server


async def accepted(caller: Caller, server: Server, content: str) -> str:
    """The run of a message to a session in mode batch."""
    session = await caller.session(server, "twice_agent", mode="batch")
    status, run = await caller.call(server, "POST", "/SendMessage", {"session_id": session, "content": content})
    assert (status, run["status"]) == (202, "queued")
    return str(run["run_id"])


async def lines_of(it: Cluster) -> list[str]:
    return [line["messages"][-1]["content"] for line in (await it.fake.stats())["lines"]]


async def let(it: Cluster, **batches: Any) -> None:
    """Let batches that come now go otherwise; see `tests/fakes/batches.py`."""
    async with it.http.post(it.fake.base_url.removesuffix("/v1") + "/_batches", json=batches) as answer:
        assert answer.status == 200


async def ended(caller: Caller, server: Server, runs: list[str]) -> list[Any]:
    async def are_final() -> bool:
        found[:] = await asyncio.gather(*(caller.get(server, f"/api/v1/runs/{run}") for run in runs))
        return all(run["ended_at"] for run in found)

    found: list[Any] = []
    await until(are_final, 120, "the end of all runs")
    return found


async def test_a_killed_workers_batch_is_waited_for_by_another_and_no_line_is_sent_twice(
    made: tuple[Cluster, Server],
) -> None:
    it, server = made
    caller = await it.user(server, "batched")
    await let(it, seconds=12)
    one = await it.worker(3)
    runs = [await accepted(caller, server, f"question {n}") for n in range(RUNS)]

    async def are_sent() -> bool:
        found = await it.rows(
            "SELECT count(*) AS sent FROM llm_batch_calls c JOIN llm_batches b ON b.id = c.batch_id WHERE provider_id <> ''"
        )
        return bool(found[0]["sent"] == RUNS)

    await until(are_sent, 60, "all first calls are in batches, though the worker does three jobs at once")
    assert len((await it.fake.stats())["batches"]) <= 3
    one.kill()
    await let(it, seconds=0.5)
    await it.worker(3)
    found = await ended(caller, server, runs)
    assert {run["status"] for run in found} == {"completed"}
    asked = await lines_of(it)
    assert sorted(asked) == sorted(
        [f"say question {n}" for n in range(RUNS)] + [f"say after question {n}" for n in range(RUNS)] * 2
    )
    assert (await it.fake.stats())["hits"] == 0
    (row,) = await it.rows(
        "SELECT sum(cost) AS cost, bool_or(estimated) AS estimated, sum(prompt_tokens + completion_tokens) AS tokens FROM ledger"
    )
    assert (row["cost"] * 2000, row["estimated"]) == (row["tokens"], False), (
        "each line is paid for once, at half the price"
    )
    await until(lambda: _is_empty(it), 60, "nothing is left of the calls")


async def _is_empty(it: Cluster) -> bool:
    return not await it.rows("SELECT FROM llm_batch_calls") and not await it.rows("SELECT FROM llm_batches")


async def test_a_worker_that_ends_in_order_leaves_its_batch_to_the_next(made: tuple[Cluster, Server]) -> None:
    it, server = made
    caller = await it.user(server, "drained")
    before = len(await lines_of(it))
    await let(it, seconds=12)
    runs = [await accepted(caller, server, f"other {n}") for n in range(5)]

    async def are_sent() -> bool:
        return len(await lines_of(it)) == before + 5

    await until(are_sent, 60, "the first calls are in a batch")
    (worker,) = [worker for worker in it.workers if worker.popen.poll() is None]
    worker.popen.terminate()
    assert await worker.ended() == 0
    await let(it, seconds=0.5)
    await it.worker(3)
    assert {run["status"] for run in await ended(caller, server, runs)} == {"completed"}
    assert len(await lines_of(it)) == before + 15
    jobs = await it.rows("SELECT attempt, lost FROM jobs WHERE subject_id = ANY($1::uuid[])", runs)
    assert {(job["attempt"], job["lost"]) for job in jobs} == {(2, 0)}


async def test_our_own_batch_whose_worker_is_killed_sends_no_line_twice(made: tuple[Cluster, Server]) -> None:
    it, server = made
    caller = await it.user(server, "ordering")
    before = await it.fake.stats()
    await let(it, seconds=12)
    lines = [
        {
            "custom_id": str(n),
            "method": "POST",
            "url": CHAT,
            "body": {"model": "default", "messages": [{"role": "user", "content": f"say line {n}"}]},
        }
        for n in range(10)
    ]
    form = aiohttp.FormData({"purpose": "batch"})
    form.add_field("file", "\n".join(map(json.dumps, lines)), filename="in.jsonl")
    headers = {"authorization": f"Bearer {caller.key}"}
    async with it.http.post(f"{server.url}/v1/files", data=form, headers=headers) as answer:
        file = await answer.json()
    wanted = {"input_file_id": file["id"], "endpoint": CHAT, "completion_window": "24h"}
    batch = await caller.post(server, "/v1/batches", wanted)

    async def are_sent() -> bool:
        return len(await lines_of(it)) == len(before["lines"]) + 10

    if all(worker.popen.poll() is not None for worker in it.workers):
        await it.worker(3)
    await until(are_sent, 60, "the lines are in a batch")
    for worker in it.workers:
        worker.kill()
    await let(it, seconds=0.5)
    await it.worker(3)

    async def is_over() -> bool:
        batch.update(await caller.get(server, f"/v1/batches/{batch['id']}"))
        return batch["status"] == "completed"

    await until(is_over, 120, "the end of the batch")
    assert (batch["request_counts"]["completed"], len(await lines_of(it))) == (10, len(before["lines"]) + 10)
    assert (await it.fake.stats())["hits"] == before["hits"]


async def test_people_are_answered_at_once_while_batches_wait(made: tuple[Cluster, Server]) -> None:
    it, server = made
    caller = await it.user(server, "hurried")
    await let(it, fault="never")
    waiting = [await accepted(caller, server, f"patient {n}") for n in range(20)]
    answer = await caller.say(server, await caller.session(server), "say at once")
    assert answer["content"] == "at once"
    states = await asyncio.gather(*(caller.get(server, f"/api/v1/runs/{run}") for run in waiting))
    assert all(run["ended_at"] is None for run in states)
    for run in waiting:
        await caller.post(server, "/CancelRun", {"run_id": run})
    assert {run["status"] for run in await ended(caller, server, waiting)} == {"cancelled"}
