"""Calls and budgets: reserved before, cut to what is left, settled however they end, and never more than allowed."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import UUID

import asyncpg
import httpx2
import pytest

from app.domain import new_id
from app.journal.recorder import Recorder
from app.llm.call import COMPLETION, LEAST
from app.llm.llm import LLM
from app.llm.stages import Caller
from app.store.database import connector
from tests.calling import call, calling_house
from tests.engines import Engines
from tests.fakes.upstream import FakeUpstream, upstream
from tests.house import House, send, session
from tests.integration.test_budgets import EVERYONE
from tests.paths import model, run_llm

BUDGETS = "/api/v1/budgets"
PRICE = "{ prompt = 1000, completion = 1000 }"
"""A thousandth a token."""
MANY = 200
ROOT = Path(__file__).parents[2]


@pytest.fixture
async def fake() -> AsyncIterator[FakeUpstream]:
    async with upstream() as server:
        yield server


@pytest.fixture
async def house(running: Engines, database_url: str, tmp_path: Path, fake: FakeUpstream) -> AsyncIterator[House]:
    text = model("default", fake.base_url, price=PRICE) + model("free", fake.base_url)
    text += model("mine", llm=f'"{__name__}:Obeying"')
    text += model("deep", fake.base_url, defaults="{ max_tokens = 10_000 }")
    async with calling_house(running, database_url, tmp_path, text) as opened:
        yield opened


@pytest.fixture
async def db(database_url: str) -> AsyncIterator[asyncpg.Connection]:
    connection = await connector(database_url)()
    yield connection
    await connection.close()


class Obeying(LLM):
    """Says as many words as it may, each of which is counted as a token."""

    async def generate(self, messages: list[dict[str, Any]], **options: Any) -> str:
        return "one " * options.get("max_completion_tokens", options.get("max_tokens", 1000))


async def limit(house: House, scope: str, id: str, **limits: Any) -> str:
    made = await house.admin.post(BUDGETS, json={"scope": scope, "id": id, "period": "month", **limits})
    assert made.status_code == 201, made.text
    return str(made.json()["id"])


async def standing(house: House, id: str) -> dict[str, Any]:
    (found,) = [each for each in (await house.admin.get(BUDGETS)).json()["data"] if each["id"] == id]
    return dict(found)


async def settled(house: House, db: asyncpg.Connection, id: str) -> int:
    """What the budget's counter has, once nothing is reserved; the ledger has the same."""
    await house.until_idle()
    async with asyncio.timeout(10):
        while await db.fetchval("SELECT count(*) FROM reservations"):
            await asyncio.sleep(0.05)
    ledger = "SELECT sum(prompt_tokens + completion_tokens)::bigint, sum(cost) FROM ledger"
    counter = "SELECT sum(tokens)::bigint, sum(money) FROM budget_counters WHERE budget_id = $1"
    told, (counted,) = await db.fetch(ledger), await db.fetch(counter, UUID(id))
    assert told == [counted]
    return int(counted[0] or 0)


def user(client: httpx2.AsyncClient) -> str:
    return str(client.headers["x-test-user"])


@pytest.mark.parametrize("stream", [False, True])
async def test_a_budget_that_calls_used_up_refuses_before_the_headers(
    house: House, fake: FakeUpstream, stream: bool
) -> None:
    ann = await house.user("ann")
    id = await session(ann, "calling")
    used = (await call(ann, id, say="say hello there"))["usage"]["total"]
    await limit(house, "user", user(ann), tokens=used)
    refused = await send(ann, id, '{"say": "hi"}', stream=stream)
    assert (refused.status_code, refused.headers["x-should-retry"]) == (429, "false")
    assert refused.json()["code"] == "insufficient_quota"
    assert fake.hits == 1


@pytest.mark.parametrize("stream", [False, True])
async def test_a_call_for_which_too_little_is_left_reaches_no_server(
    house: House, fake: FakeUpstream, db: asyncpg.Connection, stream: bool
) -> None:
    ann = await house.user("ann")
    budget = await limit(house, "user", user(ann), tokens=40)
    refused = await send(ann, await session(ann, "calling"), '{"say": "' + "word " * 50 + '"}', stream=stream)
    if stream:  # its headers are sent by the time the agent calls
        assert 'event: error\ndata: {"code":"insufficient_quota"' in refused.text
    else:
        assert (refused.status_code, refused.headers["x-should-retry"]) == (429, "false")
        assert refused.json()["code"] == "insufficient_quota"
    assert (fake.hits, await settled(house, db, budget)) == (0, 0)


async def test_an_answer_is_cut_to_what_was_reserved(house: House, fake: FakeUpstream, db: asyncpg.Connection) -> None:
    ann = await house.user("ann")
    budget = await limit(house, "user", user(ann), tokens=100)
    answer = await call(ann, say="hi [[fault: chunks=1000]]")
    (sent,) = [request.body["max_tokens"] for request in fake.requests]
    assert 16 <= sent < 100
    assert answer["usage"]["completion"] == sent
    assert await settled(house, db, budget) == fake.tokens <= 100


