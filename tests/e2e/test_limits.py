"""Limits hold over real server processes: calls under way, budgets, requests a minute, turns, and one call for equal ones."""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import shutil
import sys
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import aiohttp
import pytest
import pytest_asyncio

from tests.e2e.cluster import ADMIN_KEY, Caller, Cluster, Listener, Server, Upstream, cluster, slowly, until, words
from tests.e2e.test_serve import ROOT

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="module")]
WORKERS = 2
"""Processes of each of the two servers."""
LIMIT = 4
"""Calls under way at an endpoint."""
BUDGET = 1000
"""Tokens."""
PER_MINUTE = 12
SEED = int(os.environ.get("TEST_SEED") or random.randrange(10**9))
TOO_MUCH = re.compile(
    r"Your budget (is used up|(has too little left|is too small) for this call)\.|"
    r"Calls under way hold what is left of a budget\."
)
LOADED = "models.toml is loaded: "


class Installation:
    """Two servers with the same models file, which is edited while they run."""

    def __init__(self, made: Cluster, folder: Path) -> None:
        self.made = made
        self.one, self.two = made.servers[:2]
        self.both = [self.one, self.two]
        self.folder = folder

    def write(self, name: str, text: str) -> None:
        """Write a file of the folder in which the servers were started, at once or not at all."""
        new = self.folder / f"{name}.new"
        new.write_text(text)
        new.replace(self.folder / name)

    async def told(self, text: str, line: str) -> None:
        """Write the models file, and wait until each process has said so in its log."""
        before = [server.output.count(line) for server in self.both]
        self.write("models.toml", text)

        def all_have() -> bool:
            now = [server.output.count(line) for server in self.both]
            return all(count >= earlier + WORKERS for count, earlier in zip(now, before, strict=True))

        await until(all_have, 5, line)

    async def models(self, text: str) -> None:
        """Let the models file be this."""
        await self.told(text, LOADED)

    async def sessions(self, caller: Caller, count: int, **params: Any) -> list[tuple[Server, str]]:
        """So many new sessions, half of them for each server."""
        servers = [self.both[at % 2] for at in range(count)]
        ids = await asyncio.gather(*(caller.session(server, **params) for server in servers))
        return list(zip(servers, ids, strict=True))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def installation(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Installation]:
    folder = tmp_path_factory.mktemp("limits")
    sys.stdout.write(f"TEST_SEED={SEED}\n")
    (folder / "models.toml").write_text(model("first", "http://127.0.0.1:9/v1"))
    (folder / ".env").write_text("THEIR_KEY=sk-the-first-key\n")
    shared = {"MODELS_FILE": str(folder / "models.toml"), "SECRET_KEY": "the same in every process of them"}
    async with cluster(folder, 2, WORKERS=str(WORKERS), **shared) as made:
        yield Installation(made, folder)


@pytest_asyncio.fixture(loop_scope="module")
async def house(installation: Installation) -> Installation:
    """The installation with both servers running, whatever an earlier test has left."""
    await installation.made.ready()
    return installation


@pytest_asyncio.fixture(loop_scope="module")
async def fake(installation: Installation) -> AsyncIterator[Upstream]:
    """An upstream that nobody has asked anything yet."""
    upstream = Upstream(installation.made.http)
    yield upstream
    upstream.stop()


def model(alias: str, base_url: str, more: str = "", **keys: Any) -> str:
    """A table of the models file with one endpoint."""
    pairs = {"base_url": base_url, "model": alias, **keys}
    shown = ", ".join(
        f'{key} = "{value}"' if isinstance(value, str) else f"{key} = {value}" for key, value in pairs.items()
    )
    return f"[models.{alias}]\nendpoints = [{{ {shown} }}]\n{more}\n"


async def send(caller: Caller, server: Server, session_id: str, content: str) -> tuple[int, Mapping[str, str], Any]:
    """A message, and its answer whatever it is."""
    return await caller.ask(server, "POST", "/SendMessage", {"session_id": session_id, "content": content})


