"""Conducts a run: the agent answers, the answer is stored, the log ends. Whether anyone listens changes nothing."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from functools import partial
from typing import Any, TypeVar
from uuid import UUID

from msgspec.structs import replace
from sqlalchemy.ext.asyncio import AsyncConnection

from app.agent.chattable import Binding
from app.agent.delegating import Delegations, Wish, memories_of, state_of, states
from app.agent.history import History
from app.agent.remembering import Recollection
from app.agent.request import OpenAIRequest
from app.agent.runner import Answer, answer
from app.agent.version import AgentVersion
from app.domain import (
    Chunk,
    Message,
    Outcome,
    Run,
    RunStatus,
    Session,
    Usage,
    id_text,
    now,
)
from app.errors import AppError, NotFound, Unavailable
from app.journal.log import Log, LogFull, joined
from app.journal.recorder import MAX_STEPS, Recorder
from app.journal.replay import Done, Replay, Suspended
from app.llm.run import RunLLM
from app.llm.stages import Caller
from app.llm.waits import Waits
from app.logs import run_id
from app.reports import report
from app.store import journal, memories, messages, runs
from app.store.database import is_passing
from app.store.operations import AnswerRun, Begun, Finished, FinishRun, RecordSteps, Repeated
from app.usecases import agents, summaries, titles
from app.usecases.answers import layout, stored_answers
from app.usecases.calls import called, names_of, paired
from app.usecases.knowledge import UserPassages
from app.usecases.live import LiveRun
from app.usecases.measuring import run_ended
from app.usecases.memories import SessionVectors
from app.usecases.platform import Platform
from app.usecases.requests import SAID, asked_in, history_of, record, request_of, told
from app.usecases.windows import MAX_MESSAGES, MAX_TOKENS, Window, trim

log = logging.getLogger(__name__)
T = TypeVar("T")

RECORD_SECONDS = 1.0
"""How often the steps of a background run are stored while it goes on."""
PATIENCE_SECONDS = 60.0
"""How long a run waits for a database that is away."""
WRONG = "Something went wrong in the server."
SHUTDOWN = {"code": "shutdown", "message": "The server is shutting down.", "status": 503}


UNANSWERED = {"code": "unanswered", "message": "Nobody has answered the agent's question in time.", "status": 504}

Work = Callable[[Platform, Begun, LiveRun], Awaitable[Answer]]


def start(platform: Platform, begun: Begun, work: Work | None = None) -> LiveRun:
    """Begin to answer, in a task that belongs to the platform and not to the caller. Without other `work`, the agent answers."""
    if live := platform.live.get(begun.run.id):  # a turn that was given before, when the commit was not heard of
        return live
    recorder = Recorder(steps_before(begun.attempt))
    waits = Waits() if begun.gives_way or begun.run.background else None
    live = LiveRun(begun.run, Log(begun.run.id), recorder, begun.credential_id, begun.attempt, waits)
    live.log.begin_with(Chunk(content, content_type) for content_type, content in begun.said)
    live.shown = live.log.position
    platform.live[begun.run.id] = live
    platform.tasks.start(_conduct(platform, begun, live, work or answered), name="run")
    return live


def steps_before(attempt: int) -> int:
    """The numbers that the steps of earlier attempts may have: no two attempts share one, so that each is charged for its own."""
    return (attempt - 1) * MAX_STEPS


async def _conduct(platform: Platform, begun: Begun, live: LiveRun, work: Work) -> None:
    """Have the agent answer, store the answer, and only then end the log. What a server that ends leaves undone, another job does."""
    run_id.set(str(begun.run.id))
    finished: Finished | None = None
    try:
        keeping = platform.tasks.start(_keep_steps(platform, live), name="steps") if live.run.background else None
        try:
            result = await _result(platform, begun, live, work)
        finally:
            if keeping:
                keeping.cancel()
        if isinstance(result, Suspended):
            ending = _waiting(live, begun, result)
        else:
            ending = _ending(live, result, promote=not platform.draining.is_set())
        finished = await finish(platform, ending)
        live.stored = finished.stored
        run_ended(platform.metrics, finished.outcome.run, live.recorder.steps)
        if live.history and finished.outcome.messages and not begun.ephemeral:
            platform.windows.put(live.run.session_id, live.history, finished.outcome.messages)
        if titles.is_wanted(platform, begun, finished):
            platform.tasks.start(titles.give(platform, begun, finished, caller_of(begun)), name="title")
    finally:
        platform.live.pop(live.run.id, None)
        live.log.close(finished.outcome if finished else _broken(live.run, AppError(WRONG)))
    if finished.promoted:
        start(platform, finished.promoted)


async def _keep_steps(platform: Platform, live: LiveRun) -> None:
    """Keep the steps of a background run as they end: should its worker die, the next one need not take them again."""
    kept = 0
    while True:
        await asyncio.sleep(RECORD_SECONDS)
        if steps := live.recorder.since(kept):
            kept += len(steps)
            await patiently(partial(platform.writer.record, RecordSteps(live.run, steps)))


async def _result(platform: Platform, begun: Begun, live: LiveRun, work: Work) -> Answer | Suspended | AppError | None:
    """What the agent's work came to; None when it was ended early, which binds only until here."""
    task = asyncio.current_task()
    assert task is not None  # noqa: S101 - a coroutine always runs in a task
    if live.is_ended():
        return None
    live.answering = task
    try:
        return await work(platform, begun, live)
    except asyncio.CancelledError:
        if not live.is_ended():
            raise
        task.uncancel()
        return None
    except (AppError, Suspended) as ended:
        return ended
    except Exception as error:
        if is_passing(error):
            return Unavailable("The database is not available at the moment.")
        report(log, f"run {begun.run.id} failed outside its agent", error)
        return AppError(WRONG)
    finally:
        live.answering = None


