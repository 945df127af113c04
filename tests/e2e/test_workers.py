"""Background runs outlive their workers: none is lost, none is stored twice, and one that kills its workers is stopped."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from tests.e2e.cluster import Caller, Cluster, Listener, Server, cluster, slowly, until, words

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="module")]
LOST_WITHIN = 40.0
"""Seconds after which a job of a worker that died is with another."""
TEXT = words(80)
DEADLY_AGENT = '''
"""Kills the process that runs it."""
import os
import signal
from app.agent import Chattable, Message

class Deadly(Chattable):
    id = "deadly_agent"

    def chat(self, message: Message) -> str:
        os.kill(os.getpid(), signal.SIGKILL)
        return "never"
'''
CAREFUL_AGENT = '''
"""Does one thing after the other."""
from app.agent import Chattable, Message, Reply

class Careful(Chattable):
    id = "careful_agent"

    async def chat(self, message: Message) -> Reply:
        first = await self.llm.ainvoke("say the first call")
        return await self.llm.acall(f"{message.content} after {first}")
'''


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def installation(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Cluster]:
    """One server that does no jobs."""
    folder = tmp_path_factory.mktemp("workers")
    async with cluster(folder, 1, JOBS="0") as made:
        (folder / "agents/deadly_agent.py").write_text(DEADLY_AGENT)
        (folder / "agents/careful_agent.py").write_text(CAREFUL_AGENT)
        yield made


@pytest_asyncio.fixture(loop_scope="module")
async def made(installation: Cluster) -> AsyncIterator[tuple[Cluster, Server]]:
    """The cluster without workers, which each test starts for itself."""
    yield installation, installation.servers[0]
    for worker in installation.workers:
        worker.kill()


async def accepted(caller: Caller, server: Server, session_id: str, content: str) -> str:
    """A background message's run."""
    body = {"session_id": session_id, "content": content, "mode": "background"}
    status, run = await caller.call(server, "POST", "/SendMessage", body)
    assert (status, run["status"]) == (202, "queued")
    return str(run["run_id"])


async def ended(caller: Caller, server: Server, run_id: str, seconds: float = LOST_WITHIN) -> Any:
    found: dict[str, Any] = {}

    async def is_final() -> bool:
        found.update(await caller.get(server, f"/api/v1/runs/{run_id}"))
        return found["ended_at"] is not None

    await until(is_final, seconds, f"the end of run {run_id}")
    return found


async def job_of(made: Cluster, run_id: str) -> Any:
    (row,) = await made.rows("SELECT state, attempt, lost, error FROM jobs WHERE subject_id = $1", run_id)
    return row


async def said(caller: Caller, server: Server, session_id: str) -> list[str]:
    found = await caller.post(server, "/ListMessages", {"session_id": session_id, "limit": 100})
    assert [item["seq"] for item in found["items"]] == list(range(1, len(found["items"]) + 1))
    return [item["content"] for item in found["items"]]


async def heard(caller: Caller, server: Server, run_id: str) -> Listener:
    """Who follows a run, once it speaks."""
    return await Listener(caller.follow(server, run_id)).began(20)


async def test_two_workers_share_jobs_and_do_none_twice(made: tuple[Cluster, Server]) -> None:
    it, server = made
    caller = await it.user(server, "sharing")
    sessions = [await caller.session(server) for _ in range(20)]
    before = (await it.fake.stats())["hits"]
    runs = [await accepted(caller, server, id, slowly(f"answer {n}", 0.5)) for n, id in enumerate(sessions)]
    assert {(await job_of(it, run))["state"] for run in runs} == {"queued"}
    await asyncio.gather(it.worker(3), it.worker(3))
    for number, (id, run) in enumerate(zip(sessions, runs, strict=True)):
        assert (await ended(caller, server, run))["status"] == "completed"
        assert (await said(caller, server, id))[1:] == [f"answer {number}"]
    assert (await it.fake.stats())["hits"] - before == 20
    shares = await it.rows("SELECT count(*) AS share FROM jobs GROUP BY replica")
    assert len(shares) == 2
    assert min(row["share"] for row in shares) >= 5


