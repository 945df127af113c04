"""An agent's faults are its own, and the engines may come and go."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace

import httpx2
import pytest

from app.main import create_app
from app.servers.postgres import Postgres
from app.settings import Settings
from app.store import runs
from app.store.migrations import upgrade
from app.usecases import accounts, replicas
from app.usecases.platform import Platform
from tests.fakes.upstream import FakeUpstream
from tests.house import ADMIN_KEY, AGENTS, House, events, open_house, send, session

FAULTY = """
import asyncio, sys, time
from app.agent import Chattable


class Raises(Chattable):
    id = "raises"

    async def chat(self, message):
        raise ValueError("secret detail in /etc/passwd")


class Nothing(Chattable):
    id = "nothing"

    async def chat(self, message):
        return None


class Sleeps(Chattable):
    id = "sleeps"

    async def chat(self, message):
        time.sleep(30)
        return "slept"


class Spins(Chattable):
    id = "spins"

    async def chat(self, message):
        while True:
            pass


class Exits(Chattable):
    id = "exits"

    async def chat(self, message):
        sys.exit(1)


class ExitsInThread(Chattable):
    id = "exits_in_thread"

    def chat(self, message):
        sys.exit(1)


class NeverEnds(Chattable):
    id = "never_ends"

    async def chat(self, message):
        await asyncio.sleep(3600)


class Clings(Chattable):
    id = "clings"

    async def chat(self, message):
        while True:
            try:
                await asyncio.sleep(3600)
            except asyncio.CancelledError:
                pass


class HalfWay(Chattable):
    id = "half_way"

    async def chat(self, message):
        await self.stream.send("text", "one ")
        raise RuntimeError


class Floods(Chattable):
    id = "floods"

    async def chat(self, message):
        for _ in range(10_000):
            await self.stream.send("text", "x" * 10_000)


class Threaded(Chattable):
    id = "threaded"

    def chat(self, message):
        time.sleep(0.5)
        return "threaded"