async def answered(platform: Platform, begun: Begun, live: LiveRun) -> Answer:
    """The work of a run: its agent answers."""
    session, body = begun.session, begun.request["body"] if begun.request else {}
    if begun.attempt > 1:
        live.recorder.serve(Replay(await _done(platform, begun.run.id)))
    with platform.agents.lease(session.agent_id) as version:
        live.history = history = (
            history_of(begun, body)
            if body and begun.ephemeral
            else await _history(platform, begun, live, summarised=summaries.wanted(version, session.params))
        )
        live.tools = names_of(body.get("tools"))
        if body and begun.ephemeral:
            record(live.recorder, body, history)
        elif body.keys() - SAID:
            record(live.recorder, body, history[-1:])
        shown = told(body, history if begun.ephemeral else paired(summaries.shown(history)))
        delegations = Delegations(partial(_engaged, platform, begun, live), live.recorder, platform.run_timeout)
        asked = partial(request_of, begun.request) if begun.request else None
        binding = await _bound(platform, begun, live, version, session, shown, request=asked, delegations=delegations)
        given = await answer(version, binding, asked_in(shown), live.log, timeout=platform.run_timeout)
    if not (kept := delegations.kept):
        return given
    state = states(kept, session.agent_id, given.state)
    return replace(given, state=state, memories=memories_of(kept, session.agent_id, given.memories))


async def _bound(
    platform: Platform,
    begun: Begun,
    live: LiveRun,
    version: AgentVersion,
    session: Session,
    shown: Sequence[Message],
    *,
    request: Callable[[], OpenAIRequest] | None = None,
    delegations: Delegations | None = None,
) -> Binding:
    """What an agent of the run works with: the run's own, or one that it delegates to."""
    return Binding(
        session=session,
        history=History(shown),
        llm=RunLLM(
            platform.calls,
            live.recorder,
            caller_of(begun, version),
            model=session.params.model,
            temperature=session.params.temperature,
            mode="batch" if begun.in_batch else "realtime",
            door=platform.door,
            waits=live.waits,
        ),
        recorder=live.recorder,
        toolboxes=platform.toolboxes,
        box=platform.box,
        passages=UserPassages(platform, begun.run.user_id, version.id),
        request=request,
        delegations=delegations,
        state=await _state(platform, live.history, version.id) if version.state_model else None,
        memory=await _memory(platform, begun.run, version.id) if version.uses_memory else None,
    )


@asynccontextmanager
async def _engaged(
    platform: Platform, begun: Begun, live: LiveRun, wish: Wish
) -> AsyncIterator[tuple[AgentVersion, Binding]]:
    """An agent that another delegates to, with parameters of its own, in the same session; if its user may use it."""
    user = begun.session.user
    params = await patiently(lambda: agents.check(platform, user, wish.agent_id, wish.params))
    names = tuple(wish.names) or (wish.agent_id,)
    session = replace(begun.session, agent_id=wish.agent_id, agent_params=params, participants=names)
    with platform.agents.lease(wish.agent_id) as version:
        yield version, await _bound(platform, begun, live, version, session, wish.history)


async def _done(platform: Platform, run_id: UUID) -> Sequence[Done]:
    """What the run has done before it was begun anew."""
    return await _read(platform, lambda db: journal.completed(db, run_id))