async def test_an_answer_of_no_given_length_is_cut_where_the_page_says(
    house: House, fake: FakeUpstream, db: asyncpg.Connection
) -> None:
    ann = await house.user("ann")
    budget = await limit(house, "user", user(ann), tokens=1_000_000)
    answer = await call(ann, say=f"hi [[fault: chunks={COMPLETION + 9}]]")
    assert answer["usage"]["completion"] == COMPLETION > 8000
    assert f"when it gives none, {COMPLETION:,}" in (ROOT / "docs/models.md").read_text(encoding="utf-8")
    answer = await call(ann, say=f"hi [[fault: chunks={COMPLETION + 9}]]", model="deep")
    assert answer["usage"]["completion"] == COMPLETION + 9
    assert await settled(house, db, budget) == fake.tokens


async def test_a_call_that_wants_less_gets_less_by_the_name_it_gave(house: House, fake: FakeUpstream) -> None:
    ann = await house.user("ann")
    await limit(house, "user", user(ann), tokens=1000)
    await call(ann, say="hi", max_tokens=20)
    await call(ann, say="hi", max_completion_tokens=30)
    await call(await house.user("bob"), say="hi")
    names = ("max_tokens", "max_completion_tokens")
    assert [[request.body.get(name) for name in names] for request in fake.requests] == [
        [20, None],
        [None, 30],
        [None, None],
    ]


async def test_an_llm_of_ones_own_is_told_what_was_reserved(house: House, db: asyncpg.Connection) -> None:
    ann = await house.user("ann")
    id = await session(ann, "calling")
    assert len((await call(ann, id, say="hi", model="mine"))["content"].split()) == 1000
    small = await limit(house, "session", id, tokens=2000)
    assert len((await call(ann, id, say="hi", model="mine", max_completion_tokens=20))["content"].split()) == 20
    words = len((await call(ann, id, say="hi", model="mine"))["content"].split())
    assert 16 <= words < 1000
    assert await settled(house, db, small) <= 2000


async def test_however_many_calls_begin_at_once_no_more_is_used_than_allowed(
    house: House, fake: FakeUpstream, db: asyncpg.Connection
) -> None:
    ann = await house.user("ann")
    budget = await limit(house, "user", user(ann), tokens=1000)
    answers = (await call(ann, say="hi [[fault: chunks=500 delay=0.001]]", times=MANY, max_tokens=100))["content"]
    ended = Counter(answer if answer.isalpha() else "answer" for answer in answers.split("|"))
    assert ended.total() == MANY
    assert set(ended) <= {"answer", "RateLimited", "QuotaExceeded"}
    assert ended["answer"] >= 5
    assert await settled(house, db, budget) == fake.tokens <= 1000
    assert (await standing(house, budget))["reserved"] == {"tokens": 0, "money": "0"}


async def test_runs_of_many_sessions_share_a_budget_too(
    house: House, fake: FakeUpstream, db: asyncpg.Connection
) -> None:
    users = [await house.user(name) for name in ("ann", "bob", "cid")]
    budget = await limit(house, "group", EVERYONE, tokens=600)
    ids = [(client, await session(client, "calling")) for client in users for _ in range(10)]
    text = '{"say": "hi [[fault: chunks=500 delay=0.001]]", "max_tokens": 60, "times": 3}'
    told = await asyncio.gather(*(send(client, id, text) for client, id in ids))
    assert {answer.status_code for answer in told} <= {200, 429}
    assert await settled(house, db, budget) == fake.tokens <= 600


async def test_cancelled_and_failed_calls_settle(house: House, fake: FakeUpstream, db: asyncpg.Connection) -> None:
    ann = await house.user("ann")
    budget = await limit(house, "user", user(ann), tokens=1_000_000)
    for fault in ("500", "400", "drop", "error", "no_usage"):
        await send(ann, await session(ann, "calling"), json.dumps({"say": f"say one two three [[fault: {fault}]]"}))
    free = await settled(house, db, budget)
    assert free > 0
    for fault in ("hang", "chunks=1000 delay=0.02"):
        hits, before = fake.hits, await settled(house, db, budget)
        text = json.dumps({"say": f"hi [[fault: {fault}]]"})
        sending = asyncio.ensure_future(send(ann, await session(ann, "calling"), text))
        run = await house.until_live()
        await fake.until(lambda hits=hits: fake.hits > hits)  # type: ignore[misc] # mypy knows no default of a lambda
        await asyncio.sleep(0.1)
        assert (await standing(house, budget))["reserved"]["tokens"] > 1000
        assert (await ann.post("/CancelRun", json={"run_id": run})).status_code in (200, 202, 204)
        await sending
        assert await settled(house, db, budget) > before, "what a server worked for is not free"


