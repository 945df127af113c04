"""Everything dies again and again while twenty people talk; afterwards the books must balance."""

from __future__ import annotations

import asyncio
import os
import random
import re
import signal
import sys
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import Any

import aiohttp
import asyncpg
import pytest

from tests.e2e.cluster import Caller, Cluster, Event, Listener, Refused, Server, cluster, said, until
from tests.fakes.upstream import KEPT, Fault, usage

pytestmark = pytest.mark.e2e
CLIENTS = 20
HARM_SECONDS = 32.0
"""How long things go wrong at least: each kind comes once, however slow the machine is."""
KINDS = 7
PAUSE = 2.0
"""Seconds between two harms, about."""
GRACE_SECONDS = 5.0
SETTLE_SECONDS = 90.0
"""How long runs may take to end once all is well: a dead server's are noticed after 15 s, and 15 s after the database was away."""
SEED = int(os.environ.get("TEST_SEED") or random.randrange(10**9))
REFUSALS = {"409", "429", "502", "503"}
"""What a send may be told while everything dies."""
TOKENS = ("prompt_tokens", "completion_tokens")


@dataclass
class Sent:
    """A message, and what its sender was told of it: the states in which runs ended, None for one whose end was not heard."""

    user_id: str
    session_id: str
    text: str
    key: str | None = None
    runs: dict[str, str | None] = field(default_factory=dict)

    @property
    def content(self) -> str:
        return f"say {self.text} [[fault: slow delay=0.04]]"

    def note(self, events: list[Event], after: int = 0) -> None:
        """Events after a position. Who was told of a run has been told that the message is kept."""
        if not events:
            return
        names = [event.name for event in events]
        if "snapshot" not in names:
            heard = said(events)
            assert self.text[after : after + len(heard)] == heard, (self.text, after, heard)
        run_id = events[0].data["run_id"]
        self.told(run_id, events[-1].data["status"] if "end" in names else None)

    def told(self, run_id: str, status: str | None) -> None:
        """A run has one final state, whoever tells it."""
        before = self.runs.get(run_id)
        assert status is None or before is None or before == status, (run_id, before, status)
        self.runs[run_id] = status or before


