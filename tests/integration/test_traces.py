"""Runs, steps and values as their owners and administrators see them, over HTTP and from the command line."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx2
import pytest
from sqlalchemy import text
from typer.testing import CliRunner

from app.cli.commands import commands
from app.domain import new_id
from app.errors import AppError, SettingsError
from app.settings import Settings
from app.store import partitions
from app.usecases import upkeep
from app.usecases.upkeep import Keeping
from tests.engines import Engines
from tests.fakes.upstream import FakeUpstream
from tests.house import ADMIN_KEY, House, open_house, send, session

MODELS = """
[models.default]
endpoints = [{{base_url = "{url}", model = "small"}}]
price = {{prompt = 1, completion = 1}}
[models.big]
endpoints = [{{base_url = "{url}", model = "big-one"}}]
"""
AGENT = '''
import asyncio

from app.agent import BaseAgent, Chattable, Message


class Caller(Chattable):
    """Asks the model."""

    id = "caller"

    async def chat(self, message: Message) -> str:
        return str(await self.llm.ainvoke(message.content, model="big" if "big" in message.content else "default"))


async def fail(text: str) -> None:
    raise ValueError(text)


class Failing(Chattable):
    """Fails in a step."""

    id = "failing"

    async def chat(self, message: Message) -> str:
        await self.step(fail, message.content)
        return ""


class Slow(Chattable):
    """Does one thing, and then takes its time."""

    id = "slow"

    async def chat(self, message: Message) -> str:
        await self.llm.ainvoke("say first")
        return str(await self.llm.ainvoke("[[fault: first=30]]say late"))


TRIES = []


class Wavering(BaseAgent):
    """Says something else when it is begun anew, and takes its time for that."""

    id = "wavering"

    async def chat(self, message: Message) -> str:
        await asyncio.sleep(2 * len(TRIES))
        TRIES.append(message)
        await self.stream.send("text", f"try {len(TRIES)}: ")
        await self.stream.send("text", await self.ask("Go on?"))
        return ""
'''


@pytest.fixture
async def here(running: Engines, database_url: str, fake: FakeUpstream, tmp_path: Path) -> AsyncIterator[House]:
    (tmp_path / "agents").mkdir()
    (tmp_path / "agents/some.py").write_text(AGENT)
    (tmp_path / "models.toml").write_text(MODELS.format(url=fake.base_url))
    settings: dict[str, Any] = {"redis_url": running.redis_url, "models_file": tmp_path / "models.toml"}
    async with open_house(database_url, agents_dir=tmp_path / "agents", **settings) as house:
        yield house


async def said(client: httpx2.AsyncClient, content: str, agent: str = "caller") -> str:
    answer = await send(client, await session(client, agent), content)
    assert "run_id" in answer.json(), answer.text
    return str(answer.json()["run_id"])


async def found(client: httpx2.AsyncClient, **asked: Any) -> list[str]:
    answer = await client.get("/api/v1/runs", params=asked)
    assert answer.status_code == 200, answer.text
    return [run["id"] for run in answer.json()["data"]]


async def test_runs_are_found_by_what_they_are_and_what_they_did(here: House) -> None:
    ann, ben = await here.user("ann"), await here.user("ben")
    small, big = await said(ann, "say a “green” tree"), await said(ann, "say big")
    failed, others = await said(ann, "x", "failing"), await said(ben, "say a green tree")
    assert await found(ann) == [failed, big, small]
    assert await found(ann, agent="failing") == await found(ann, status="failed") == [failed]
    assert await found(ann, model="big-one") == [big]
    assert await found(ann, model="small") == [small]
    assert await found(ann, cost="0.000001") == [small]
    assert await found(ann, kind="rerun") == await found(ann, model="none") == []
    moment = datetime.now(UTC)
    assert await found(ann, since=(moment + timedelta(minutes=1)).isoformat()) == []
    assert await found(ann, until=(moment - timedelta(minutes=10)).isoformat()) == []
    assert len(await found(ann, since=(moment - timedelta(minutes=10)).isoformat())) == 3
    assert await found(ann, text="GREEN” tree") == [small]
    assert await found(ann, text="“green\ntree") == await found(ann, text="nowhere") == []
    assert await found(here.admin, user="ben") == [others]
    assert await found(here.admin, user="all", status="completed") == [others, big, small]
    first = await ann.get("/api/v1/runs", params={"limit": 2})
    assert first.json()["has_more"]
    assert await found(ann, after=first.json()["last_id"]) == [small]


async def test_an_administrator_sees_of_others_runs_what_they_are_and_nothing_of_what_was_said(here: House) -> None:
    ann = await here.user("ann")
    run = await said(ann, "a secret", "failing")
    (seen,) = (await here.admin.get("/api/v1/runs", params={"user": "ann"})).json()["data"]
    assert (seen["id"], seen["error"]) == (run, {"code": "agent_failed"})
    for params in ({"user": "all", "text": "secret"}, {"user": "ann", "text": "secret"}):
        assert (await here.admin.get("/api/v1/runs", params=params)).status_code == 403
    assert (await ann.get("/api/v1/runs", params={"user": "all"})).status_code == 403
    assert (await ann.get("/api/v1/runs", params={"user": "nobody"})).status_code == 404
    assert (await here.admin.get(f"/api/v1/runs/{run}/steps")).status_code == 404


@pytest.mark.parametrize(
    ("name", "value"),
    [("status", "odd"), ("since", "yesterday"), ("cost", "-1"), ("limit", "1000"), ("kind", "x"), ("text", "")],
)
async def test_a_wrong_filter_is_named(here: House, name: str, value: str) -> None:
    answer = await here.admin.get("/api/v1/runs", params={name: value})
    assert (answer.status_code, answer.json()["param"]) == (400, name), answer.text


async def test_steps_are_pages_and_values_come_on_demand(here: House) -> None:
    ann = await here.user("ann")
    run = await said(ann, "x", "failing")
    answer = (await ann.get(f"/api/v1/runs/{run}/steps", params={"limit": 1})).json()
    (step,) = answer["data"]
    assert (step["path"], step["kind"], step["status"], step["error"]) == (
        "/fail",
        "step",
        "failed",
        {"code": "ValueError"},
    )
    assert (step["output_hash"], answer["last_seq"], answer["has_more"]) == (None, 1, False)
    given = (await ann.get(f"/api/v1/runs/{run}/steps/1/input")).json()
    assert (given["hash"], given["value"]) == (step["input_hash"], {"args": ["x"], "kwargs": {}})
    assert (await ann.get(f"/api/v1/runs/{run}/steps/1/output")).status_code == 404
    assert (await ann.get(f"/api/v1/runs/{run}/steps/9/input")).status_code == 404
    run = await said(ann, "say hello")
    given = (await ann.get(f"/api/v1/runs/{run}/steps/1/input")).json()["value"]
    assert given == {"model": "default", "options": {}, "messages": [{"role": "user", "content": "say hello"}]}
    (step,) = (await ann.get(f"/api/v1/runs/{run}/steps")).json()["data"]
    assert (step["model"], step["usage"]["total"] > 0, step["usage"]["cost"] != "0") == ("small", True, True)


async def test_a_run_that_goes_on_shows_what_it_has_done(here: House) -> None:
    ann = await here.user("ann")
    sending = asyncio.ensure_future(send(ann, await session(ann, "slow"), "x"))
    run = await here.until_live()
    async with asyncio.timeout(20):
        while not (steps := (await ann.get(f"/api/v1/runs/{run}/steps")).json()["data"]):
            await asyncio.sleep(0.05)
    assert [step["status"] for step in steps] == ["completed"]
    await ann.post(f"/api/v1/runs/{run}/cancel")
    assert (await sending).json()["additional_kwargs"]["status"] == "cancelled"


async def test_a_value_leads_to_those_that_made_and_used_it(here: House) -> None:
    ann, ben = await here.user("ann"), await here.user("ben")
    id = await session(ann, "caller")
    runs = [(await send(ann, id, "say twice")).json()["run_id"] for _ in range(2)]
    (step,) = (await ann.get(f"/api/v1/runs/{runs[0]}/steps")).json()["data"]
    lineage = (await ann.get(f"/api/v1/values/{step['output_hash']}")).json()
    assert [place["run_id"] for place in lineage["producers"]] == runs[::-1]
    assert (lineage["consumers"], lineage["complete"]) == ([], True)
    message = '{"content":"say twice","role":"user"}'
    from app.domain import Value

    lineage = (await ann.get(f"/api/v1/values/{Value.of(message.encode()).digest.hex()}")).json()
    assert [place["run_id"] for place in lineage["consumers"]] == runs[::-1]
    assert (await ben.get(f"/api/v1/values/{step['output_hash']}")).status_code == 404
    assert (await ann.get("/api/v1/values/xyz")).status_code == 400


# The command line


@pytest.fixture
def asked(here: House, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    for name in Settings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.chdir(tmp_path)

    async def ask(client: httpx2.AsyncClient, *words: str) -> str:
        key = client.headers["authorization"].removeprefix("Bearer ")
        ran = await asyncio.to_thread(CliRunner().invoke, commands, ["runs", *words, "--url", here.url, "--key", key])
        if ran.exception:
            raise ran.exception
        return ran.stdout

    return ask


async def test_runs_are_listed_shown_and_followed(here: House, asked: Any) -> None:
    ann = await here.user("ann")
    run = await said(ann, "say hello")
    await said(ann, "x", "failing")
    head, line = (await asked(ann, "list", "--status", "completed")).splitlines()
    assert head.split() == ["id", "begun", "agent_id", "kind", "status", "tokens", "cost"]
    assert (line.split()[0], line.split()[2:5]) == (run, ["caller", "chat", "completed"])
    assert json.loads(await asked(ann, "list", "--model", "small", "--json"))["data"][0]["id"] == run
    assert (await asked(ann, "show", run)).splitlines()[1].split()[:4] == ["1", "/default", "llm", "small"]
    shown = json.loads(await asked(ann, "show", run, "--step", "1"))
    assert (shown["input"]["messages"][0]["content"], shown["output"]["text"]) == ("say hello", "hello")
    assert await asked(ann, "tail", run) == "hello\n"
    following = asyncio.ensure_future(asked(ann, "tail", "--count", "1"))
    await asyncio.sleep(1)
    async with asyncio.timeout(30):
        while not following.done():
            last = await said(ann, "say more")
            await asyncio.sleep(0.5)
    assert "caller" in await following
    assert last


async def test_what_a_step_does_not_have_is_null_and_what_is_refused_is_said(here: House, asked: Any) -> None:
    ann, ben = await here.user("ann"), await here.user("ben")
    run = await said(ann, "x", "failing")
    shown = json.loads(await asked(ann, "show", run, "--step", "1"))
    assert shown == {"input": {"args": ["x"], "kwargs": {}}, "output": None}
    for client, id, told in ((ann, run, "no such step"), (ben, run, "no such run"), (ann, new_id(), "no such run")):
        with pytest.raises(AppError, match=told):
            await asked(client, "show", str(id), "--step", "9")
    with pytest.raises(AppError, match="no such run"):
        await asked(ben, "tail", run)
    ben.headers["authorization"] = "Bearer wrong"
    for words in (("show", run, "--step", "1"), ("tail", run)):
        with pytest.raises(SettingsError, match="status 401"):
            await asked(ben, *words)


async def test_a_run_that_failed_is_followed_to_its_error(here: House) -> None:
    run = await said(here.admin, "x", "failing")
    at = ("--url", here.url, "--key", ADMIN_KEY)
    ran = await asyncio.to_thread(CliRunner().invoke, commands, ["runs", "tail", run, *at])
    assert (ran.exit_code, ran.stdout) == (1, "")
    assert ran.stderr.startswith("chattable: The agent failed")


async def test_the_answer_of_a_run_that_was_begun_anew_is_followed_to_its_end(here: House, asked: Any) -> None:
    ann = await here.user("ann")
    id = await session(ann, "wavering")
    run = (await send(ann, id, "go")).json()["run_id"]
    answering = asyncio.ensure_future(send(ann, id, "yes"))
    await here.until_live()
    assert (await asked(ann, "tail", run)).endswith("try 2: yes\n")
    assert (await answering).json()["content"] == "try 2: yes"


async def test_a_step_is_done_anew_from_the_command_line(here: House, asked: Any) -> None:
    ann = await here.user("ann")
    run = await said(ann, "say hello")
    words = ("rerun", run, "--step", "1", "--model", "big", "--params", '{"temperature": 1}')
    made = json.loads(await asked(ann, *words, "--input", '[{"role": "user", "content": "say bye"}]', "--json"))
    assert (made["answer"], made["step"]["model"]) == ("hello", "big-one")
    compared = await asked(ann, "diff", run, made["id"])
    assert compared.splitlines()[1].split()[:5] == ["1", "→", "1", "/default", "input+output"]
    assert compared.splitlines()[-2:] == ["0 steps are equal, 1 differ.", "The answers are equal."]
    assert "1  /default  said  'hel'" in await asked(ann, "why", run, "hel")
    assert await asked(ann, "why", run, "nothing") == "No recorded step is known to have said that.\n"
    for wrong, told in (("--params", "no JSON"), ("--model", "no such model|known are")):
        with pytest.raises(AppError, match=told):
            await asked(ann, "rerun", run, "--step", "1", wrong, "{")
    with pytest.raises(AppError, match="no such run"):
        await asked(here.admin, "show", run)


async def test_what_a_run_has_done_that_is_not_at_its_end_is_kept(here: House) -> None:
    ann = await here.user("ann")
    run = await said(ann, "say old")
    async with here.platform.engine.begin() as db:
        await db.execute(
            text("UPDATE runs SET status = 'waiting', ended_at = NULL, pending = '{}' WHERE id = :id"), {"id": run}
        )
        await db.execute(text("UPDATE steps SET started_at = now() - interval '3 days'"))
        await partitions.forget(db, {"*": 1})
        kept = (await db.execute(text("SELECT count(*) FROM steps"))).scalar_one()
    assert kept == 1


async def test_a_search_that_takes_long_is_gone_on_with(here: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.usecases.traces.SCAN_SECONDS", 0.0)
    monkeypatch.setattr("app.usecases.lineage.SECONDS", 0.0)
    ann = await here.user("ann")
    runs = [await said(ann, "say a needle") for _ in range(3)]
    seen, asked = list[str](), {"text": "needle", "limit": "10"}
    for turn in range(3):
        page = (await ann.get("/api/v1/runs", params=asked)).json()
        seen += [run["id"] for run in page["data"]]
        assert (len(seen), page["has_more"]) == (turn + 1, turn < 2)
        asked["after"] = page["last_id"]
    assert seen == runs[::-1]
    (step,) = (await ann.get(f"/api/v1/runs/{runs[0]}/steps")).json()["data"]
    assert (await ann.get(f"/api/v1/values/{step['output_hash']}")).json()["complete"] is False


async def test_steps_are_kept_as_long_as_their_kind_is(here: House) -> None:
    ann = await here.user("ann")
    old, new = await said(ann, "say old"), await said(ann, "say new")
    failed = await said(ann, "x", "failing")
    engine = here.platform.engine
    async with engine.begin() as db:
        await db.execute(
            text("CREATE TABLE steps_2020_01 PARTITION OF steps FOR VALUES FROM ('2020-01-01') TO ('2020-02-01')")
        )
        await db.execute(text("UPDATE steps SET started_at = '2020-01-05' WHERE run_id = :id"), {"id": old})
        await db.execute(text("UPDATE steps SET started_at = '2020-01-06' WHERE run_id = :id"), {"id": failed})
    async with engine.connect() as reader:  # somebody reads for long: all answers would wait behind what waits for that
        await reader.execute(text("SELECT count(*) FROM steps"))
        async with asyncio.timeout(30):
            await upkeep.once(engine, Keeping(steps={"llm": 90, "step": 2}))
    await upkeep.once(engine, Keeping(steps={"llm": 90, "step": 2}))
    async with engine.connect() as db:
        kept = {str(row.run_id) for row in await db.execute(text("SELECT run_id FROM steps"))}
        names = {
            row.relname for row in await db.execute(text("SELECT relname FROM pg_class WHERE relname LIKE 'steps_20%'"))
        }
        values = (await db.execute(text("SELECT count(DISTINCT scope_id) FROM step_values"))).scalar_one()
    assert kept == {new}
    assert "steps_2020_01" not in names
    assert values == 1
    assert (await ann.post(f"/api/v1/runs/{old}/rerun", json={})).status_code == 409


async def test_old_steps_are_erased_in_pieces_that_are_kept_when_a_later_one_fails(
    here: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.store.partitions.LOOKED_AT_ONCE", 2)
    ann = await here.user("ann")
    runs = [await said(ann, "say old") for _ in range(5)]
    engine = here.platform.engine
    async with engine.begin() as db:
        await db.execute(text("UPDATE steps SET started_at = now() - interval '3 days'"))
        await db.execute(text("UPDATE steps SET kind = 'tool' WHERE run_id = :id"), {"id": runs[2]})
        whole = (await db.execute(text("SELECT count(*) FROM steps"))).scalar_one()
    assert whole == 5
    real, pieces = partitions.forget, 0

    async def forget(*given: Any) -> partitions.Place | None:
        nonlocal pieces
        pieces += 1
        if pieces == 3:
            raise TimeoutError
        return await real(*given)

    monkeypatch.setattr(partitions, "forget", forget)
    counted = text("SELECT (SELECT count(*) FROM steps), (SELECT count(DISTINCT scope_id) FROM step_values)")
    for left, pause in ((2, upkeep.FAILED_SECONDS), (1, upkeep.PAUSE_SECONDS)):
        assert await upkeep.attempt(engine, Keeping(steps={"llm": 2, "tool": 4})) == pause
        async with engine.connect() as db:
            assert tuple((await db.execute(counted)).one()) == (left, left)


async def test_a_part_of_the_upkeep_that_takes_too_long_is_told_of_and_keeps_no_other_from_being_done(
    here: House, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    ann = await here.user("ann")
    await said(ann, "say old")
    engine = here.platform.engine
    async with engine.begin() as db:
        await db.execute(text("UPDATE sessions SET updated_at = now() - interval '3 days'"))

    async def takes_long(*_: Any) -> None:
        raise TimeoutError

    monkeypatch.setattr(partitions, "forget", takes_long)
    assert await upkeep.attempt(engine, Keeping(sessions=2, steps={"*": 1})) == upkeep.FAILED_SECONDS
    assert "upkeep failed" in caplog.text
    async with engine.connect() as db:
        assert (await db.execute(text("SELECT count(*) FROM sessions"))).scalar_one() == 0
