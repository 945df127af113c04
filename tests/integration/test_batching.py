"""Calls in mode batch: gathered, sent once, answered one by one, and asked at once where the batch has no answer."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from msgspec.structs import replace

from app.errors import InvalidInput, LLMRejected
from app.journal.recorder import Recorder
from app.llm.batching import Batching, Pace
from app.llm.outstanding import Item, Outstanding, Sought
from app.llm.stages import Caller
from app.llm.waits import Waits
from app.tasks import Tasks
from tests.fakes.upstream import FakeUpstream, upstream
from tests.paths import Models, catalog_of, model, open_models, run_llm

QUICK = Pace(window=0.05, first=0.02, longest=0.05, cancel=0.3, kept=0.05)
ADA, BOB = Caller(uuid4(), str(uuid4())), Caller(uuid4(), str(uuid4()))


@dataclass
class Shelf:
    """What PostgreSQL keeps, for processes that die when `gone` is told so."""

    calls: dict[UUID, tuple[Sought, Item]] = field(default_factory=dict)
    batches: dict[UUID, Outstanding] = field(default_factory=dict)
    mine: set[UUID] = field(default_factory=set)

    def gone(self) -> None:
        self.mine.clear()

    async def adopt(self, sought: Sought) -> Item | None:
        for id, (known, item) in self.calls.items():
            if (known.key, known.owner_id) == (sought.key, sought.owner_id) and id not in self.mine:
                self.mine.add(id)
                return item
        return None

    async def add(self, batch: Outstanding, calls: Mapping[UUID, Sought]) -> None:
        self.batches[batch.id] = batch
        self.mine |= {batch.id, *calls}
        self.calls |= {id: (sought, Item(id, batch.id)) for id, sought in calls.items()}

    async def submitted(self, id: UUID, provider_id: str) -> None:
        self.batches[id] = self.batches[id]._replace(provider_id=provider_id)

    async def take(self, id: UUID) -> Outstanding | None:
        if id in self.mine or id not in self.batches:
            return None
        self.mine.add(id)
        return self.batches[id]

    async def awaited(self, id: UUID) -> int:
        return sum(item.batch_id == id and item.status is None for _, item in self.calls.values())

    async def answer(self, answers: Sequence[tuple[UUID, int, bytes]]) -> None:
        for id, status, body in answers:
            if id in self.calls:
                sought, item = self.calls[id]
                self.calls[id] = sought, item._replace(status=status, answer=body)

    async def end(self, id: UUID, *, unsent: bool = False) -> None:
        del self.batches[id]
        left = {} if unsent else {call: (sought, item._replace(is_over=True)) for call, (sought, item) in self._of(id)}
        self.calls = {call: known for call, known in self.calls.items() if known[1].batch_id != id} | left

    async def look(self, id: UUID) -> Item | None:
        return self.calls[id][1] if id in self.calls else None

    async def release(self, ids: Collection[UUID]) -> None:
        self.mine -= {*ids, *(self.calls[id][1].batch_id for id in ids)}

    async def forget(self, ids: Collection[UUID]) -> None:
        for id in ids:
            self.calls.pop(id, None)

    def _of(self, batch: UUID) -> list[tuple[UUID, tuple[Sought, Item]]]:
        return [(id, known) for id, known in self.calls.items() if known[1].batch_id == batch]


@dataclass
class Place:
    """One process: a call path with batches, and what it shares with others."""

    models: Models
    shelf: Shelf
    draining: asyncio.Event
    recorder: Recorder = field(default_factory=Recorder)

    async def ask(self, text: str, caller: Caller = ADA, **options: Any) -> str:
        llm = run_llm(self.models.path, self.recorder, caller)
        return str(await llm.ainvoke(text, **{"mode": "batch", **options}))


@asynccontextmanager
async def place(folder: Path, fake: FakeUpstream, shelf: Shelf | None = None, **given: Any) -> AsyncIterator[Place]:
    """A process with one model, whose endpoint has batches."""
    mark = "".join(f", {name} = {value}" for name, value in ({"batch": "true"} | given).items())
    text = model("default", fake.base_url + mark, price="{ prompt = 1000, completion = 1000, batch = 0.5 }")
    shelf, draining, tasks = shelf or Shelf(), asyncio.Event(), Tasks()
    async with open_models(
        catalog_of(folder, text), batching=lambda endpoints: Batching(shelf, endpoints, tasks, draining, QUICK)
    ) as models:
        models.current()
        try:
            yield Place(models, shelf, draining)
        finally:
            await tasks.close()


@pytest.fixture
async def fake() -> AsyncIterator[FakeUpstream]:
    async with upstream() as server:
        yield server


async def test_calls_of_many_go_as_one_file_and_each_has_its_own_answer(tmp_path: Path, fake: FakeUpstream) -> None:
    async with place(tmp_path, fake) as here:
        asked = [here.ask(f"say answer {n}", (ADA, BOB)[n % 2], temperature=0.5) for n in range(20)]
        assert await asyncio.gather(*asked) == [f"answer {n}" for n in range(20)]
        assert (fake.hits, len(fake.batches.batches), len(fake.batches.lines)) == (0, 1, 20)
        line = fake.batches.lines[0]
        assert (line["model"], line["temperature"], "stream" in line) == ("default-0", 0.5, False)
        await fake.until(lambda: not (here.shelf.calls or here.shelf.batches or fake.batches.files))
        step = here.recorder.steps[0]
        assert step.output
        assert (step.model, json.loads(step.output)["mode"], step.usage.total) == ("default-0", "batch", 5)
        assert step.usage.cost == Decimal("0.0025"), "half of what it costs at once"
        assert await here.ask("say now", mode="realtime") == "now"
        assert (fake.hits, len(fake.batches.lines)) == (1, 20)


async def test_tools_and_reasoning_come_out_of_a_batch_as_they_are(tmp_path: Path, fake: FakeUpstream) -> None:
    tools = [{"type": "function", "function": {"name": "find", "parameters": {"type": "object"}}}]
    async with place(tmp_path, fake) as here:
        llm = run_llm(here.models.path, here.recorder, ADA, mode="batch")
        reply = await llm.acall('call find {"x": 1}', tools=tools)
        assert [(call.name, call.arguments) for call in reply.tool_calls] == [("find", '{"x": 1}')]
        with pytest.raises(InvalidInput, match="mode must be realtime or batch"):
            await llm.ainvoke("say it", mode="later")


async def test_a_line_that_is_refused_fails_alone_and_one_that_may_do_better_is_asked_at_once(
    tmp_path: Path, fake: FakeUpstream
) -> None:
    async with place(tmp_path, fake) as here:
        texts = ["say one", "say two [[fault: 400]]", "say three [[fault: 503]]"]
        found = await asyncio.gather(*map(here.ask, texts), return_exceptions=True)
        assert found[0] == "one"
        assert isinstance(found[1], LLMRejected)
        assert "Something is wrong." in str(found[1])
        assert fake.hits == 3, "the third was asked at once as often as any call is"
        failed = [step for step in here.recorder.steps if step.status == "failed"]
        assert [step.error and step.error["code"] for step in failed] == ["llm_rejected", "llm_unavailable"]


@pytest.mark.parametrize(("fault", "status"), [("expire", "expired"), ("never", "cancelled")])
async def test_what_a_batch_gave_until_its_end_is_used_and_the_rest_asked_at_once(
    tmp_path: Path, fake: FakeUpstream, fault: str, status: str
) -> None:
    fake.batches.fault = fault
    async with place(tmp_path, fake, batch_deadline=1) as here:
        found = await asyncio.gather(*(here.ask(f"say {n}") for n in range(5)))
        assert found == [str(n) for n in range(5)]
        assert [batch.status for batch in fake.batches.batches.values()] == [status]
        assert fake.hits == 2
        costs = sorted(step.usage.cost for step in here.recorder.steps)
        assert costs == [Decimal("0.0015")] * 3 + [Decimal("0.003")] * 2
        modes = sorted(json.loads(step.output or b"").get("mode", "") for step in here.recorder.steps)
        assert modes == ["", "", "batch", "batch", "batch"]


@pytest.mark.parametrize("fault", ["fail", "stubborn"])
async def test_a_batch_that_gives_nothing_costs_nothing_but_time(
    tmp_path: Path, fake: FakeUpstream, fault: str
) -> None:
    fake.batches.fault = fault
    async with place(tmp_path, fake, batch_deadline=1) as here:
        assert await asyncio.gather(here.ask("say one"), here.ask("say two")) == ["one", "two"]
        assert (fake.hits, len(fake.batches.lines)) == (2, 2)
        (one, _) = here.recorder.steps
        assert b'"failures":["batch_missed"]' in (one.output or b"")


async def test_a_server_without_batches_or_that_is_busy(tmp_path: Path, fake: FakeUpstream) -> None:
    async with place(tmp_path, fake) as here:
        fake.batches.refusals = [404]
        assert await here.ask("say one") == "one"
        assert (fake.hits, fake.batches.lines) == (1, [])
        fake.batches.refusals = [503, 429]
        assert await here.ask("say two") == "two"
        assert (fake.hits, len(fake.batches.lines)) == (1, 1)
    async with place(tmp_path, fake, batch="false") as here:
        assert await here.ask("say three") == "three"
        assert (fake.hits, len(fake.batches.lines)) == (2, 1)
        assert b'"mode":"batch"' in (here.recorder.steps[0].output or b"")


async def test_a_batch_that_was_sent_without_an_answer_is_found_and_not_sent_again(
    tmp_path: Path, fake: FakeUpstream
) -> None:
    made = fake.batches.serve

    def lost(method: str, path: str, *rest: Any) -> Any:
        told = made(method, path, *rest)
        if (method, path) == ("POST", "/v1/batches"):
            fake.batches.serve = made  # type: ignore[method-assign]  # from now on its answers arrive
            return 502, b"{}"
        return told

    fake.batches.serve = lost  # type: ignore[method-assign]  # one answer is lost on its way
    async with place(tmp_path, fake) as here:
        assert await here.ask("say one") == "one"
        assert (len(fake.batches.lines), fake.hits) == (1, 0)


@pytest.mark.parametrize("sent", [True, False])
async def test_who_asks_the_same_in_the_place_of_a_dead_process_waits_for_what_it_had_sent(
    tmp_path: Path, fake: FakeUpstream, sent: bool
) -> None:
    shelf = Shelf()
    fake.batches.seconds = 0.4
    async with place(tmp_path, fake, shelf) as dead:
        asking = [asyncio.create_task(dead.ask(text, who)) for text in ("say it", "say it") for who in (ADA, BOB)]
        await fake.until(lambda: len(fake.batches.lines) == 4 and all(b.provider_id for b in shelf.batches.values()))
        kept = dict(shelf.calls), dict(shelf.batches)
    for task in asking:
        task.cancel()
    await asyncio.gather(*asking, return_exceptions=True)
    shelf.calls, shelf.batches = kept
    if not sent:  # it died before it heard that its batch is there
        shelf.batches = {id: batch._replace(provider_id=None) for id, batch in shelf.batches.items()}
    shelf.gone()
    async with place(tmp_path, fake, shelf) as here:
        again = replace(ADA, run_id=uuid4())
        found = await asyncio.gather(*(here.ask("say it", again) for _ in range(3)), here.ask("say it", BOB))
        assert found == ["it"] * 4
        assert (len(fake.batches.lines), len(fake.batches.batches), fake.hits) == (5, 2, 0), "one more than was sent"


async def test_a_batch_that_nobody_waits_for_is_cancelled(tmp_path: Path, fake: FakeUpstream) -> None:
    fake.batches.fault = "never"
    async with place(tmp_path, fake) as here:
        asking = asyncio.create_task(here.ask("say it"))
        await fake.until(lambda: len(fake.batches.lines) == 1)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        await fake.until(lambda: [batch.status for batch in fake.batches.batches.values()] == ["cancelled"])
        (step,) = here.recorder.steps
        assert (step.status, step.usage.estimated, step.usage.prompt > 0) == ("cancelled", True, True)


async def test_a_process_that_ends_leaves_its_calls_to_others_and_pays_for_none(
    tmp_path: Path, fake: FakeUpstream
) -> None:
    fake.batches.seconds = 0.4
    async with place(tmp_path, fake) as here:
        asking = asyncio.create_task(here.ask("say it"))
        await fake.until(lambda: len(fake.batches.lines) == 1)
        here.draining.set()
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        assert here.shelf.mine == set()
        assert here.recorder.usage.total == 0
        shelf = here.shelf
    async with place(tmp_path, fake, shelf) as other:
        assert await other.ask("say it") == "it"
        assert (len(fake.batches.lines), fake.hits) == (1, 0)


async def test_calls_at_once_do_not_wait_for_those_in_a_batch(tmp_path: Path, fake: FakeUpstream) -> None:
    fake.batches.fault = "never"
    async with place(tmp_path, fake, max_concurrency=1) as here:
        waiting = [asyncio.create_task(here.ask(f"say {n}")) for n in range(50)]
        await fake.until(lambda: len(fake.batches.lines) == 50)
        assert await here.ask("say at once", BOB, mode="realtime") == "at once"
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)


async def test_the_time_in_a_batch_is_counted_once_for_calls_side_by_side(tmp_path: Path, fake: FakeUpstream) -> None:
    waits = Waits()
    async with place(tmp_path, fake) as here:
        llm = run_llm(here.models.path, here.recorder, ADA, mode="batch", waits=waits)
        began = asyncio.get_running_loop().time()
        await asyncio.gather(*(llm.ainvoke(f"say {n}") for n in range(10)))
        passed = asyncio.get_running_loop().time() - began
        assert waits.begun.is_set()
        assert 0.1 < waits.seconds <= passed
        before = waits.seconds
        await llm.ainvoke("say at once", mode="realtime")
        assert waits.seconds == before


@pytest.mark.parametrize("owner", ["ADA", "BOB"])
async def test_a_call_that_is_begun_anew_is_owed_by_whoever_takes_it_up(
    tmp_path: Path, fake: FakeUpstream, owner: str
) -> None:
    caller = replace(ADA, batch=owner == "BOB")
    fake.batches.fault = "never"
    async with place(tmp_path, fake) as here:
        asking = asyncio.create_task(here.ask("say it", caller))
        await fake.until(lambda: len(fake.batches.lines) == 1)
        (bill,) = here.recorder.bill()
        assert (bill.prompt > 0, bill.ended) == ((False, True) if caller.batch else (True, False))
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
