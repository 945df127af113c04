"""REST: what agents keep for the caller to look things up in, under `/api/v1/knowledge`."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal
from uuid import UUID

from fastapi import APIRouter, Query
from pydantic import BaseModel, Field

from app.api.callers import Chat, Here, StrictRoute
from app.api.fields import After, AgentId, Id, Limit, file_ref, to_file_id
from app.domain import Passage
from app.usecases import knowledge

router = APIRouter(prefix="/api/v1/knowledge", route_class=StrictRoute, tags=["knowledge"])
OfAgent = Annotated[AgentId | None, Query(description="only those of this agent")]
OfFile = Annotated[str | None, Query(max_length=64, description="only those of this file: `file-…`")]


class PassageOut(BaseModel):
    """A piece of a text or file that an agent keeps, the `position`-th, with what the agent noted beside it."""

    id: UUID
    agent_id: str
    file_id: str | None = Field(description="the file it was read from, with which it is erased")
    position: int
    content: str
    meta: dict[str, Any]
    created_at: datetime | None


class PassagesOut(BaseModel):
    """Some of the caller's passages."""

    object: Literal["list"] = "list"
    data: list[PassageOut]
    first_id: UUID | None
    last_id: UUID | None
    has_more: bool


def _out(passage: Passage) -> PassageOut:
    return PassageOut(
        id=passage.id,
        agent_id=passage.agent_id,
        file_id=file_ref(passage.file_id) if passage.file_id else None,
        position=passage.position,
        content=passage.content,
        meta=dict(passage.meta),
        created_at=passage.created_at,
    )


@router.get("")
async def list_knowledge(
    here: Here, caller: Chat, agent_id: OfAgent = None, file_id: OfFile = None, limit: Limit = 20, after: After = None
) -> PassagesOut:
    """What agents keep for the caller, in passages, the newest first."""
    page = await knowledge.list_page(here, caller, agent_id=agent_id, file_id=_file(file_id), after=after, limit=limit)
    data = [_out(passage) for passage in page.items]
    ends = (data[0].id, data[-1].id) if data else (None, None)
    return PassagesOut(data=data, first_id=ends[0], last_id=ends[1], has_more=page.has_more)


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