class Talker:
    """One user, who sends message after message to any server, and sometimes leaves, cancels, or asks twice."""

    def __init__(self, made: Cluster, caller: Caller, name: str, dice: random.Random) -> None:
        self.made, self.caller, self.name, self.dice = made, caller, name, dice
        self.sent: list[Sent] = []
        self.told: Counter[str] = Counter()
        self.session_id: str | None = None

    async def talk(self) -> None:
        """Until cancelled, whatever fails."""
        while True:
            try:
                await self.once()
                self.told["answered"] += 1
            except Refused as refusal:
                self.told[str(refusal.status)] += 1
            except (aiohttp.ClientError, OSError, TimeoutError) as error:
                self.told[type(error).__name__] += 1
            await asyncio.sleep(self.dice.uniform(0.05, 0.4))

    async def once(self) -> None:
        """A message, in one of the ways, in the same session most of the time."""
        dice = self.dice
        server = dice.choice(self.made.servers)
        if self.session_id is None or dice.random() < 0.25:
            self.session_id = await self.caller.session(server, busy=dice.choice([None, "queue", "interrupt"]))
        text = f"{self.name}m{len(self.sent)} " + " ".join(f"字{n}" for n in range(dice.randint(1, 60)))
        sent = Sent(self.caller.user_id, self.session_id, text)
        self.sent.append(sent)
        ways: list[Callable[[Server, Sent], Awaitable[Any]]] = [self.whole, self.streamed, self.streamed]
        ways += [self.left, self.cancelled, self.twice]
        await dice.choice(ways)(server, sent)

    async def whole(self, server: Server, sent: Sent) -> None:
        try:
            answer = await self.caller.say(server, sent.session_id, sent.content)
        except Refused as refusal:
            if "run_id" in refusal.body:
                goes_on = refusal.body["code"] in ("shutdown", "goes_on_elsewhere")
                sent.told(refusal.body["run_id"], None if goes_on else "failed")
            raise
        sent.told(answer["run_id"], answer["additional_kwargs"].get("status", "completed"))
        assert sent.text.startswith(answer["content"])

    async def streamed(self, server: Server, sent: Sent, **headers: str) -> str:
        """How the run ended."""
        listener = await self.heard(sent, self.caller.stream(server, sent.session_id, sent.content, **headers), 15)
        if listener.broken:
            raise listener.broken
        return str(listener.end["status"]) if "end" in listener.names else ""

    async def heard(self, sent: Sent, events: Any, seconds: float, after: int = 0) -> Listener:
        """What can be heard in so many seconds."""
        listener = Listener(events)
        try:
            await asyncio.wait([listener.task], timeout=seconds)
        finally:
            await listener.leave()
            sent.note(listener.events, after)
        return listener

    async def left(self, server: Server, sent: Sent) -> None:
        """The sender leaves, and asks any server for the rest."""
        events = self.caller.stream(server, sent.session_id, sent.content)
        first = await self.heard(sent, events, self.dice.uniform(0.05, 1.5))
        if first.events:
            after = len(first.text)
            rest = self.caller.follow(self.dice.choice(self.made.servers), first.run_id, after)
            await self.heard(sent, rest, self.dice.uniform(0.5, 10), after)

    async def cancelled(self, server: Server, sent: Sent) -> None:
        events = self.caller.stream(server, sent.session_id, sent.content)
        first = await self.heard(sent, events, self.dice.uniform(0.05, 1))
        if first.events:
            found = await self.caller.post(server, "/CancelRun", {"run_id": first.run_id})
            if found["status"] not in ("running", "queued"):
                sent.told(first.run_id, found["status"])

    async def twice(self, server: Server, sent: Sent) -> None:
        """With a key the sender may ask at two servers at once, and again until it is answered."""
        sent.key = f"{self.name}-{len(self.sent)}"
        for _ in range(10):
            tries = [self.streamed(server, sent, idempotency_key=sent.key) for server in self.made.servers]
            for result in await asyncio.gather(*tries, return_exceptions=True):
                if isinstance(result, AssertionError):
                    raise result
                if isinstance(result, str) and result != "failed":
                    return
            await asyncio.sleep(0.3)


class Harm:
    """What goes wrong, one thing after another: each kind before any comes again."""

    def __init__(self, made: Cluster, dice: random.Random) -> None:
        self.made, self.dice = made, dice
        self.done: list[str] = []

    async def go_on(self, seconds: float) -> None:
        deadline = monotonic() + seconds
        for kind in self.kinds():
            await asyncio.sleep(PAUSE * self.dice.uniform(0.5, 1.5))
            if monotonic() > deadline and len(set(self.done)) == KINDS:
                return
            self.done.append(getattr(kind, "__name__", ""))
            await kind()

    def kinds(self) -> Iterator[Callable[[], Awaitable[None]]]:
        every = [self.postgres_restarts, self.postgres_crashes, self.redis_dies, self.server_dies, self.worker_dies]
        every += [self.upstream_resets, self.upstream_breaks_off]
        while True:
            self.dice.shuffle(every)
            yield from every

    async def postgres_restarts(self) -> None:
        await asyncio.to_thread(self.made.postgres.stop)
        await asyncio.sleep(self.dice.uniform(0, 1.5))
        self.made.postgres.start()

    async def postgres_crashes(self) -> None:
        self.made.crash_postgres()
        await asyncio.sleep(self.dice.uniform(0, 1))
        self.made.postgres.start()

    async def redis_dies(self) -> None:
        self.made.kill_valkey()
        await asyncio.sleep(self.dice.uniform(0, 2))
        self.made.valkey.start()

    async def server_dies(self) -> None:
        server = self.dice.choice(self.made.servers)
        server.kill()
        server.start()
        await server.ready()

    async def worker_dies(self) -> None:
        self.dice.choice(self.made.servers).signal_workers(signal.SIGKILL)

    async def upstream_resets(self) -> None:
        await self.made.fake.fail("reset after=3 delay=0.02", times=3)

    async def upstream_breaks_off(self) -> None:
        await self.made.fake.fail("unfinished_line after=4 delay=0.02", times=3)


