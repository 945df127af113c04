"""Calls and the cache: what is answered from it, for whom, and what never is."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from msgspec.structs import replace

from app.domain import Message, Usage
from app.errors import LLMError
from app.journal.recorder import Recorder
from app.llm.cache import Cache
from app.llm.entries import Erasure
from app.llm.stages import Caller
from app.store import redis
from app.store.cache import RedisCache
from tests.calling import agents, call, calling_house
from tests.engines import Engines
from tests.fakes.upstream import FakeUpstream, upstream
from tests.house import House, session
from tests.paths import OWNER, Models, catalog_of, model, open_models, run_llm

PRICE = "{ prompt = 10, completion = 20 }"


@pytest.fixture
async def fake() -> AsyncIterator[FakeUpstream]:
    async with upstream() as server:
        yield server


@pytest.fixture
async def other() -> AsyncIterator[FakeUpstream]:
    async with upstream() as server:
        yield server


@pytest.fixture
async def models(tmp_path: Path, fake: FakeUpstream) -> AsyncIterator[Models]:
    text = model("default", fake.base_url, price=PRICE)
    async with open_models(catalog_of(tmp_path, text), cache=Cache()) as opened:
        yield opened


async def ask(
    models: Models,
    text: str = "say hello there",
    caller: Caller = OWNER,
    recorder: Recorder | None = None,
    **options: Any,
) -> str:
    return await run_llm(models.path, recorder or Recorder(), caller).ainvoke(text, **options)


def another_run() -> Caller:
    return replace(OWNER, run_id=uuid4())


async def test_what_is_meant_to_be_the_same_is_cached_without_a_word(models: Models, fake: FakeUpstream) -> None:
    for _ in range(2):
        assert await ask(models, temperature=0) == "hello there"
    assert fake.hits == 1
    for options in ({}, {"temperature": 0.5}, {"temperature": 0, "cache": "off"}):
        for _ in range(2):
            await ask(models, **options)
    assert fake.hits == 7
    for _ in range(2):
        await ask(models, temperature=0.5, cache="on")
    assert fake.hits == 8


async def test_a_models_default_temperature_counts_too(tmp_path: Path, fake: FakeUpstream) -> None:
    text = model("default", fake.base_url, defaults="{ temperature = 0 }")
    async with open_models(catalog_of(tmp_path, text), cache=Cache()) as models:
        for _ in range(2):
            await ask(models)
        await ask(models, temperature=1)
    assert fake.hits == 2


async def test_an_alias_that_moves_to_another_server_is_asked_there(
    tmp_path: Path, fake: FakeUpstream, other: FakeUpstream
) -> None:
    cache = Cache()
    for server in (fake, other, fake):
        text = model("default", server.base_url)
        async with open_models(catalog_of(tmp_path, text), cache=cache) as models:
            await ask(models, cache="on")
            await run_llm(models.path, Recorder()).embed(["text"])
    assert (fake.hits, other.hits) == (2, 2)


async def test_a_refreshed_answer_takes_the_place_of_the_one_before(models: Models, fake: FakeUpstream) -> None:
    assert await ask(models, cache="on") == "hello there"
    fake.fail("chunks=2")
    assert await ask(models, cache="refresh") == "word0 word1 "
    assert await ask(models, cache="on") == "word0 word1 "
    assert fake.hits == 2


async def test_a_hit_costs_nothing_and_says_what_it_saved(models: Models, fake: FakeUpstream) -> None:
    recorder = Recorder()
    for _ in range(2):
        await ask(models, recorder=recorder, cache="on")
    first, second = recorder.steps
    assert (first.from_cache, first.usage) == (False, Usage(3, 2, cost=Decimal("0.00007")))
    assert (second.from_cache, second.usage) == (True, Usage(saved=first.usage.cost))
    assert (second.output, second.model) == (first.output, first.model)


async def test_streaming_and_whole_share_one_entry(models: Models, fake: FakeUpstream) -> None:
    llm = run_llm(models.path, Recorder()).use(cache="on")
    text = "say one two [[fault: think]]"
    whole = await llm.ainvoke(text)
    chunks = [chunk async for chunk in llm.astream(text)]
    assert [(chunk.content_type, chunk.content) for chunk in chunks] == [
        ("thinking", "Let me think."),
        ("text", "one two"),
    ]
    assert (whole, whole.reasoning) == ("one two", "Let me think.")
    assert (await llm.ainvoke(text)).reasoning == whole.reasoning
    assert fake.hits == 1


async def test_everything_that_changes_the_answer_is_another_question(models: Models, fake: FakeUpstream) -> None:
    shared = replace(OWNER, agent="other", shares_cache=True)
    different: list[tuple[Any, Caller, dict[str, Any]]] = [
        ("say a", OWNER, {}),
        ("say b", OWNER, {}),
        ([Message.system("x"), Message.user("say a")], OWNER, {}),
        ("say a", OWNER, {"temperature": 0}),
        ("say a", OWNER, {"stop": "z"}),
        ("say a", OWNER, {"seed": 1}),
        ("say a", replace(OWNER, owner="bob"), {}),
        ("say a", replace(OWNER, agent="other"), {}),
        ("say a", replace(OWNER, version="2"), {}),
        ("say a", shared, {}),
        ("say a", replace(shared, version="2"), {}),
    ]
    for text, caller, options in different * 2:
        await ask(models, text, caller, cache="on", **options)
    assert fake.hits == len(different)
    await ask(models, "say a", replace(shared, owner="bob"), cache="on")
    await ask(models, "say a", replace(OWNER, session="another"), cache="on")
    assert fake.hits == len(different)


async def test_an_edited_models_file_is_another_question(tmp_path: Path, models: Models, fake: FakeUpstream) -> None:
    await ask(models, cache="on")
    models.catalog = catalog_of(tmp_path, model("default", fake.base_url, price=PRICE).replace("default-0", "newer"))
    await ask(models, cache="on")
    assert [request.body["model"] for request in fake.requests] == ["default-0", "newer"]


async def test_equal_calls_at_once_are_one(models: Models, fake: FakeUpstream) -> None:
    recorder = Recorder()
    fake.fail("first=0.2")
    answers = await asyncio.gather(
        *(ask(models, caller=another_run(), recorder=recorder, cache="on") for _ in range(20))
    )
    assert (set(answers), fake.hits) == ({"hello there"}, 1)
    assert sorted(step.from_cache for step in recorder.steps) == [False] + [True] * 19
    assert recorder.usage.total == 5


async def test_a_run_that_has_not_read_its_answer_may_ask_again(models: Models, fake: FakeUpstream) -> None:
    llm = run_llm(models.path, Recorder())
    async with asyncio.timeout(10):
        unread = await llm.acall("say hello there", temperature=0)
        assert await llm.ainvoke("say hello there", temperature=0) == "hello there"
    assert await unread.text() == "hello there"
    assert await llm.ainvoke("say hello there", temperature=0) == "hello there"
    assert fake.hits == 2


async def test_a_leader_that_is_cancelled_passes_on_and_one_that_fails_fails_for_all_who_wait(
    models: Models, fake: FakeUpstream
) -> None:
    fake.fail("hang")
    leader = asyncio.ensure_future(ask(models, cache="on"))
    await fake.until(lambda: fake.hits == 1)
    followers = [asyncio.ensure_future(ask(models, caller=another_run(), cache="on")) for _ in range(3)]
    await asyncio.sleep(0.05)
    fake.fail("400")
    leader.cancel()
    found = await asyncio.gather(*followers, return_exceptions=True)
    assert all(isinstance(each, LLMError) for each in found)
    assert fake.hits == 2
    assert await ask(models, cache="on") == "hello there"
    with pytest.raises(asyncio.CancelledError):
        await leader


@pytest.mark.parametrize("fault", ["cut", "drop", "error"])
async def test_what_broke_off_is_not_kept(models: Models, fake: FakeUpstream, fault: str) -> None:
    fake.fail(fault)
    reply = await run_llm(models.path, Recorder()).acall("say one two three", cache="on")
    try:
        await reply.text()
    except LLMError:
        assert fault == "error"
    assert await ask(models, "say one two three", cache="on") == "one two three"
    assert fake.hits == 2


async def test_an_answer_that_its_caller_left_is_not_kept(models: Models, fake: FakeUpstream) -> None:
    text = "hi [[fault: chunks=6 delay=0.05]]"
    reply = await run_llm(models.path, Recorder()).acall(text, cache="on")
    await reply.close()
    assert await ask(models, text, cache="on") == "word0 word1 word2 word3 word4 word5 "
    assert fake.hits == 2


async def test_an_answer_that_was_too_long_for_the_call_is_not_kept(models: Models, fake: FakeUpstream) -> None:
    for _ in range(2):
        assert await ask(models, "say one two three", cache="on", max_tokens=2) == "one two "
    assert fake.hits == 2


async def test_a_fallbacks_answer_is_not_kept_under_the_first_models_name(
    tmp_path: Path, fake: FakeUpstream, other: FakeUpstream
) -> None:
    text = model("default", fake.base_url, fallback='["big"]') + model("big", other.base_url)
    async with open_models(catalog_of(tmp_path, text), cache=Cache()) as models:
        fake.fail("500", times=2)
        await ask(models, cache="on")
        assert (fake.hits, other.hits) == (1, 1)
        await asyncio.sleep(1.1)  # the cooldown
        await ask(models, cache="on")
        assert (fake.hits, other.hits) == (2, 2)
        await asyncio.sleep(2.1)
        for _ in range(2):
            await ask(models, cache="on")
    assert (fake.hits, other.hits) == (3, 2)


async def test_a_small_answer_from_the_cache_is_judged_anew(
    tmp_path: Path, fake: FakeUpstream, other: FakeUpstream
) -> None:
    text = model("small", fake.base_url) + model("big", other.base_url) + model("default", cascade='["small", "big"]')
    async with open_models(catalog_of(tmp_path, text), cache=Cache()) as models:
        await ask(models, cache="on")
        assert (fake.hits, other.hits) == (1, 0)
        await ask(models, cache="on", accept=lambda _: False)
        await ask(models, cache="on", accept=lambda _: False)
    assert (fake.hits, other.hits) == (1, 1)


async def test_a_second_turn_begins_with_the_bytes_of_the_first(models: Models, fake: FakeUpstream) -> None:
    llm = run_llm(models.path, Recorder(), temperature=0.5)
    turns = [Message.system("Be brief. Fasse dich kürzer. 简短"), Message.user("say hello"), Message.assistant("hello")]
    await llm.ainvoke(turns[:2])
    await llm.ainvoke([*turns, Message.user("say bye")], max_tokens=100)
    first, second = (request.raw for request in fake.requests)
    end = first.index(b'],"')
    assert b'"say hello"' in first[:end]
    assert second.startswith(first[:end] + b",")


# With the whole platform


@pytest.fixture
async def house(running: Engines, database_url: str, tmp_path: Path, fake: FakeUpstream) -> AsyncIterator[House]:
    agents(tmp_path, sharing={"shares_cache": True})
    text = model("default", fake.base_url, price=PRICE)
    async with calling_house(running, database_url, tmp_path, text) as opened:
        yield opened


async def keys(house: House, pattern: str) -> int:
    assert house.platform.redis
    return len([key async for key in house.platform.redis.scan_iter(match=pattern, count=1000)])


async def until_keys(house: House, pattern: str, count: int) -> None:
    async with asyncio.timeout(10):
        while await keys(house, pattern) != count:
            await asyncio.sleep(0.02)


async def test_users_share_only_what_an_agent_shares(house: House, fake: FakeUpstream) -> None:
    ann, bob = await house.user("ann"), await house.user("bob")
    for client in (ann, ann, bob):
        assert (await call(client, say="say mine", cache="on"))["content"] == "mine"
    assert fake.hits == 2
    for client in (ann, bob):
        answer = await call(client, agent="sharing", say="say ours", cache="on")
    assert fake.hits == 3
    assert (answer["usage"]["cost"], answer["usage"]["saved"]) == ("0", "0.00004")


async def test_another_text_of_an_agent_is_another_question(house: House, fake: FakeUpstream, tmp_path: Path) -> None:
    ann = await house.user("ann")
    for _ in range(2):
        await call(ann, say="say hello", cache="on")
    assert fake.hits == 1
    agents(tmp_path, calling={"note": "edited"})
    async with asyncio.timeout(10):
        while fake.hits == 1:
            await call(ann, say="say hello", cache="on")
            await asyncio.sleep(0.1)
    await call(ann, say="say hello", cache="on")
    assert fake.hits == 2


async def test_a_message_answered_again_gets_a_fresh_answer(house: House, fake: FakeUpstream) -> None:
    ann = await house.user("ann")
    first = await call(ann, say="say hello", cache="on")
    fake.fail("chunks=1")
    again = await ann.post(f"/api/v1/messages/{first['message_id']}/regenerate", json={})
    assert (again.status_code, again.json()["content"]) == (200, "word0 ")
    assert (await call(ann, say="say hello", cache="on"))["content"] == "word0 "
    assert fake.hits == 2


async def test_the_cache_is_counted_and_emptied_by_user(house: House, fake: FakeUpstream) -> None:
    ann, bob = await house.user("ann"), await house.user("bob")
    for client in (ann, ann, ann, bob):
        await call(client, say="say hello there", cache="on")
    (row,) = (await ann.get("/api/v1/cache")).json()["data"]
    assert (row["agent_id"], row["hits"], row["misses"], row["tokens"]) == ("calling", 2, 1, 10)
    (row,) = (await bob.get("/api/v1/cache")).json()["data"]
    assert (row["hits"], row["misses"]) == (0, 1)
    bobs = bob.headers["x-test-user"]
    for answer in (
        await ann.get("/api/v1/cache", params={"user_id": bobs}),
        await ann.delete("/api/v1/cache", params={"user_id": bobs}),
    ):
        assert answer.status_code == 403
    assert (await ann.delete("/api/v1/cache")).json() == {"purged": 1}
    await call(bob, say="say hello there", cache="on")
    assert fake.hits == 2, "another's entries stay"
    await call(ann, say="say hello there", cache="on")
    assert fake.hits == 3
    assert (await house.admin.delete("/api/v1/cache", params={"user_id": bobs})).json() == {"purged": 1}
    await call(bob, say="say hello there", cache="on")
    assert fake.hits == 4


async def test_what_is_erased_is_erased_from_the_cache(house: House, fake: FakeUpstream) -> None:
    ann = await house.user("ann")
    mine = f"cache:entry:{ann.headers['x-test-user']}:*"
    first, second = await session(ann, "calling"), await session(ann, "calling")
    await call(ann, first, say="say one", cache="on")
    await call(ann, second, say="say two", cache="on", embed=["a text"])
    await call(ann, second, say="say three", cache="on")
    await until_keys(house, mine, 4)
    assert (await ann.post("/DeleteSession", json={"session_id": first})).status_code == 204
    assert (await keys(house, mine), await keys(house, f"cache:session:{first}")) == (3, 0)
    await call(ann, say="say one", cache="on")
    assert fake.hits == 5
    await until_keys(house, mine, 4)
    ours = await session(ann, "sharing")
    await call(ann, ours, agent="sharing", say="say ours", cache="on")
    assert (await house.admin.delete(f"/api/v1/users/{ann.headers['x-test-user']}")).status_code == 204
    assert await keys(house, mine) == 0
    assert await keys(house, f"cache:session:{ours}") <= 1
    bob = await house.user("bob")
    before = fake.hits
    await call(bob, agent="sharing", say="say ours", cache="on")
    assert fake.hits == before + 1, "what she asked is not answered to others"


async def test_what_was_erased_before_a_server_began_is_no_news_to_it(
    running: Engines, database_url: str, tmp_path: Path, fake: FakeUpstream
) -> None:
    async with aclosing(redis.connect(running.redis_url)) as client:
        await RedisCache(client).erase(Erasure())
    async with calling_house(running, database_url, tmp_path, model("default", fake.base_url)) as house:
        ann = await house.user("ann")
        fake.fail("first=1.5")  # so long that the cache is told of erasures meanwhile
        for _ in range(2):
            await call(ann, say="say hello", cache="on")
    assert fake.hits == 1
