"""One message answered by an agent as the platform would have it answered, without a server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from hashlib import sha256
from typing import Any, TypeAlias

from msgspec import structs

from app.agent.chattable import Binding
from app.agent.delegating import Delegations, Wish
from app.agent.history import History
from app.agent.plain import canonical
from app.agent.remembering import Recollection
from app.agent.runner import Answer, answer
from app.agent.sandbox import Box
from app.agent.version import AgentVersion
from app.domain import Chunk, MemoryChange, Message, Session, SessionParams, Step, Usage, User, new_id
from app.errors import AgentFailed
from app.journal.log import Log
from app.journal.recorder import Recorder
from app.journal.replay import Done, Replay, Suspended
from app.llm.llm import LLM, Finish, Items, Reply
from app.llm.messages import Messages, Prompt
from app.llm.run import _Calls

Person: TypeAlias = Callable[[str, dict[str, Any]], Awaitable[Any]]
"""Answers an agent's question, whose answer has a JSON Schema."""
Others: TypeAlias = Callable[[str], AgentVersion]
"""The agents that there are besides, by id; `NotFound` for any other."""


class Trial:
    """A session of its own with one message in it: `log` is what the agent says as it says it, `steps` what it did."""

    def __init__(
        self,
        version: AgentVersion,
        llm: LLM,
        *,
        params: Mapping[str, Any] | None = None,
        session_params: SessionParams | None = None,
        person: Person | None = None,
        others: Others | None = None,
    ) -> None:
        """`InvalidInput` for wrong parameters of the agent. Without a `person` it fails when it asks one; without `others`,
        when it delegates.
        """
        stored = version.validate_params(params or {})
        self.session = Session(new_id(), User(new_id(), "Ada"), version.id, stored, session_params or SessionParams())
        self.log = Log(new_id())
        self._version, self._llm, self._person, self._others = version, llm, person, others
        self._recorder, self._earlier = Recorder(), list[Step]()
        self._said: dict[bytes | None, list[Sequence[Items]]] = {}

    @property
    def steps(self) -> Sequence[Step]:
        """What it did, in the order it began."""
        return [*self._earlier, *self._recorder.steps]

    @property
    def usage(self) -> Usage:
        """What its calls of language models used."""
        return sum((step.usage for step in self.steps), Usage())

    async def answer(
        self,
        text: str,
        *,
        state: Mapping[str, Any] | None = None,
        before: Sequence[Message] = (),
        memories: Sequence[MemoryChange] = (),
        timeout: float = 60,  # noqa: ASYNC109 - the agent's, not the caller's
    ) -> Answer:
        """What the agent answers to `text` after `before`, remembering `memories`; its errors are raised as `AppError`s.

        When it has asked the person it begins anew, as on the platform: what it did is served, and `log` is a new one that begins with
        what was said.
        """
        message = Message.user(text)
        while True:
            llm = Journaled(
                self._llm, self._recorder, {key: list(said) for key, said in self._said.items()}, self._said
            )
            history, box = History([*before, message]), Box(enabled=True)
            memory = self._recollection(memories) if self._version.uses_memory else None
            binding = Binding(self.session, history, llm, self._recorder, state, memory=memory, box=box)
            if self._others:
                delegations = Delegations(partial(self._engaged, self._others, llm), self._recorder, timeout)
                binding = replace(binding, delegations=delegations)
            try:
                return await answer(self._version, binding, message, self.log, timeout=timeout)
            except Suspended as asked:
                if self._person is None:
                    raise AgentFailed(f"The agent asks a person, and nobody is there: {asked.question}") from None
                self._begin_anew(asked.seq, await self._person(asked.question, asked.schema))
            finally:
                await llm.close()

    def _recollection(self, memories: Sequence[MemoryChange]) -> Recollection:
        made = Recollection()
        made.apply(memories, self.session.id)
        return made

    @asynccontextmanager
    async def _engaged(self, others: Others, llm: LLM, wish: Wish) -> AsyncIterator[tuple[AgentVersion, Binding]]:
        version = others(wish.agent_id)
        params, names = version.validate_params(wish.params), tuple(wish.names) or (wish.agent_id,)
        session = structs.replace(self.session, agent_id=wish.agent_id, agent_params=params, participants=names)
        yield version, Binding(session, History(wish.history), llm, self._recorder)

    def _begin_anew(self, seq: int, answer: Any) -> None:
        self._earlier = list(self.steps)
        done = [
            Done(
                step.seq,
                step.path,
                step.kind,
                sha256(step.input).digest() if step.input else b"",
                canonical(answer) if step.seq == seq else step.output,
                step.status,
                step.error,
                step.model,
            )
            for step in self._earlier
            if step.status != "cancelled"
        ]
        answered = {step.seq: step.output for step in done}
        for step in self._earlier:
            if step.seq == seq:
                step.status, step.output = "completed", answered[seq]
        self._recorder = Recorder(max(answered), Replay(done))
        self.log = Log(self.log.run_id)


class Journaled(LLM):
    """Another LLM, whose calls are steps; those of an earlier attempt are served from what it `said`."""

    def __init__(
        self,
        llm: LLM,
        recorder: Recorder,
        served: dict[bytes | None, list[Sequence[Items]]],
        said: dict[bytes | None, list[Sequence[Items]]],
    ) -> None:
        self._llm, self._recorder = llm, recorder
        self._served, self._said = served, said
        self._loop = asyncio.get_running_loop()
        self._calls = _Calls()

    async def close(self) -> None:
        """End the calls that are still open, and refuse new ones: the run is over."""
        self._calls.closed = True
        await asyncio.gather(*(reply.close() for reply in self._calls.open if not reply.ended))

    async def generate(self, messages: list[dict[str, Any]], **options: Any) -> AsyncGenerator[Chunk, None]:
        """Ask the other."""
        async for chunk in self._open(messages, options):
            yield chunk

    async def embed(self, texts: Sequence[str], *, model: str | None = None) -> list[list[float]]:
        """By the other."""
        return await self._llm.embed(texts, model=model)

    def _open(self, messages: Messages, options: dict[str, Any]) -> Reply:
        if self._calls.closed:
            raise asyncio.CancelledError("the run is over")
        kept = {name: value for name, value in options.items() if name not in ("cache", "accept", "mode")}
        reply = Reply(self._items(Prompt.of(messages).messages(), {**self._llm._defaults, **kept}))
        self._calls.open.append(reply)
        return reply

    async def _items(self, messages: list[dict[str, Any]], options: dict[str, Any]) -> AsyncGenerator[Items, None]:
        given = canonical({"messages": messages, "options": options})
        name = options.get("model") or type(self._llm).__name__
        with self._recorder.step("llm", name, input=given) as step:
            if step.served is not None:
                for items in self._served[given].pop(0):
                    yield items
                return
            reply, at, all_items = self._llm._open(messages, options), 0, list[Items]()
            try:
                while chunks := await reply.since(at):
                    yield chunks
                    at += len(chunks)
                    all_items.append(chunks)
            finally:
                await reply.close()
            said = reply.response
            step.usage, step.output = said.usage, canonical(str(said))
        finish = (Finish(said.finish_reason or "stop", said.usage),)
        self._said.setdefault(given, []).append([*all_items, finish])
        yield finish
