"""The limits of one endpoint in one process, on an event loop whose time passes only when nothing else is to do."""

from __future__ import annotations

import asyncio
import random
import selectors
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.errors import LLMUnavailable, RateLimited
from app.llm import lease
from app.llm.lease import Limiter
from app.llm.line import BATCH_EVERY
from app.llm.pace import CEILING, COOLDOWN_SECONDS, FLOOR, START, Adaptive, Bucket
from app.llm.slices import EXPIRY_SECONDS, Ask, Grant, Slices


class Jumps(selectors.DefaultSelector):
    """Jumps over the time to the next timer instead of sleeping."""

    now = 1000.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        assert timeout is not None, "the loop would wait for ever"
        self.now += timeout
        return super().select(0)


class JumpingLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._jumps = Jumps()
        super().__init__(self._jumps)

    def time(self) -> float:
        return self._jumps.now


def jumping(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[[], None]:
    """A test whose hours take no time."""

    def run() -> None:
        with asyncio.Runner(loop_factory=JumpingLoop) as runner:
            runner.run(test())

    run.__name__, run.__doc__ = test.__name__, test.__doc__
    return run


def now() -> float:
    return asyncio.get_running_loop().time()


async def call(
    limiter: Limiter, owner: str = "a", seconds: float = 1.0, *, tokens: int = 0, batch: bool = False, wait: float = 1e6
) -> None:
    async with limiter.lease(owner, tokens=tokens, deadline=now() + wait, batch=batch) as held:
        await asyncio.sleep(seconds)
        held.succeeded(tokens)


async def begun(count: int, make: Callable[[int], Coroutine[Any, Any, None]]) -> list[asyncio.Task[None]]:
    """So many calls, each in a task, that have come to stand where they wait."""
    tasks = [asyncio.create_task(make(number)) for number in range(count)]
    await asyncio.sleep(0)
    return tasks


@jumping
async def test_no_more_calls_go_than_the_limit_allows() -> None:
    limiter = Limiter("e", max_concurrency=4)
    tasks = await begun(10, lambda _: call(limiter))
    assert (limiter.in_use, limiter.waiting, limiter.limit, limiter.has_room) == (4, 6, 4, False)
    started = now()
    await asyncio.gather(*tasks)
    assert now() - started == pytest.approx(3)
    assert (limiter.in_use, limiter.waiting, limiter.has_room) == (0, 0, True)


@jumping
async def test_a_call_that_need_not_wait_never_yields() -> None:
    limiter = Limiter("e", max_concurrency=1, rpm=60, tpm=60_000)
    entering = limiter.lease("a", tokens=10, deadline=now() + 1).__aenter__()
    with pytest.raises(StopIteration):
        entering.send(None)
    assert limiter.in_use == 1


def test_the_limit_shrinks_once_in_a_cooldown_and_never_below_its_floor() -> None:
    limit = Adaptive()
    assert limit.limit == START
    for at in range(5):
        limit.throttled(float(at))
    assert limit.limit == 16
    for step in range(1, 20):
        limit.throttled(step * COOLDOWN_SECONDS)
    assert limit.limit == FLOOR


def test_the_limit_grows_after_a_clean_round_that_used_it_well() -> None:
    limit = Adaptive()
    for _ in range(START):
        limit.succeeded(0, 15)
    assert limit.limit == 20
    for _ in range(START):
        limit.succeeded(0, 16)
    assert limit.limit == 21
    for _ in range(20):
        limit.succeeded(0, 21)
    limit.throttled(1)
    for _ in range(100):
        limit.succeeded(2, 21)
    assert limit.limit == 16
    for _ in range(10_000):
        limit.succeeded(1 + COOLDOWN_SECONDS, 100)
    assert limit.limit == CEILING


@pytest.mark.parametrize(("configured", "floor"), [(4, 4), (50, 10), (300, 10)])
def test_a_configured_limit_is_the_start_and_the_most(configured: int, floor: int) -> None:
    limit = Adaptive()
    limit.configure(configured)
    for _ in range(2 * configured):
        limit.succeeded(0, configured)
    assert limit.limit == configured
    for step in range(50):
        limit.throttled(step * COOLDOWN_SECONDS)
    assert limit.limit == floor


@given(st.integers(1, 3000), st.lists(st.floats(0, 20), min_size=1, max_size=300))
@settings(max_examples=50, deadline=None)
def test_no_minute_sees_more_requests_than_the_allowance(per_minute: int, pauses: Sequence[float]) -> None:
    bucket, at, taken = Bucket(per_minute), 0.0, []
    for pause in [*pauses, *[0.0] * 300]:
        at += pause if pause else bucket.delay(1, at) + 1e-4
        if not bucket.delay(1, at):
            bucket.take(1)
            taken.append(at)
    for number, start in enumerate(taken):
        assert sum(1 for moment in taken[number:] if moment < start + 60) <= per_minute


@jumping
async def test_tokens_are_taken_by_estimate_and_settled_by_use() -> None:
    limiter = Limiter("e", tpm=60_000)
    started = now()
    async with limiter.lease("a", tokens=3000, deadline=now()) as held:
        held.succeeded(100)
    await call(limiter, tokens=2900, seconds=0)
    assert now() == started, "what was not used is there again"
    async with limiter.lease("a", tokens=100, deadline=now() + 10) as held:
        held.succeeded(1000)
    started = now()
    await call(limiter, tokens=100, seconds=0)
    assert now() - started == pytest.approx(1000 / 950, abs=0.02), "what was used above the estimate is waited for"
    await asyncio.sleep(10)
    started = now()
    await call(limiter, tokens=3000, seconds=0)
    await call(limiter, tokens=50_000, seconds=0)
    assert 3 < now() - started < 5, "a call larger than the bucket goes when that is full"
    await call(limiter, tokens=1, seconds=0)
    assert now() - started > 50, "and is paid for"


@jumping
async def test_retry_after_closes_the_endpoint_for_all_up_to_a_cap() -> None:
    limiter = Limiter("e")
    started = now()
    async with limiter.lease("a", tokens=0, deadline=now()) as held:
        held.throttled(5.0)
    assert not limiter.has_room
    with pytest.raises(LLMUnavailable) as refused:
        await call(limiter, wait=4)
    assert now() == started, "who cannot wait so long hears it at once"
    assert refused.value.retry_after == pytest.approx(6)
    await call(limiter, "b", seconds=0)
    assert now() - started == pytest.approx(5, abs=0.01)
    async with limiter.lease("a", tokens=0, deadline=now()) as held:
        held.throttled(1e6)
    started = now()
    await call(limiter, "b", seconds=0)
    assert now() - started == pytest.approx(lease.MAX_HOLD, abs=0.01)


@jumping
async def test_a_deadline_ends_the_waiting() -> None:
    limiter = Limiter("e", max_concurrency=1)
    busy = await begun(1, lambda _: call(limiter, seconds=10))
    started = now()
    with pytest.raises(LLMUnavailable) as refused:
        await call(limiter, wait=3)
    assert now() - started == pytest.approx(3)
    assert refused.value.status == 503
    assert refused.value.retry_after
    assert limiter.waiting == 0
    await asyncio.gather(*busy)
    assert limiter.in_use == 0


@jumping
async def test_the_line_is_bounded_for_an_owner_and_for_all() -> None:
    limiter = Limiter("e", max_concurrency=1)
    tasks = await begun(1 + lease.MAX_WAITING_PER_OWNER, lambda _: call(limiter))
    with pytest.raises(RateLimited) as limited:
        await call(limiter)
    assert limited.value.retry_after
    others = lease.MAX_WAITING - lease.MAX_WAITING_PER_OWNER
    tasks += await begun(others, lambda number: call(limiter, f"b{number}"))
    with pytest.raises(LLMUnavailable) as full:
        await call(limiter, "c")
    assert full.value.retry_after
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    assert (limiter.in_use, limiter.waiting) == (0, 0)


async def order(limiter: Limiter, arrivals: Sequence[tuple[str, bool]]) -> str:
    """The initials in the order in which they are let go, one at a time."""
    seen: list[str] = []

    async def one(owner: str, batch: bool) -> None:
        async with limiter.lease(owner, tokens=0, deadline=now() + 1e6, batch=batch):
            seen.append(owner)
            await asyncio.sleep(1)

    await asyncio.gather(*(one(*arrival) for arrival in arrivals))
    return "".join(seen)


@jumping
async def test_owners_take_turns() -> None:
    arrivals = [(owner, False) for owner in "xaaaabbc"]
    assert await order(Limiter("e", max_concurrency=1), arrivals) == "xabcabaa"


@jumping
async def test_interactive_calls_go_before_batch_calls_which_do_not_starve() -> None:
    arrivals = [("x", False), *[("b", True)] * 3, *[("i", False)] * (2 * BATCH_EVERY)]
    found = await order(Limiter("e", max_concurrency=1), arrivals)
    assert found == "x" + ("i" * (BATCH_EVERY - 1) + "b") * 2 + "iib"


@jumping
async def test_a_newcomer_waits_for_one_call_to_end_whoever_queues_hundreds() -> None:
    limiter = Limiter("e", max_concurrency=4)
    seen: list[str] = []
    dice = random.Random(7)

    async def one(owner: str) -> None:
        async with limiter.lease(owner, tokens=0, deadline=now() + 1e6):
            seen.append(owner)
            await asyncio.sleep(dice.uniform(0.5, 1.5))

    async def seconds(count: int) -> list[float]:
        taken = []
        for _ in range(count):
            started, granted = now(), len(seen)
            await one("light")
            assert seen[granted:].index("light") <= 1, "one at most was let go before him"
            taken.append(now() - started)
        return sorted(taken)

    alone = await seconds(100)
    heavy = await begun(500, lambda _: one("heavy"))
    crowded = await seconds(60)
    assert limiter.waiting > 100, "the heavy user still queues"
    assert crowded[-4] <= 1.5 * alone[-6]
    await asyncio.gather(*heavy)


@jumping
async def test_a_turn_given_to_a_call_cancelled_in_the_same_moment_is_passed_on() -> None:
    limiter = Limiter("e", max_concurrency=1, rpm=6000)
    first = limiter.lease("a", tokens=0, deadline=now())
    await first.__aenter__()
    second, third, fourth = await begun(3, lambda _: call(limiter, wait=100))
    await first.__aexit__(None, None, None)  # grants the second, whose task has not run yet
    second.cancel()
    third.cancel()
    await asyncio.wait([second, third])
    assert (second.cancelled(), third.cancelled()) == (True, True)
    await fourth
    assert (limiter.in_use, limiter.waiting) == (0, 0)


@pytest.mark.parametrize("seed", range(8))
def test_no_slot_is_lost_or_made_by_cancelling_at_random(seed: int) -> None:
    dice = random.Random(seed)

    async def chaos() -> None:
        limiter = Limiter("e", max_concurrency=5, rpm=3000, tpm=100_000)
        under_way = most = 0

        async def one(number: int) -> None:
            nonlocal under_way, most
            await asyncio.sleep(dice.uniform(0, 5))
            deadline = now() + dice.choice([0.0, 0.3, 20])
            with suppress(LLMUnavailable):
                async with limiter.lease(f"u{number % 7}", tokens=dice.randrange(300), deadline=deadline) as held:
                    under_way += 1
                    most = max(most, under_way)
                    try:
                        await asyncio.sleep(dice.choice([0, 0, 0.01, 0.2]))
                        held.throttled(0.05) if dice.random() < 0.05 else held.succeeded(dice.randrange(300))
                    finally:
                        under_way -= 1

        tasks = [asyncio.create_task(one(number)) for number in range(400)]
        while not all(task.done() for task in tasks):
            await asyncio.sleep(dice.choice([0, 0, 0.01, 0.05]))
            for victim in dice.sample(tasks, 3):
                victim.cancel()
        assert most <= 5
        assert (limiter.in_use, limiter.waiting) == (0, 0)
        assert not [task for task in tasks if not task.cancelled() and task.exception()]

    with asyncio.Runner(loop_factory=JumpingLoop) as runner:
        runner.run(chaos())


class Silence:
    """A Redis that is away, after so many answers."""

    def __init__(self, *grants: Grant) -> None:
        self.grants = list(grants)
        self.asked: list[Ask] = []

    async def __call__(self, asks: Sequence[Ask], /) -> Sequence[Grant]:
        self.asked += asks
        await asyncio.sleep(0.001)
        if not self.grants:
            raise ConnectionError
        return [self.grants.pop(0) for _ in asks]


@jumping
async def test_a_configured_limit_is_divided_when_all_slices_have_expired() -> None:
    slices = Slices(Silence(), replicas=4)
    limiter = Limiter("e", max_concurrency=8, slices=slices)
    running = asyncio.create_task(slices.run())
    started = now()
    tasks = await begun(6, lambda _: call(limiter, seconds=1))
    await asyncio.gather(*tasks)
    assert EXPIRY_SECONDS + 3 <= now() - started < EXPIRY_SECONDS + 4, "two at a time, once others' slices have expired"
    running.cancel()
    await asyncio.wait([running])


@jumping
async def test_a_limit_found_by_trying_is_divided_at_once() -> None:
    slices = Slices(Silence(), replicas=4)
    limiter = Limiter("e", rpm=2400, slices=slices)
    running = asyncio.create_task(slices.run())
    started = now()
    await asyncio.gather(*(call(limiter, seconds=1) for _ in range(10)))
    assert 2 <= now() - started < 3, "five at a time, and ten a second"
    running.cancel()
    await asyncio.wait([running])


@jumping
async def test_a_slice_is_kept_while_the_others_are_out_of_reach_and_asked_for_in_one_trip() -> None:
    grant = Grant(slots=3, limit=4, free=1, replicas=2, tight=False, hold=0, requests=0, tokens=0)
    silence = Silence(grant)
    slices = Slices(silence)
    limiter = Limiter("e", max_concurrency=4, slices=slices)
    assert not limiter.has_room, "nothing is granted yet"
    tasks = await begun(5, lambda _: call(limiter, seconds=3))
    running = asyncio.create_task(slices.run())
    await asyncio.sleep(0.002)
    assert [ask.wanted for ask in silence.asked] == [5]
    assert (limiter.in_use, limiter.waiting) == (3, 2)
    await asyncio.sleep(EXPIRY_SECONDS - 0.5)
    assert limiter.in_use == 2, "the other two go when the first three have ended"
    await asyncio.gather(*tasks)
    await asyncio.sleep(EXPIRY_SECONDS)
    await begun(3, lambda _: call(limiter, seconds=0.1))
    assert limiter.in_use == 2, "half of the limit, for there are two"
    await asyncio.sleep(1)
    running.cancel()
    await asyncio.wait([running])
    assert limiter.in_use == 0
