"""A stage for one agent: everything it is bound to is real, but for the language model."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from app.agent import LLM, Chattable, Chunk, History, Message, OpenAIRequest, Session, SessionParams
from app.agent.chattable import Binding
from app.agent.runner import Answer, answer
from app.agent.version import AgentVersion, Code
from app.domain import Usage, User, new_id
from app.journal.log import Log
from app.journal.recorder import Recorder
from app.llm.llm import Finish


class Parrot(LLM):
    """Says `words`, or the number of messages it was given and the last one's text. Keeps what it was asked."""

    def __init__(self, words: Sequence[str | Chunk] | None = None, *, finish: str = "stop") -> None:
        self.words = words
        self.finish = finish
        self.asked: list[tuple[list[dict[str, Any]], dict[str, Any]]] = []

    async def generate(self, messages: list[dict[str, Any]], **options: Any) -> AsyncIterator[str | Chunk | Finish]:
        self.asked.append((messages, options))
        for word in self.words or (str(len(messages)), " ", messages[-1]["content"]):
            yield word
        yield Finish(self.finish, Usage(prompt=len(messages), completion=1))


@dataclass
class Performance:
    """What was seen of one answer, also when it failed."""

    log: Log = field(default_factory=lambda: Log(new_id()))
    recorder: Recorder = field(default_factory=Recorder)
    answer: Answer | None = None

    @property
    def shown(self) -> list[tuple[str, str]]:
        """Every chunk as (type, content)."""
        return [(chunk.content_type, chunk.content) for _, chunk in self.log.events]


def cast(cls: type[Chattable], variables: Mapping[str, str] | None = None) -> AgentVersion:
    """A class as the loader would have it."""
    return AgentVersion(cls, "test.py", Code("agents_test_v0"), variables or {})


async def perform(
    agent: type[Chattable] | AgentVersion,
    text: str = "hello",
    *,
    llm: LLM | None = None,
    params: Mapping[str, Any] | None = None,
    session_params: SessionParams | None = None,
    state: Mapping[str, Any] | None = None,
    before: Sequence[Message] = (),
    request: OpenAIRequest | None = None,
    timeout: float = 20,  # noqa: ASYNC109 - passed on
    seen: Performance | None = None,
) -> Performance:
    """Have the agent answer `text`."""
    version = agent if isinstance(agent, AgentVersion) else cast(agent)
    seen = seen or Performance()
    user = User(new_id(), "Ada")
    session = Session(new_id(), user, version.id, dict(params or {}), session_params or SessionParams())
    message = Message.user(text)
    asked = partial(OpenAIRequest.model_validate, request) if request else None
    binding = Binding(session, History([*before, message]), llm or Parrot(), seen.recorder, state, asked)
    seen.answer = await answer(version, binding, message, seen.log, timeout=timeout)
    return seen


async def said(agent: type[Chattable] | AgentVersion, text: str = "hello", **more: Any) -> str:
    """The text of the agent's answer, which must be what its log holds."""
    seen = await perform(agent, text, **more)
    assert seen.answer is not None
    assert seen.answer.text == seen.log.answer()
    return seen.answer.text
