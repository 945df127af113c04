"""Runs one agent for one message, in a task of its own: whatever it does, its failures are its own."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterable, Awaitable, Callable, Iterator, Mapping, Sequence
from functools import partial
from inspect import isasyncgenfunction, isawaitable, iscoroutinefunction
from typing import Any, Literal

from msgspec import Struct, field

from app.agent.chattable import Binding, Chattable, Own
from app.agent.plain import clean, plain
from app.agent.stream import Stream
from app.agent.version import AgentVersion
from app.agent.watchdog import AgentBlocked, in_agent
from app.domain import Chunk, MemoryChange, Message
from app.errors import AgentFailed, AgentTimeout, AppError
from app.journal.log import Log
from app.journal.replay import suspension
from app.llm.bridge import wait
from app.llm.llm import Completion, Reply
from app.llm.run import RunLLM
from app.llm.waits import Waits
from app.tasks import Tasks

log = logging.getLogger(__name__)

FINISHES = ("length", "tool_calls", "content_filter", "cut")
"""How an answer may end besides `stop`; other words of language models stand for that."""
GRACE = 2.0
"""Seconds an agent has to end after it was cancelled."""
SHORT = 0.01
"""Seconds that are as good as none."""
MAX_STATE = 1_000_000
"""The largest state, in characters of JSON."""


class Answer(Struct, frozen=True):
    """What an agent answered. `finish` is how the language model's answer ended that it passed on; `cut` when that broke off."""

    text: str
    parts: Sequence[Mapping[str, Any]] = ()
    additional_kwargs: Mapping[str, Any] = field(default_factory=dict)
    name: str | None = None
    state: Mapping[str, Any] | None = None
    memories: Sequence[MemoryChange] = ()
    """What is remembered otherwise than before."""
    finish: Literal["stop", "length", "tool_calls", "content_filter", "cut"] = "stop"


async def answer(
    version: AgentVersion,
    binding: Binding,
    message: Message,
    events: Log,
    *,
    timeout: float,  # noqa: ASYNC109 - a deadline is not a cancellation here: the agent is ended, not the caller
) -> Answer:
    """Have the agent answer `message` within `timeout` seconds. All it says is in `events`, as it says it.

    `AgentFailed` for whatever the agent does wrong, `AgentTimeout` when it takes too long; errors of the platform's own
    calls, such as `LLMError`, pass. An agent that is late, or whose run is cancelled, has `GRACE` seconds to end and is
    then abandoned. With the run its stream and its LLM are closed.
    """
    stream = Stream(events)
    task = Tasks().start(_outcome(version, binding, message, events, stream), name=f"agent {version.id}")
    try:
        waits = binding.llm.waits if isinstance(binding.llm, RunLLM) else None
        if not await (_ended(task, timeout) if waits is None else _in_time(task, timeout, waits)):
            raise AgentTimeout
    finally:
        stream.close()
        try:
            if not task.done():
                await _end(task)
        finally:
            if binding.delegations:
                await binding.delegations.close()
            if isinstance(binding.llm, RunLLM):
                await binding.llm.close()
    outcome = task.result()
    if isinstance(outcome, BaseException):
        raise suspension(outcome) or _fault(version, outcome)
    return outcome


async def _in_time(task: asyncio.Task[Any], seconds: float, waits: Waits) -> bool:
    """Whether a task has ended within its time, to which calls in mode batch do not count."""
    began, before, left = time.monotonic(), waits.seconds, seconds
    while not await _ended(task, left):
        left = seconds + waits.seconds - before - (time.monotonic() - began)
        if left < SHORT:
            return False
    return True


async def _ended(task: asyncio.Task[Any], seconds: float) -> bool:
    """Wait for a task, so long at most: whether it has ended. A future and a timer cost half of `asyncio.wait`."""
    loop = asyncio.get_running_loop()
    over: asyncio.Future[None] = loop.create_future()

    def tell(_: object = None) -> None:
        if not over.done():
            over.set_result(None)

    task.add_done_callback(tell)
    timer = loop.call_later(seconds, tell)
    try:
        await over
    finally:
        timer.cancel()
    return task.done()


async def _end(task: asyncio.Task[Any]) -> None:
    """Cancel an agent's task; one that goes on all the same is abandoned."""
    task.cancel()
    if await _ended(task, GRACE):
        return
    log.warning("%s does not end; it is abandoned", task.get_name())
    work: Any = task.get_coro()
    try:
        work.close()
    except (RuntimeError, ValueError) as error:
        log.warning("%s cannot be ended: %s", task.get_name(), error)
    task.cancel()


async def _outcome(
    version: AgentVersion, binding: Binding, message: Message, events: Log, stream: Stream
) -> Answer | BaseException:
    """What the agent's task comes to. It never raises: `SystemExit` out of a task would end the event loop."""
    in_agent.set(True)
    try:
        params = version.make_params(binding.session.agent_params)
        own = Own(params, version.make_settings(), version.make_state(binding.state))
        agent, given = await _chat(version, partial(_make, version, binding, stream, own), message, stream)
        beside = await final(given, stream)
        memories = binding.memory.changes() if binding.memory else ()
        return Answer(events.answer(), state=_state(version, agent), memories=memories, **beside)
    except BaseException as error:
        return error


