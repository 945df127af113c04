"""Has one item of a bench answered and scored: by its agent alone, or by a run of its own, and again where there is no room for it now."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple
from uuid import UUID

from msgspec import Struct
from msgspec.structs import replace

from app.agent.chattable import Binding
from app.agent.history import History
from app.agent.plain import clean
from app.agent.runner import answer
from app.agent.version import AgentVersion
from app.domain import Bench, BenchResult, Message, Preset, Principal, Scope, Session, canonical, new_id
from app.errors import AgentFailed, AppError, QuotaExceeded, Unavailable
from app.journal.log import Log
from app.journal.recorder import Recorder
from app.journal.replay import Suspended
from app.llm.catalog import DEFAULT
from app.llm.run import RunLLM
from app.llm.stages import Caller
from app.llm.waits import Waits
from app.store.operations import BeginRun
from app.suites.scorers import Scorers, Unscored
from app.suites.suite import Cell, Suite, asked
from app.usecases import messages
from app.usecases.knowledge import UserPassages
from app.usecases.live import LiveRun
from app.usecases.platform import Platform

TRIES = 4
"""How often an item is asked whose model has no room for it now."""
MAX_PAUSE = 60.0
"""The longest pause before an item is asked again, in seconds, whatever the model's server wants."""
ROOM_SECONDS = 1.0
"""How long an item waits that has a run of its own, when this server has no room for one and does not say until when."""


class Item(NamedTuple):
    """One row of the data set, for one cell, for the first time or again."""

    number: int
    row: Mapping[str, Any]
    cell: int
    repeat: int
    before: BenchResult | None
    """What was answered before, and only has no score yet."""


class Subject(Struct, frozen=True):
    """A cell as it is asked here."""

    cell: Cell
    version: AgentVersion
    session: Session
    budgets: tuple[UUID, ...]


class Stop(Exception):
    """No more items are to be asked here; with a reason the whole bench is to stop."""