def say(count: int, delay: float = 0.0) -> str:
    """A message that is answered with so many words."""
    return slowly(words(count, "w"), delay)


def contents(stats: dict[str, Any]) -> list[str]:
    """The last message of each request, in the order in which they came."""
    return [request["body"]["messages"][-1]["content"] for request in stats["requests"]]


# Calls under way


async def test_four_processes_never_have_more_calls_under_way_than_one_limit(
    house: Installation, fake: Upstream
) -> None:
    await house.models(model("narrow", fake.base_url, max_concurrency=LIMIT))
    caller = await house.made.user(house.one, "narrow")
    places = await house.sessions(caller, 16, model="narrow")
    answers = await asyncio.gather(*(caller.say(*place, say(6, 0.05)) for place in places))
    assert [answer["content"] for answer in answers] == [words(6, "w")] * 16
    stats = await fake.stats()
    assert (stats["hits"], stats["completed"], stats["most_open"]) == (16, 16, LIMIT)


async def test_calls_that_are_cancelled_at_any_moment_neither_break_the_limit_nor_keep_a_slot(
    house: Installation, fake: Upstream
) -> None:
    dice = random.Random(SEED)
    await house.models(model("cancelled", fake.base_url, max_concurrency=LIMIT))
    caller = await house.made.user(house.one, "cancels")
    places = await house.sessions(caller, 40, model="cancelled")
    listeners = [Listener(caller.stream(*place, say(6, 0.05))) for place in places]
    await until(lambda: all(listener.events for listener in listeners), 20)

    async def cancel(listener: Listener) -> None:
        await asyncio.sleep(dice.uniform(0, 2))
        await caller.post(dice.choice(house.both), "/CancelRun", {"run_id": listener.run_id})

    await asyncio.gather(*map(cancel, listeners[:20]))
    for at, listener in enumerate(listeners):
        await listener.done(30)
        end = listener.end["status"]
        assert end == "completed" or (end == "cancelled" and at < 20)
        assert listener.text == words(6, "w")[: len(listener.text)]
        assert end == "cancelled" or listener.text == words(6, "w")
    stats = await fake.stats()
    assert stats["most_open"] == LIMIT
    assert stats["open"] == 0
    await caller.say(*places[0], say(1))


async def test_the_slots_of_a_killed_server_come_back(house: Installation, fake: Upstream) -> None:
    await house.models(model("killed", fake.base_url, max_concurrency=LIMIT))
    caller = await house.made.user(house.one, "killed")
    places = await house.sessions(caller, 16, model="killed")
    talks = [asyncio.create_task(caller.say(*place, say(12, 0.05))) for place in places]
    await until(lambda: sum(talk.done() for talk in talks) >= 2, 20, "the first answers")
    house.one.kill()
    answers = await asyncio.gather(*talks, return_exceptions=True)
    for (server, _), answer in zip(places, answers, strict=True):
        if server is house.two or not isinstance(answer, aiohttp.ClientError):
            assert isinstance(answer, dict), answer
            assert answer["content"] == words(12, "w")
    assert any(isinstance(answer, aiohttp.ClientError) for answer in answers)
    assert (await fake.stats())["most_open"] == LIMIT

    rest = await asyncio.gather(*(caller.session(house.two, model="killed") for _ in range(2 * LIMIT)))
    later = [asyncio.create_task(caller.say(house.two, id, say(12, 0.1))) for id in rest]

    async def all_are_used() -> bool:
        return bool((await fake.stats())["open"] == LIMIT)

    await until(all_are_used, 10, "the use of all slots by who is left")
    assert [answer["content"] for answer in await asyncio.gather(*later)] == [words(12, "w")] * len(later)
    assert (await fake.stats())["most_open"] == LIMIT


