"""The agents a user can pick, by id: those of files, and presets of them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from msgspec.structs import asdict

from app.agent.loader import Listed
from app.agent.team import Team
from app.domain import PRESET_ID, Preset, Principal, Role, SessionParams, User
from app.errors import AppError, InvalidInput, NotAllowed, NotFound
from app.store import accounts, presets
from app.store.sessions import params_row
from app.usecases.platform import Platform

_PRESET_ID = re.compile(PRESET_ID)


@dataclass(frozen=True, slots=True)
class Choice:
    """What a session begins with."""

    agent_id: str
    agent_params: Mapping[str, Any]
    params: SessionParams
    preset_id: UUID | None = None


async def list_all(platform: Platform, principal: Principal) -> Sequence[Listed]:
    """The agents of files that the caller may use. Administrators and the local caller also see what failed to load, and why."""
    listing = platform.agents.listing()
    if principal.user.role is Role.ADMIN or principal.acts_for_all:
        return listing
    async with platform.engine.connect() as db:
        granted = await accounts.granted_agents(db, principal.user.id)
    return [item for item in listing if item.id is not None and granted & {"*", item.id}]


async def check(platform: Platform, user: User, agent_id: str, params: Mapping[str, Any]) -> Mapping[str, Any]:
    """The parameters as the agent takes them; `NotFound`, `NotAllowed` or `InvalidInput` when it does not exist for this user."""
    version = platform.agents.get(agent_id)
    async with platform.engine.connect() as db:
        granted = await accounts.granted_agents(db, user.id)
    if user.role is not Role.ADMIN and not granted & {"*", agent_id}:
        raise NotAllowed("You may not use this agent.", param="agent.id")
    checked = version.validate_params(params)
    if issubclass(version.cls, Team):
        await _check_participants(platform, user, version.make_params(checked))
    return checked


async def _check_participants(platform: Platform, user: User, talk: Any) -> None:
    """Raise why a participant cannot speak for this user, if one cannot."""
    for number, each in enumerate(talk.participants, 1):
        who = f"Participant {number} of the team"
        if each.id not in platform.agents.ids:
            raise NotFound(f"agent as participant {number} of the team", param="agent.params.participants")
        if issubclass(platform.agents.get(each.id).cls, Team):
            raise InvalidInput(f"{who} is a team itself.", param="agent.params.participants")
        try:
            await check(platform, user, each.id, each.params)
        except NotAllowed:
            raise NotAllowed(f"{who} is an agent that you may not use.", param="agent.params.participants") from None
        except InvalidInput as error:
            raise InvalidInput(f"{who}: {error.message}", param="agent.params.participants") from None


async def choose(
    platform: Platform,
    user: User,
    agent_id: str,
    agent_params: Mapping[str, Any],
    params: SessionParams,
    *,
    sees_all: bool = False,
) -> Choice:
    """What a session of `user` with an agent, or with a preset of one, begins with. `sees_all`: whoever's preset it is.

    What is given goes before what the preset has. Errors as `check` has them; for another's preset they are those of an unknown agent.
    """
    preset = await find(platform, None if sees_all else user.id, agent_id)
    if preset is None:
        return Choice(agent_id, await check(platform, user, agent_id, agent_params), params)
    check_preset(platform, preset)
    checked = await check(platform, user, preset.agent_id, {**preset.agent_params, **agent_params})
    return Choice(preset.agent_id, checked, _over(preset.params, params), preset.id)


def _over(defaults: SessionParams, given: SessionParams) -> SessionParams:
    return SessionParams(**{**asdict(defaults), **params_row(given)})


async def find(platform: Platform, viewer: UUID | None, agent_id: str) -> Preset | None:
    """The preset of this id that a user may use; None when there is none. The id of a file's agent costs no look."""
    if not _PRESET_ID.fullmatch(agent_id):
        return None
    async with platform.engine.connect() as db:
        return await presets.get(db, UUID(agent_id), viewer=viewer)


def check_preset(platform: Platform, preset: Preset) -> None:
    """Raise why a preset cannot be used, if it cannot: its agent's file is gone, or takes other parameters now."""
    if preset.agent_id not in platform.agents.ids:
        raise NotFound(f"agent as {preset.agent_id}, which this preset is made of", param="agent.id")
    try:
        platform.agents.get(preset.agent_id).validate_params(preset.agent_params)
    except AppError as error:
        raise InvalidInput(f"This preset no longer fits its agent: {error.message}", param=error.param) from None


def trouble(platform: Platform, preset: Preset) -> str | None:
    """The same as a sentence."""
    try:
        check_preset(platform, preset)
    except AppError as error:
        return error.message
    return None
