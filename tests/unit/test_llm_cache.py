"""The cache of answers: its keys, what it keeps, and how equal calls share one."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, Mapping, Sequence
from decimal import Decimal

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.domain import Chunk, Usage
from app.errors import LLMUnavailable, Unavailable
from app.llm.cache import MAX_ENTRY, Cache
from app.llm.entries import REMEMBERED, CachedAnswer, CachedVector, Erasure, Kept, Recent, decode, encode
from app.llm.flights import Turns
from app.llm.llm import Finish
from app.llm.shelf import Counts, Question, Write
from app.llm.stages import cache_key
from app.tasks import Tasks

SECRET = b"a secret of the tests"
USAGE = Usage(10, 5, cached=2, reasoning=1, cost=Decimal("0.5"))
FINISH = Finish("stop", USAGE, "m")
Inputs = tuple[str, str, str, str, bytes]


def answer(text: str = "hello") -> CachedAnswer:
    made = CachedAnswer.of([Chunk(text)], FINISH)
    assert made
    return made


def question(
    key: str = "k", *, owner: str = "ann", agent: str = "echo", session: str = "s1", ttl: float = 60
) -> Question:
    return Question(key, owner, owner, agent, session, ttl)


def text_of(entry: object) -> str:
    assert isinstance(entry, CachedAnswer)
    return entry.chunks[0].content


class MemoryStore:
    """A store in memory, for several caches at once. While `away` every verb fails; every trip takes some turns of the loop."""

    def __init__(self) -> None:
        self.entries: dict[str, tuple[Question, bytes]] = {}
        self.locks: dict[str, tuple[str, float]] = {}
        self.counts: dict[str, Counts] = {}
        self.erasures: list[Erasure] = []
        self.away = False
        self.trips = 0
        self.random = random.Random(1)

    async def _trip(self) -> None:
        self.trips += 1
        for _ in range(self.random.randrange(4)):
            await asyncio.sleep(0)
        if self.away:
            raise Unavailable

    async def get(self, questions: Sequence[Question]) -> Sequence[bytes | None]:
        await self._trip()
        return [self.entries[each.key][1] if each.key in self.entries else None for each in questions]

    async def claim(self, question: Question, token: str, seconds: float) -> bytes | bool:
        await self._trip()
        if question.key in self.entries:
            return self.entries[question.key][1]
        now = asyncio.get_running_loop().time()
        holder, until = self.locks.get(question.key, (token, now))
        if holder != token and until > now:
            return False
        self.locks[question.key] = token, now + seconds
        return True

    async def write(self, writes: Sequence[Write]) -> None:
        await self._trip()
        for question, data, token in writes:
            if data:
                self.entries[question.key] = question, data
            if question.key in self.locks and self.locks[question.key][0] == token:
                del self.locks[question.key]

    async def erase(self, erasure: Erasure) -> int:
        await self._trip()
        gone = [key for key, (made, _) in self.entries.items() if erasure.covers(made.owner, made.agent, made.session)]
        for key in gone:
            del self.entries[key]
        self.erasures.append(erasure)
        return len(gone)

    async def exchange(self, counts: Mapping[tuple[str, str], Counts], heard: str) -> tuple[Sequence[Erasure], str]:
        await self._trip()
        for (_, agent), counted in counts.items():
            self.counts.setdefault(agent, Counts()).add(counted)
        return self.erasures[int(heard or 0) :], str(len(self.erasures))

    async def statistics(self, owner: str | None) -> dict[str, Counts]:
        await self._trip()
        return {agent: Counts(each.hits, each.misses, each.bytes, each.tokens) for agent, each in self.counts.items()}


# Keys


texts = st.text(alphabet=st.characters(), max_size=6)
inputs = st.tuples(texts, texts, texts, texts, st.binary(max_size=6))


def key_of(given: Inputs, secret: bytes = SECRET) -> str:
    scope, agent, version, model, body = given
    return cache_key(secret, scope=scope, agent=agent, version=version, model=model, body=body)


@given(inputs, inputs)
def test_keys_are_equal_exactly_when_everything_is(one: Inputs, other: Inputs) -> None:
    assert (key_of(one) == key_of(other)) == (one == other)


@given(st.text(alphabet="ab\x00\x01", max_size=12), st.data())
def test_borders_between_the_parts_of_a_key_count(text: str, data: st.DataObject) -> None:
    def split() -> Inputs:
        at = sorted(data.draw(st.lists(st.integers(0, len(text)), min_size=4, max_size=4)))
        a, b, c, d = at
        return text[:a], text[a:b], text[b:c], text[c:d], text[d:].encode()

    one, other = split(), split()
    assert (key_of(one) == key_of(other)) == (one == other)


def test_a_key_depends_on_the_secret_and_may_hold_half_a_surrogate_pair() -> None:
    parts = ("u", "a", "\ud800", "m", b"{}")
    assert key_of(parts) != key_of(parts, b"another")
    assert len(key_of(parts)) == 64


# Entries


def test_an_entry_gives_the_same_stream_at_no_cost() -> None:
    said = [
        Chunk("Hm", "thinking"),
        Chunk(".", "thinking"),
        Chunk("a"),
        Chunk("b"),
        Chunk("{}", "tool"),
        Chunk("{}", "tool"),
    ]
    made = CachedAnswer.of(said, FINISH)
    assert made
    *chunks, finish = made.items()
    assert chunks == [Chunk("Hm.", "thinking"), Chunk("ab"), Chunk("{}", "tool"), Chunk("{}", "tool")]
    assert finish == Finish("stop", Usage(10, 5, cached=2, reasoning=1), "m")
    assert made.tokens == 15


@pytest.mark.parametrize(
    ("reason", "cached"), [("stop", True), ("tool_calls", True), ("length", False), ("cut", False)]
)
def test_only_complete_answers_are_cached(reason: str, cached: bool) -> None:
    assert (CachedAnswer.of([Chunk("a")], Finish(reason, USAGE)) is not None) == cached


@pytest.mark.parametrize("entry", [answer("界"), CachedVector(b"\x00\x01", 3)])
def test_an_entry_is_the_same_after_its_journey(entry: CachedAnswer | CachedVector) -> None:
    kept = Kept(1, 12.5, "ann", "s1", entry)
    assert decode(encode(kept) or b"") == kept


@given(st.binary(max_size=80))
def test_foreign_bytes_are_a_miss(data: bytes) -> None:
    assert decode(data) is None


@given(st.data())
def test_broken_bytes_are_a_miss_or_another_whole_entry(data: st.DataObject) -> None:
    good = bytearray(encode(Kept(1, 12.5, "ann", "s1", answer())) or b"")
    at = data.draw(st.integers(0, len(good) - 1))
    assert decode(bytes(good[:at])) is None
    good[at] = data.draw(st.integers(0, 255))
    found = decode(bytes(good))
    assert found is None or list(found.entry.items() if isinstance(found.entry, CachedAnswer) else [])


def test_an_entry_of_another_version_is_a_miss() -> None:
    values = msgspec.msgpack.decode(encode(Kept(1, 12.5, "ann", "s1", answer())) or b"")
    assert decode(msgspec.msgpack.encode(values)) is not None
    assert decode(msgspec.msgpack.encode([2, *values[1:]])) is None


def test_the_newest_entries_are_held_within_their_bytes() -> None:
    recent = Recent(5000)
    kept = Kept(1, float("inf"), "ann", "", answer())
    for key in "abcd":
        recent.put(key, kept, "echo", 200)
    assert recent.get("a")  # which makes it the newest
    recent.put("e", kept, "echo", 200)
    assert [key for key in "abcde" if recent.get(key)] == ["a", "c", "d", "e"]
    recent.put("a", kept, "echo", 2500)
    recent.put("f", kept, "echo", 5000)
    assert recent.bytes <= 5000
    assert recent.get("a")
    assert not recent.get("f")


def test_an_expired_entry_is_a_miss_and_takes_no_room() -> None:
    now = 100.0
    recent = Recent(5000, lambda: now)
    recent.put("a", Kept(1, 101.0, "ann", "", answer()), "echo", 10)
    assert recent.get("a")
    now = 101.0
    assert not recent.get("a")
    assert recent.bytes == 0


def test_of_many_erasures_those_that_are_forgotten_may_have_covered_anything() -> None:
    recent = Recent(5000)
    before = recent.erasures
    recent.erase([Erasure(session=f"s{number}") for number in range(REMEMBERED)])
    assert recent.erased_since(before, "ann", "echo", "s0")
    assert not recent.erased_since(before, "ann", "echo", "other")
    recent.erase([Erasure(owner="bob")])
    assert recent.erased_since(before, "ann", "echo", "other")
    assert not recent.erased_since(before + 1, "ann", "echo", "other")


# Sharing


async def ask(cache: Cache, asked: Question, make: list[str], mode: str = "on") -> str:
    """One call: served, or made by taking the next of `make` (nothing left, or an empty text: it fails)."""
    assert mode in ("on", "refresh")
    async with cache.flight(asked, mode) as flight:  # type: ignore[arg-type]  # checked above
        if flight.entry:
            return text_of(flight.entry)
        await asyncio.sleep(0.001)
        text = make.pop(0)
        if not text:
            raise Unavailable
        flight.put(answer(text))
        return text


async def test_equal_calls_share_one_and_a_later_one_is_served_at_once() -> None:
    cache = Cache()
    assert set(await asyncio.gather(*(ask(cache, question(), ["one"] * 1) for _ in range(20)))) == {"one"}
    make = ["two"]
    assert await ask(cache, question(), make) == "one"
    assert await ask(cache, question("other"), make) == "two"
    counts = (await cache.statistics())["echo"]
    assert (counts.hits, counts.misses, counts.tokens) == (20, 2, 20 * 15)


async def test_a_failure_is_the_leaders_own_and_the_next_one_leads() -> None:
    cache, make = Cache(), ["", "", "good"]
    results = await asyncio.gather(*(ask(cache, question(), make) for _ in range(10)), return_exceptions=True)
    assert [type(result) for result in results[:2]] == [Unavailable, Unavailable]
    assert results[2:] == ["good"] * 8
    assert make == []


async def test_a_failure_of_the_upstream_is_that_of_all_who_wait() -> None:
    cache, led = Cache(), 0

    async def call() -> None:
        nonlocal led
        async with cache.flight(question()):
            led += 1
            await asyncio.sleep(0.001)
            raise LLMUnavailable

    results = await asyncio.gather(*(call() for _ in range(12)), return_exceptions=True)
    assert ({type(result) for result in results}, led) == ({LLMUnavailable}, 1)
    assert await ask(cache, question(), ["good"]) == "good"


async def test_one_who_is_cancelled_in_the_moment_of_a_failure_is_cancelled() -> None:
    over: list[Turns[str]] = []
    turns: Turns[str] = Turns(60, over.append)
    waiting = Tasks().start(turns.wait(), name="waiting")
    await asyncio.sleep(0)
    turns.fail(0, LLMUnavailable())
    turns.pass_on(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert over == [turns]


async def test_a_leader_that_was_joined_fails_alone() -> None:
    turns: Turns[str] = Turns(0.05, lambda _: None)
    assert await turns.wait() == (None, 1)
    waiting = Tasks().start(turns.wait(), name="waiting")
    await asyncio.sleep(0)
    turns.fail(0, LLMUnavailable())
    turns.give("the second's")
    assert await waiting == ("the second's", 0)


async def test_a_run_does_not_wait_for_itself_nor_keep_what_it_makes_beside_itself() -> None:
    cache, tasks = Cache(), Tasks()
    mine, others = question()._replace(run="r1"), question()._replace(run="r2")
    async with asyncio.timeout(10), cache.flight(mine) as unread:
        assert await ask(cache, mine, ["beside"]) == "beside"
        following = tasks.start(ask(cache, others, []), name="call")
        await asyncio.sleep(0)
        unread.put(answer("first"))
        assert await following == "first"
    assert await ask(cache, mine, []) == "first"


async def test_the_run_that_leads_next_does_not_wait_for_itself_either() -> None:
    cache, tasks = Cache(), Tasks()
    mine, others = question()._replace(run="r1"), question()._replace(run="r2")

    async def both() -> str:
        async with cache.flight(mine):
            return await ask(cache, mine, ["beside"])

    async with asyncio.timeout(10):
        async with cache.flight(others):
            next_one = tasks.start(both(), name="call")
            await asyncio.sleep(0)
        assert await next_one == "beside"


async def test_what_cannot_be_cached_is_not_shared() -> None:
    cache = Cache()
    led = 0

    async def call() -> None:
        nonlocal led
        async with cache.flight(question()) as flight:
            assert flight.entry is None
            led += 1
            await asyncio.sleep(0)

    await asyncio.gather(*(call() for _ in range(5)))
    assert led == 5


@pytest.mark.parametrize("text", ["x" * (MAX_ENTRY + 1), "half \ud800"])
async def test_what_cannot_be_kept_is_still_shared_by_those_who_wait(text: str) -> None:
    store = MemoryStore()
    cache = Cache(store)
    assert set(await asyncio.gather(*(ask(cache, question(), [text]) for _ in range(3)))) == {text}
    await cache.close()
    assert not store.entries
    assert not store.locks
    assert await ask(cache, question(), ["again"]) == "again"
    await cache.close()


@pytest.mark.parametrize("seed", range(20))
async def test_random_cancels_and_failures_leave_nobody_waiting_and_never_two_leading(seed: int) -> None:
    chance, tasks = random.Random(seed), Tasks()
    store = MemoryStore()
    caches = [Cache(store), Cache(store)]
    leading = dict.fromkeys(("a", "b"), 0)
    made = 0

    async def call(key: str) -> str:
        nonlocal made
        async with chance.choice(caches).flight(question(key)) as flight:
            if flight.entry:
                return text_of(flight.entry)
            leading[key] += 1
            try:
                assert leading[key] == 1
                for _ in range(chance.randrange(6)):
                    await asyncio.sleep(0)
                if chance.random() < 0.7:
                    raise Unavailable
                made += 1
                flight.put(answer(key))
            finally:
                leading[key] -= 1
        return key

    calls = [(key, tasks.start(call(key), name="call")) for key in chance.choices("ab", k=60)]
    for _ in range(40):
        await asyncio.sleep(0)
        chance.choice(calls)[1].cancel()
    async with asyncio.timeout(20):
        results = await asyncio.gather(*(task for _, task in calls), return_exceptions=True)
    for (key, _), result in zip(calls, results, strict=True):
        assert result == key or isinstance(result, Unavailable | asyncio.CancelledError)
    assert made <= 2
    for cache in caches:
        await cache.close()
        assert not cache._turns
    assert not store.locks


async def test_a_stream_that_is_closed_in_the_middle_lets_the_next_one_lead() -> None:
    cache, tasks = Cache(), Tasks()

    async def stream() -> AsyncGenerator[str, None]:
        async with cache.flight(question()) as flight:
            assert flight.entry is None
            yield "first"
            flight.put(answer("never"))

    left = stream()
    assert await anext(left) == "first"
    following = tasks.start(ask(cache, question(), ["second"]), name="call")
    await asyncio.sleep(0)
    await left.aclose()
    assert await following == "second"


async def test_a_slow_leader_is_joined_by_one_call_and_not_by_all() -> None:
    cache, tasks = Cache(patience=0.1), Tasks()
    slow, led = asyncio.Event(), 0

    async def call() -> str:
        nonlocal led
        async with cache.flight(question()) as flight:
            if flight.entry:
                return text_of(flight.entry)
            led += 1
            if led == 1:
                await slow.wait()
            flight.put(answer(str(led)))
            return str(led)

    calls = [tasks.start(call(), name="call") for _ in range(10)]
    assert await asyncio.gather(*calls[1:]) == ["2"] * 9
    slow.set()
    assert await calls[0] == "2"  # the count by then
    assert led == 2


async def test_the_end_of_a_leader_that_was_joined_changes_nothing_for_the_second() -> None:
    over: list[Turns[str]] = []
    turns: Turns[str] = Turns(0, over.append)
    assert await turns.wait() == (None, 1)
    turns.pass_on(0)
    assert over == []
    turns.pass_on(1)
    assert over == [turns]


async def test_refresh_asks_anew_joins_nobody_and_wins_over_what_began_before() -> None:
    cache, tasks, go = Cache(), Tasks(), asyncio.Event()

    async def slow(text: str) -> str:
        async with cache.flight(question()) as flight:
            if flight.entry:
                return text_of(flight.entry)
            await go.wait()
            flight.put(answer(text))
            return text

    before = [tasks.start(slow("old"), name="old") for _ in range(2)]
    await asyncio.sleep(0)
    assert await ask(cache, question(), ["new"], "refresh") == "new"
    go.set()
    assert await asyncio.gather(*before) == ["old", "old"]
    assert await ask(cache, question(), []) == "new"
    assert await ask(cache, question(), ["newer"], "refresh") == "newer"
    assert await ask(cache, question(), []) == "newer"


# The store


async def test_processes_share_entries_and_calls() -> None:
    store, make = MemoryStore(), ["one"]
    first, second = Cache(store), Cache(store)
    both = await asyncio.gather(*(ask(cache, question(), make) for cache in (first, second) * 5))
    assert set(both) == {"one"}
    third, trips = Cache(store), store.trips
    assert await ask(third, question(), []) == "one"
    assert store.trips == trips + 1
    assert await ask(third, question(), []) == "one"
    assert store.trips == trips + 1
    for cache in (first, second, third):
        await cache.close()


async def test_a_miss_costs_one_trip_before_the_call() -> None:
    store = MemoryStore()
    cache = Cache(store)
    async with cache.flight(question()) as flight:
        assert flight.entry is None
        assert store.trips == 1
    await cache.close()


async def test_a_lock_that_is_not_let_go_falls_through() -> None:
    store = MemoryStore()
    dead = Cache(store, patience=0.2)
    async with dead.flight(question()):
        assert await ask(Cache(store, patience=0.2), question(), ["by itself"]) == "by itself"
    await dead.close()


@pytest.mark.parametrize("data", [b"", b"\x00", b"broken", encode(Kept(1, 0.0, "ann", "", answer("expired")))])
async def test_broken_and_expired_entries_of_the_store_are_made_anew(data: bytes) -> None:
    store = MemoryStore()
    store.entries["k"] = question(), data
    cache = Cache(store)
    assert await ask(cache, question(), ["new"]) == "new"
    await cache.close()
    assert await ask(Cache(store), question(), []) == "new"


async def test_without_the_store_everything_goes_on_and_nobody_asks_it_each_time() -> None:
    store = MemoryStore()
    store.away = True
    cache = Cache(store)
    for key in "abcd":
        assert await ask(cache, question(key), [key]) == key
        assert await ask(cache, question(key), []) == key
    assert store.trips == 1
    with pytest.raises(Unavailable):
        await cache.purge(owner="ann")
    await cache.forget_session("s1")
    await cache.flush()
    store.away = False
    await cache.flush()
    assert set(store.erasures) == {Erasure(owner="ann"), Erasure(session="s1")}
    counts = store.counts["echo"]
    assert (counts.hits, counts.misses) == (4, 4)
    await cache.close()


async def test_what_one_process_erases_goes_from_all() -> None:
    store = MemoryStore()
    first, second = Cache(store), Cache(store)
    asked = {
        "of s1": question("1"),
        "of s2": question("2", session="s2"),
        "of bob": Question("3", "shared", "bob", "echo", "s3"),
        "of another agent": question("4", agent="other", session="s4"),
    }
    for name, each in asked.items():
        await ask(first, each, [name])
    await first.close()
    for name, each in asked.items():
        assert await ask(second, each, []) == name

    async def left() -> list[str]:
        await second.flush()
        here = [name for name, entry in zip(asked, await second.find(list(asked.values())), strict=True) if entry]
        assert set(store.entries) == {asked[name].key for name in here}
        return here

    await first.forget_session("s1")
    assert await left() == ["of s2", "of bob", "of another agent"]
    assert await first.purge(owner="bob") == 1
    assert await left() == ["of s2", "of another agent"]
    assert await first.purge(owner="ann", agent="other") == 1
    assert await left() == ["of s2"]
    assert await first.purge(agent="echo") == 1
    assert await left() == []


async def test_what_was_erased_while_it_was_read_is_not_held() -> None:
    class Slow(MemoryStore):
        async def get(self, questions: Sequence[Question]) -> Sequence[bytes | None]:
            found = await super().get(questions)
            read.set()
            await go.wait()
            return found

    store, read, go, tasks = Slow(), asyncio.Event(), asyncio.Event(), Tasks()
    first, second = Cache(store), Cache(store)
    await ask(first, question(), ["erased"])
    await first.close()
    finding = tasks.start(second.find([question()]), name="find")
    await read.wait()
    await first.forget_session("s1")
    await second.flush()
    go.set()
    await finding
    assert await ask(second, question(), ["new"]) == "new"
    await second.close()


async def test_an_answer_that_was_on_its_way_when_its_session_was_erased_is_not_kept() -> None:
    store = MemoryStore()
    cache = Cache(store)
    async with cache.flight(question()) as flight:
        await cache.forget_session("s1")
        flight.put(answer())
    await cache.close()
    assert not store.entries
    async with cache.flight(question()) as again:
        assert again.entry is None


async def test_an_erasure_of_another_leaves_what_is_on_its_way() -> None:
    cache, made = Cache(), ["one", "two"]
    async with cache.flight(question("k", session="s1")) as flight:
        await cache.forget_session("s2")
        flight.put(answer(made.pop(0)))
    assert await ask(cache, question("k", session="s1"), made) == "one"


async def test_what_waits_to_be_written_is_erased_too() -> None:
    store = MemoryStore()
    cache = Cache(store)
    cache.keep(question(), answer())
    cache.keep(question("other", session="s2"), answer())
    await cache.forget_session("s1")
    await cache.close()
    assert list(store.entries) == ["other"]


async def test_many_are_found_in_one_trip() -> None:
    store = MemoryStore()
    first, second = Cache(store), Cache(store)
    questions = [question(str(number)) for number in range(100)]
    for each in questions[::2]:
        first.keep(each, CachedVector(each.key.encode(), 2))
    await first.close()
    trips = store.trips
    found = await second.find(questions)
    assert store.trips == trips + 1
    assert [entry.numbers if isinstance(entry, CachedVector) else None for entry in found[:3]] == [b"0", None, b"2"]
    counts = (await second.statistics(owner="ann"))["echo"]
    assert (counts.hits, counts.misses, counts.tokens) == (50, 50, 100)
    await second.close()
