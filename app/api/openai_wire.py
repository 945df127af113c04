"""An answer in OpenAI's protocol. The whole is made of the same deltas that are streamed, so that they cannot differ."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from functools import reduce
from operator import add
from typing import Any
from uuid import UUID

import msgspec
from msgspec import Struct
from starlette.responses import Response

from app.api import openai_errors
from app.api.wire import GOES_ON, HEARTBEAT, HEARTBEAT_SECONDS, EventStream
from app.domain import ANSWER_TYPES, SPEAKER, Chunk, Outcome, Run, RunStatus, Usage, id_text
from app.journal.log import Event, Log, LogFull
from app.usecases import runs
from app.usecases.calls import Call, Calls
from app.usecases.live import LiveRun
from app.usecases.platform import Platform

BROKEN_OFF = {"code": "llm_error", "message": "The language model's answer broke off.", "status": 502}
DONE = b"data: [DONE]\n\n"
_encoder = msgspec.json.Encoder()


class Form(Struct, frozen=True):
    """How an answer is to look."""

    model: str
    is_chat: bool = True
    include_usage: bool = False
    tools: frozenset[str] = frozenset()
    """The tools of the request: calls of others are the agent's own affair."""
    speaks_of_functions: bool = False
    echo: Sequence[str] = ()
    """What the text of each choice begins with."""


class Choice:
    """One of the answers: what its run says, as deltas."""

    def __init__(self, form: Form, index: int, run_id: UUID) -> None:
        self._form = form
        self._index = index
        self._calls = Calls(run_id, form.tools)
        self._speakers = 0

    def opening(self) -> dict[str, Any]:
        """The first delta."""
        echo = self._form.echo[self._index] if self._form.echo else ""
        return {"role": "assistant", "content": echo} if self._form.is_chat else {"content": echo}

    def deltas(self, events: Iterable[Event]) -> list[dict[str, Any]]:
        """What is said next. What is no part of the answer is in no `content`."""
        found: list[dict[str, Any]] = []
        for _, chunk in events:
            kind = chunk.content_type
            if kind in ANSWER_TYPES or kind == "question":  # which is all that a run says which waits for a person
                found.append({"content": chunk.content, "content_type": kind})
            else:
                found += self._beside(kind, chunk)
        return found

    def _beside(self, kind: str, chunk: Chunk) -> list[dict[str, Any]]:
        if kind == SPEAKER:  # any client is to see who speaks
            self._speakers += 1
            apart = "\n\n" if self._speakers > 1 else ""
            return [{"content": f"{apart}{chunk.content}: ", "content_type": kind}]
        if not self._form.is_chat:
            return []
        if kind == "thinking":
            return [{"reasoning_content": chunk.content, "content_type": kind}]
        if kind == "tool_call":
            return [self._called(text, call) for text, call in self._calls.read(chunk.content)]
        return [{"aside": chunk.content, "content_type": kind}]

    def _called(self, text: str, call: Call | None) -> dict[str, Any]:
        if call is None:
            return {"aside": text.strip(), "content_type": "tool_call"}
        if self._form.speaks_of_functions:
            function = {"name": call.name, "arguments": call.arguments}
            return {"function_call": function, "content_type": "tool_call"}
        return {"tool_calls": [{"index": call.index, **call.to_openai()}], "content_type": "tool_call"}

    def finish(self, outcome: Outcome) -> str:
        """The reason of the end."""
        if self._calls.count:
            return "function_call" if self._form.speaks_of_functions else "tool_calls"
        if outcome.run.error and outcome.run.error["code"] == LogFull.code:
            return "length"
        last = outcome.messages[-1].additional_kwargs if outcome.messages else {}
        reason = last.get("finish_reason")
        return reason if reason in ("length", "content_filter") else "stop"


def failure(outcome: Outcome) -> Mapping[str, Any] | None:
    """Why there is no answer, or not all of it.

    An answer that was cut is an error, and not `length`, which is a model's word: only over this server's own limit it is that. One
    that was cancelled is all that was wanted of it.
    """
    run = outcome.run
    if run.question or run.status is RunStatus.COMPLETED:
        return None
    if not run.status.is_final:
        return run.error or GOES_ON
    if run.status is RunStatus.FAILED:
        return run.error
    if run.status is RunStatus.PARTIAL and not (run.error and run.error["code"] == LogFull.code):
        return run.error or BROKEN_OFF
    return None


def usage(spent: Sequence[Usage]) -> dict[str, Any]:
    """Usage as JSON, of one answer or several together."""
    total = reduce(add, spent)
    return {
        "prompt_tokens": total.prompt,
        "completion_tokens": total.completion,
        "total_tokens": total.total,
        "prompt_tokens_details": {"cached_tokens": total.cached},
        "completion_tokens_details": {"reasoning_tokens": total.reasoning},
    }


async def respond(platform: Platform | None, begun: Sequence[LiveRun | Run], form: Form, *, stream: bool) -> Response:
    """The answer of runs that were begun together, each a choice; in `x-session-id` the session of the first.

    Without a `platform` all of them are this process's own.
    """
    first = begun[0].run if isinstance(begun[0], LiveRun) else begun[0]
    response = await (_streamed if stream else _whole)(platform, begun, form, _head(form, first))
    # Not by `headers`, which looks for each among all that there are.
    response.raw_headers += [
        (b"x-session-id", id_text(first.session_id).encode()),
        (b"x-run-id", id_text(first.id).encode()),
    ]
    return response