def _make(version: AgentVersion, binding: Binding, stream: Stream, own: Own) -> Chattable:
    agent = version.cls.make(binding)
    agent.bind(binding, stream, own, version.threads)
    return agent


async def _chat(
    version: AgentVersion, make: Callable[[], Chattable], message: Message, stream: Stream
) -> tuple[Chattable, Any]:
    """Call `chat` in its style: the instance, and what it returned."""
    if iscoroutinefunction(version.cls.chat) or isasyncgenfunction(version.cls.chat):
        agent = make()
        given = agent.chat(message)
    else:
        send = partial(_send_from_thread, stream, asyncio.get_running_loop())
        agent, given = await version.threads.run(partial(_chat_in_thread, make, message, send))
    if isawaitable(given):
        given = await given
    if isinstance(given, AsyncIterable) and not isinstance(given, Reply):
        await _exhaust(given, stream)
        return agent, None
    return agent, given


def _chat_in_thread(
    make: Callable[[], Chattable], message: Message, send: Callable[[Any], None]
) -> tuple[Chattable, Any]:
    agent = make()
    given = agent.chat(message)
    while isinstance(given, Iterator):
        try:
            send(next(given))
        except StopIteration as end:
            given = end.value
    return agent, given


def _send_from_thread(stream: Stream, loop: asyncio.AbstractEventLoop, item: Any) -> None:
    """Send what a generator yielded; it goes on when the loop has taken it."""
    wait(_send(stream, item), loop)


async def _exhaust(items: AsyncIterable[Any], stream: Stream) -> None:
    try:
        async for item in items:
            await _send(stream, item)
    finally:
        close: Callable[[], Awaitable[None]] | None = getattr(items, "aclose", None)
        if close is not None:
            await close()


async def _send(stream: Stream, item: Any) -> None:
    if isinstance(item, Chunk):
        await stream.send(item.content_type, item.content)
    elif isinstance(item, str):
        await stream.send("text", item)
    else:
        raise AgentFailed("The agent yielded something that is neither text nor a Chunk.")


async def final(given: Any, stream: Stream) -> dict[str, Any]:
    """The answer rule: what `chat` returned is the answer if nothing that counts as one was sent before.

    A completion that was sent as it came still tells how it ended. Gives the fields of the `Answer` that are not said in the log.
    """
    if stream.answered:
        if isinstance(given, Reply):
            await given.close()
        return {"finish": _finish(given)}
    if isinstance(given, Reply):
        async for chunk in given:
            stream.append(chunk.content_type, chunk.content)
        return {"finish": _finish(given.response)}
    if given is None and stream.called:
        return {"finish": "tool_calls"}
    if given is None:
        raise AgentFailed("The agent gave no answer.")
    text = given if isinstance(given, str) else getattr(given, "content", None)
    if not isinstance(text, str):
        raise AgentFailed("The agent's answer is not text.")
    if text:
        stream.append("text", text)
    return {"finish": _finish(given), **_beside(given)}


def _finish(given: Any) -> Any:
    reason = given.finish_reason if isinstance(given, Completion) else None
    return reason if reason in FINISHES else "stop"


def _beside(given: Any) -> dict[str, Any]:
    """What a message has beside its text."""
    if isinstance(given, str):
        return {}
    try:
        name = getattr(given, "name", None)
        return {
            "parts": plain(given.parts) if isinstance(given, Message) else (),
            "additional_kwargs": plain(getattr(given, "additional_kwargs", None) or {}),
            "name": clean(name) if isinstance(name, str) else None,
        }
    except TypeError as error:
        raise AgentFailed("The agent's answer holds something that is not JSON.") from error


def _state(version: AgentVersion, agent: Chattable) -> Mapping[str, Any] | None:
    if version.state_model is None:
        return None
    state = getattr(agent, "state", None)
    if not isinstance(state, version.state_model):
        raise AgentFailed("The agent's state is not what its class declares.")
    kept: Mapping[str, Any] = plain(state)
    if len(json.dumps(kept, ensure_ascii=False)) > MAX_STATE:
        raise AgentFailed("The agent's state is larger than this server keeps.")
    return kept


def _fault(version: AgentVersion, error: BaseException) -> AppError:
    """The error as callers may see it; what else is known goes to the log."""
    if known := app_error(error):
        return known
    log.error("agent %s failed", version.id, exc_info=error)
    if isinstance(error, AgentBlocked):
        return AgentFailed("The agent blocked the server.")
    return AgentFailed(f"The agent failed: {type(error).__name__[:64]}.")


def app_error(error: BaseException) -> AppError | None:
    """The platform's error, also out of a task group."""
    if isinstance(error, BaseExceptionGroup):
        return next(filter(None, map(app_error, error.exceptions)), None)
    return error if isinstance(error, AppError) else None