def text_of(content: str) -> str:
    """What is to be answered."""
    return content.removeprefix("say ").partition(" [[")[0]


class Books:
    """What is stored in the end, against what was sent and what the upstream was asked."""

    def __init__(self, sent: list[Sent], requests: list[dict[str, Any]]) -> None:
        self.sent = sent
        self.requests = [request["body"]["messages"] for request in requests]

    async def read(self, made: Cluster) -> None:
        self.names = {row["id"]: row["name"] for row in await made.rows("SELECT id, name FROM users")}
        self.sessions = {row["id"]: row for row in await made.rows("SELECT * FROM sessions")}
        self.messages = {row["id"]: row for row in await made.rows("SELECT * FROM messages ORDER BY session_id, seq")}
        self.runs = {str(row["id"]): row for row in await made.rows("SELECT * FROM runs ORDER BY id")}
        self.ledger = await made.rows("SELECT * FROM ledger")
        self.keys = await made.rows("SELECT * FROM idempotency_keys")
        self.steps = await made.rows("SELECT s.scope_id, r.session_id FROM steps s JOIN runs r ON r.id = s.run_id")

    def question(self, run: asyncpg.Record) -> str:
        """The message that a run answers; nothing when it was cancelled before its turn."""
        found = self.messages.get(run["message_id"])
        return found["content"] if found else ""

    def no_acknowledged_message_is_lost(self) -> None:
        stored = Counter((str(row["session_id"]), row["content"]) for row in self.messages.values())
        for sent in self.sent:
            never_had_its_turn = all(self.runs[id]["status"] == "cancelled" for id in sent.runs)
            count = stored[sent.session_id, sent.content]
            assert count == 1 or (count == 0 and never_had_its_turn), sent

    def messages_are_numbered_without_gaps(self) -> None:
        numbers: defaultdict[Any, list[int]] = defaultdict(list)
        for row in self.messages.values():
            numbers[row["session_id"]].append(row["seq"])
            parent = row["parent_id"]
            assert parent is None or self.messages[parent]["session_id"] == row["session_id"]
        for id, found in numbers.items():
            assert found == list(range(1, self.sessions[id]["next_seq"]))

    def every_run_has_one_end(self) -> None:
        answers: defaultdict[Any, list[str]] = defaultdict(list)
        for row in self.messages.values():
            if row["run_id"]:
                answers[row["run_id"]].append(row["content"])
        for run in self.runs.values():
            assert run["status"] in ("completed", "partial", "failed", "cancelled"), run
            assert run["ended_at"] is not None
            assert len(answers[run["id"]]) <= 1, run
            answer, text = "".join(answers[run["id"]]), text_of(self.question(run))
            assert answer == text if run["status"] == "completed" else text.startswith(answer), (run, answer)
        for sent in self.sent:
            for id, status in sent.runs.items():
                assert status in (None, self.runs[id]["status"]), (status, self.runs[id])

    def the_ledger_is_the_upstreams(self) -> None:
        """What was completed is billed as the upstream counts it; what was not is estimated, and never nothing."""
        spent: defaultdict[str, list[Any]] = defaultdict(list)
        for messages in self.requests:
            content = messages[-1]["content"]
            counts = usage(messages, text_of(content), Fault()) or {}
            spent[content].append(tuple(counts[name] for name in TOKENS))
        bills: defaultdict[Any, list[asyncpg.Record]] = defaultdict(list)
        for bill in self.ledger:
            bills[bill["run_id"]].append(bill)
        for run in self.runs.values():
            found, asked = bills[run["id"]], spent[self.question(run)]
            assert [run[name] for name in TOKENS] == [sum(bill[name] for bill in found) for name in TOKENS], (
                run,
                found,
            )
            exact = [tuple(bill[name] for name in TOKENS) in asked and not bill["estimated"] for bill in found]
            if run["status"] == "completed":
                assert exact == [True], (run, found, asked)
            elif asked:
                guessed = [bill["prompt_tokens"] > 0 and bill["estimated"] for bill in found]
                assert found, run
                assert all(map(max, exact, guessed)), (run, found, asked)

    def a_key_has_one_run(self) -> None:
        keys = Counter((str(row["owner_id"]), row["key"]) for row in self.keys)
        runs: defaultdict[Any, list[str]] = defaultdict(list)
        for run in self.runs.values():
            runs[str(run["session_id"]), self.question(run)].append(run["status"])
        for sent in self.sent:
            found = runs[sent.session_id, sent.content]
            assert len(found) - found.count("failed") <= 1, (sent, found)
            assert len(found) <= 1 or sent.key, (sent, found)
            assert keys[sent.user_id, sent.key] == bool(sent.key and sent.runs) or not sent.runs, sent

    def everybody_has_only_his_own(self) -> None:
        for row in [*self.messages.values(), *self.runs.values(), *self.ledger]:
            assert row["user_id"] == self.sessions[row["session_id"]]["user_id"]
        for row in self.messages.values():
            text, owner = text_of(row["content"]), f"{self.names[row['user_id']]}m"
            assert text[: len(owner)] == owner[: len(text)], row
        assert all(step["scope_id"] == step["session_id"] for step in self.steps)
        for messages in self.requests:
            speakers = {re.findall(r"^(?:say )?(user\d+m|$)", message["content"])[0] for message in messages}
            assert len(speakers - {""}) == 1, messages


