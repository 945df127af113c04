"""REST: agents under `/api/v1/agents`, as seed 004 has them: those of files, and presets of them, which users make."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Any, Literal
from uuid import UUID

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field, StringConstraints
from starlette.convertors import StringConvertor, register_url_convertor

from app import domain
from app.agent.loader import Listed
from app.api.callers import Chat, Here, StrictRoute
from app.api.fields import After, Id, Key, Limit, Name, Text, to_id
from app.api.models import AgentChoice, AgentOut, In, ListOf, SessionParamsIn, SessionParamsOut
from app.domain import Principal
from app.errors import NotFound
from app.usecases import agents, presets
from app.usecases.platform import Platform


class _AgentInPath(StringConvertor):
    """A piece of a path that is an agent's id, and not `mcp` or `tasks`, whose own routes say which methods they have."""

    regex = "(?!(?:mcp|tasks)$)[^/]+"


register_url_convertor("agent", _AgentInPath())
router = APIRouter(prefix="/api/v1/agents", route_class=StrictRoute, tags=["agents"])
MAX_GROUPS = 50
EXAMPLE: dict[str, Any] = {
    "name": "Brief helper",
    "description": "Answers in one sentence.",
    "agent": {"id": "simple_openai_agent", "params": {"system_prompt": "Answer in one sentence."}},
    "session_params": {"temperature": 0.2},
    "shared_with": ["everyone"],
}
Groups = Annotated[list[Name], Field(max_length=MAX_GROUPS, description="names of groups; `everyone` is all users")]


class PresetIn(In):
    """A named configuration of an agent. It is private unless it is shared."""

    model_config = ConfigDict(json_schema_extra={"examples": [EXAMPLE]})

    name: Name
    description: Text = ""
    agent: AgentChoice
    session_params: SessionParamsIn = Field(default_factory=SessionParamsIn)
    shared_with: Groups = Field(default_factory=list)


class PresetChange(In):
    """Any of these; what is left out stays."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"name": "Terse helper", "shared_with": []}]})

    name: Name | None = None
    description: Text | None = None
    agent: AgentChoice | None = None
    session_params: SessionParamsIn | None = None
    shared_with: Groups | None = None

    def changes(self) -> dict[str, Any]:
        """What was given, in the words of the use case."""
        names = ("name", "description", "shared_with")
        found: dict[str, Any] = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        if self.session_params is not None:
            found["params"] = self.session_params.to_domain()
        if self.agent is not None:
            found["agent_id"] = self.agent.id
            if "params" in self.agent.model_fields_set:
                found["agent_params"] = self.agent.params
        return found


class PluginOfPreset(BaseModel):
    """The agent of a file that a preset is made of, and its parameters."""

    id: str
    params: dict[str, Any]


class PresetOut(BaseModel):
    """A named configuration of an agent. With `error` it cannot be used at present. Only its owner sees whom it is shared with."""

    kind: Literal["preset"] = "preset"
    id: UUID
    name: str
    description: str
    agent: PluginOfPreset
    session_params: SessionParamsOut
    owner: str
    shared_with: list[str] | None
    error: str | None
    created_at: datetime | None
    updated_at: datetime | None


AgentsOut = ListOf[AgentOut | PresetOut]
"""The first page begins with all agents of files; presets follow, by the page, and it is they that `first_id` and `last_id` name."""
AnyAgent = Annotated[str, StringConstraints(max_length=64)]


def preset_out(here: Platform, caller: Principal, preset: domain.Preset) -> PresetOut:
    """A preset as the edge gives it to who may use it."""
    return PresetOut(
        id=preset.id,
        name=preset.name,
        description=preset.description,
        agent=PluginOfPreset(id=preset.agent_id, params=dict(preset.agent_params)),
        session_params=SessionParamsOut.model_validate(preset.params),
        owner=preset.owner.name,
        shared_with=sorted(preset.shared_with) if caller.owner in (None, preset.owner.id) else None,
        error=agents.trouble(here, preset),
        created_at=preset.created_at,
        updated_at=preset.updated_at,
    )


async def listed(here: Platform, caller: Principal, *, after: UUID | None, limit: int) -> AgentsOut:
    """A page of all agents that the caller may pick."""
    plugins: Sequence[Listed] = () if after else await agents.list_all(here, caller)
    found = await presets.list_page(here, caller, after=after, limit=limit)
    ids = [preset.id for preset in found.items]
    return AgentsOut(
        data=[*map(AgentOut.model_validate, plugins), *(preset_out(here, caller, preset) for preset in found.items)],
        first_id=ids[0] if ids else None,
        last_id=ids[-1] if ids else None,
        has_more=found.has_more,
    )


@router.get("")
async def list_agents(here: Here, caller: Chat, limit: Limit = 20, after: After = None) -> AgentsOut:
    """The agents that can be picked. `limit` and `after` are about presets; agents of files all come first."""
    return await listed(here, caller, after=after, limit=limit)


@router.post("", status_code=201)
async def create_agent(here: Here, caller: Chat, body: PresetIn, idempotency_key: Key = None) -> PresetOut:
    """Make a preset: a configuration of an agent under a name of its own, whose id may stand wherever an agent's may.

    Whoever it is shared with can read its parameters. It gives no right to the agent that it is made of.
    """
    made = await presets.create(
        here,
        caller,
        name=body.name,
        description=body.description,
        agent_id=body.agent.id,
        agent_params=body.agent.params,
        params=body.session_params.to_domain(),
        shared_with=body.shared_with,
        key=idempotency_key,
    )
    return preset_out(here, caller, made)


@router.get("/{agent_id:agent}")
async def get_agent(here: Here, caller: Chat, agent_id: AnyAgent) -> AgentOut | PresetOut:
    """An agent of a file, or a preset."""
    if agent_id not in here.agents.ids:
        return preset_out(here, caller, await presets.get(here, caller, to_id(agent_id)))
    for item in await agents.list_all(here, caller):
        if item.id == agent_id:
            return AgentOut.model_validate(item)
    raise NotFound("agent", param="agent_id")


@router.patch("/{agent_id:agent}")
async def update_agent(here: Here, caller: Chat, agent_id: Id, body: PresetChange) -> PresetOut:
    """Change a preset of one's own; sessions that were begun with it keep what they have copied."""
    return preset_out(here, caller, await presets.update(here, caller, agent_id, body.changes()))


@router.delete("/{agent_id:agent}", status_code=204)
async def delete_agent(here: Here, caller: Chat, agent_id: Id) -> None:
    """Delete a preset of one's own; sessions that were begun with it go on with what they have copied."""
    await presets.delete(here, caller, agent_id)
