"""Agents that answer for another: sub-runs in its session, whose steps stand below a step of the run that asked for them."""

from __future__ import annotations

import asyncio
from collections import ChainMap
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping, MutableMapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from typing import Any, NamedTuple
from uuid import UUID

import msgspec
from msgspec import Struct

from app.agent.chattable import Binding
from app.agent.plain import plain
from app.agent.runner import GRACE, Answer, answer
from app.agent.version import AgentVersion
from app.domain import Chunk, MemoryChange, Message, Outcome, Run, Usage, canonical, new_id
from app.errors import AgentFailed, InvalidInput
from app.journal.log import Log, joined
from app.journal.recorder import Recorder
from app.llm.llm import Finish, Items, Reply
from app.tasks import Tasks

MAX_DEPTH = 5
"""How deep agents may delegate to one another."""
MAX_COUNT = 100
"""How often the agents of one run may delegate, all together."""


class Wish(NamedTuple):
    """What is asked of another agent: to answer the last message of a history. `names` are those of all who speak there."""

    agent_id: str
    params: Mapping[str, Any]
    history: Sequence[Message]
    names: Sequence[str] = ()


Engage = Callable[[Wish], AbstractAsyncContextManager[tuple[AgentVersion, Binding]]]
"""The agent, which stays whole while the block lasts, and what the platform gives it; `AppError` when the user may not have it."""


class Kept(Struct, frozen=True):
    """What is to be stored of an agent with the run's answer: its state, and what it remembers otherwise."""

    state: Mapping[str, Any] | None = None
    memories: Sequence[MemoryChange] = ()


class Said(Struct, frozen=True):
    """A delegation that has ended: what was said, as content types and texts, and what is kept of whom."""

    chunks: Sequence[tuple[str, str]]
    finish: str
    kept: Mapping[str, Kept]