async def _read(platform: Platform, ask: Callable[[AsyncConnection], Awaitable[T]]) -> T:
    """What the database answers, when it is there."""

    async def read() -> T:
        async with platform.engine.connect() as db:
            return await ask(db)

    return await patiently(read)


def caller_of(begun: Begun, version: AgentVersion | None = None) -> Caller:
    """For whom the run's calls are made: for an agent, or for the platform itself."""
    session = begun.session
    return Caller(
        begun.run.id,
        id_text(begun.run.user_id),
        id_text(session.id),
        version.id if version else session.agent_id,
        version.digest if version else "",
        begun.budgets,
        version.shares_cache if version else False,
        begun.again,
        begun.gives_way or begun.run.background,
    )


async def _history(platform: Platform, begun: Begun, live: LiveRun, *, summarised: bool) -> Sequence[Message]:
    """The branch that ends with the message to answer, from its summary on where that is wanted."""
    message = begun.message
    as_of = await _first(platform, begun.run) if summarised else None
    known = platform.windows.get(begun.session.id, message.parent_id) if message.parent_id else Window()
    if known is None or begun.run.parent_id or (known and known[0].summary and not summarised):
        window = trim(await _window(platform, begun, as_of, MAX_TOKENS, MAX_MESSAGES))
    else:
        window = known.grown([message])
    if not summarised or summaries.is_whole(window):
        return window
    longer = await _window(platform, begun, as_of, summaries.READ_TOKENS, summaries.READ_MESSAGES)
    return trim(await summaries.shorten(platform, begun, live.recorder, caller_of(begun), longer))


async def _first(platform: Platform, run: Run) -> UUID:
    """The run that a rerun repeats, which may be a rerun itself; it has the history of that one."""
    if run.parent_id is None:
        return run.id
    return await _read(platform, lambda db: runs.first(db, run.id))


async def _window(
    platform: Platform, begun: Begun, as_of: UUID | None, max_tokens: int, max_messages: int
) -> Sequence[Message]:
    """The branch as it is stored. Read after transaction 1, so that what it waited for is seen."""

    async def ask(db: AsyncConnection) -> Sequence[Message]:
        id = begun.run.message_id
        found = await messages.window(db, id, max_tokens=max_tokens, max_messages=max_messages, as_of=as_of)
        above = found
        while above and above[0].role == "tool" and above[0].parent_id and not above[0].summary:  # it needs its call
            above = await messages.window(db, above[0].parent_id, max_tokens=0, max_messages=1)
            found = [*above, *found]
        return found

    return await _read(platform, ask)


async def _state(platform: Platform, history: Sequence[Message], agent_id: str) -> Mapping[str, Any] | None:
    """The state that the agent left last on this branch, in the window or before it."""
    for message in reversed(history):
        if (state := state_of(message, agent_id)) is not None:
            return state
    first = history[0]
    if first.parent_id is None:
        return None
    leaf_id = first.parent_id
    found = await _read(platform, lambda db: messages.last_state(db, leaf_id, agent_id))
    return state_of(found, agent_id) if found else None


async def _memory(platform: Platform, run: Run, agent_id: str) -> Recollection:
    """What an agent remembers of this branch, and of the user."""
    ids = run.message_id, run.user_id, run.session_id
    stored = await _read(platform, lambda db: memories.recall(db, *ids, agent_id))
    return Recollection(stored, SessionVectors(platform, run, agent_id))


def _ending(live: LiveRun, result: Answer | AppError | None, *, promote: bool) -> FinishRun:
    status, error = _verdict(live, result)
    given = result if isinstance(result, Answer) else None
    if given:
        live.log.settle()
    chunks = joined(event.chunk for event in live.log.events)
    if live.run.background and result is None and live.ended_by == "shutdown":
        return FinishRun(given_back(live.run, live.recorder.usage), [], live.recorder.steps, live.credential_id, False)
    usage = live.run.usage + live.recorder.usage
    run = replace(live.run, status=status, error=error, usage=usage, layout=layout(chunks))
    calls = called(chunks, run.id, live.tools) if live.tools else []
    answers = stored_answers(chunks, status, given, calls) if chunks or status is RunStatus.COMPLETED else []
    remembered = given.memories if given else ()
    return FinishRun(run, answers, live.recorder.steps, live.credential_id, promote, memories=remembered)


