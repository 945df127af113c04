"""REST: what agents keep for the caller to look things up in, under `/api/v1/knowledge`."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Query
from pydantic import BeforeValidator, Field

from app.api.callers import Chat, Here, StrictRoute
from app.api.fields import After, AgentId, Id, Limit, file_ref, to_file_id
from app.api.models import ListOf, Out, page
from app.usecases import knowledge

router = APIRouter(prefix="/api/v1/knowledge", route_class=StrictRoute, tags=["knowledge"])
OfAgent = Annotated[AgentId | None, Query(description="only those of this agent")]
OfFile = Annotated[str | None, Query(max_length=64, description="only those of this file: `file-…`")]


class PassageOut(Out):
    """A piece of a text or file that an agent keeps, the `position`-th, with what the agent noted beside it."""

    id: UUID
    agent_id: str
    file_id: Annotated[str | None, BeforeValidator(lambda id: id and file_ref(id))] = Field(
        description="the file it was read from, with which it is erased"
    )
    position: int
    content: str
    meta: dict[str, Any]
    created_at: datetime | None


@router.get("")
async def list_knowledge(
    here: Here, caller: Chat, agent_id: OfAgent = None, file_id: OfFile = None, limit: Limit = 20, after: After = None
) -> ListOf[PassageOut]:
    """What agents keep for the caller, in passages, the newest first."""
    found = await knowledge.list_page(here, caller, agent_id=agent_id, file_id=_file(file_id), after=after, limit=limit)
    return page(PassageOut.model_validate, found)


@router.delete("", status_code=204)
async def delete_knowledge(here: Here, caller: Chat, agent_id: OfAgent = None, file_id: OfFile = None) -> None:
    """Erase what agents keep for the caller: all of it, or that of one agent or file."""
    await knowledge.delete_all(here, caller, agent_id=agent_id, file_id=_file(file_id))


@router.delete("/{passage_id}", status_code=204)
async def delete_passage(here: Here, caller: Chat, passage_id: Id) -> None:
    """Erase one passage."""
    await knowledge.delete(here, caller, passage_id)


def _file(ref: str | None) -> UUID | None:
    return None if ref is None else to_file_id(ref)
