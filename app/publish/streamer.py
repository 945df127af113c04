"""One answer on its way from a published agent: a log that ends when it is stopped, when it fails, or when its time is over."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Iterable
from contextlib import aclosing
from html import escape
from typing import Any
from uuid import uuid4

import msgspec
from starlette.responses import Response

from app.agent.plain import clean
from app.agent.stream import Stream, check
from app.api import openai_errors
from app.api.openai_wire import DONE, Choice, Form, failure, joined, usage
from app.api.wire import HEARTBEAT, HEARTBEAT_SECONDS, EventStream
from app.domain import Chunk, Outcome, Run, RunStatus, Usage
from app.errors import AgentFailed, AppError
from app.journal.log import Event, Log, LogFull
from app.llm.tokens import count

MODEL = "AlphaData"
"""The model's name in answers that are given no other (seed 001)."""
TIMEOUT = 300.0
"""Seconds an answer may take."""
_encoder = msgspec.json.Encoder()


class DataStreamer:
    """What is said, and how it ends. Create it on the event loop that uses it; `timeout` in seconds begins then."""

    def __init__(
        self,
        timeout: float = TIMEOUT,  # the answer's, not a caller's
        model_name: str = MODEL,
        *,
        include_usage: bool = False,
        tools: Iterable[str] = (),
        prompt_tokens: int = 0,
    ) -> None:
        """`tools` are those of the client, whose calls are for it to carry out; `prompt_tokens` what it asked."""
        self._form = Form(model_name, include_usage=include_usage, tools=frozenset(tools))
        self.log = Log(uuid4())
        self._prompt_tokens = prompt_tokens
        self.reason = "stop"
        """How the answer ends that is given no other reason."""
        self._until = asyncio.get_running_loop().time() + timeout
        self._timer = asyncio.get_running_loop().call_later(timeout, self.end, "timeout")
        self._head = {"id": f"cmpl-{self.log.run_id.hex}", "created": int(time.time()), "model": model_name}

    @property
    def ended(self) -> bool:
        """Whether the answer has ended."""
        return self.log.outcome is not None

    async def send_data(self, content_type: str, content: str) -> None:
        """Say something at once. `AgentFailed` after the end; `InvalidInput` for what is no name of a type, or no text."""
        check(content_type, content)
        if self.ended:
            raise AgentFailed("The agent sent more after its answer had ended.")
        self.log.append(Chunk(clean(content), content_type))
        await asyncio.sleep(0)

    async def stop(self, stop_reason: str = "stop") -> None:
        """End the answer; the first reason counts."""
        self.end(stop_reason)

    @property
    def seconds_left(self) -> float:
        """Of the time for the answer."""
        return max(0.0, self._until - asyncio.get_running_loop().time())

    def end(self, reason: str | None = None, error: AppError | None = None) -> None:
        """End the answer, with an error if it failed. What is longer than a log keeps is `length` and no error."""
        if self.ended:
            return
        self._timer.cancel()
        if isinstance(error, LogFull):
            reason, error = "length", None
        self.reason = reason or self.reason
        id = self.log.run_id
        status = RunStatus.FAILED if error else RunStatus.COMPLETED
        self.log.close(Outcome(Run(id, id, id, "", id, status, error=error.to_dict() if error else None)))

    def start_streaming_openai(self) -> Response:
        """The answer as server-sent events, as they come."""
        return EventStream(self._frames())

    async def start_non_streaming_openai(self) -> Response:
        """The whole answer at its end, or the error that it failed with."""
        outcome = await self.log.ended()
        if error := failure(outcome):
            return openai_errors.response(error, from_run=True)
        choice = Choice(self._form, 0, self.log.run_id)
        deltas = choice.deltas(self.log.events)
        said = {
            "index": 0,
            "delta": {"content": mixed_xml(self.log.events), "content_type": "mixed-xml"},
            **joined(deltas, is_chat=True),
            "logprobs": None,
            "finish_reason": self._finish(choice, outcome),
        }
        body = {**self._head, "object": "chat.completion", "choices": [said], "usage": self._usage()}
        return Response(_encoder.encode(body), media_type="application/json")

    async def respond(self, *, stream: bool) -> Response:
        """The answer in either form. The headers wait for the first thing said: what fails before it has its own status."""
        if stream:
            async with aclosing(self.log.read()) as said:  # type: ignore[type-var]  # it is a generator
                async for _ in said:
                    return self.start_streaming_openai()
            if not failure(await self.log.ended()):
                return self.start_streaming_openai()
        return await self.start_non_streaming_openai()

    async def _frames(self) -> AsyncGenerator[bytes, None]:
        choice = Choice(self._form, 0, self.log.run_id)
        opening = self._delta(choice.opening())
        async for events in self.log.read(patience=HEARTBEAT_SECONDS):
            yield opening + b"".join(map(self._delta, choice.deltas(events))) or HEARTBEAT
            opening = b""
        outcome = await self.log.ended()
        if error := failure(outcome):
            yield b"data: %b\n\n" % _encoder.encode(openai_errors.body(error))
            return
        last = self._delta({"content": "", "content_type": "stop"}, self._finish(choice, outcome))
        counted = self._event({"choices": [], "usage": self._usage()}) if self._form.include_usage else b""
        yield opening + last + counted + DONE

    def _delta(self, delta: dict[str, Any], reason: str | None = None) -> bytes:
        value: dict[str, Any] = {"choices": [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}]}
        return self._event({**value, "usage": None} if self._form.include_usage else value)

    def _event(self, value: dict[str, Any]) -> bytes:
        return b"data: %b\n\n" % _encoder.encode({**self._head, "object": "chat.completion.chunk", **value})

    def _finish(self, choice: Choice, outcome: Outcome) -> str:
        return choice.finish(outcome) if self.reason == "stop" else self.reason

    def _usage(self) -> dict[str, Any]:
        return usage([Usage(self._prompt_tokens, count(self.log.answer()), estimated=True)])


class AgentStream(Stream):
    """The `stream` of a published agent: to stop it ends the answer."""

    def __init__(self, streamer: DataStreamer) -> None:
        super().__init__(streamer.log)
        self._streamer = streamer

    async def stop(self, reason: str = "stop") -> None:
        """End the answer: its reader has it now, whatever the agent goes on to do."""
        await super().stop(reason)
        if asyncio.get_running_loop() is self._loop:
            self._streamer.end(reason)
        else:  # an agent in a thread that runs a loop of its own
            self._loop.call_soon_threadsafe(self._streamer.end, reason)


def mixed_xml(events: Iterable[Event]) -> str:
    """All that was said, each type in one element, in the order in which they began; `<`, `&` and quotes are escaped."""
    texts: dict[str, list[str]] = {}
    for _, chunk in events:
        texts.setdefault(chunk.content_type, []).append(chunk.content)
    return "".join(f'<content type="{kind}">{escape("".join(parts))}</content>' for kind, parts in texts.items())