def _waiting(live: LiveRun, begun: Begun, asked: Suspended) -> FinishRun:
    """The run until a person answers: nobody conducts it, and it keeps what is needed to begin it anew."""
    expires_at = now() + timedelta(seconds=asked.seconds)
    question = {"question": asked.question, "schema": asked.schema, "expires_at": expires_at.isoformat()}
    usage = live.run.usage + live.recorder.usage
    run = replace(live.run, status=RunStatus.WAITING, usage=usage, question=question)
    chunks = joined(event.chunk for event in live.log.events)
    kept = {
        "id": begun.message.id,
        "stored": True,
        "again": begun.again,
        "request": begun.request,
        "batch": begun.batch,
        "attempt": begun.attempt + 1,
        "ask": question | {"seq": asked.seq},
        "said": [(chunk.content_type, chunk.content) for chunk in chunks],
    }
    return FinishRun(run, [], live.recorder.steps, live.credential_id, False, pending=kept)


def given_back(run: Run, spent: Usage) -> Run:
    """A background run for another worker, with what it has cost so far."""
    return replace(run, status=RunStatus.QUEUED, usage=run.usage + spent)


def _verdict(live: LiveRun, result: Answer | AppError | None) -> tuple[RunStatus, Mapping[str, Any] | None]:
    if result is None:
        return (RunStatus.CANCELLED, None) if live.ended_by == "cancel" else (RunStatus.PARTIAL, SHUTDOWN)
    if isinstance(result, Answer):
        return (RunStatus.PARTIAL if result.finish == "cut" else RunStatus.COMPLETED), None
    return (RunStatus.PARTIAL if isinstance(result, LogFull) else RunStatus.FAILED), result.to_dict()


async def finish(platform: Platform, ending: FinishRun) -> Finished:
    """Transaction 2. Losing it must never leave a reader waiting."""
    try:
        finished = await patiently(lambda: platform.writer.finish(ending))
        if platform.spans and finished:
            platform.spans.put(finished.outcome.run, ending.steps)
        return finished or Finished(await patiently(lambda: _as_stored(platform, ending.run)))
    except Exception as error:
        report(log, f"the end of run {ending.run.id} could not be stored", error)
        return Finished(_broken(ending.run, Unavailable("The answer could not be stored.")), stored=False)


async def _as_stored(platform: Platform, run: Run) -> Outcome:
    """How a run ended that another replica has ended meanwhile; `NotFound` when it was erased."""
    async with platform.engine.connect() as db:
        stored = await runs.get(db, run.id, owner=None)
        answers = await messages.of_runs(db, [run.id])
    return Outcome(stored, answers.get(run.id, ())) if stored else _broken(run, NotFound("session"))


def _broken(run: Run, error: AppError) -> Outcome:
    return Outcome(replace(run, status=RunStatus.FAILED, error=error.to_dict()))


async def patiently(attempt: Callable[[], Awaitable[T]], seconds: float | None = None) -> T:
    """Try again while the database is away, up to `PATIENCE_SECONDS` or so many: what was acknowledged is answered and stored."""
    deadline = asyncio.get_running_loop().time() + (PATIENCE_SECONDS if seconds is None else seconds)
    while True:
        try:
            return await attempt()
        except Exception as error:
            if not is_passing(error) or asyncio.get_running_loop().time() > deadline:
                raise
            await asyncio.sleep(0.25)


def stop_all(platform: Platform, ids: Iterable[Any]) -> None:
    """End runs that this process conducts."""
    for id in ids:
        if live := platform.live.get(id):
            live.end("cancel")


async def answer_question(platform: Platform, given: AnswerRun) -> LiveRun | Run:
    """Let a run go on that waits for a person, here unless a worker is to. `Conflict` when it does not wait any more."""
    begun = await platform.writer.answer(given)
    if isinstance(begun, Repeated):
        return begun.run
    if begun:
        return start(platform, begun)
    run_id = given.run_id
    async with platform.engine.connect() as db:
        run = await runs.get(db, run_id, owner=None)
    if run is None:
        raise NotFound("run", param="run_id")
    return run


async def unanswered(platform: Platform, run: Run, credential_id: UUID | None) -> FinishRun:
    """The end of a run whose question nobody has answered in time; or that was cancelled while it waited."""
    async with platform.engine.connect() as db:
        chunks = [Chunk(content, content_type) for content_type, content in await runs.said(db, run.id)]
    status, error = (RunStatus.CANCELLED, None) if run.cancel_requested else (RunStatus.PARTIAL, UNANSWERED)
    ended = replace(run, status=status, error=error, layout=layout(chunks), question=None)
    return FinishRun(ended, stored_answers(chunks, status) if chunks else [], (), credential_id)
