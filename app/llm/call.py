"""The LLM call path: what happens to every call of every agent, stage by stage: route, send, settle."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from hashlib import sha256
from typing import Any

import msgspec

from app.domain import Chunk, Usage
from app.errors import InvalidInput, LLMUnavailable
from app.journal.recorder import OpenStep, Recorder
from app.llm.llm import LLM, Finish, Items, Reply
from app.llm.options import checked
from app.llm.tokens import count, count_messages
from app.llm.upstream import Upstream


class CallPath:
    """The way from an agent's call to an upstream and back; one for the whole process."""

    def __init__(self, upstream: Upstream | None, default_model: str) -> None:
        """`default_model` is asked for by calls that name none."""
        self._upstream = upstream
        self._default_model = default_model

    async def stream(
        self, messages: Sequence[Mapping[str, Any]], options: Mapping[str, Any], recorder: Recorder
    ) -> AsyncGenerator[Items, None]:
        """The chunks of the answer, then its `Finish`; the call is one step of kind `llm`, however it ends."""
        upstream = self._route()
        model = options.get("model") or self._default_model
        rest = {name: value for name, value in options.items() if name != "model"}
        parts = canonical(messages)
        manifest = {"model": model, "options": rest, "messages": [sha256(part).hexdigest() for part in parts]}
        with recorder.step("llm", model, input=_json(manifest, "options"), parts=parts) as step:
            step.model = model
            said = _Said()
            try:
                async with aclosing(upstream.stream({"model": model, **rest, "messages": messages})) as answer:
                    async for items in answer:
                        said.add(items)
                        if said.finish is None:  # the end is told when the step is recorded
                            yield items
            except (asyncio.CancelledError, GeneratorExit):
                said.cancelled = True
                raise
            finally:
                _settle(step, said, messages)
        yield items

    def _route(self) -> Upstream:
        if self._upstream is None:
            raise LLMUnavailable("Set OPENAI_API_KEY, or OPENAI_BASE_URL for a server of your own.")
        return self._upstream


class _Said:
    """What came of a call."""

    def __init__(self) -> None:
        self.chunks: list[Chunk] = []
        self.finish: Finish | None = None
        self.cancelled = False

    def add(self, items: Items) -> None:
        """Count what has come."""
        for item in items:
            if isinstance(item, Finish):
                self.finish = item
            else:
                self.chunks.append(item)


def _settle(step: OpenStep, said: _Said, messages: Sequence[Mapping[str, Any]]) -> None:
    """Usage and output of the step. A call that broke off was paid for all the same: it is counted here."""
    if said.finish is None and not said.cancelled and not said.chunks:
        return  # refused before it began
    text = "".join(chunk.content for chunk in said.chunks if chunk.content_type == "text")
    reasoning = "".join(chunk.content for chunk in said.chunks if chunk.content_type == "thinking")
    reason = said.finish.reason if said.finish else "cancelled" if said.cancelled else "error"
    step.output = msgspec.json.encode({"text": text, "reasoning": reasoning, "finish_reason": reason})
    if said.finish is None:
        step.usage = Usage(count_messages(messages), count(text) + count(reasoning), estimated=True)
        return
    step.usage = said.finish.usage
    step.model = said.finish.model or step.model
    if reason == "cut":
        step.status = "partial"


def canonical(messages: Sequence[Mapping[str, Any]]) -> list[bytes]:
    """Each message as JSON with sorted keys: equal messages have equal bytes, so that a value is stored once."""
    return [_json(message, f"messages[{index}]") for index, message in enumerate(messages)]


def _json(value: object, place: str) -> bytes:
    try:
        return msgspec.json.encode(value, order="sorted")
    except (TypeError, ValueError, RecursionError):
        raise InvalidInput(f"{place} holds what JSON cannot express.", param=place) from None


class RunLLM(LLM):
    """The LLM that an agent sees during one run: its calls take the call path and are recorded in the run."""

    def __init__(
        self, path: CallPath, recorder: Recorder, *, model: str | None = None, temperature: float | None = None
    ) -> None:
        """Made on the run's event loop. `model` and `temperature` hold where a call gives none."""
        self._path = path
        self._recorder = recorder
        self._defaults = checked({"model": model, "temperature": temperature})
        self._loop = asyncio.get_running_loop()
        self._calls = _Calls()

    async def generate(self, messages: list[dict[str, Any]], **options: Any) -> AsyncGenerator[Chunk, None]:
        """Take the call path, as every verb does."""
        async for chunk in self._open(messages, options):
            yield chunk

    async def close(self) -> None:
        """End the calls that are still open, and refuse new ones by `asyncio.CancelledError`: the run is over."""
        self._calls.closed = True
        if going := [reply for reply in self._calls.open if not reply.ended]:
            await asyncio.gather(*(reply.close() for reply in going))

    def _open(self, messages: list[dict[str, Any]], options: dict[str, Any]) -> Reply:
        if self._calls.closed:
            raise asyncio.CancelledError("the run is over")
        reply = Reply(self._path.stream(messages, checked(options), self._recorder))
        self._calls.open = [*(reply for reply in self._calls.open if not reply.ended), reply]
        return reply


class _Calls:
    """The calls of a run, shared by its LLM and all that `use` makes of it."""

    def __init__(self) -> None:
        self.closed = False
        self.open: list[Reply] = []