async def test_a_run_whose_worker_is_killed_is_done_by_another(made: tuple[Cluster, Server]) -> None:
    it, server = made
    caller = await it.user(server, "killed")
    id = await caller.session(server, busy="queue")
    one = await it.worker()
    run = await accepted(caller, server, id, slowly(TEXT, 0.05))
    later = await accepted(caller, server, id, "say later")
    follower = await heard(caller, server, run)
    one.kill()
    await it.worker()
    assert (await ended(caller, server, run))["status"] == "completed"
    end = (await follower.done(20)).end
    assert (end["status"], end["content"]) == ("completed", TEXT)
    assert (await ended(caller, server, later))["status"] == "completed"
    contents = await said(caller, server, id)
    assert (len(contents), contents[1:]) == (4, [TEXT, "say later", "later"])
    job = await job_of(it, run)
    assert (job["state"], job["attempt"], job["lost"]) == ("completed", 2, 1)
    bills = await it.rows("SELECT estimated, completion_tokens FROM ledger WHERE run_id = $1 ORDER BY seq", run)
    assert [bill["estimated"] for bill in bills] == [True, False], "what the first worker spent is charged too"
    (row,) = await it.rows("SELECT completion_tokens, pending FROM runs WHERE id = $1", run)
    assert row["completion_tokens"] == sum(bill["completion_tokens"] for bill in bills)
    assert row["pending"] is None


async def test_what_a_killed_worker_had_stored_is_not_done_again(made: tuple[Cluster, Server]) -> None:
    it, server = made
    caller = await it.user(server, "careful")
    id = await caller.session(server, "careful_agent")
    before = (await it.fake.stats())["hits"]
    one = await it.worker()
    run = await accepted(caller, server, id, slowly(TEXT, 0.1))

    async def is_stored() -> bool:
        return bool(await it.rows("SELECT FROM steps WHERE run_id = $1 AND kind = 'llm'", run))

    await until(is_stored, 20, "the first call is stored")
    await heard(caller, server, run)
    one.kill()
    await it.worker()
    assert (await ended(caller, server, run))["status"] == "completed"
    assert (await it.fake.stats())["hits"] - before == 3, "the first call once, the second once a worker"
    bills = await it.rows("SELECT seq, estimated FROM ledger WHERE run_id = $1 ORDER BY seq", run)
    assert [bill["estimated"] for bill in bills] == [False, True, False]


async def test_a_run_that_kills_three_workers_is_parked(made: tuple[Cluster, Server]) -> None:
    it, server = made
    caller = await it.user(server, "deadly")
    listed = await caller.post(server, "/ListAgents", {})
    assert "deadly_agent" in {agent["id"] for agent in listed["items"]}
    id = await caller.session(server, "deadly_agent")
    run = await accepted(caller, server, id, "go")
    for _ in range(3):
        worker = await it.worker()
        assert await worker.ended() == -signal.SIGKILL
    await it.worker()
    parked = await ended(caller, server, run)
    assert (parked["status"], parked["error"]["code"]) == ("failed", "parked")
    job = await job_of(it, run)
    assert (job["state"], job["attempt"], job["lost"]) == ("failed", 3, 3)
    assert await said(caller, server, id) == ["go"]
    other = await caller.session(server)
    fine = await accepted(caller, server, other, "say fine")
    assert (await ended(caller, server, fine))["status"] == "completed"


async def test_a_worker_that_is_told_to_end_hands_back_what_it_does(made: tuple[Cluster, Server]) -> None:
    it, server = made
    caller = await it.user(server, "drained")
    id, other = await caller.session(server), await caller.session(server)
    one = await it.worker()
    short = await accepted(caller, server, id, slowly("this is done in time", 0.5))
    long = await accepted(caller, server, other, slowly(words(400), 0.05))
    await heard(caller, server, long)
    one.popen.send_signal(signal.SIGTERM)
    two = await it.worker()
    assert await one.ended() == 0
    assert (await ended(caller, server, short))["status"] == "completed"
    assert (await ended(caller, server, long))["status"] == "completed"
    jobs = [await job_of(it, run) for run in (short, long)]
    assert [(job["attempt"], job["lost"]) for job in jobs] == [(1, 0), (2, 0)]
    assert (await said(caller, server, other))[1:] == [words(400)]
    two.popen.send_signal(signal.SIGTERM)
    assert await two.ended() == 0


