"""What is measured of every target, round by round."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from statistics import median

from app.usecases.summaries import KEEP_MESSAGES
from app.usecases.windows import MAX_MESSAGES
from bench.client import Answer, Caller, WrongAnswer, dial_many
from bench.processes import settled
from bench.targets import Plan, Stage, Target
from bench.upstream import CHUNKS

AT_ONCE = 64
STREAM_CHUNKS = 100
LONG = {"long": (700, False), "long, short messages": (5, False), "long, summarised": (5, True)}
"""Sessions of 10,000 messages: how many words each has, and whether the history is summarised, as it is by itself."""
TURNS = (MAX_MESSAGES - KEEP_MESSAGES) // 2 + 1
"""From one summary to the next, where messages are short: what is kept begins with a user's message, so it is one less."""
GAP = 0.02
"""Seconds between two chunks: slow enough that each arrives by itself at every target."""


@dataclass(frozen=True)
class Size:
    """How much is done in one round."""

    sends: int = 16
    firsts: int = 60
    long_sessions: int = 8


QUICK = Size(sends=4, firsts=20, long_sessions=2)


@dataclass
class Figures:
    """Values by what was measured, target and round; and how busy the measuring processes were at most."""

    values: dict[str, dict[str, list[float]]] = field(default_factory=lambda: defaultdict(lambda: defaultdict(list)))
    busy: dict[str, float] = field(default_factory=lambda: defaultdict(float))

    def add(self, what: str, target: str, value: float) -> None:
        """Keep one value."""
        self.values[what][target].append(value)


@dataclass(frozen=True)
class Load:
    """What a load cost a target."""

    cpu: float
    wall: float
    answers: Sequence[Answer]


async def run(stage: Stage, target: Target, plan: Plan, figures: Figures, chunks: int) -> Load:
    """Put a load on a target and check every answer."""
    callers = await dial_many(target.program.port, len(plan))
    upstream, began, own = stage.upstream.program.cpu(), time.monotonic(), time.process_time()
    cpu = target.program.cpu()
    nested = await asyncio.gather(*map(_work, callers, plan))
    wall = time.monotonic() - began
    await settled()
    cpu = target.program.cpu() - cpu
    for name, used in (("upstream", stage.upstream.program.cpu() - upstream), ("callers", time.process_time() - own)):
        figures.busy[name] = max(figures.busy[name], used / wall)
    for caller in callers:
        caller.close()
    answers = [answer for answers in nested for answer in answers]
    for answer in answers:
        target.check(answer, chunks)
    return Load(cpu, wall, answers)


async def _work(caller: Caller, requests: Sequence[bytes]) -> list[Answer]:
    return [await caller.call(request) for request in requests]


async def whole(stage: Stage, size: Size, figures: Figures) -> None:
    """CPU of one answer that is not streamed, 64 at once."""
    for name, target in stage.all.items():
        plan = await target.plan(AT_ONCE, size.sends, "What is the time?", stream=False)
        load = await run(stage, target, plan, figures, CHUNKS)
        figures.add("whole", name, load.cpu / len(load.answers) * 1e6)
        figures.add("whole, answers/s", name, len(load.answers) / load.wall)


async def streamed(stage: Stage, size: Size, figures: Figures) -> None:
    """CPU of one chunk of 64 streams of 100 chunks."""
    for name, target in stage.all.items():
        plan = await target.plan(AT_ONCE, 1, f"Count. [[{STREAM_CHUNKS} {GAP}]]", stream=True)
        load = await run(stage, target, plan, figures, STREAM_CHUNKS)
        figures.add("streamed", name, load.cpu / (AT_ONCE * STREAM_CHUNKS) * 1e6)
        late = [(came - sent) * 1000 for answer in load.answers for sent, came in answer.stamps()]
        figures.add("streamed, delay p50", name, median(late))


async def first(stage: Stage, size: Size, figures: Figures) -> None:
    """Time to the first token of a lone caller, beyond what the upstream itself takes."""
    taken: dict[str, float] = {}
    direct: dict[str, Target] = {"upstream": stage.upstream}
    for name, target in (direct | stage.all).items():
        plan = await target.plan(1, size.firsts, "What is the time? [[3 0.005]]", stream=True)
        load = await run(stage, target, plan, figures, CHUNKS)
        taken[name] = median(answer.stamps()[0][1] - answer.sent for answer in load.answers) * 1000
        figures.add("first", name, taken[name] - taken["upstream"])


async def long(stage: Stage, size: Size, figures: Figures) -> None:
    """A send in a session of 10,000 messages against one of 10: as sessions are, and with windows of a known size."""
    for kind, (words, summarised) in LONG.items():
        turned = len(figures.values[f"{kind}, CPU"]["10"]) % 2 == 1  # neither length always goes first
        for length in sorted((10, 10_000), reverse=turned):
            load = await _sent_in(stage, size, figures, length, words=words, summarised=summarised)
            figures.add(f"{kind}, CPU", str(length), load.cpu / len(load.answers) * 1e6)
            figures.add(f"{kind}, wall", str(length), median(answer.seconds for answer in load.answers) * 1000)


async def _sent_in(stage: Stage, size: Size, figures: Figures, length: int, *, words: int, summarised: bool) -> Load:
    """Messages in sessions of such a length: 16 in each, or from one summary of the history to the next, which is made too."""
    ours = stage.platform
    sessions = await ours.filled(size.long_sessions, length, words=words, summarised=summarised)
    wanted = [ours.send(session, "What is the time?", stream=False) for session in sessions]
    if not summarised or length < MAX_MESSAGES:
        return await run(stage, ours, [[one] * 16 for one in wanted], figures, CHUNKS)
    await run(stage, ours, [[one] for one in wanted], figures, CHUNKS)  # the first summary
    before, _ = await ours.ledger()
    load = await run(stage, ours, [[one] * TURNS for one in wanted], figures, CHUNKS)
    after, _ = await ours.ledger()
    if after - before != len(load.answers) + len(sessions):
        raise WrongAnswer(f"{after - before} calls for {len(load.answers)} answers and {len(sessions)} summaries")
    return load


async def memory(stage: Stage, size: Size, figures: Figures) -> None:
    """Resident memory; asked before anything else, and again at the end."""
    for name, target in stage.all.items():
        figures.add("memory", name, target.program.memory() / 2**20)


Measure = Callable[[Stage, Size, Figures], Awaitable[None]]
MEASURES: dict[str, Measure] = {"memory": memory, "whole": whole, "streamed": streamed, "first": first, "long": long}