async def test_the_books_balance_after_everything_died_again_and_again(tmp_path: Path) -> None:
    sys.stdout.write(f"TEST_SEED={SEED}\n")
    async with cluster(tmp_path, 2) as made:
        talkers = []
        for number in range(CLIENTS):
            caller = await made.user(made.servers[0], f"user{number}")
            talkers.append(Talker(made, caller, f"user{number}", random.Random(SEED + number)))
        talking = [asyncio.create_task(talker.talk()) for talker in talkers]
        harm = Harm(made, random.Random(SEED))
        await harm.go_on(HARM_SECONDS)
        await made.ready()
        await asyncio.sleep(GRACE_SECONDS)
        for task in talking:
            task.cancel()
        ends = await asyncio.gather(*talking, return_exceptions=True)
        assert not [end for end in ends if not isinstance(end, asyncio.CancelledError)]

        async def settled() -> bool:
            return not await made.rows("SELECT FROM runs WHERE ended_at IS NULL")

        await until(settled, SETTLE_SECONDS, "the end of all runs")
        stats = await made.fake.stats()
        assert stats["hits"] <= KEPT, "the upstream has forgotten the first requests"
        sent = [sent for talker in talkers for sent in talker.sent]
        books = Books(sent, stats["requests"])
        await books.read(made)
    states = Counter(run["status"] for run in books.runs.values())
    told = sum((talker.told for talker in talkers), Counter[str]())
    sys.stdout.write(f"harms {harm.done}\nsent {len(sent)}, told {dict(told)}, runs {dict(states)}\n")
    books.no_acknowledged_message_is_lost()
    books.messages_are_numbered_without_gaps()
    books.every_run_has_one_end()
    books.the_ledger_is_the_upstreams()
    books.a_key_has_one_run()
    books.everybody_has_only_his_own()
    assert {word for word in told if word.isdigit()} <= REFUSALS
    assert states["completed"] > CLIENTS
    assert len(set(harm.done)) == KINDS