def _head(form: Form, run: Run) -> dict[str, Any]:
    """What the whole and each of its frames begin with."""
    made = int(run.created_at.timestamp() if run.created_at else time.time())
    kind, prefix = ("chat.completion", "chatcmpl") if form.is_chat else ("text_completion", "cmpl")
    return {"id": f"{prefix}-{run.id.hex}", "object": kind, "created": made, "model": form.model}


async def _whole(
    platform: Platform | None, begun: Sequence[LiveRun | Run], form: Form, head: Mapping[str, Any]
) -> Response:
    choices, spent = [], []
    for index, each in enumerate(begun):
        async with log_of(platform, each) as said:
            outcome = await said.ended()
        if error := failure(outcome):
            return openai_errors.response(error, from_run=True)
        choice = Choice(form, index, said.run_id)
        message = joined([choice.opening(), *choice.deltas(said.since(shown(each)))], is_chat=form.is_chat)
        choices.append({"index": index, **message, "logprobs": None, "finish_reason": choice.finish(outcome)})
        spent.append(outcome.run.usage)
    body = {**head, "choices": choices, "usage": usage(spent)}
    return Response(_encoder.encode(body), media_type="application/json")


def joined(deltas: Sequence[dict[str, Any]], *, is_chat: bool) -> dict[str, Any]:
    """A message that is made of all its deltas."""
    content = "".join([delta.get("content", "") for delta in deltas])
    if not is_chat:
        return {"text": content}
    message: dict[str, Any] = {"role": "assistant", "content": content, "refusal": None}
    named = frozenset().union(*deltas)  # most answers are text alone
    if "function_call" in named:
        message["function_call"] = next(
            delta["function_call"] for delta in reversed(deltas) if "function_call" in delta
        )
    if "reasoning_content" in named:
        message["reasoning_content"] = "".join([delta.get("reasoning_content", "") for delta in deltas])
    if "tool_calls" in named:
        calls = [call for delta in deltas for call in delta.get("tool_calls", ())]
        message["tool_calls"] = [{key: value for key, value in call.items() if key != "index"} for call in calls]
    if not content and not named.isdisjoint({"function_call", "tool_calls"}):
        message["content"] = None
    return {"message": message}


async def _streamed(
    platform: Platform | None, begun: Sequence[LiveRun | Run], form: Form, head: Mapping[str, Any]
) -> Response:
    """The headers wait for the first thing said: a run that fails before it is an answer with its own status."""
    frames = _frames(platform, begun, form, _Frame(form, head))
    try:
        return EventStream(frames, await anext(frames))
    except _Failed as failed:
        return openai_errors.response(failed.error, from_run=True)


class _Failed(Exception):
    """A run failed before it said anything."""

    def __init__(self, error: Mapping[str, Any]) -> None:
        super().__init__()
        self.error = error


async def _frames(
    platform: Platform | None, begun: Sequence[LiveRun | Run], form: Form, frame: _Frame
) -> AsyncGenerator[bytes, None]:
    """All frames; `_Failed` in the place of the first.

    The choices come one after the other, though their runs go on at once: what is said early waits in its log.
    """
    spent: list[Usage] = []
    said_something = False
    for index, each in enumerate(begun):
        async with log_of(platform, each) as said:
            choice = Choice(form, index, said.run_id)
            opening: bytes = frame.delta(index, choice.opening())
            async for events in said.read(shown(each), patience=HEARTBEAT_SECONDS):
                frames = b"".join(frame.delta(index, delta) for delta in choice.deltas(events))
                yield opening + frames if events else HEARTBEAT
                opening = b"" if events else opening
                said_something = True
            outcome = await said.ended()
        if error := failure(outcome):
            if not said_something:
                raise _Failed(error)
            yield b"data: %b\n\n" % _encoder.encode(openai_errors.body(error))
            return
        yield opening + frame.delta(index, {}, choice.finish(outcome))
        said_something = True
        spent.append(outcome.run.usage)
    yield (frame.event({"choices": [], "usage": usage(spent)}) if form.include_usage else b"") + DONE


class _Frame:
    """What the frames of one answer have in common."""

    def __init__(self, form: Form, head: Mapping[str, Any]) -> None:
        self._form = form
        self._head = {**head, "object": "chat.completion.chunk"} if form.is_chat else head
        self._begin = b"data: %b," % _encoder.encode(self._head)[:-1]
        self._end = b',"usage":null}\n\n' if form.include_usage else b"}\n\n"

    def event(self, value: Mapping[str, Any]) -> bytes:
        return b"data: %b\n\n" % _encoder.encode({**self._head, **value})

    def delta(self, index: int, delta: Mapping[str, Any], reason: str | None = None) -> bytes:
        """A frame, of which only the delta is encoded: there is one for every chunk."""
        name, said = (b"delta", delta) if self._form.is_chat else (b"text", delta.get("content", ""))
        choice = (index, name, _encoder.encode(said), _encoder.encode(reason))
        middle = b'"choices":[{"index":%d,"%b":%b,"logprobs":null,"finish_reason":%b}]' % choice
        return self._begin + middle + self._end


def shown(begun: LiveRun | Run) -> int:
    """Where the log of a run begins that goes on after a person's answer."""
    return begun.shown if isinstance(begun, LiveRun) else 0


def log_of(platform: Platform | None, begun: LiveRun | Run) -> AbstractAsyncContextManager[Log]:
    """The log of a run that was begun here, or of one that is followed."""
    if isinstance(begun, LiveRun):
        return nullcontext(begun.log)
    assert platform is not None  # noqa: S101 - a run that is followed is another's
    return runs.following(platform, begun)
