"""One message answered by an agent as the platform would have it answered, without a server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any

from app.agent.chattable import Binding
from app.agent.history import History
from app.agent.plain import canonical
from app.agent.runner import Answer, answer
from app.agent.version import AgentVersion
from app.domain import Chunk, Message, Session, SessionParams, User, new_id
from app.journal.log import Log
from app.journal.recorder import Recorder
from app.llm.llm import LLM, Finish, Items, Reply
from app.llm.messages import Messages, Prompt


class Trial:
    """A session of its own with one message in it: `log` is what the agent says as it says it, `recorder` what it does."""

    def __init__(
        self,
        version: AgentVersion,
        llm: LLM,
        *,
        params: Mapping[str, Any] | None = None,
        session_params: SessionParams | None = None,
    ) -> None:
        """`InvalidInput` for wrong parameters of the agent."""
        stored = version.validate_params(params or {})
        self.session = Session(new_id(), User(new_id(), "Ada"), version.id, stored, session_params or SessionParams())
        self.log, self.recorder = Log(new_id()), Recorder()
        self._version, self._llm = version, Journaled(llm, self.recorder)

    async def answer(
        self,
        text: str,
        *,
        state: Mapping[str, Any] | None = None,
        before: Sequence[Message] = (),
        timeout: float = 60,  # noqa: ASYNC109 - the agent's, not the caller's
    ) -> Answer:
        """What the agent answers to `text` after `before`; its errors are raised as `AppError`s."""
        message = Message.user(text)
        binding = Binding(self.session, History([*before, message]), self._llm, self.recorder, state)
        return await answer(self._version, binding, message, self.log, timeout=timeout)


class Journaled(LLM):
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
            try:
                while chunks := await reply.since(at):
                    yield chunks
                    at += len(chunks)
            finally:
                await reply.close()
            said = reply.response
            step.usage, step.output = said.usage, canonical(str(said))
        yield (Finish(said.finish_reason or "stop", said.usage),)
