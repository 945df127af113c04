"""An acknowledged message is answered and kept, whatever happens to the servers, to Redis, or to the one who asked."""

from __future__ import annotations

import asyncio
import random
import signal
import time
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import psutil
import pytest
import pytest_asyncio

from tests.e2e.cluster import Caller, Cluster, Listener, Refused, Server, cluster, slowly, until, words

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="module")]
ENDED_WITHIN = 60.0
"""Seconds in which the run of a server that died must have ended."""
LONG = words(600)
LATER = words(200, "later")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def installation(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Cluster]:
    async with cluster(tmp_path_factory.mktemp("cluster"), 2) as made:
        yield made


@pytest_asyncio.fixture(loop_scope="module")
async def pair(installation: Cluster) -> AsyncIterator[tuple[Cluster, Server, Server]]:
    """The cluster and its two servers, which run, whatever an earlier test has left."""
    await installation.ready()
    yield installation, installation.servers[0], installation.servers[1]


async def answering(caller: Caller, server: Server, session_id: str, content: str = "") -> Listener:
    """A slow answer, once it has begun."""
    return await Listener(caller.stream(server, session_id, content or slowly(LONG, 0.05))).began(50)


async def queued(caller: Caller, server: Server, session_id: str, content: str) -> Listener:
    """A message in a busy session, once it is stored."""
    waiting = Listener(caller.stream(server, session_id, content))
    await until(lambda: waiting.events, 5)
    assert waiting.names == ["run"]
    return waiting


async def run_row(made: Cluster, run_id: str) -> Any:
    (row,) = await made.rows("SELECT * FROM runs WHERE id = $1", run_id)
    return row


async def answers_of(made: Cluster, run_id: str) -> list[str]:
    rows = await made.rows("SELECT content FROM messages WHERE run_id = $1 ORDER BY seq", run_id)
    return [row["content"] for row in rows]


async def check_partial(made: Cluster, lost: Listener, died: float) -> None:
    """The run of a server that died: cut for its reader, kept up to the last second, metered, ended."""
    assert "end" not in lost.names
    assert "error" not in lost.names
    assert isinstance(lost.broken, aiohttp.ClientError)
    row = await run_row(made, lost.run_id)
    assert (row["status"], row["error"] is not None, row["ended_at"] is not None) == ("partial", True, True)
    (kept,) = await answers_of(made, lost.run_id)
    assert LONG.startswith(kept)
    assert len(kept) >= lost.heard_before(died - 1)
    bills = await made.rows("SELECT * FROM ledger WHERE run_id = $1", lost.run_id)
    assert [(bill["estimated"], bill["prompt_tokens"] > 0, bill["completion_tokens"] > 0) for bill in bills] == [
        (True, True, True)
    ]
    assert (row["prompt_tokens"], row["completion_tokens"]) == (
        bills[0]["prompt_tokens"],
        bills[0]["completion_tokens"],
    )


async def check_order(caller: Caller, server: Server, session_id: str) -> list[dict[str, Any]]:
    """A session's messages, which form one chain numbered without a gap."""
    found = await caller.post(server, "/ListMessages", {"session_id": session_id, "limit": 100})
    items: list[dict[str, Any]] = found["items"]
    assert [item["seq"] for item in items] == list(range(1, len(items) + 1))
    assert [item["parent_id"] for item in items] == [None, *(item["id"] for item in items[:-1])]
    return items


