"""What the stages of the call path cost, measured inside this process: the same request straight to the upstream, through all stages,
and answered by the cache; and what a cached answer takes over HTTP."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from statistics import median
from uuid import uuid4

from app.journal.recorder import Recorder
from app.llm.call import CallPath
from app.llm.catalog import Catalog
from app.llm.endpoints import Endpoints, OwnLLMs
from app.llm.route import Router
from app.llm.run import RunLLM
from app.llm.stages import Caller
from app.llm.upstream import Upstream
from bench.client import WrongAnswer, dial
from bench.measures import Figures, Size
from bench.targets import Stage

AT_ONCE = 32
EACH = 30
HITS = 5000
MESSAGES = [{"role": "user", "content": "What is the time?"}]


async def calls(stage: Stage, size: Size, figures: Figures) -> None:
    """CPU of one call: straight through the client, through the stages, and out of the cache."""
    base_url = f"{stage.upstream.program.url}/v1"
    client = Upstream(base_url, "bench")
    endpoints = Endpoints()
    catalog = Catalog.from_openai(base_url, "bench", "bench")
    endpoints.apply(catalog)
    path, user = CallPath(lambda: catalog, Router(endpoints, OwnLLMs())), Caller(uuid4(), "bench")

    async def straight() -> None:
        async with aclosing(client.stream({"model": "bench", "messages": MESSAGES})) as answer:
            async for _ in answer:
                pass

    async def staged() -> None:
        await RunLLM(path, Recorder(), user).ainvoke(MESSAGES, temperature=1)

    try:
        for name, work in (("straight", straight), ("staged", staged)):
            await _cpu(work, 3)
            figures.add("calls", name, await _cpu(work, EACH))
        llm = RunLLM(path, Recorder(), user)
        await llm.ainvoke(MESSAGES, temperature=0)
        began = time.process_time()
        for _ in range(HITS):
            await RunLLM(path, Recorder(), user).ainvoke(MESSAGES, temperature=0)
        figures.add("calls", "hit", (time.process_time() - began) / HITS * 1e6)
    finally:
        await client.close()
        await endpoints.close()


async def cached(stage: Stage, size: Size, figures: Figures) -> None:
    """The time of a whole answer out of the cache, sent by a lone caller, each in a new session, stored like any other."""
    ours = stage.platform
    made = await ours.sessions(size.firsts, params={"temperature": 0})
    caller = await dial(ours.program.port)
    first, *others = [await caller.call(ours.send(id, "What is the time?", stream=False)) for id in made]
    caller.close()
    if any(answer.json()["content"] != first.json()["content"] for answer in others):
        raise WrongAnswer("the answers are not the cached one")
    figures.add("cached", "ours", median(answer.seconds for answer in others) * 1000)


async def _cpu(work: Callable[[], Awaitable[None]], each: int) -> float:
    """Microseconds of this process's CPU for one."""

    async def caller() -> None:
        for _ in range(each):
            await work()

    began = time.process_time()
    await asyncio.gather(*(caller() for _ in range(AT_ONCE)))
    return (time.process_time() - began) / (AT_ONCE * each) * 1e6
