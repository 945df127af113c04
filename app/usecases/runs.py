"""Runs: conducted to their end whether or not anyone listens, cancelled, and reaped when their server died."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from typing import Any, TypeVar
from uuid import UUID

from app.agent.chattable import Binding
from app.agent.history import History
from app.agent.runner import Answer, answer
from app.domain import ANSWER_TYPES, Chunk, Message, Outcome, Page, Principal, Run, RunStatus, new_id
from app.errors import AppError, NotFound, Unavailable
from app.journal.log import Log, LogFull
from app.journal.recorder import Recorder
from app.llm.call import RunLLM
from app.llm.tokens import count
from app.store import messages, runs, sessions
from app.store.database import is_passing
from app.store.writer import Begun, FinishRun
from app.usecases.live import LiveRun
from app.usecases.platform import Platform

log = logging.getLogger(__name__)
T = TypeVar("T")

WINDOW_TOKENS = 6000
"""How much history an agent is given, in estimated tokens: what fits a small local model's context of 8,192 with room to answer."""
WINDOW_MESSAGES = 200
PATIENCE_SECONDS = 60.0
"""How long a run waits for a database that is away."""
BEAT_SECONDS = 3.0
STORE_SECONDS = 10.0
"""How long a server that ends waits for its last answers to be stored."""
SERVER_LOST = {"code": "server_lost", "message": "The server that was answering has ended.", "status": 502}
SHUTDOWN = {"code": "shutdown", "message": "The server is shutting down.", "status": 503}


def start(platform: Platform, begun: Begun, principal: Principal) -> LiveRun:
    """Begin to answer, in a task that belongs to the platform and not to the caller."""
    live = LiveRun(begun.run, Log(begun.run.id))
    platform.live[begun.run.id] = live
    recorder = Recorder()
    live.agent = platform.tasks.start(_answer(platform, begun, live, recorder), name=f"agent {begun.run.id}")
    platform.tasks.start(_conduct(platform, live, recorder, principal), name=f"run {begun.run.id}")
    return live


async def _answer(platform: Platform, begun: Begun, live: LiveRun, recorder: Recorder) -> Answer | AppError:
    session = begun.session
    defaults = {name: value for name, value in asdict(session.params).items() if value is not None}
    llm = RunLLM(platform.calls, recorder, **defaults)
    try:
        history = await _history(platform, begun)
        with platform.agents.lease(session.agent_id) as version:
            binding = Binding(
                session=session,
                history=History(history),
                llm=llm,
                recorder=recorder,
                state=_state(history, session.agent_id),
            )
            return await answer(version, binding, history[-1], live.log, timeout=platform.run_timeout)
    except AppError as error:
        return error
    except Exception as error:
        if is_passing(error):
            return Unavailable("The database is not available at the moment.")
        log.exception("run %s failed outside its agent", begun.run.id)
        return AppError("Something went wrong in the server.")


async def _history(platform: Platform, begun: Begun) -> Sequence[Message]:
    """The branch that ends with the message to answer. Read after transaction 1, so that what it waited for is seen."""
    leaf_id = begun.run.message_id

    async def read() -> Sequence[Message]:
        async with platform.engine.connect() as db:
            return await messages.window(db, leaf_id, max_tokens=WINDOW_TOKENS, max_messages=WINDOW_MESSAGES)

    return await _patiently(read)


def _state(history: Sequence[Message], agent_id: str) -> Any:
    kept = (item.state for item in reversed(history) if item.state is not None and item.agent_id == agent_id)
    return next(kept, None)


async def _conduct(platform: Platform, live: LiveRun, recorder: Recorder, principal: Principal) -> None:
    """Wait for the answer, store it, and only then end the log."""
    assert live.agent is not None  # noqa: S101 - set by start()
    await asyncio.wait({live.agent})
    try:
        outcome = await _finish(platform, _ending(live, recorder, principal.credential_id))
    finally:
        platform.live.pop(live.run.id, None)
    live.log.close(outcome)


def _ending(live: LiveRun, recorder: Recorder, credential_id: UUID | None) -> FinishRun:
    status, error, given = _verdict(live)
    run = replace(live.run, status=status, error=error, usage=recorder.usage)
    text = live.log.answer()
    answers: list[Message] = []
    if text or status is RunStatus.COMPLETED:
        extra = dict(given.additional_kwargs) if given else {}
        if asides := _asides(live.log.chunks):
            extra["asides"] = asides
        if status is not RunStatus.COMPLETED:
            extra["status"] = status.value
        message = Message.assistant(text, id=new_id(), tokens=count(text), additional_kwargs=extra)
        if given:
            message = replace(message, parts=given.parts, name=given.name, state=given.state)
        answers.append(message)
    return FinishRun(run, answers, recorder.steps, credential_id)