async def test_who_asks_now_and_then_is_not_kept_by_two_hundred_calls_of_another(
    house: Installation, fake: Upstream
) -> None:
    await house.models(model("fair", fake.base_url, max_concurrency=LIMIT))
    many, single = await house.made.user(house.one, "many"), await house.made.user(house.one, "single")
    crowd = [
        asyncio.create_task(many.say(*place, say(3, 0.03))) for place in await house.sessions(many, 200, model="fair")
    ]
    places = await house.sessions(single, 8, model="fair")
    await until(lambda: sum(talk.done() for talk in crowd) >= LIMIT, 20, "the first answers")
    waited = []
    for at, place in enumerate(places):
        before = (await fake.stats())["hits"]
        await single.say(*place, f"say hello{at}")
        stats = await fake.stats()
        waited.append(contents(stats).index(f"say hello{at}") - before)
    assert stats["hits"] < 200, "the crowd was gone"
    sys.stdout.write(f"calls of the crowd before each single one: {waited}\n")
    # Those count too that go while the single message is on its way to the line, which on a busy machine may be many.
    assert median(waited) <= 2 * LIMIT
    assert max(waited) <= 50
    assert all(answer["content"] == words(3, "w") for answer in await asyncio.gather(*crowd))
    assert (await fake.stats())["most_open"] == LIMIT


# Budgets


async def budget_of(house: Installation, caller: Caller) -> str:
    """The id of a new budget of a user."""
    body = {"scope": "user", "id": caller.user_id, "period": "total", "tokens": BUDGET}
    return str((await house.made.admin.post(house.one, "/api/v1/budgets", body))["id"])


async def spent(house: Installation, budget_id: str, caller: Caller) -> int:
    """The tokens that its counter has, once all is settled: exactly what the ledger has, and no reservation beside it."""
    going = "SELECT FROM runs WHERE user_id = $1 AND ended_at IS NULL"
    held = "SELECT FROM reservations WHERE budget_id = $1"

    async def all_is_settled() -> bool:
        return not (await house.made.rows(going, caller.user_id) or await house.made.rows(held, budget_id))

    await until(all_is_settled, 45, "the end of all runs and reservations")
    (row,) = await house.made.rows(
        """SELECT c.tokens, c.money, l.* FROM budget_counters c, (
             SELECT sum(prompt_tokens + completion_tokens) AS booked, sum(cost) AS cost FROM ledger WHERE user_id = $2) l
           WHERE c.budget_id = $1""",
        budget_id,
        caller.user_id,
    )
    assert (row["tokens"], row["money"]) == (row["booked"], row["cost"])
    return int(row["tokens"])


def refusals(answers: Sequence[Any]) -> list[str]:
    """What was refused, which is told well: the codes."""
    codes = []
    for status, headers, told in answers:
        if status != 200:
            assert (status, TOO_MUCH.fullmatch(told["detail"]) is not None) == (429, True), told
            assert (told["code"] == "insufficient_quota") is (headers.get("x-should-retry") == "false")
            assert (told["code"] == "rate_limited") is ("retry-after" in headers)
            codes.append(told["code"])
    return codes


async def test_two_hundred_messages_at_once_use_no_more_than_a_budget(house: Installation, fake: Upstream) -> None:
    short = model("short", fake.base_url, "defaults = { max_tokens = 20 }\nprice = { prompt = 10, completion = 20 }")
    await house.models(short + model("long", fake.base_url))
    caller = await house.made.user(house.one, "spends")
    budget_id = await budget_of(house, caller)
    places = await house.sessions(caller, 200, model="short")
    answers = await asyncio.gather(*(send(caller, *place, say(25, 0.01)) for place in places))
    codes = refusals(answers)
    assert 5 < 200 - len(codes) < 200
    used = await spent(house, budget_id, caller)
    assert used == (await fake.stats())["tokens"] <= BUDGET

    last = [
        await send(caller, house.both[at % 2], await caller.session(house.two, model="long"), say(900))
        for at in range(4)
    ]
    assert refusals(last)[-1] == "insufficient_quota"
    used = await spent(house, budget_id, caller)
    stats = await fake.stats()
    assert used == stats["tokens"] <= BUDGET
    assert len(stats["requests"]) == 200 - len(codes) + 4 - len(refusals(last))