async def test_another_server_ends_and_goes_on_with_what_a_killed_one_was_answering(
    pair: tuple[Cluster, Server, Server],
) -> None:
    made, one, two = pair
    caller = await made.user(two, "killed")
    session_id = await caller.session(one, busy="queue")
    lost = await answering(caller, one, session_id)
    waiting = [await queued(caller, server, session_id, f"say next{n}") for n, server in enumerate((two, one))]
    follower = Listener(caller.follow(two, lost.run_id, 7))
    await asyncio.sleep(1.5)
    died = time.monotonic()
    one.kill()
    one.start()
    await lost.done(5)
    assert LONG.startswith(lost.text)
    end = (await follower.done(ENDED_WITHIN)).end
    assert end["status"] == "partial"
    assert end["usage"]["estimated"]
    assert LONG.startswith(LONG[:7] + follower.text)
    await check_partial(made, lost, died)
    again = await Listener(caller.follow(two, lost.run_id, len(lost.text))).done(5)
    assert again.end["content"] == end["content"]
    first = await waiting[0].done(10)
    assert (first.end["status"], first.text) == ("completed", "next0")
    await waiting[1].done(10)
    followed = await Listener(caller.follow(two, waiting[1].run_id)).done(10)
    assert (followed.end["status"], followed.text) == ("completed", "next1")
    items = await check_order(caller, two, session_id)
    assert [item["content"] for item in items[2:]] == ["say next0", "next0", "say next1", "next1"]
    await one.ready()
    assert (await caller.say(one, session_id, "say after"))["content"] == "after"


async def test_a_server_alone_ends_what_it_was_answering_when_it_was_killed(
    pair: tuple[Cluster, Server, Server],
) -> None:
    made, one, two = pair
    two.terminate()
    assert await two.ended_by_itself(20) == 0
    caller = await made.user(one, "alone")
    session_id = await caller.session(one)
    lost = await answering(caller, one, session_id)
    await asyncio.sleep(1.2)
    died = time.monotonic()
    one.kill()
    one.start()
    await lost.done(5)
    await one.ready()
    busy, told = await caller.call(one, "POST", "/SendMessage", {"session_id": session_id, "content": "say too early"})
    assert (busy, told["code"]) == (409, "session_busy")
    ended = await Listener(caller.follow(one, lost.run_id)).done(ENDED_WITHIN - (time.monotonic() - died))
    assert ended.end["status"] == "partial"
    await check_partial(made, lost, died)
    assert (await caller.say(one, session_id, "say after"))["content"] == "after"
    assert len(await check_order(caller, one, session_id)) == 4


async def test_a_paused_server_cannot_overwrite_what_it_has_lost(pair: tuple[Cluster, Server, Server]) -> None:
    made, one, two = pair
    caller = await made.user(two, "paused")
    session_id, other_id = await caller.session(one), await caller.session(two)
    lost = await answering(caller, one, session_id)
    await asyncio.sleep(1)
    stopped = len(lost.text)
    one.signal_workers(signal.SIGSTOP)
    try:
        assert (await caller.say(two, other_id, "say meanwhile"))["content"] == "meanwhile"
        follower = await Listener(caller.follow(two, lost.run_id)).done(ENDED_WITHIN)
        assert follower.end["status"] == "partial"
        assert (await caller.say(two, session_id, "say next"))["content"] == "next"
    finally:
        one.signal_workers(signal.SIGCONT)
    told = (await lost.done(10)).end
    assert (told["status"], told["content"]) == ("partial", follower.end["content"])
    assert len(follower.end["content"]) >= stopped - 100
    assert await answers_of(made, lost.run_id) == [follower.end["content"]]
    await asyncio.sleep(4)  # the one that was paused looks for dead servers too
    row = await run_row(made, lost.run_id)
    assert (row["status"], await answers_of(made, lost.run_id)) == ("partial", [follower.end["content"]])
    assert len(await made.rows("SELECT FROM ledger WHERE run_id = $1", lost.run_id)) == 1
    assert [item["content"] for item in await check_order(caller, one, session_id)][2:] == ["say next", "next"]
    await until_closed(made)


