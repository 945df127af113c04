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
from app.agent.request import last_of_user, text_of, tokens_of
from app.agent.runner import Answer
from app.domain import Message, Outcome, Preset, Principal, Role, Run, new_id
from app.errors import InvalidInput, NotFound
from app.llm.catalog import DEFAULT
from app.store import accounts
from app.store.operations import BeginRun, Begun, IdempotencyKey
from app.usecases import agents, messages, presets
from app.usecases.conduct import caller_of
from app.usecases.live import LiveRun
from app.usecases.platform import Platform

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
    raise NotFound("model", param="model")


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

    With a `session_id` there may be but one, and the rest of its messages is left out, for the session has its own. Requests with the
    same idempotency `key` are one.
    """
    if session_id is not None and len(bodies) > 1:
        raise InvalidInput("n must be 1 in a session, whose messages have one answer.", param="n")
    preset = await agents.find(platform, principal.owner, bodies[0]["model"])
    if preset is not None:
        agents.check_preset(platform, preset)
    wanted = [_wanted(platform, principal, body, headers, session_id, preset) for body in bodies]
    if key is not None:
        wanted = [replace(each, key=_key(each, key, number)) for number, each in enumerate(wanted)]
    begun = await asyncio.gather(*(messages.begin(platform, each) for each in wanted), return_exceptions=True)
    runs = [each for each in begun if isinstance(each, LiveRun | Run)]
    for error in (each for each in begun if isinstance(each, BaseException)):
        for each in runs:
            if isinstance(each, LiveRun):
                each.end("cancel")
        raise error
    return runs


def _wanted(
    platform: Platform,
    principal: Principal,
    body: Mapping[str, Any],
    headers: Mapping[str, str],
    session_id: UUID | None,
    preset: Preset | None,
) -> BeginRun:
    agent_id = preset.agent_id if preset else agent_of(platform, body["model"])
    if preset and agent_id == RELAY:
        body = {**body, "model": preset.params.model or DEFAULT}
    said: Sequence[Mapping[str, Any]] = body["messages"]
    asked = last_of_user(said)
    if session_id is not None and asked != len(said) - 1:
        raise InvalidInput("messages: in a session the last message must be the user's.", param="messages")
    if session_id is None and agent_id != RELAY and preset is None:
        platform.agents.get(agent_id).validate_params({})
    content = said[-1 if asked is None else asked].get("content")
    if session_id is None:  # its history is no message, but counts when nothing else is known of a run that was lost
        message = Message.user(
            text_of(content), id=new_id(), tokens=sum(tokens_of(each.get("content")) for each in said)
        )
    else:
        parts = tuple(content) if isinstance(content, list) else ()
        message = Message.user(text_of(content), id=new_id(), parts=parts, tokens=tokens_of(content))
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
    )


def _key(wanted: BeginRun, key: str, number: int) -> IdempotencyKey:
    """The key of one of the requests that have it together. Whether it is streamed makes no other request of it."""
    body = wanted.request["body"] if wanted.request else {}
    same = [
        None if wanted.ephemeral else wanted.session_id,
        {name: value for name, value in body.items() if name != "stream"},
    ]
    fingerprint = hashlib.sha256(msgspec.json.encode(same, order="sorted")).digest()
    return IdempotencyKey(f"{key} #{number}" if number else key, fingerprint)


async def embed(
    platform: Platform, principal: Principal, texts: Sequence[str], model: str
) -> tuple[Sequence[Sequence[float]], Outcome]:
    """The embedding of each text, in order, and how the run ended that made them; none when it did not end well."""
    if await agents.find(platform, principal.owner, model) or agent_of(platform, model) != RELAY:
        raise InvalidInput("model: an agent makes no embeddings.", param="model")
    found: list[Sequence[float]] = []

    async def work(platform: Platform, begun: Begun, live: LiveRun) -> Answer:
        try:
            found.extend(await platform.calls.embed(texts, model, caller_of(begun), live.recorder))
        except NotImplementedError:
            raise InvalidInput("model: this one makes no embeddings.", param="model") from None
        return Answer("")

    message = Message.user("", id=new_id())
    ids = platform.agents.ids
    wanted = BeginRun(principal, new_id(), new_id(), message, ids, agent_id=RELAY, ephemeral=True)
    live = await messages.begin(platform, wanted, work)
    assert isinstance(live, LiveRun)  # noqa: S101 - a new session is never busy
    return found, await live.log.ended()