async def test_a_cancelled_call_is_charged_before_its_run_ends(
    house: House, fake: FakeUpstream, db: asyncpg.Connection
) -> None:
    """Else other calls could use it once more meanwhile."""
    ann = await house.user("ann")
    budget = await limit(house, "user", user(ann), tokens=1_000_000)
    caller = Caller(new_id(), user(ann), agent="calling", budgets=(UUID(budget),))
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.5):
            await run_llm(house.platform.calls, Recorder(), caller).ainvoke("hi [[fault: hang]]")
    async with asyncio.timeout(5):
        while (await standing(house, budget))["reserved"]["tokens"]:
            await asyncio.sleep(0.02)
    assert (await standing(house, budget))["used"]["tokens"] > 0


async def test_money_is_limited_by_the_price(house: House, fake: FakeUpstream, db: asyncpg.Connection) -> None:
    ann = await house.user("ann")
    budget = await limit(house, "user", user(ann), money="0.2")
    answers = (await call(ann, say="hi [[fault: chunks=500]]", times=20, max_tokens=50))["content"]
    assert "word0" in answers
    assert await settled(house, db, budget) == fake.tokens <= 200
    before = fake.hits
    for _ in range(5):
        await call(ann, say="hi [[fault: chunks=5]]", model="free")
    assert fake.hits == before + 5, "what costs nothing needs no money"


async def test_an_answer_from_the_cache_needs_no_budget(
    house: House, fake: FakeUpstream, db: asyncpg.Connection
) -> None:
    ann = await house.user("ann")
    id = await session(ann, "calling")
    await call(ann, id, say="say hello", cache="on", embed=["a text"])
    budget = await limit(house, "user", user(ann), tokens=9)
    hits = fake.hits
    answer = await call(ann, id, say="say hello", cache="on", embed=["a text"])
    assert answer["content"].endswith("|hello")
    assert (fake.hits, answer["usage"]["total"]) == (hits, 0)
    assert "insufficient_quota" in (await send(ann, id, '{"say": "say bye"}')).text
    assert await settled(house, db, budget) > 0


async def test_embeddings_are_charged_too(house: House, fake: FakeUpstream, db: asyncpg.Connection) -> None:
    ann = await house.user("ann")
    budget = await limit(house, "user", user(ann), tokens=1000, money="1")
    texts = [f"some words {number}" for number in range(10)]
    answer = await call(ann, embed=texts)
    assert (answer["usage"]["prompt"], answer["usage"]["cost"]) == (30, "0.03")
    assert await settled(house, db, budget) == 30
    refused = await send(ann, await session(ann, "calling"), '{"embed": ["%s"]}' % ("word " * 600))
    assert (refused.status_code, fake.hits) == (429, 1)


@pytest.mark.parametrize("scope", ["user", "group", "agent", "session", "key"])
async def test_budgets_of_every_scope_bind_calls(
    house: House, fake: FakeUpstream, db: asyncpg.Connection, scope: str
) -> None:
    ann = await house.user("ann")
    id = await session(ann, "calling")
    places = {"user": user(ann), "group": EVERYONE, "agent": "calling", "session": id}
    if scope == "key":
        made = (await ann.post("/api/v1/keys", json={"name": "mine"})).json()
        ann = await house.client(made["key"])
        places["key"] = made["id"]
    budget = await limit(house, scope, places[scope], tokens=100)
    await call(ann, id, say="hi [[fault: chunks=1000]]")
    assert await settled(house, db, budget) == fake.tokens <= 100
    assert fake.tokens > 50


async def test_the_smallest_of_several_budgets_binds(house: House, fake: FakeUpstream, db: asyncpg.Connection) -> None:
    ann = await house.user("ann")
    small = await limit(house, "agent", "calling", tokens=90)
    large = await limit(house, "user", user(ann), tokens=500)
    await call(ann, say="hi [[fault: chunks=1000]]")
    assert await settled(house, db, small) == await settled(house, db, large) == fake.tokens <= 90


async def test_a_known_context_bounds_what_is_asked_for(
    running: Engines, database_url: str, tmp_path: Path, fake: FakeUpstream
) -> None:
    text = model("default", fake.base_url, context="2000")
    async with calling_house(running, database_url, tmp_path, text) as house:
        ann = await house.user("ann")
        await limit(house, "user", user(ann), tokens=1_000_000)
        await call(ann, say="say hi")
    (sent,) = [request.body["max_tokens"] for request in fake.requests]
    assert 1900 < sent < 2000


async def test_a_long_prompt_leaves_its_answer_half_of_the_rest_of_a_context(
    running: Engines, database_url: str, tmp_path: Path, fake: FakeUpstream
) -> None:
    text = model("default", fake.base_url, context="8192")
    async with calling_house(running, database_url, tmp_path, text) as house:
        ann = await house.user("ann")
        await limit(house, "user", user(ann), tokens=1_000_000)
        for tokens in (1000, 3000, 4075, 5000, 8000):
            await call(ann, say="say " + "a" * 4 * tokens)
    sent = [request.body["max_tokens"] for request in fake.requests]
    assert sent == [6112, 2592, 2055, 1592, LEAST]
