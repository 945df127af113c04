"""Delegation without a server: what runs side by side, what nobody waits for, and what is kept of whom."""

from __future__ import annotations

import asyncio
from uuid import uuid4

import pytest
from pydantic import BaseModel, ValidationError

from app.agent import BaseAgent, Chattable, Message, Participant, Talk
from app.agent.delegating import Kept, memories_of, state_of, states
from app.agent.team import mentioned
from app.agent.testing import Scripted, answer
from app.domain import MemoryChange
from app.errors import AgentFailed, NotFound

ENDED: list[str] = []


class Count(BaseModel):
    calls: int = 0


class Slow(Chattable):
    id = "slow"
    state: Count

    async def chat(self, message: Message) -> str:
        self.state.calls += 1
        await self.stream.send("text", f"{message.content} ")
        try:
            await asyncio.sleep(60 if message.content == "for-ever" else 0.01)
        except asyncio.CancelledError:
            ENDED.append(message.content)
            raise
        return "done"


class Both(Chattable):
    id = "both"

    async def chat(self, message: Message) -> str:
        first, second = await asyncio.gather(self.delegate("slow", "a"), self.delegate("slow", "b"))
        return "|".join(await asyncio.gather(second.text(), first.text()))


class Leaves(Chattable):
    id = "leaves"

    async def chat(self, message: Message) -> str:
        await self.delegate("slow", "for-ever")
        return "I do not wait"


class Asks(Chattable):
    id = "asks"

    async def chat(self, message: Message) -> str:
        return str(await (await self.delegate(message.content, "x")).text())


class Blocking(Chattable):
    id = "blocking"

    def chat(self, message: Message) -> str:
        return asyncio.run(self._have())

    async def _have(self) -> str:
        return str(await (await self.delegate("slow", "x")).text())


def test_two_answer_side_by_side() -> None:
    said = answer(Both, "go", others=[Slow])
    assert said.text == "b |a "
    assert [step.path for step in said.steps] == ["/slow", "/slow"]


def test_what_nobody_waits_for_is_ended_with_the_run() -> None:
    ENDED.clear()
    assert answer(Leaves, "go", others=[Slow]).text == "I do not wait"
    assert ENDED == ["for-ever"]


def test_an_agent_that_there_is_not_is_one_sentence() -> None:
    with pytest.raises(NotFound, match=r"There is no such agent\."):
        answer(Asks, "nobody")


def test_a_loop_of_ones_own_has_no_other_agents() -> None:
    with pytest.raises(AgentFailed, match="needs an async chat"):
        answer(Blocking, "go", others=[Slow])


async def test_a_script_has_no_other_agents() -> None:
    with pytest.raises(AgentFailed, match="Only a running server"):
        await BaseAgent(llm=Scripted([])).delegate("slow", "x")


def test_states_stand_beside_one_another() -> None:
    kept = {"slow": Kept({"calls": 2}), "own": Kept({"calls": 9}), "plain": Kept(None)}
    stored = states(kept, "own", {"calls": 1})
    assert stored == {"calls": 1, "@slow": {"calls": 2}}
    message = Message.assistant("", agent_id="own", state=stored)
    assert state_of(message, "own") == {"calls": 1}
    assert state_of(message, "slow") == {"calls": 2}
    assert state_of(message, "plain") is None
    assert state_of(Message.assistant("", agent_id="own"), "own") is None
    assert states({}, "own", None) is None


def test_an_agents_own_memories_come_before_what_its_delegates_say_of_them() -> None:
    id = uuid4()
    change = MemoryChange(id, False, False)
    kept = {"own": Kept(None, [MemoryChange(id, False, False, agent_id="own")]), "slow": Kept(None, [change])}
    assert memories_of(kept, "own", [change]) == [change, change]


def test_a_name_ends_with_its_line() -> None:
    with pytest.raises(ValidationError, match="name of a participant"):
        Talk(participants=[Participant(id="a", name="Bo\n")])


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("@a @b @a", ["a", "b"]),
        ("@B, then (@a).", ["b", "a"]),
        ("x@a @ab @a-b a.@a @a.b @@a", []),
        ("请@译者看看", ["译者"]),
        ("@译者2号", ["译者2号"]),
        ("@c.d.", ["c.d"]),
    ],
)
def test_a_mention_is_a_name_after_an_at(text: str, names: list[str]) -> None:
    talk = Talk(participants=[Participant(id=name) for name in ("a", "B", "译者", "译者2号", "c.d")])
    assert [each.name.casefold() for each in mentioned(talk, text)] == names
