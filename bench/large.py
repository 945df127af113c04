"""Many at once: a thousand streams, and five thousand readers of answers that do not come."""

from __future__ import annotations

import asyncio
import re
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from itertools import pairwise

from bench.client import Answer, Caller, WrongAnswer, dial_many
from bench.measures import Figures
from bench.processes import settled, until
from bench.table import Row, percentile
from bench.targets import Relay, Stage, Target

STREAMS = 1000
SECONDS = 15
SPREAD = 5
"""Seconds over which they begin: the time between their chunks is asked for, not how a thousand sends at once are taken."""
READERS = 5000
RUNS = 10
_RUN_ID = re.compile(rb'"run_id":"([0-9a-f-]{36})"')


async def streams(stage: Stage, figures: Figures) -> list[Row]:
    """1,000 streams at 5 and at 20 chunks a second each, the relay at 5 for orientation."""
    slow = await _streams(stage, stage.platform, 5, figures)
    relay = await _streams(stage, stage.relays["aiohttp"], 5, figures)
    fast = await _streams(stage, stage.platform, 20, figures)
    return [
        _errors("1,000 streams at 5 chunks/s: errors, lost chunks, metered tokens missing", slow, relay),
        Row(
            "1,000 streams at 5 chunks/s: added time between chunks, p99",
            f"{slow.gap * 1000:.0f} ms",
            f"{relay.gap * 1000:.0f} ms",
            bar="≤ 250 ms",
            met=slow.gap <= 0.25,
        ),
        Row(
            "1,000 streams at 5 chunks/s: way of a chunk, p99; CPU of a core",
            f"{slow.delay * 1000:.0f} ms; {slow.share:.0%}",
            f"{relay.delay * 1000:.0f} ms; {relay.share:.0%}",
        ),
        _errors("1,000 streams at 20 chunks/s: errors, lost chunks, metered tokens missing", fast, None),
        Row(
            "1,000 streams at 20 chunks/s: way of a chunk, p99; CPU of a core",
            f"{fast.delay * 1000:.0f} ms; {fast.share:.0%}",
        ),
    ]


class _Seen:
    """What came of a thousand streams."""

    def __init__(self) -> None:
        self.errors = self.lost = self.unmetered = 0
        self.gap = self.delay = self.share = 0.0
        self.problem = ""

    @property
    def text(self) -> str:
        return f"{self.errors}, {self.lost}, {self.unmetered}"


def _errors(what: str, seen: _Seen, relay: _Seen | None) -> Row:
    good = not (seen.errors or seen.lost or seen.unmetered)
    return Row(what, seen.text, relay.text if relay else "", bar="0, 0, 0", met=good)


async def _streams(stage: Stage, target: Target, rate: int, figures: Figures) -> _Seen:
    chunks = SECONDS * rate
    plan = await target.plan(STREAMS, 1, f"Count. [[{chunks} {1 / rate}]]", stream=True)
    before = await stage.platform.ledger()
    callers = await dial_many(target.program.port, STREAMS)
    cpu, began = target.program.cpu(), time.monotonic()
    answers = await asyncio.gather(
        *(_later(caller, plan[at][0], SPREAD * at / STREAMS) for at, caller in enumerate(callers)),
        return_exceptions=True,
    )
    seen = _judged(target, answers, chunks)
    seen.share = (target.program.cpu() - cpu) / (time.monotonic() - began)
    for caller in callers:
        caller.close()
    await settled(1)
    if not isinstance(target, Relay):
        after = await stage.platform.ledger()
        seen.unmetered = (STREAMS * chunks) - (after[1] - before[1])
    return seen


async def _later(caller: Caller, wanted: bytes, seconds: float) -> Answer:
    await asyncio.sleep(seconds)
    return await caller.call(wanted)


def _judged(target: Target, answers: list[Answer | BaseException], chunks: int) -> _Seen:
    seen, delays, gaps = _Seen(), [0.0], [0.0]
    for answer in answers:
        if isinstance(answer, BaseException):
            seen.errors += 1
            seen.problem = seen.problem or repr(answer)
            continue
        stamps = answer.stamps()
        seen.lost += chunks - len(stamps)
        late = [came - sent for sent, came in stamps]
        delays += late
        gaps += [max(0.0, after - before) for before, after in pairwise(late)]
        try:
            target.check(answer, chunks)
        except WrongAnswer as problem:
            seen.errors += 1
            seen.problem = seen.problem or str(problem)
    if seen.problem:
        sys.stderr.write(f"the first error: {seen.problem}\n")
    seen.delay, seen.gap = percentile(delays, 99), percentile(gaps, 99)
    return seen


async def readers(stage: Stage, figures: Figures) -> list[Row]:
    """5,000 readers of runs that sleep: what each holds, and whether it is given back. The second wave shows what is used again."""
    ours = stage.platform
    sessions = await ours.sessions(RUNS, "scripted_agent")
    senders = await dial_many(ours.program.port, RUNS)
    for sender, session in zip(senders, sessions, strict=True):
        sender.send(ours.send(session, "sleep: 300", stream=True))
    await asyncio.sleep(2)
    ids = [_run_id(sender) for sender in senders]
    idle, files = ours.program.memory(), ours.program.files()
    held, freed, after = await _wave(stage, ids, files)
    held_again, freed_again, after_again = await _wave(stage, ids, files)
    for id in ids:
        await ours.ask("POST", "/CancelRun", {"run_id": id})
    for sender in senders:
        sender.close()
    each, slowest = (held - idle) / READERS / 1024, max(freed, freed_again)
    way = " → ".join(f"{size / 2**20:.0f}" for size in (idle, held, after, held_again, after_again))
    return [
        Row("5,000 idle readers: memory of each", f"{each:.1f} KiB", bar="≤ 60 KiB", met=each <= 60),
        Row("5,000 idle readers: until all are let go", f"{slowest:.1f} s", bar="≤ 5 s", met=slowest <= 5),
        Row("5,000 idle readers: worker before, with and after them, and with and after 5,000 more", f"{way} MiB"),
    ]


def _run_id(caller: Caller) -> str:
    found = _RUN_ID.search(caller.so_far())
    if not found:
        raise WrongAnswer(caller.so_far()[:600].decode(errors="replace"))
    return found[1].decode()


async def _wave(stage: Stage, ids: list[str], files: int) -> tuple[int, float, int]:
    """The worker's memory with all readers; seconds after their leaving until it has as few `files` as before; its memory then."""
    ours = stage.platform
    callers: list[Caller] = []
    while len(callers) < READERS:  # as many at once as wait for the database without being turned away
        some = await dial_many(ours.program.port, 100)
        callers += some
        for at, caller in enumerate(some):
            caller.send(ours.request("GET", f"/api/v1/runs/{ids[at % RUNS]}/events"))
        await until(partial(_all_hear, some), 30)
    if silent := [caller.so_far() for caller in callers if not _all_hear([caller])]:
        raise WrongAnswer(f"{len(silent)} readers heard nothing: {silent[0][:600]!r}")
    await settled(2)
    held = ours.program.memory()
    for caller in callers:
        caller.close()
    freed = await until(lambda: ours.program.files() <= files + 10, 30)
    await settled(2)
    return held, freed, ours.program.memory()


def _all_hear(callers: Sequence[Caller]) -> bool:
    return all(b"event: " in caller.so_far() for caller in callers)


MEASURES: dict[str, Callable[[Stage, Figures], Awaitable[list[Row]]]] = {"streams": streams, "readers": readers}
