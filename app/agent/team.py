"""Several agents in one session: who speaks next, until nobody is to or the turns are used up."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from app.agent.chattable import Chattable
from app.agent.delegating import Wish
from app.agent.history import History
from app.domain import SPEAKER, Message
from app.errors import AgentFailed
from app.llm.llm import Completion

MAX_PARTICIPANTS = 8
MAX_TURNS = 20
NAME = r"[\w.-]{1,64}"
MODERATOR = """You moderate a conversation between a user and {who}.
Say who is to speak next, by the name alone; say NOBODY when the user's last message needs no further answer."""
PARTICIPANT = """You are {name}, in a conversation with a user and {others}. Speak for yourself alone."""


class Participant(BaseModel):
    """One who speaks: an agent, under a name; its id alone will do. `about` tells the others, and the moderator, what it is for."""

    model_config = ConfigDict(extra="forbid")

    id: str = Field(min_length=1, max_length=64)
    name: str = Field("", max_length=64, description="the agent's id by default")
    about: str = Field("", max_length=500)
    params: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _named(cls, given: Any) -> Any:
        if isinstance(given, str):
            return {"id": given, "name": given}
        return {**given, "name": given.get("name") or given.get("id")} if isinstance(given, dict) else given

    @property
    def title(self) -> str:
        """Its name, and what it is for."""
        return f"{self.name} ({self.about})" if self.about else self.name


class Talk(BaseModel):
    """Who is in it, and how it goes."""

    participants: list[Participant] = Field(min_length=1, max_length=MAX_PARTICIPANTS)
    policy: Literal["mention", "round-robin", "moderator"] = "mention"
    turns: int | None = Field(
        None,
        ge=1,
        le=MAX_TURNS,
        description="how many may speak after one message of the user; by default as many as there are participants",
    )

    @field_validator("participants")
    @classmethod
    def _told_apart(cls, given: list[Participant]) -> list[Participant]:
        if not all(re.fullmatch(NAME, each.name) for each in given):
            raise ValueError("The name of a participant is 1 to 64 letters, digits, _, . and -")
        if len({each.name.casefold() for each in given}) < len(given):
            raise ValueError("Two participants have one name: give one of them a `name` of its own")
        return given


class Team(Chattable):
    """Several agents who answer the user, and one another.

    Whom the user's message mentions as `@name`, answers. Otherwise the policy says who: `mention`, whoever spoke last, and whom it
    mentions; `round-robin`, one after the other; `moderator`, whom a language model picks.
    """

    params: Talk

    async def chat(self, message: Message) -> str:
        """Have one after the other speak; each answer is a message under its speaker's name. Whoever breaks off is the last."""
        talk = self.params
        said: list[Message] = []
        latest = Completion()
        while len(said) < (talk.turns or len(talk.participants)) and latest.finish_reason != "cut":
            speaker = await self._next(talk, message, said)
            if speaker is None:
                break
            latest = await self._speak(talk, speaker, said)
            said.append(Message.assistant(str(latest), name=speaker.name))
        return latest

    async def _next(self, talk: Talk, message: Message, said: Sequence[Message]) -> Participant | None:
        called = mentioned(talk, message.content)
        if called or talk.policy == "mention":
            called = called or [_last(talk, self.history) or talk.participants[0]]
            for number, each in enumerate(said, 1):
                also = mentioned(talk, each.content) if talk.policy == "mention" else []
                called += [other for other in also if other.name != each.name and other not in called[number:]]
            return called[len(said)] if len(called) > len(said) else None
        latest = _last(talk, said)
        left = [each for each in talk.participants if each is not latest]
        if not left:
            return None
        if talk.policy == "round-robin":
            before = latest or _last(talk, self.history)
            return talk.participants[(talk.participants.index(before) + 1) % len(talk.participants) if before else 0]
        return await self._picked(talk, left, said)

    async def _picked(self, talk: Talk, left: Sequence[Participant], said: Sequence[Message]) -> Participant | None:
        """Whom the model picks of those who have not just spoken. At first somebody has to."""
        who = ", ".join(each.title for each in talk.participants)
        told = History((*self.history, *said))
        asked = [Message.system(MODERATOR.format(who=who)), Message.user(f"{told}\n\nWho is next?")]
        answer = re.findall(r"[\w.-]+", (await self.llm.ainvoke(asked)).casefold())
        names = {each.name.casefold(): each for each in left}
        found = next((names[word] for each in answer for word in (each, each.rstrip(".-")) if word in names), None)
        return found if found or said else left[0]

    async def _speak(self, talk: Talk, speaker: Participant, said: Sequence[Message]) -> Completion:
        if self._delegations is None:
            raise AgentFailed("Only a running server has other agents: this team has none.")
        names = [each.name for each in talk.participants]
        others = ", ".join(each.title for each in talk.participants if each is not speaker) or "nobody else"
        rule = Message.system(PARTICIPANT.format(name=speaker.name, others=others))
        view = [rule, *(_seen(each, speaker.name) for each in (*self.history, *filter(_says, said)))]
        reply = await self._delegations.ask(Wish(speaker.id, speaker.params, view, names))
        is_announced = False
        async for chunk in reply:
            if chunk.content_type == SPEAKER:
                continue
            if not is_announced:
                await self.stream.send(SPEAKER, speaker.name)
                is_announced = True
            await self.stream.send(chunk.content_type, chunk.content)
        return reply.response


def mentioned(talk: Talk, text: str) -> list[Participant]:
    """The participants that a text mentions as `@name`, in its order, each once; other names are plain text."""
    names = {each.name.casefold(): each for each in talk.participants}
    longest_first = "|".join(re.escape(name) for name in sorted(names, key=len, reverse=True))
    pattern = rf"(?<![A-Za-z0-9_.@-])@({longest_first})(?![A-Za-z0-9_-]|\.\w)"
    found = re.findall(pattern, text.casefold())
    return [names[name] for name in dict.fromkeys(found)]


def _says(message: Message) -> bool:
    return bool(message.content)


def _last(talk: Talk, history: Sequence[Message]) -> Participant | None:
    """Who spoke last of those who are in it now."""
    names = {each.name: each for each in talk.participants}
    return next(
        (names[each.name] for each in reversed(history) if each.role == "assistant" and each.name in names), None
    )


def _seen(message: Message, name: str) -> Message:
    """A message as a participant sees it: what others say is said to it."""
    if message.role != "assistant" or message.name in (None, name):
        return message
    return Message.user(message.content, name=message.name, parts=message.parts, id=message.id)
