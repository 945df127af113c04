"""Tests of agents without a server and without a key.

def test_it_reads_the_weather() -> None:
    said = answer(Helper, "Rain?", llm=Scripted([call("weather", city="Oslo"), "Sunny."]))
    assert said.text == "Sunny."
"""

from __future__ import annotations

import asyncio
import itertools
import json
import re
import threading
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import msgspec

from app.agent.chattable import Chattable
from app.agent.recorded import Recorded
from app.agent.sources import import_file
from app.agent.trial import Trial
from app.agent.version import AgentVersion, Code, declared_in
from app.domain import Chunk, Message, SessionParams, Step, Usage
from app.errors import AgentFailed, LLMError, NotFound, PluginError
from app.journal.log import joined
from app.llm.llm import LLM, Finish, ToolCall
from app.llm.tokens import count, count_messages

__all__ = ["Answer", "Line", "Recorded", "Scripted", "answer", "answered", "call", "load"]

_numbers = itertools.count(1)
"""So that a file can be loaded twice."""

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
    replies: Sequence[Any] = (),
    others: Sequence[type[Chattable]] = (),
    session_params: SessionParams | None = None,
    timeout: float = 60,  # noqa: ASYNC109 - the agent's, not the caller's
) -> Answer:
    """Have an agent answer `text`, as the platform would.

    `params` and `state` are the agent's, as JSON; `settings` the operator's variables `AGENT_<ID>_<FIELD>`; `before` what was
    said before; `replies` what the person answers to its questions, in turn; `others` the agents that it can delegate to. Without an
    `llm` the agent cannot ask one.
    """
    version = AgentVersion(agent, "test", Code("test"), settings or {})
    left = list(replies)

    async def person(question: str, _: object) -> Any:
        if not left:
            raise AgentFailed(f"The agent asks once more than there are replies: {question}")
        return left.pop(0)

    def other(agent_id: str) -> AgentVersion:
        found = next((cls for cls in (agent, *others) if cls.id == agent_id), None)
        if found is None:
            raise NotFound("agent", param="agent.id")
        return AgentVersion(found, "test", Code("test"), settings or {})

    tried = Trial(
        version, llm or Scripted([]), params=params, session_params=session_params, person=person, others=other
    )
    given = await tried.answer(text, state=state, before=before, timeout=timeout)
    chunks = joined(event.chunk for event in tried.log.events)
    return Answer(given.text, chunks, tried.steps, tried.usage, given.state)


def load(path: Path, agent_id: str | None = None) -> type[Chattable]:
    """The agent that a file or package declares, or of several the one of that id."""
    name = f"agent_under_test_{re.sub(r'[^0-9A-Za-z_]', '_', path.stem)}_{next(_numbers)}"
    found = {cls.id: cls for cls in declared_in(name, vars(import_file(name, path.resolve())))}
    if agent_id is None and len(found) == 1:
        return next(iter(found.values()))
    if agent_id not in found:
        raise PluginError(f"{path.name} declares {', '.join(found) or 'no agent'}: name one of them")
    return found[agent_id]


def _parts(line: Any) -> Sequence[str | Chunk | ToolCall]:
    return [line] if isinstance(line, str | Chunk | ToolCall) else line


def _chunks(part: str | Chunk | ToolCall) -> list[Chunk]:
    if isinstance(part, Chunk):
        return [part]
    if isinstance(part, ToolCall):
        return [Chunk(msgspec.json.encode(part).decode(), "tool_call")]
    first, *words = part.split(" ")
    return [Chunk(piece) for piece in (first, *(f" {word}" for word in words)) if piece]