async def test_a_server_paused_while_it_writes_does_not_hold_up_the_others(
    pair: tuple[Cluster, Server, Server],
) -> None:
    made, one, two = pair
    caller = await made.user(one, "writing")
    sessions = [await caller.session(one, "fake_echo_agent") for _ in range(8)]

    async def write(session_id: str) -> None:
        while True:
            await caller.call(one, "POST", "/SendMessage", {"session_id": session_id, "content": "x"})

    writing = [asyncio.create_task(write(id)) for id in sessions]
    try:
        for _ in range(500):
            await asyncio.sleep(random.uniform(0.02, 0.1))
            one.signal_workers(signal.SIGSTOP)
            await asyncio.sleep(0.05)
            if await made.rows(
                "SELECT FROM pg_stat_activity WHERE state = 'idle in transaction' AND query LIKE '%sessions%'"
            ):
                break
            one.signal_workers(signal.SIGCONT)
        began = time.monotonic()
        asked = [caller.call(two, "POST", "/SendMessage", {"session_id": id, "content": "y"}) for id in sessions]
        other_id = await caller.session(two, "fake_echo_agent")
        assert (await caller.say(two, other_id, "meanwhile"))["content"] == "meanwhile"
        assert {status for status, _ in await asyncio.gather(*asked)} <= {200, 409}
        assert time.monotonic() - began < 15
    finally:
        one.signal_workers(signal.SIGCONT)
        for task in writing:
            task.cancel()
        await asyncio.wait(writing)


async def until_closed(made: Cluster) -> None:
    """Wait until the upstream answers nobody."""

    async def closed() -> bool:
        return bool((await made.fake.stats())["open"] == 0)

    await until(closed, 10, "the end of the upstream's connections")


async def test_cancelling_at_another_server_closes_the_upstream_connection_within_two_seconds(
    pair: tuple[Cluster, Server, Server],
) -> None:
    made, one, two = pair
    caller = await made.user(two, "cancels")
    await until_closed(made)
    for path in ("/CancelRun", "/api/v1/runs/{}/cancel"):
        aborted = (await made.fake.stats())["aborted"]
        heard = await answering(caller, one, await caller.session(one))
        began = time.monotonic()
        asked = asyncio.create_task(
            caller.post(two, path.format(heard.run_id), {"run_id": heard.run_id} if "{" not in path else None)
        )
        while (await made.fake.stats())["aborted"] == aborted:
            assert time.monotonic() - began < 2, "the upstream is still answering"
            await asyncio.sleep(0.02)
        run = await asked
        assert (run["status"], run["usage"]["estimated"]) == ("cancelled", True)
        assert run["usage"]["completion"] > 0
        assert (await heard.done(5)).end["status"] == "cancelled"
        (kept,) = await answers_of(made, heard.run_id)
        assert kept == heard.text == heard.end["content"]
        (bill,) = await made.rows("SELECT * FROM ledger WHERE run_id = $1", heard.run_id)
        assert (bill["estimated"], bill["completion_tokens"]) == (True, run["usage"]["completion"])


async def test_a_server_that_is_told_to_end_lets_answers_end_and_tells_those_that_cannot(
    pair: tuple[Cluster, Server, Server],
) -> None:
    made, one, two = pair
    caller = await made.user(one, "ending")
    short_id, long_id = [await caller.session(one, busy="queue") for _ in range(2)]
    short = await answering(caller, one, short_id, slowly(words(80), 0.05))
    long = await answering(caller, one, long_id)
    behind = [await queued(caller, one, id, slowly(LATER, 0.05)) for id in (short_id, long_id)]
    one.terminate()

    async def draining() -> bool:
        return (await caller.call(one, "GET", "/readyz"))[0] == 503

    await until(draining, 2, "that it is not ready any more")
    status, refused = await caller.call(one, "POST", "/SendMessage", {"session_id": short_id, "content": "say no"})
    assert (status, refused["code"]) == (503, "unavailable")
    assert (await short.done(20)).end["status"] == "completed"
    assert short.text == words(80)
    assert await one.ended_by_itself(40) == 0
    await long.done(1)
    assert long.names == ["run", "error", "end"]
    assert long.events[-2].data["code"] == "shutdown"
    assert long.end["status"] == "partial"
    row = await run_row(made, long.run_id)
    assert (row["status"], row["completion_tokens"] > 0, row["estimated"]) == ("partial", True, True)
    assert await answers_of(made, long.run_id) == [long.text]
    assert "ERROR" not in one.output
    for waiting in behind:  # their turn came while the server was ending
        told = (await waiting.done(1)).events[-1]
        assert (waiting.names[0], waiting.broken) == ("run", None)
        if waiting is behind[0] and told.name == "end":
            continue  # the other server was quick
        assert (waiting.names[1:], told.data["code"], told.data["status"]) == (["error"], "shutdown", 503)
        followed = await Listener(caller.follow(two, waiting.run_id)).done(ENDED_WITHIN)
        assert (followed.end["status"], followed.text) == ("completed", LATER)
    for id in (short_id, long_id):
        assert (await check_order(caller, two, id))[-1]["content"] == LATER