class Delegations:
    """How one agent of a run has others answer. They are ended with it."""

    def __init__(self, engage: Engage, recorder: Recorder, seconds: float, above: Delegations | None = None) -> None:
        """`seconds` is how long each may take; `above` are those of the agent that delegated to this one."""
        self._engage, self._recorder, self._seconds = engage, recorder, seconds
        self._depth: int = above._depth + 1 if above else 0
        self._asked: list[str] = above._asked if above else []
        self._kept: ChainMap[str, Kept] = above._kept.new_child() if above else ChainMap()
        self._tasks: set[asyncio.Task[Said | BaseException]] = set()
        self._loop = asyncio.get_running_loop()

    @property
    def kept(self) -> Mapping[str, Kept]:
        """What has come of those that have ended, by the ids of their agents."""
        return self._kept.maps[0]

    async def ask(self, wish: Wish) -> Reply:
        """The live answer, at its first chunk; errors before that are raised here. One that is in the journal is served from there."""
        if asyncio.get_running_loop() is not self._loop:
            raise AgentFailed("An agent that delegates needs an async chat: a loop of its own has no other agents.")
        if self._depth >= MAX_DEPTH:
            raise AgentFailed(f"Agents may delegate to one another {MAX_DEPTH} deep at most.")
        if len(self._asked) >= MAX_COUNT:
            raise AgentFailed(f"The agents of one run may delegate {MAX_COUNT} times at most.")
        self._asked.append(wish.agent_id)
        parts = [message.value for message in wish.history]
        said = {"messages": [part.digest.hex() for part in parts], "params": _plain(wish.params)}
        given = canonical(said)
        events = Log(new_id())
        task = Tasks().start(self._conduct(wish, given, parts, events), name=f"delegation to {wish.agent_id}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        reply = Reply(self._live(wish, events, task))
        await reply.since(0)
        return reply

    async def close(self) -> None:
        """End those that are still going on: nobody waits for them any more."""
        await _end(set(self._tasks))

    async def _conduct(self, wish: Wish, given: bytes, parts: Any, events: Log) -> Said | BaseException:
        """What a delegation comes to. It never raises, as a question to a person is no failure of a task."""
        try:
            with self._recorder.step("agent", wish.agent_id, input=given, parts=parts, nested=True) as step:
                if step.served is None:
                    heard = events if step.handed_on is None else Log(new_id())
                    outcome = await self._answer(wish, heard)
                    step.done(msgspec.json.encode(outcome))
                    if step.served is None:
                        return outcome
                said = msgspec.json.decode(step.served, type=Said)
                for content_type, content in said.chunks:
                    events.append(Chunk(content, content_type))
                return said
        except BaseException as error:
            return error
        finally:
            id = events.run_id
            events.close(Outcome(Run(id, id, id, wish.agent_id, id)))

    async def _answer(self, wish: Wish, events: Log) -> Said:
        below = Delegations(self._engage, self._recorder, self._seconds, above=self)
        async with self._engage(wish) as (version, found):
            binding = self._bound(wish.agent_id, replace(found, delegations=below))
            given = await answer(version, binding, wish.history[-1], events, timeout=self._seconds)
        chunks = joined(event.chunk for event in events.events)
        keep(below._kept, wish.agent_id, given)
        return Said([(chunk.content_type, chunk.content) for chunk in chunks], given.finish, dict(below.kept))

    def _bound(self, agent_id: str, binding: Binding) -> Binding:
        """With what the agent has left earlier in this run, which is not stored yet."""
        earlier = self._kept.get(agent_id)
        if earlier is None:
            return binding
        if binding.memory:
            binding.memory.apply(earlier.memories, binding.session.id)
        return replace(binding, state=binding.state if earlier.state is None else earlier.state)

    async def _live(
        self, wish: Wish, events: Log, task: asyncio.Task[Said | BaseException]
    ) -> AsyncGenerator[Items, None]:
        try:
            async for batch in events.read():
                yield [chunk for _, chunk in batch]
            outcome = await task
            if isinstance(outcome, BaseException):
                raise outcome
            self._keep(outcome)
            yield (Finish(outcome.finish, self._usage(wish)),)
        finally:
            await _end({task})

    def _keep(self, said: Said) -> None:
        for agent_id, kept in said.kept.items():
            self._kept[agent_id] = _merged(self._kept.maps[0].get(agent_id), kept)

    def _usage(self, wish: Wish) -> Usage:
        """What the agents of this name have used below this one; in the run each call counts once."""
        below = f"{self._recorder.path(wish.agent_id)}/"
        return sum((step.usage for step in self._recorder.steps if step.path.startswith(below)), Usage())


def keep(kept: MutableMapping[str, Kept], agent_id: str, given: Answer) -> None:
    """Add what an agent itself leaves to what its delegations left."""
    own = [msgspec.structs.replace(change, agent_id=agent_id) for change in given.memories]
    if own or given.state is not None:
        kept[agent_id] = _merged(kept.get(agent_id), Kept(given.state, own))


def states(kept: Mapping[str, Kept], own: str, state: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """The states of all agents of a run as its answer keeps them: that of its `own` agent, and those of others under `@ID`."""
    others = {f"@{id}": each.state for id, each in kept.items() if id != own and each.state is not None}
    return {**(state or {}), **others} if others else state


def state_of(message: Message, agent_id: str) -> Mapping[str, Any] | None:
    """The state that an agent left with a message, of its own or of an agent that delegated to it."""
    stored = message.state or {}
    if f"@{agent_id}" in stored:
        found: Mapping[str, Any] = stored[f"@{agent_id}"]
        return found
    if message.agent_id != agent_id or message.state is None:
        return None
    own = {name: value for name, value in stored.items() if not name.startswith("@")}
    return own if own or not stored else None


def memories_of(kept: Mapping[str, Kept], own: str, changes: Iterable[MemoryChange]) -> Sequence[MemoryChange]:
    """What all agents of a run remember otherwise; of its `own` agent, what it says itself counts."""
    said = list(changes)
    ids = {change.id for change in said}
    return [
        *(
            change
            for each in kept.values()
            for change in each.memories
            if change.agent_id != own or change.id not in ids
        ),
        *said,
    ]


def _merged(earlier: Kept | None, later: Kept) -> Kept:
    if earlier is None:
        return later
    found: dict[UUID, MemoryChange] = {change.id: change for change in earlier.memories}
    for change in later.memories:
        known = found[change.id].known if change.id in found else change.known
        found[change.id] = msgspec.structs.replace(change, known=known)
    return Kept(earlier.state if later.state is None else later.state, list(found.values()))


def _plain(params: Mapping[str, Any]) -> Any:
    try:
        return plain(params)
    except (TypeError, RecursionError):
        raise InvalidInput("The agent's parameters must be plain JSON.", param="agent.params") from None


async def _end(tasks: set[asyncio.Task[Any]]) -> None:
    going = {task for task in tasks if not task.done()}
    for task in going:
        task.cancel()
    if going:
        await asyncio.wait(going, timeout=GRACE + 1)
