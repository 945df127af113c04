"""Requests of the OpenAI protocol: which agent answers, in which session, and the models to choose from.

`model` is the id of an agent, or else an alias of a language model, which the platform's own agent passes the request on to. A request
that names no session has one made for it, which is in no list and goes after a while.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import msgspec
from msgspec.structs import replace

from app.agent.relay import ModelRelay
from app.agent.request import last_of_user, message_of, text_of, tokens_of
from app.agent.runner import Answer
from app.domain import Message, Outcome, Preset, Principal, Role, Run, new_id
from app.errors import InvalidInput, NotFound
from app.llm.catalog import DEFAULT
from app.store import accounts, sessions
from app.store import messages as messages_store
from app.store.operations import BeginRun, Begun, IdempotencyKey
from app.usecases import agents, messages, presets
from app.usecases.calls import answered_in, made_in
from app.usecases.conduct import caller_of
from app.usecases.live import LiveRun
from app.usecases.platform import Platform
from app.usecases.windows import MAX_MESSAGES, MAX_TOKENS

RELAY = ModelRelay.id


@dataclass(frozen=True, slots=True)
class Listed:
    """A model that a request may name: an agent, or an alias of a language model."""

    id: str
    is_agent: bool
    description: str = ""
    name: str | None = None
    """Of a preset."""


async def models(platform: Platform, principal: Principal) -> Sequence[Listed]:
    """What the caller may name as `model`, agents first."""
    listing = await agents.list_all(platform, principal)
    found = {item.id: Listed(item.id, True, item.description) for item in listing if item.id and item.available}
    mine = (await presets.list_page(platform, principal)).items
    usable = [preset for preset in mine if agents.trouble(platform, preset) is None]
    found |= {str(each.id): Listed(str(each.id), True, each.description, each.name) for each in usable}
    if await _may_relay(platform, principal):
        aliases = platform.catalog().aliases
        found |= {alias: Listed(alias, False) for alias in aliases if alias not in platform.agents.ids}
    return list(found.values())


async def get_model(platform: Platform, principal: Principal, id: str) -> Listed:
    """One of them, or `NotFound`."""
    for listed in await models(platform, principal):
        if listed.id == id:
            return listed
    raise NotFound("model", param="model")


async def _may_relay(platform: Platform, principal: Principal) -> bool:
    if principal.user.role is Role.ADMIN:
        return True
    async with platform.engine.connect() as db:
        return bool(await accounts.granted_agents(db, principal.user.id) & {"*", RELAY})


def agent_of(platform: Platform, model: str) -> str:
    """The id of the agent that answers for a model; `NotFound` when there is none."""
    if model != RELAY and model in platform.agents.ids:
        return model
    catalog = platform.catalog()
    if model in catalog.models or catalog.passes_through:
        return RELAY
    raise NotFound("model" if catalog.models else "model, for no language model is set up", param="model")


async def begin(
    platform: Platform,
    principal: Principal,
    bodies: Sequence[Mapping[str, Any]],
    headers: Mapping[str, str],
    *,
    session_id: UUID | None = None,
    key: str | None = None,
) -> list[LiveRun | Run]:
    """Store the last message of the user of each request, all of one model, and begin to answer them at once, each in a session of its own.

    With a `session_id` there may be but one, of whose messages the last is new, and results of tools that stand before it; the rest is
    left out, for the session has its own. Requests with the same idempotency `key` are one.
    """
    if session_id is not None and len(bodies) > 1:
        raise InvalidInput("n must be 1 in a session, whose messages have one answer.", param="n")
    preset = await preset_of(platform, principal, bodies[0]["model"])
    wanted = [wish(platform, principal, body, headers, session_id, preset) for body in bodies]
    if session_id is not None and any(message.role == "tool" for message in (*wanted[0].before, wanted[0].message)):
        async with platform.engine.connect() as db:
            session = await sessions.get(db, session_id, owner=principal.owner)
        await check_results(platform, wanted[0], session.leaf_id if session else None)
    if key is not None:
        wanted = [replace(each, key=key_of(each, key, number)) for number, each in enumerate(wanted)]
    if len(wanted) == 1:  # a task for it would cost a twentieth of the answer
        return [await messages.begin(platform, wanted[0])]
    begun = await asyncio.gather(*(messages.begin(platform, each) for each in wanted), return_exceptions=True)
    runs = [each for each in begun if isinstance(each, LiveRun | Run)]
    for error in (each for each in begun if isinstance(each, BaseException)):
        for each in runs:
            if isinstance(each, LiveRun):
                each.end("cancel")
        raise error
    return runs


async def preset_of(platform: Platform, principal: Principal, model: str) -> Preset | None:
    """The preset that a request names, which can be used; None when it names something else."""
    preset = await agents.find(platform, principal.owner, model)
    if preset is not None:
        agents.check_preset(platform, preset)
    return preset


def for_preset(body: Mapping[str, Any], preset: Preset | None) -> Mapping[str, Any]:
    """The request as the agent is to see it: a preset of an alias stands for the alias."""
    if preset and preset.agent_id == RELAY:
        return {**body, "model": preset.params.model or DEFAULT}
    return body


def wish(
    platform: Platform,
    principal: Principal,
    body: Mapping[str, Any],
    headers: Mapping[str, str],
    session_id: UUID | None,
    preset: Preset | None = None,
) -> BeginRun:
    """What is to be stored for a request, which brings its own history when it names no session."""
    agent_id = preset.agent_id if preset else agent_of(platform, body["model"])
    body = for_preset(body, preset)
    before: Sequence[Message] = ()
    if session_id is None:
        message = _asked(body["messages"])
        if preset is None:
            check_params(platform, agent_id)
    else:
        before, message = _new(body["messages"])
    return BeginRun(
        principal,
        session_id or new_id(),
        new_id(),
        message,
        platform.agents.ids,
        agent_id=agent_id,
        ephemeral=session_id is None,
        preset=preset,
        request={"body": body, "headers": headers},
        before=before,
    )


def check_params(platform: Platform, agent_id: str) -> None:
    """`InvalidInput` when the agent cannot do with its own parameters, for a request names none."""
    if agent_id != RELAY:
        platform.agents.get(agent_id).check_defaults()


def _asked(said: Sequence[Mapping[str, Any]]) -> Message:
    """The message to answer. The rest is no message, but counts when nothing else is known of a run that was lost."""
    asked = last_of_user(said)
    content = said[-1 if asked is None else asked].get("content")
    return Message.user(text_of(content), id=new_id(), tokens=sum(tokens_of(each.get("content")) for each in said))


def _new(said: Sequence[Mapping[str, Any]]) -> tuple[Sequence[Message], Message]:
    """What a session does not have yet: the last message, and the results of tools that stand before it."""
    first = len(said) - 1
    while first > 0 and said[first - 1].get("role") == "tool":
        first -= 1
    *before, message = stored_form(said[first:])
    if message.role not in ("user", "tool"):
        raise InvalidInput("messages: in a session the last message must be the user's or a tool's.", param="messages")
    return before, message


def stored_form(said: Sequence[Mapping[str, Any]]) -> list[Message]:
    """Messages of a request as they are stored."""
    return [message_of(each, new_id()) for each in said]


async def check_results(platform: Platform, wanted: BeginRun, leaf_id: UUID | None) -> None:
    """`InvalidInput` when there are results of tools among the messages that nothing called for, in them or on the branch they follow."""
    said = [*wanted.before, wanted.message]
    unknown = answered_in(said) - made_in(said)
    if unknown and leaf_id is not None:
        async with platform.engine.connect() as db:
            unknown -= made_in(
                await messages_store.window(db, leaf_id, max_tokens=MAX_TOKENS, max_messages=MAX_MESSAGES)
            )
    if unknown:
        raise InvalidInput(f"There is no call of a tool with the id {min(unknown)[:64]}.", param="tool_call_id")


def key_of(wanted: BeginRun, key: str, number: int = 0) -> IdempotencyKey:
    """The key of one of the requests that have it together. Whether it is streamed makes no other request of it."""
    body = wanted.request["body"] if wanted.request else {}
    same: list[Any] = [
        None if wanted.ephemeral else wanted.session_id,
        {name: value for name, value in body.items() if name != "stream"},
    ]
    if wanted.echo is not None:
        same += [wanted.echo, wanted.message.parent_id]
    fingerprint = hashlib.sha256(msgspec.json.encode(same, order="sorted")).digest()
    return IdempotencyKey(f"{key} #{number}" if number else key, fingerprint)


async def embed(
    platform: Platform, principal: Principal, texts: Sequence[str], model: str, *, dimensions: int | None = None
) -> tuple[Sequence[Sequence[float]], Outcome]:
    """The embedding of each text, in order, and how the run ended that made them; none when it did not end well."""
    if await agents.find(platform, principal.owner, model) or agent_of(platform, model) != RELAY:
        raise InvalidInput("model: an agent makes no embeddings.", param="model")
    found: list[Sequence[float]] = []

    async def work(platform: Platform, begun: Begun, live: LiveRun) -> Answer:
        try:
            caller = caller_of(begun)
            found.extend(await platform.calls.embed(texts, model, caller, live.recorder, dimensions=dimensions))
        except NotImplementedError:
            raise InvalidInput("model: this one makes no embeddings.", param="model") from None
        return Answer("")

    message = Message.user("", id=new_id())
    ids = platform.agents.ids
    wanted = BeginRun(principal, new_id(), new_id(), message, ids, agent_id=RELAY, ephemeral=True)
    live = await messages.begin(platform, wanted, work)
    assert isinstance(live, LiveRun)  # noqa: S101 - a new session is never busy
    return found, await live.log.ended()