async def test_messages_that_wait_keep_their_order_over_two_servers(pair: tuple[Cluster, Server, Server]) -> None:
    made, one, two = pair
    caller = await made.user(one, "queue")
    session_id = await caller.session(one, busy="queue")
    first = await answering(caller, one, session_id, slowly(words(60), 0.05))
    waiting = [await queued(caller, (two, one)[number % 2], session_id, f"say m{number}") for number in range(6)]
    assert (await first.done(20)).end["status"] == "completed"
    for number, listener in enumerate(waiting):
        assert (await listener.done(20)).end["content"] == listener.text == f"m{number}"
    items = await check_order(caller, two, session_id)
    assert [item["content"] for item in items[3::2]] == [f"m{number}" for number in range(6)]


async def test_an_interrupting_message_takes_the_place_of_another_servers_answer(
    pair: tuple[Cluster, Server, Server],
) -> None:
    made, one, two = pair
    caller = await made.user(one, "interrupt")
    session_id = await caller.session(one, busy="interrupt")
    first = await answering(caller, one, session_id)
    began = time.monotonic()
    assert (await caller.say(two, session_id, "say instead"))["content"] == "instead"
    assert time.monotonic() - began < 5
    assert (await first.done(5)).end["status"] == "cancelled"
    items = await check_order(caller, two, session_id)
    assert [item["content"] for item in items[1:]] == [first.text, "say instead", "instead"]


async def test_equal_requests_with_one_key_make_one_run_and_one_upstream_call(
    pair: tuple[Cluster, Server, Server],
) -> None:
    made, one, two = pair
    caller = await made.user(one, "key")
    session_id = await caller.session(one)
    hits = (await made.fake.stats())["hits"]
    content = slowly("thé same", 0.2)
    requests = [caller.say((one, two)[n % 2], session_id, content, idempotency_key="k1") for n in range(10)]
    streams = [Listener(caller.stream((one, two)[n % 2], session_id, content, idempotency_key="k1")) for n in range(10)]
    answers = await asyncio.gather(*requests)
    assert {answer["content"] for answer in answers} == {"thé same"}
    assert len({answer["run_id"] for answer in answers}) == 1
    streams.append(Listener(caller.stream(two, session_id, content, idempotency_key="k1")))
    for stream in streams:
        assert ((await stream.done(10)).text, stream.run_id) == ("thé same", answers[0]["run_id"])
        assert stream.end["message_id"] == answers[0]["message_id"]
    assert (await made.fake.stats())["hits"] == hits + 1
    assert len(await check_order(caller, two, session_id)) == 2
    for server in (one, two):
        with pytest.raises(Refused) as refusal:
            await caller.say(server, session_id, "say other", idempotency_key="k1")
        assert refusal.value.status == 409
    stranger = await made.user(two, "stranger")
    theirs = await stranger.say(two, await stranger.session(two), content, idempotency_key="k1")
    assert theirs["run_id"] != answers[0]["run_id"]


async def test_one_key_in_two_sessions_at_once_is_one_run_and_a_conflict(pair: tuple[Cluster, Server, Server]) -> None:
    made, one, two = pair
    caller = await made.user(one, "key in two")
    sessions = [await caller.session(one, "fake_echo_agent") for _ in range(2)]
    for number in range(30):
        both = [
            caller.call(server, "POST", "/SendMessage", {"session_id": id, "content": "x"}, idempotency_key=f"{number}")
            for server, id in zip((one, two), sessions, strict=True)
        ]
        assert sorted(status for status, _ in await asyncio.gather(*both)) == [200, 409], number


