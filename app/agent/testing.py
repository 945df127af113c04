"""Tests of agents without a server and without a key.

def test_it_reads_the_weather() -> None:
    said = answer(Helper, "Rain?", llm=Scripted([call("weather", city="Oslo"), "Sunny."]))
    assert said.text == "Sunny."
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import msgspec

from app.agent.chattable import Binding, Chattable
from app.agent.history import History
from app.agent.plain import canonical
from app.agent.runner import answer as run
from app.agent.version import AgentVersion, Code
from app.domain import Chunk, Message, Session, SessionParams, Step, Usage, User, new_id
from app.errors import LLMError
from app.journal.log import Log, joined
from app.journal.recorder import Recorder
from app.llm.llm import LLM, Finish, Items, Reply, ToolCall
from app.llm.messages import Messages, Prompt
from app.llm.tokens import count, count_messages

Line: TypeAlias = str | Chunk | ToolCall | Exception | Sequence[str | Chunk | ToolCall]
"""What a scripted model says to one call: text, other chunks, calls of tools, or how it fails."""


def call(name: str, /, **arguments: Any) -> ToolCall:
    """A model's call of a tool."""
    return ToolCall(f"call_{name}", name, json.dumps(arguments, ensure_ascii=False))


class Scripted(LLM):
    """A language model that says its lines, one for each call; text comes word by word. `asked` is what it was asked."""

    def __init__(self, lines: Sequence[Line], *, finish: str = "stop") -> None:
        """`finish` is how its answers end; those with calls of tools end so anyway."""
        self._lines = list(lines)
        self._finish = finish
        self.asked: list[tuple[list[dict[str, Any]], dict[str, Any]]] = []

    async def generate(self, messages: list[dict[str, Any]], **options: Any) -> AsyncGenerator[Chunk | Finish, None]:
        """Say the next line; `LLMError` when there is none left."""
        self.asked.append((messages, options))
        if len(self.asked) > len(self._lines):
            raise LLMError(f"The script has {len(self._lines)} lines, and this is call {len(self.asked)}.")
        line = self._lines[len(self.asked) - 1]
        if isinstance(line, Exception):
            raise line
        chunks = [chunk for part in _parts(line) for chunk in _chunks(part)]
        for chunk in chunks:
            yield chunk
        said = "".join(chunk.content for chunk in chunks)
        called = any(chunk.content_type == "tool_call" for chunk in chunks)
        yield Finish("tool_calls" if called else self._finish, Usage(count_messages(messages), count(said)))


@dataclass(frozen=True, slots=True)
class Answer:
    """What an agent answered. `chunks` are all it showed, neighbours of one type joined; `state` is what it keeps."""

    text: str
    chunks: Sequence[Chunk]
    steps: Sequence[Step]
    usage: Usage
    state: Mapping[str, Any] | None


def answer(agent: type[Chattable], text: str, **given: Any) -> Answer:
    """Have an agent answer `text`, as the platform would: `answered` for tests that are not async. Its errors are raised."""
    found: list[Answer | BaseException] = []

    def work() -> None:
        try:
            found.append(asyncio.run(answered(agent, text, **given)))
        except BaseException as error:
            found.append(error)

    thread = threading.Thread(target=work, name="answer")  # the caller may be on an event loop
    thread.start()
    thread.join()
    if isinstance(found[0], BaseException):
        raise found[0]
    return found[0]


async def answered(
    agent: type[Chattable],
    text: str,
    *,
    llm: LLM | None = None,
    params: Mapping[str, Any] | None = None,
    settings: Mapping[str, str] | None = None,
    state: Mapping[str, Any] | None = None,
    before: Sequence[Message] = (),
    session_params: SessionParams | None = None,
    timeout: float = 60,  # noqa: ASYNC109 - the agent's, not the caller's
) -> Answer:
    """Have an agent answer `text`, as the platform would.

    `params` and `state` are the agent's, as JSON; `settings` the operator's variables `AGENT_<ID>_<FIELD>`; `before` what was
    said before. Without an `llm` the agent cannot ask one.
    """
    version = AgentVersion(agent, "test", Code("test"), settings or {})
    stored = version.validate_params(params or {})
    session = Session(new_id(), User(new_id(), "Ada"), version.id, stored, session_params or SessionParams())
    message, log, recorder = Message.user(text), Log(new_id()), Recorder()
    recorded = _Recorded(llm or Scripted([]), recorder)
    binding = Binding(session, History([*before, message]), recorded, recorder, state)
    given = await run(version, binding, message, log, timeout=timeout)
    chunks = joined(event.chunk for event in log.events)
    return Answer(given.text, chunks, recorder.steps, recorder.usage, given.state)


class _Recorded(LLM):
    """Another LLM, whose calls are steps."""

    def __init__(self, llm: LLM, recorder: Recorder) -> None:
        self._llm, self._recorder = llm, recorder
        self._loop = asyncio.get_running_loop()

    async def generate(self, messages: list[dict[str, Any]], **options: Any) -> AsyncGenerator[Chunk, None]:
        """Ask the other."""
        async for chunk in self._open(messages, options):
            yield chunk

    async def embed(self, texts: Sequence[str], *, model: str | None = None) -> list[list[float]]:
        """By the other."""
        return await self._llm.embed(texts, model=model)

    def _open(self, messages: Messages, options: dict[str, Any]) -> Reply:
        kept = {name: value for name, value in options.items() if name not in ("cache", "accept")}
        return Reply(self._items(Prompt.of(messages).messages(), {**self._llm._defaults, **kept}))

    async def _items(self, messages: list[dict[str, Any]], options: dict[str, Any]) -> AsyncGenerator[Items, None]:
        reply, at = self._llm._open(messages, options), 0
        name = options.get("model") or type(self._llm).__name__
        with self._recorder.step("llm", name, input=canonical({"messages": messages, "options": options})) as step:
            while chunks := await reply.since(at):
                yield chunks
                at += len(chunks)
            said = reply.response
            step.usage, step.output = said.usage, canonical(str(said))
        yield (Finish(said.finish_reason or "stop", said.usage),)


def _parts(line: Any) -> Sequence[str | Chunk | ToolCall]:
    return [line] if isinstance(line, str | Chunk | ToolCall) else line


def _chunks(part: str | Chunk | ToolCall) -> list[Chunk]:
    if isinstance(part, Chunk):
        return [part]
    if isinstance(part, ToolCall):
        return [Chunk(msgspec.json.encode(part).decode(), "tool_call")]
    first, *words = part.split(" ")
    return [Chunk(piece) for piece in (first, *(f" {word}" for word in words)) if piece]