async def test_a_bench_outlives_any_number_of_servers_and_workers_that_are_told_to_end(
    made: tuple[Cluster, Server],
) -> None:
    pytest.importorskip("duckdb")
    it, server = made
    caller = await it.user(server, "benched")
    suite = {"name": "slow", "cache": "off", "agents": [{"id": "model"}], "scorers": [{"kind": "exact"}]}
    said = [("this is done in time", 0.5), (words(300), 0.2)]
    rows = [{"input": slowly(text, delay), "expected": text} for text, delay in said]
    id = (await caller.post(server, "/api/v1/benches", suite | {"dataset": {"rows": rows}}))["id"]
    jobs = "SELECT state, lost FROM jobs WHERE subject_id = $1 AND kind = 'bench' AND state <> 'completed'"
    asked = 0

    async def is_asked() -> bool:
        return bool((await it.fake.stats())["hits"] > asked)

    async def hands_back() -> None:
        assert {tuple(row) for row in await it.rows(jobs, id)} == {("queued", 0)}

    asked = (await it.fake.stats())["hits"]
    other = it.add("other", JOBS="4")
    other.start()
    await other.ready()
    await until(is_asked, 20, "items are asked")
    other.terminate()
    assert await other.ended_by_itself(30) == 0
    await hands_back()
    for _ in range(2):
        asked = (await it.fake.stats())["hits"]
        worker = await it.worker()
        await until(is_asked, 20, "the item that was not done in time is asked again")
        for _ in range(2):  # the second one says not to wait
            worker.popen.send_signal(signal.SIGTERM)
            await asyncio.sleep(0.2)
        assert await worker.ended(30) == 0
        await hands_back()
    (stored,) = await it.rows("SELECT row, score FROM bench_results WHERE bench_id = $1", id)
    assert tuple(stored) == (0, 1.0)
    assert (await caller.get(server, f"/api/v1/benches/{id}"))["status"] == "running"
    assert (await caller.post(server, f"/api/v1/benches/{id}/cancel", {}))["status"] == "cancelled"


async def test_a_paused_worker_cannot_overwrite_what_it_has_lost(made: tuple[Cluster, Server]) -> None:
    it, server = made
    caller = await it.user(server, "paused")
    id = await caller.session(server)
    one = await it.worker()
    run = await accepted(caller, server, id, slowly(TEXT, 0.1))
    await heard(caller, server, run)
    one.popen.send_signal(signal.SIGSTOP)
    await it.worker()
    try:
        assert (await ended(caller, server, run))["status"] == "completed"
    finally:
        one.popen.send_signal(signal.SIGCONT)
    await asyncio.sleep(10)  # what it was paused in has ended by now
    assert (await said(caller, server, id))[1:] == [TEXT]
    job = await job_of(it, run)
    assert (job["state"], job["attempt"], job["lost"]) == ("completed", 2, 1)
    (row,) = await it.rows("SELECT status FROM runs WHERE id = $1", run)
    assert row["status"] == "completed"
    again = await accepted(caller, server, id, "say again")
    assert (await ended(caller, server, again))["status"] == "completed"
    assert one.popen.poll() is None


async def test_workers_survive_the_end_of_the_database(made: tuple[Cluster, Server]) -> None:
    it, server = made
    caller = await it.user(server, "crashed")
    id, other = await caller.session(server), await caller.session(server)
    await it.worker()
    run = await accepted(caller, server, id, slowly(TEXT, 0.05))
    await heard(caller, server, run)
    it.crash_postgres()
    await asyncio.sleep(2)
    it.postgres.start()
    assert (await ended(caller, server, run, 60))["status"] == "completed"
    assert (await said(caller, server, id))[1:] == [TEXT]
    after = await accepted(caller, server, other, "say after")
    assert (await ended(caller, server, after))["status"] == "completed"
    job = await job_of(it, run)
    assert (job["state"], job["attempt"], job["lost"]) == ("completed", 1, 0)