async def test_the_calls_of_a_killed_server_are_charged_and_the_budget_holds(
    house: Installation, fake: Upstream
) -> None:
    await house.models(model("short", fake.base_url, "defaults = { max_tokens = 20 }"))
    caller = await house.made.user(house.two, "bereft")
    budget_id = await budget_of(house, caller)
    places = await house.sessions(caller, 200, model="short")
    content = say(25, 0.15)
    places.sort(key=lambda place: place[0] is house.two)
    talks = [asyncio.create_task(send(caller, *place, content)) for place in places[:4]]

    async def four_are_asked() -> bool:
        return bool((await fake.stats())["open"] == 4)

    await until(four_are_asked, 20, "calls of the first server")
    talks += [asyncio.create_task(send(caller, *place, content)) for place in places[4:] if place[0] is house.two]

    async def those_that_have_room_speak() -> bool:
        stats = await fake.stats()
        spoken = stats["tokens"] - stats["hits"] * len(content.split())
        return bool(stats["open"] >= 6 and spoken >= 8 * stats["open"])

    await until(those_that_have_room_speak, 20, "calls under way")
    house.one.kill()
    answers = await asyncio.gather(*talks, return_exceptions=True)
    lost = [answer for answer in answers if isinstance(answer, BaseException)]
    assert len(lost) == 4
    assert all(isinstance(answer, aiohttp.ClientError) for answer in lost)
    refusals([answer for answer in answers if not isinstance(answer, BaseException)])
    waiting = [await caller.session(house.two, model="short") for _ in range(20)]
    refusals(await asyncio.gather(*(send(caller, house.two, id, say(25)) for id in waiting)))
    used = await spent(house, budget_id, caller)
    dead = await house.made.rows(
        """SELECT l.* FROM runs r LEFT JOIN ledger l ON l.run_id = r.id
           WHERE r.user_id = $1 AND r.error->>'code' = 'server_lost'""",
        caller.user_id,
    )
    assert len(dead) == len(lost)
    for row in dead:
        assert row["estimated"]
        assert row["prompt_tokens"] > 0
        assert 1 <= row["completion_tokens"] <= 20
    assert used <= BUDGET
    assert (await fake.stats())["tokens"] <= BUDGET + len(dead) * (len(content.split()) + 20)


# Requests a minute


async def test_a_user_may_make_so_many_requests_a_minute_at_all_servers_together(house: Installation) -> None:
    made = house.made
    limited = [made.add(f"limited{at}", REQUESTS_PER_MINUTE=str(PER_MINUTE)) for at in range(2)]
    for server in limited:
        server.start()
    for server in limited:
        await server.ready()
    caller, other = await made.user(house.one, "hasty"), await made.user(house.one, "quiet")
    if time.time() % 60 > 50:  # a minute is one of the clock
        await asyncio.sleep(60.1 - time.time() % 60)
    asks = [caller.ask(limited[at % 2], "GET", "/api/v1/sessions") for at in range(3 * PER_MINUTE)]
    answers = await asyncio.gather(*asks)
    left = {"x-ratelimit-limit-requests": str(PER_MINUTE)}
    passed = [headers for status, headers, _ in answers if status == 200]
    assert sorted(int(headers["x-ratelimit-remaining-requests"]) for headers in passed) == list(range(PER_MINUTE))
    for status, headers, told in answers:
        assert left.items() <= {name.lower(): value for name, value in headers.items()}.items()
        resets_in = int(headers["x-ratelimit-reset-requests"].removesuffix("s"))
        assert 1 <= resets_in <= 60
        if status != 200:
            assert (status, told["code"]) == (429, "rate_limited")
            assert told["detail"] == f"Only {PER_MINUTE} requests are allowed in a minute."
            assert headers["x-ratelimit-remaining-requests"] == "0"
            assert headers["retry-after"] == str(resets_in)
    status, headers, _ = await other.ask(limited[0], "GET", "/api/v1/sessions")
    assert (status, headers["x-ratelimit-remaining-requests"]) == (200, str(PER_MINUTE - 1))
    for server in limited:
        server.stop()
        made.servers.remove(server)