class Asker:
    """Asks items of one bench here, as long as `is_over` does not say that no more are to be."""

    def __init__(
        self, platform: Platform, bench: Bench, suite: Suite, scorers: Scorers, is_over: Callable[[], bool]
    ) -> None:
        self._platform = platform
        self._bench = bench
        self._suite = suite
        self._scorers = scorers
        self._is_over = is_over

    async def result(self, item: Item, subject: Subject, recorder: Recorder, run_id: UUID) -> BenchResult:
        """What becomes of it. `Stop` when there will be no room for it, or there is none and it is over."""
        caller = self._caller(subject, item, run_id)
        result = item.before
        if result is None:
            result = await self._answered(item, subject, recorder, caller)
        if result.status != "failed":
            result = await self._scored(
                item.row,
                result,
                RunLLM(self._platform.calls, recorder, caller, cache=self._suite.cache, mode=self._suite.mode),
            )
        return replace(result, usage=result.usage + recorder.usage)

    def _caller(self, subject: Subject, item: Item, run_id: UUID) -> Caller:
        """For whom its calls are made. Each repeat is another version of the agent to the cache, so that it has answers of its own."""
        version = subject.version.digest + (f" {item.repeat}" if item.repeat else "")
        bench = self._bench
        shares, agent_id = subject.version.shares_cache, subject.cell.agent_id
        return Caller(
            run_id,
            str(bench.user_id),
            str(bench.id),
            agent_id,
            version,
            subject.budgets,
            shares_cache=shares,
            batch=True,
        )

    async def _answered(self, item: Item, subject: Subject, recorder: Recorder, caller: Caller) -> BenchResult:
        """The item with its answer, or why there is none; asked again where there is no room for it now."""
        said = item.row[self._suite.dataset.input]
        blank = BenchResult(item.cell, item.number, item.repeat, _key(said), "failed", run_id=None)
        began, spent = time.monotonic(), blank.usage
        for number in range(1, TRIES + 1):
            try:
                if self._suite.journal:
                    result = await self._journaled(subject, asked(said), blank)
                else:
                    result = await self._direct(subject, recorder, caller, asked(said), blank)
            except Suspended:
                result = replace(blank, error=AgentFailed("The agent asks a person, and nobody is there.").to_dict())
            except AppError as error:
                result = replace(blank, error=error.to_dict())
            spent += result.usage
            if not (result.error and await self._may_pass(result.error, number)):
                break
        return replace(result, usage=spent, seconds=time.monotonic() - began)

    async def _may_pass(self, error: Mapping[str, Any], number: int) -> bool:
        """Whether to ask once more, after a pause: there is no room now. `Stop` where there will be none, or it is over."""
        if error["code"] == QuotaExceeded.code:
            raise Stop(error["message"])
        if error.get("status") not in (429, 503):
            return False
        if number == TRIES and not self._is_over():
            return False
        await self._pause(min(MAX_PAUSE, max(error.get("retry_after", 0.0), 2.0**number / 2)))
        return True

    async def _pause(self, seconds: float) -> None:
        """Wait. `Stop` when it is over before that: so the item is not stored, and is asked again."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if self._is_over():
                raise Stop("")
            await asyncio.sleep(min(0.25, max(0.0, deadline - time.monotonic())))

    async def _direct(
        self,
        subject: Subject,
        recorder: Recorder,
        caller: Caller,
        history: Sequence[Message],
        blank: BenchResult,
    ) -> BenchResult:
        """By the agent alone."""
        llm = RunLLM(
            self._platform.calls,
            recorder,
            caller,
            model=subject.cell.model,
            temperature=subject.cell.temperature,
            cache=self._suite.cache,
            mode=self._suite.mode,
            waits=Waits(),
        )
        binding = Binding(
            session=subject.session,
            history=History(history),
            llm=llm,
            recorder=recorder,
            toolboxes=self._platform.toolboxes,
            passages=UserPassages(self._platform, self._bench.user_id, subject.cell.agent_id),
        )
        events, seconds = Log(caller.run_id), self._suite.limits.seconds
        given = await answer(subject.version, binding, history[-1], events, timeout=seconds)
        steps = recorder.steps
        cached = bool(steps) and all(step.from_cache for step in steps if step.kind == "llm")
        return replace(blank, status="completed", answer=given.text, from_cache=cached)

    async def _journaled(self, subject: Subject, history: Sequence[Message], blank: BenchResult) -> BenchResult:
        """By a run of its own, as if a request without a session had asked: it charges itself."""
        cell = subject.cell
        body = {
            "model": cell.model or DEFAULT,
            "messages": [message.to_openai() for message in history],
            "stream": False,
        }
        user = subject.session.user
        preset = Preset(self._bench.id, user, self._bench.name, cell.agent_id, cell.params, subject.session.params)
        live = await self._begun(
            BeginRun(
                Principal(user, frozenset({Scope.CHAT}), self._bench.credential_id, gives_way=True),
                new_id(),
                new_id(),
                replace(history[-1], id=new_id()),
                self._platform.agents.ids,
                agent_id=cell.agent_id,
                ephemeral=True,
                preset=preset,
                request={"body": body, "headers": {}},
                batch=self._suite.mode == "batch",
            )
        )
        outcome = await live.log.ended()
        run, text = outcome.run, "".join(message.content for message in outcome.messages)
        done = replace(blank, usage=run.usage, run_id=run.id)
        if run.status == "completed":
            return replace(done, status="completed", answer=text)
        return replace(done, answer=text or None, error=run.error or {"code": run.status})

    async def _begun(self, wanted: BeginRun) -> LiveRun:
        """The run, once this server has room for it."""
        while True:
            try:
                live = await messages.begin(self._platform, wanted)
            except Unavailable as error:
                await self._pause(error.retry_after or ROOM_SECONDS)
            else:
                assert isinstance(live, LiveRun)  # noqa: S101 - a new session is never busy
                return live

    async def _scored(self, row: Mapping[str, Any], result: BenchResult, llm: RunLLM) -> BenchResult:
        try:
            score, scores = await self._scorers.score(row, result.answer or "", llm)
        except Unscored as error:
            if isinstance(error.__cause__, QuotaExceeded):
                raise Stop(error.__cause__.message) from None
            told = {"code": "scorer_failed", "message": clean(str(error)), "status": 500}
            return replace(result, status="unscored", error=told)
        finally:
            if self._scorers.call_models:
                await llm.close()
        return replace(result, status="completed", score=score, scores=scores, error=None)


def _key(said: Any) -> int:
    """What equal inputs have in common, in every bench."""
    return int.from_bytes(hashlib.sha256(canonical(said)).digest()[:8], "big", signed=True)