"""


@pytest.fixture
async def faulty(database_url: str, tmp_path: Path) -> AsyncIterator[House]:
    for file in ("fake_echo_agent.py", "scripted_agent.py"):
        (tmp_path / file).write_text((AGENTS / file).read_text())
    (tmp_path / "faulty.py").write_text(FAULTY)
    async with open_house(database_url, agents_dir=tmp_path, run_timeout=3) as opened:
        yield opened


@pytest.mark.parametrize(
    ("agent", "status", "code"),
    [
        ("raises", 502, "agent_failed"),
        ("nothing", 502, "agent_failed"),
        ("sleeps", 502, "agent_failed"),
        ("spins", 502, "agent_failed"),
        ("exits", 502, "agent_failed"),
        ("exits_in_thread", 502, "agent_failed"),
        ("never_ends", 504, "agent_timeout"),
        ("clings", 504, "agent_timeout"),
    ],
)
async def test_a_faulty_agent_fails_alone_and_in_time(faulty: House, agent: str, status: int, code: str) -> None:
    id, other = await session(faulty.admin, agent), await session(faulty.admin)
    stalls: list[float] = [0.0]
    bad = asyncio.ensure_future(send(faulty.admin, id, "go"))
    while not bad.done():
        began = time.monotonic()
        assert (await send(faulty.admin, other, "repeat: still here")).json()["content"] == "still here"
        stalls.append(time.monotonic() - began)
        await asyncio.sleep(0.05)
    answer = await bad
    assert (answer.status_code, answer.json()["code"]) == (status, code), answer.text
    assert "passwd" not in answer.text
    assert max(stalls) < 10  # the watchdog lets go after one second; the rest is a loaded machine
    run = (await faulty.admin.get(f"/api/v1/runs/{answer.json()['run_id']}")).json()
    assert (run["status"], run["error"]["code"]) == ("failed", code)
    assert (await send(faulty.admin, id, "go")).json()["code"] == code


async def test_a_failed_stream_ends_with_an_error_and_keeps_what_was_seen(faulty: House) -> None:
    id = await session(faulty.admin, "half_way")
    found = await events(faulty.admin, "/SendMessage", {"session_id": id, "content": "go", "stream": True})
    assert [name for name, _, _ in found] == ["run", "chunk", "error", "end"]
    assert found[2][2]["code"] == "agent_failed"
    assert found[3][2]["status"] == "failed"
    listed = (await faulty.admin.post("/ListMessages", json={"session_id": id})).json()["items"]
    assert listed[1]["content"] == "one "
    assert listed[1]["additional_kwargs"]["status"] == "failed"


async def test_an_answer_without_end_is_cut_at_the_cap(faulty: House) -> None:
    id = await session(faulty.admin, "floods")
    answer = (await send(faulty.admin, id, "go")).json()
    assert 7_900_000 < len(answer["content"]) < 8_000_000
    assert answer["additional_kwargs"]["status"] == "partial"


async def test_sync_agents_answer_side_by_side(faulty: House) -> None:
    ids = [await session(faulty.admin, "threaded") for _ in range(4)]
    answers = await asyncio.gather(*(send(faulty.admin, id, "go") for id in ids))
    assert [answer.json()["content"] for answer in answers] == ["threaded"] * 4


async def test_an_edit_is_live_and_a_broken_one_keeps_the_last_good_version(faulty: House, tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    code = (
        "from app.agent import Chattable\nclass Mine(Chattable):\n    id='mine'\n    def chat(self, m): return {!r}\n"
    )

    async def until(text: str) -> None:
        async with asyncio.timeout(10):
            while text not in (await faulty.admin.post("/ListAgents")).text:
                await asyncio.sleep(0.05)

    file.write_text(code.format("first"))
    await until('"mine"')
    id = await session(faulty.admin, "mine")
    assert (await send(faulty.admin, id, "x")).json()["content"] == "first"
    file.write_text("this is no python\n")
    await until("syntax error")
    assert (await send(faulty.admin, id, "x")).json()["content"] == "first"
    file.write_text(code.format("second"))
    async with asyncio.timeout(10):
        while (await send(faulty.admin, id, "x")).json()["content"] != "second":
            await asyncio.sleep(0.05)
    file.unlink()
    async with asyncio.timeout(10):
        while '"mine"' in (await faulty.admin.post("/ListAgents")).text:
            await asyncio.sleep(0.05)
    gone = await send(faulty.admin, id, "x", stream=True)
    assert (gone.status_code, gone.json()["param"]) == (404, "agent.id")


@pytest.mark.parametrize(
    ("fault", "status", "code", "hits"),
    [
        ("401", 503, "upstream_auth", 1),
        ("404", 503, "upstream_unknown", 1),
        ("429 code=insufficient_quota", 503, "upstream_unpaid", 1),
        ("429 retry-after=60", 503, "llm_unavailable", 1),
        ("500", 502, "llm_error", 3),
        ("503", 503, "llm_unavailable", 3),
        ("400", 502, "llm_rejected", 1),
        ("html", 502, "llm_error", 3),
        ("garbage after=0", 502, "llm_error", 3),
    ],
)
async def test_upstream_faults_are_clear_errors(
    llm_house: House, fake: FakeUpstream, fault: str, status: int, code: str, hits: int
) -> None:
    id = await session(llm_house.admin, "simple_openai_agent")
    fake.fail(fault, times=hits)
    answer = await send(llm_house.admin, id, "hello")
    assert (answer.status_code, answer.json()["code"]) == (status, code), answer.text
    assert "canary" not in answer.text
    assert fake.hits == hits


async def test_a_cut_answer_is_partial_and_the_next_one_whole(llm_house: House, fake: FakeUpstream) -> None:
    id = await session(llm_house.admin, "simple_openai_agent")
    fake.fail("cut after=2")
    cut = (await send(llm_house.admin, id, "say one two three four")).json()
    assert (cut["content"], cut["additional_kwargs"]["status"]) == ("one two ", "partial")
    assert cut["usage"]["estimated"] is True
    assert (await send(llm_house.admin, id, "say fine")).json()["content"] == "fine"


async def test_without_an_upstream_the_error_names_the_setting(house: House) -> None:
    id = await session(house.admin, "simple_openai_agent")
    answer = await send(house.admin, id, "hello")
    assert answer.status_code == 503
    assert "OPENAI_API_KEY" in answer.json()["detail"]
    assert "OPENAI_BASE_URL" in answer.json()["detail"]


async def test_after_a_restart_of_postgresql_the_next_request_succeeds(tmp_path: Path) -> None:
    postgres = Postgres(tmp_path / "data dir", fast=True)
    await asyncio.to_thread(postgres.start)
    try:
        await asyncio.to_thread(upgrade, postgres.url)
        async with open_house(postgres.url) as house:
            ids = [await session(house.admin) for _ in range(6)]
            held = asyncio.ensure_future(send(house.admin, ids.pop(), "sleep: 2"))
            await house.until_live()
            load = [asyncio.ensure_future(send(house.admin, id, "repeat: x")) for id in ids]
            await asyncio.to_thread(postgres.stop)
            during = await house.admin.get("/api/v1/sessions")
            assert (during.status_code, during.json()["code"]) == (503, "unavailable")
            assert (await house.admin.get("/readyz")).status_code == 503
            await asyncio.to_thread(postgres.start)
            assert (await house.admin.get("/readyz")).status_code == 200
            after = await send(house.admin, await session(house.admin), "repeat: back")
            assert after.json()["content"] == "back"
            assert {answer.status_code for answer in await asyncio.gather(*load)} <= {200, 503}
            assert (await held).json().get("content") == "asleep and awake", (await held).text
    finally:
        await asyncio.to_thread(postgres.stop)


async def test_an_outage_of_the_database_is_one_sentence_in_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(replicas, "REAP_SECONDS", 0.1)
    monkeypatch.setattr(replicas, "BEAT_SECONDS", 0.1)
    postgres = Postgres(tmp_path, fast=True)
    await asyncio.to_thread(postgres.start)
    try:
        await asyncio.to_thread(upgrade, postgres.url)
        async with open_house(postgres.url) as house:
            for _ in range(2):
                await asyncio.sleep(0.5)
                await asyncio.to_thread(postgres.stop)
                assert (await house.admin.get("/readyz")).status_code == 503
                await asyncio.sleep(1.5)
                await asyncio.to_thread(postgres.start)
                async with asyncio.timeout(20):
                    while (await house.admin.get("/readyz")).status_code != 200:
                        await asyncio.sleep(0.05)
            await asyncio.sleep(0.5)
    finally:
        await asyncio.to_thread(postgres.stop)
    told = [record for record in caplog.records if record.name.startswith("app.")]
    assert [(record.levelname, record.name) for record in told] == [("WARNING", "app.usecases.replicas")] * 2


async def test_a_server_that_starts_without_its_database_serves_when_it_comes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    postgres = Postgres(tmp_path, fast=True)
    await asyncio.to_thread(postgres.start)
    try:
        await asyncio.to_thread(upgrade, postgres.url)
        app = create_app(Settings(_env_file=None, database_url=postgres.url, agents_dir=AGENTS))
        await asyncio.to_thread(postgres.stop)
        async with app.router.lifespan_context(app):
            platform: Platform = app.state.platform
            transport = httpx2.ASGITransport(app=app)
            async with httpx2.AsyncClient(transport=transport, base_url="http://test") as client:
                assert (await client.get("/readyz")).json() == {"status": "database unavailable"}
                await asyncio.to_thread(postgres.start)
                async with asyncio.timeout(20):
                    while (await client.get("/readyz")).status_code != 200:
                        await asyncio.sleep(0.05)
                await accounts.first_admin(platform.engine, ADMIN_KEY)
                client.headers["authorization"] = f"Bearer {ADMIN_KEY}"
                async with asyncio.timeout(20):  # its first upkeep makes the tables of steps
                    while (await send(client, await session(client), "repeat: back")).status_code != 200:
                        await asyncio.sleep(0.1)
    finally:
        await asyncio.to_thread(postgres.stop)
    warned = [record for record in caplog.records if record.levelname == "WARNING" and "watchdog" not in record.name]
    assert [record.name for record in warned] == ["app.usecases.replicas"]


def test_who_was_asleep_knows_nothing_of_others_until_he_has_heard_them_again(monkeypatch: pytest.MonkeyPatch) -> None:
    moments = iter([100.0, 101.0, 102.0, 102.5, 500.0, 500.1, 500.2, 501.1, 501.2])
    monkeypatch.setattr(replicas, "time", SimpleNamespace(time=lambda: next(moments)))
    pulse = replicas.Pulse()
    for _ in range(3):
        pulse.heard()
    assert pulse.steady_seconds == 2.0
    assert pulse.steady_seconds == 0.0  # after a long sleep, before the next beat
    pulse.heard()
    assert pulse.steady_seconds == 0.0
    pulse.heard()
    assert pulse.steady_seconds == pytest.approx(1.0)


async def test_the_runs_of_a_dead_server_are_ended_by_another(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "DEAD_AFTER_SECONDS", 2)
    id = await session(house.admin)
    run_id = (await send(house.admin, id, "repeat: x")).json()["run_id"]
    async with house.platform.engine.begin() as db:
        await db.exec_driver_sql(
            "UPDATE runs SET status = 'running', replica = '00000000-0000-0000-0000-000000000001', ended_at = NULL"
        )
    assert (await send(house.admin, id, "repeat: x")).status_code == 409
    async with asyncio.timeout(30):
        while (await house.admin.get(f"/api/v1/runs/{run_id}")).json()["status"] == "running":
            await asyncio.sleep(0.1)
    run = (await house.admin.get(f"/api/v1/runs/{run_id}")).json()
    assert (run["status"], run["error"]["code"]) == ("failed", "server_lost")
    assert (await send(house.admin, id, "repeat: x")).status_code == 200