def _verdict(live: LiveRun) -> tuple[RunStatus, Any, Answer | None]:
    assert live.agent is not None  # noqa: S101 - set by start()
    if live.agent.cancelled():
        if live.ended_by == "cancel":
            return RunStatus.CANCELLED, None, None
        return RunStatus.PARTIAL, SHUTDOWN, None
    result = live.agent.result()
    if isinstance(result, LogFull):
        return RunStatus.PARTIAL, result.to_dict(), None
    if isinstance(result, AppError):
        return RunStatus.FAILED, result.to_dict(), None
    assert isinstance(result, Answer)  # noqa: S101 - the only other thing _answer gives
    return (RunStatus.PARTIAL if result.finish == "cut" else RunStatus.COMPLETED), None, result


def _asides(chunks: Iterable[Chunk]) -> list[dict[str, str]]:
    """What was shown beside the answer, neighbours of one type joined."""
    joined: list[dict[str, str]] = []
    for chunk in chunks:
        if chunk.content_type in ANSWER_TYPES:
            continue
        if joined and joined[-1]["content_type"] == chunk.content_type:
            joined[-1]["content"] += chunk.content
        else:
            joined.append({"content_type": chunk.content_type, "content": chunk.content})
    return joined


async def _finish(platform: Platform, ending: FinishRun) -> Outcome:
    """Transaction 2. Losing it must never leave a reader waiting."""
    try:
        outcome = await _patiently(lambda: platform.writer.finish(ending))
        return outcome or Outcome(_failed(ending.run, NotFound("session")))
    except Exception:
        log.exception("the end of run %s could not be stored", ending.run.id)
        return Outcome(_failed(ending.run, Unavailable("The answer could not be stored.")))


async def _patiently(attempt: Callable[[], Awaitable[T]]) -> T:
    """Try again while the database is away, up to `PATIENCE_SECONDS`: what was acknowledged is answered and stored."""
    deadline = asyncio.get_running_loop().time() + PATIENCE_SECONDS
    while True:
        try:
            return await attempt()
        except Exception as error:
            if not is_passing(error) or asyncio.get_running_loop().time() > deadline:
                raise
            await asyncio.sleep(0.25)


def _failed(run: Run, error: AppError) -> Run:
    return replace(run, status=RunStatus.FAILED, error=error.to_dict())


def stop_all(platform: Platform, ids: Iterable[UUID]) -> None:
    """End runs that this process conducts."""
    for id in ids:
        if live := platform.live.get(id):
            live.end("cancel")


async def get(platform: Platform, principal: Principal, id: UUID) -> Run:
    """A run of the caller."""
    async with platform.engine.connect() as db:
        run = await runs.get(db, id, owner=principal.owner)
    if run is None:
        raise NotFound("run", param="run_id")
    return run


async def list_page(
    platform: Platform, principal: Principal, session_id: UUID, *, after: UUID | None, limit: int
) -> Page[Run]:
    """The runs of a session."""
    async with platform.engine.connect() as db:
        if await sessions.get(db, session_id, owner=principal.owner) is None:
            raise NotFound("session", param="session_id")
        return await runs.list_page(db, session_id, after=after, limit=limit)


async def cancel(platform: Platform, principal: Principal, id: UUID) -> Run:
    """End a run early; what it said so far is kept. Gives its final state; a run that has ended stays as it is."""
    run = await get(platform, principal, id)
    live = platform.live.get(id)
    if run.status.is_final or live is None:
        return run
    live.end("cancel")
    return (await live.log.ended()).run


async def beat(platform: Platform) -> None:
    """Say every few seconds that this replica lives, and end the runs of those that do not."""
    while True:
        try:
            async with platform.engine.begin() as db:
                await runs.beat(db, platform.writer.replica)
            async with platform.engine.begin() as db:
                await runs.reap(db, SERVER_LOST)
        except Exception as error:
            if not is_passing(error):
                raise
            log.warning("the database is not available; trying again")
        await asyncio.sleep(BEAT_SECONDS)


async def drain(platform: Platform, seconds: float) -> None:
    """Let running answers end by themselves, then end them as partial, and store them all."""
    await _all_ended(platform, seconds)
    for live in list(platform.live.values()):
        live.end("shutdown")
    await _all_ended(platform, STORE_SECONDS)


async def _all_ended(platform: Platform, seconds: float) -> None:
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await asyncio.gather(*(live.log.ended() for live in list(platform.live.values())))