# The file


async def test_the_models_file_is_edited_while_the_servers_run(house: Installation, fake: Upstream) -> None:
    caller = await house.made.user(house.one, "edits")
    status, _, told = await send(caller, house.one, await caller.session(house.one, model="new"), "say x")
    assert (status, told["code"]) == (404, "not_found")
    good = model("new", fake.base_url, api_key_env="THEIR_KEY")
    await house.models(good)
    places = await house.sessions(caller, 8, model="new")
    assert {(await caller.say(*place, "say new"))["content"] for place in places} == {"new"}

    broken = good + '\nprice = { prompt = 1, completion = 1 }\nfallback = ["nowhere"]\n'
    await house.told(broken, "models.toml, line 6, models.new.fallback[0]: there is no model named nowhere.")
    assert {(await caller.say(*place, "say still"))["content"] for place in places} == {"still"}

    house.write(".env", "THEIR_KEY=sk-the-second-key\n")
    await house.models(good)
    assert {(await caller.say(*place, "say changed"))["content"] for place in places} == {"changed"}
    keys = [request["authorization"] for request in (await fake.stats())["requests"]]
    assert keys == ["Bearer sk-the-first-key"] * 16 + ["Bearer sk-the-second-key"] * 8
    assert "sk-the" not in house.one.output + house.two.output


# One call for equal ones


async def test_twenty_equal_messages_at_two_servers_are_one_call(house: Installation, fake: Upstream) -> None:
    await house.models(model("single", fake.base_url, "price = { prompt = 10, completion = 20 }"))
    caller, other = await house.made.user(house.one, "equal"), await house.made.user(house.one, "other")
    places = await house.sessions(caller, 20, model="single", temperature=0)
    answers = await asyncio.gather(*(caller.say(*place, say(10, 0.1)) for place in places))
    assert {answer["content"] for answer in answers} == {words(10, "w")}
    assert (await fake.stats())["hits"] == 1
    assert sorted(answer["usage"]["cost"] != "0" for answer in answers) == [False] * 19 + [True]
    (theirs,) = await house.sessions(other, 1, model="single", temperature=0)
    await other.say(*theirs, say(10, 0.1))
    assert (await fake.stats())["hits"] == 2


# The page


async def test_the_calls_that_the_page_shows_can_be_made(house: Installation, fake: Upstream) -> None:
    if not (shutil.which("bash") and shutil.which("curl")):
        pytest.skip("bash and curl are needed to follow the page")
    await house.models(model("shown", fake.base_url))
    ada = await house.made.user(house.one, "ada")
    (place,) = await house.sessions(ada, 1, model="shown", temperature=0)
    await ada.say(*place, "say hello")
    blocks = re.findall(r"^```bash\n(.*?)^```$", (ROOT / "docs/models.md").read_text(), re.MULTILINE | re.DOTALL)
    readers = (ROOT / "README.md").read_text()
    its_id = next(line for line in readers.splitlines() if line.startswith("its_id()"))
    given = [
        f"URL={house.one.url}",
        f'KEY="Authorization: Bearer {ADMIN_KEY}"',
        "JSON='Content-Type: application/json'",
    ]
    shell = await asyncio.create_subprocess_exec(
        "bash", "-euc", "\n".join([*given, its_id, f"ADA={ada.user_id}", *blocks]), stdout=asyncio.subprocess.PIPE
    )
    printed, _ = await shell.communicate()
    cached, purged, usage, budgets, deleted = printed.decode().splitlines()
    assert [row["agent_id"] for row in json.loads(cached)["data"]] == ["simple_openai_agent"]
    assert json.loads(purged)["purged"] >= 1
    assert "shown" in [row["id"] for row in json.loads(usage)["data"]]
    (mine,) = [row for row in json.loads(budgets)["data"] if row["scope_id"] == ada.user_id]
    assert (mine["tokens"], mine["money"], mine["used"]["tokens"]) == (100000, "0.5", 3)
    assert deleted == "204"
