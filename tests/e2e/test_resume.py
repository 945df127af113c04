"""A reader may come and go as it likes, at any server: what it hears together is what was said, each character once."""

from __future__ import annotations

import asyncio
import os
import random
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.e2e.cluster import Caller, Cluster, Event, Listener, cluster, until

pytestmark = pytest.mark.e2e
DISCONNECTS = 1000
READERS = 3
"""How many come and go at one run at once."""
PIECES, PAUSE = 200, 0.07
SEED = int(os.environ.get("TEST_SEED") or random.randrange(10**9))


class Told:
    """A run and what it is to say: every character, and in `kinds` whether it is the answer (`.`) or thinking (`?`)."""

    def __init__(self, agent: str, content: str, chunks: Sequence[tuple[str, str]]) -> None:
        self.agent, self.content = agent, content
        self.text = "".join(text for text, _ in chunks)
        self.kinds = "".join(kind * len(text) for text, kind in chunks)
        self.answer = "".join(text for text, kind in chunks if kind == ".")
        self.run_id = ""
        self.known = 0

    def check(self, after: int, heard: Sequence[Event]) -> int:
        """That these events follow a position, in order, and end at most once; the position that they lead to."""
        names = [event.name for event in heard if event.name != "chunk"]
        assert names in ([], ["run"], ["run", "end"]), names
        for event in heard:
            if event.name == "chunk":
                begin, after = after, after + len(event.data["content"])
                kinds = ("?" if event.data["content_type"] == "thinking" else ".") * (after - begin)
                assert (event.id, event.data["content"]) == (after, self.text[begin:after]), self.content
                assert kinds == self.kinds[begin:after], self.content
        if "end" in names:
            assert (heard[-1].name, after) == ("end", len(self.text))
            assert (heard[-1].data["status"], heard[-1].data["content"]) == ("completed", self.answer)
        self.known = max(self.known, after)
        return after


def stories() -> list[Told]:
    """Runs of every kind: a model's, with thinking and without, an agent's, slow and all at once."""
    told = []
    for name in ("слово", "字", "wörd", "🤔"):
        pieces = [f"{name}{at} " if at < PIECES - 1 else f"{name}{at}" for at in range(PIECES)]
        for fault, before in (("slow", []), ("think", [("Let me think.", "?")])):
            content = f"say {''.join(pieces)} [[fault: {fault} delay={PAUSE}]]"
            told.append(Told("simple_openai_agent", content, [*before, *((piece, ".") for piece in pieces)]))
    mixed = [(f"⟨{at}⟩想🤔", "?") if at % 4 == 1 else (f"{at}号 wörd😀 ", ".") for at in range(PIECES)]
    told += [
        Told("mixed_agent", f"{PIECES} {PAUSE}", mixed),
        Told("mixed_agent", f"{PIECES // 2} {PAUSE}", mixed[: PIECES // 2]),
    ]
    told += [Told("scripted_agent", f"chunks: {n}", [(f"{at + 1}\n", ".") for at in range(n)]) for n in (1, 3000)]
    return told


class Tally:
    """What all readers did together."""

    def __init__(self, dice: random.Random) -> None:
        self.dice = dice
        self.counts: Counter[str] = Counter()


async def wander(made: Cluster, caller: Caller, told: Told, tally: Tally) -> None:
    """Read, disconnect, and go on from the same place or look at another, at any server, until all readers have done enough."""
    dice = tally.dice
    position, whole, ends, later = 0, "", 0, 0
    while tally.counts["disconnects"] < DISCONNECTS or not ends or later < 12:
        going_on = not ends and dice.random() < 0.6
        after = position if going_on else dice.randint(0, told.known)
        listener = Listener(caller.follow(dice.choice(made.servers), told.run_id, after))
        if dice.random() < 0.9:  # else it leaves before it is answered
            await listener.heard.wait()
        await asyncio.wait([listener.task], timeout=dice.choice([0, 0.1, 0.3, 1]))
        if not listener.task.done():
            tally.counts["disconnects"] += 1
        await listener.leave()
        assert listener.broken is None, listener.broken
        reached = told.check(after, listener.events)
        tally.counts["resumes"] += 1
        later += "end" in listener.names
        if going_on:
            position, whole, ends = reached, whole + listener.text, ends + listener.names.count("end")
    assert (whole, ends) == (told.text, 1)


async def tell(made: Cluster, caller: Caller, told: Told, tally: Tally) -> None:
    """Send the message, and let readers come and go; the one who sent it stays or leaves."""
    server = tally.dice.choice(made.servers)
    sender = Listener(caller.stream(server, await caller.session(server, told.agent), told.content))
    await until(lambda: sender.events, 10, "the beginning of a run")
    told.run_id = sender.run_id
    stays = tally.dice.random() < 0.5
    if not stays:
        await sender.leave()
    async with asyncio.TaskGroup() as readers:
        for _ in range(READERS):
            readers.create_task(wander(made, caller, told, tally))
    if stays:
        assert (await sender.done()).end["status"] == "completed"
    assert told.check(0, sender.events) == len(sender.text)


async def test_a_thousand_disconnects_and_resumes_over_two_servers_lose_and_double_nothing(tmp_path: Path) -> None:
    sys.stdout.write(f"TEST_SEED={SEED}\n")
    tally = Tally(random.Random(SEED))
    async with cluster(tmp_path, 2) as made:
        callers = [await made.user(made.servers[0], f"reader{n}") for n in range(3)]
        async with asyncio.timeout(75), asyncio.TaskGroup() as runs:
            for number, told in enumerate(stories()):
                runs.create_task(tell(made, callers[number % 3], told, tally))
        active = await made.rows("SELECT FROM runs WHERE status <> 'completed'")
    sys.stdout.write(f"{dict(tally.counts)}\n")
    assert not active
    assert tally.counts["resumes"] > tally.counts["disconnects"] >= DISCONNECTS