async def test_after_a_failure_the_same_key_makes_a_sibling_answer(pair: tuple[Cluster, Server, Server]) -> None:
    made, one, two = pair
    caller = await made.user(one, "again")
    session_id = await caller.session(one)
    await made.fake.fail("400")
    with pytest.raises(Refused) as refusal:
        await caller.say(one, session_id, "say it", idempotency_key="k")
    assert refusal.value.status == 502
    retries = [caller.say((one, two)[n % 2], session_id, "say it", idempotency_key="k") for n in range(6)]
    answers = await asyncio.gather(*retries)
    assert len({answer["run_id"] for answer in answers}) == 1
    assert answers[0]["content"] == "it"
    items = await check_order(caller, two, session_id)
    assert [item["content"] for item in items] == ["say it", "it"]
    runs = await caller.get(two, f"/api/v1/sessions/{session_id}/runs")
    assert [run["status"] for run in runs["data"]] == ["failed", "completed"]


async def test_two_workers_of_one_server_behave_as_one(pair: tuple[Cluster, Server, Server]) -> None:
    made, *_ = pair
    server = made.add("workers", WORKERS="2")
    try:
        server.start()
        await server.ready()
        caller = await made.user(server, "workers")
        heard = await answering(caller, server, await caller.session(server))
        followers: list[Listener] = []
        while len(serving(server)) < 2:  # until each of the workers has a reader
            assert len(followers) < 60, "one worker takes all connections"
            followers.append(await Listener(caller.follow(server, heard.run_id, 10)).began())
        run = await caller.post(server, "/CancelRun", {"run_id": heard.run_id})
        assert run["status"] == "cancelled"
        assert (await heard.done(5)).end["status"] == "cancelled"
        for follower in followers:
            assert (await follower.done(5)).text == heard.text[10:]
        killed = await answering(caller, server, await caller.session(server))
        for worker in conducting(server, made.fake.base_url):
            worker.kill()
        await killed.done(5)
        assert "end" not in killed.names
        ended = await Listener(caller.follow(server, killed.run_id)).done(ENDED_WITHIN)
        assert ended.end["status"] == "partial"
        server.terminate()
        assert await server.ended_by_itself(20) == 0
    finally:
        server.stop()
        made.servers.remove(server)


def serving(server: Server) -> list[int]:
    """The workers that have a client."""
    port = int(server.url.rpartition(":")[2])
    return [worker.pid for worker in server.workers() if any(local == port for local, _ in ports(worker))]


def conducting(server: Server, upstream: str) -> list[psutil.Process]:
    """The workers that talk to the upstream."""
    port = int(upstream.removesuffix("/v1").rpartition(":")[2])
    return [worker for worker in server.workers() if any(remote == port for _, remote in ports(worker))]


def ports(worker: psutil.Process) -> list[tuple[int, int]]:
    """The local and the remote port of each of a process's open connections."""
    return [
        (found.laddr.port, found.raddr.port)
        for found in worker.net_connections("tcp")
        if found.status == psutil.CONN_ESTABLISHED
    ]


async def test_an_answer_is_whole_when_redis_dies_and_can_be_resumed_when_it_is_back(
    pair: tuple[Cluster, Server, Server],
) -> None:
    made, one, two = pair
    caller = await made.user(one, "redis")
    text = words(240)
    heard = await answering(caller, one, await caller.session(one), slowly(text, 0.05))
    follower = await Listener(caller.follow(two, heard.run_id)).began(20)
    made.kill_valkey()
    before = len(heard.text)
    await heard.began(before + 100)
    begun = caller.say(two, await caller.session(two), "say without it")
    assert (await begun)["content"] == "without it"
    made.valkey.start()
    late = await Listener(caller.follow(two, heard.run_id, 5)).began(len(heard.text) + 20)
    assert "end" not in heard.names, "it was to be resumed while it runs"
    for listener in (heard, follower, late):
        assert (await listener.done(30)).end["status"] == "completed"
    assert (heard.text, follower.text, late.text) == (text, text, text[5:])
