"""REST: what agents remember, under `/api/v1/memories`: to see, and to erase."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Query

from app.api.callers import Chat, Here, StrictRoute
from app.api.fields import After, Id, Limit
from app.api.models import ListOf, Out, page
from app.usecases import memories

router = APIRouter(prefix="/api/v1/memories", route_class=StrictRoute, tags=["memories"])
OfSession = Annotated[Id | None, Query(description="the session; without it, what is remembered over all sessions")]


class MemoryOut(Out):
    """An entry of an agent's memory. One that is remembered over all sessions has no `session_id`."""

    id: UUID
    session_id: UUID | None
    message_id: UUID | None
    agent_id: str
    memory_id: str
    role: str
    content: str
    score: float
    importance: float
    tags: list[str]
    term: str
    uses: int
    created_at: datetime
    used_at: datetime
    expires_at: datetime | None
    beside: dict[str, Any]


@router.get("")
async def list_memories(
    here: Here, caller: Chat, session_id: OfSession = None, limit: Limit = 20, after: After = None
) -> ListOf[MemoryOut]:
    """What agents remember: on the active branch of a session, or without one over all of the caller's sessions."""
    found = await memories.list_page(here, caller, session_id=session_id, after=after, limit=limit)
    return page(MemoryOut.model_validate, found)


@router.delete("", status_code=204)
async def clear_memories(here: Here, caller: Chat, session_id: OfSession = None) -> None:
    """Erase what agents remember of a session, on every branch; or without one over all of the caller's sessions."""
    await memories.clear(here, caller, session_id=session_id)


@router.delete("/{memory_id}", status_code=204)
async def delete_memory(here: Here, caller: Chat, memory_id: Id) -> None:
    """Erase one entry, on every branch."""
    await memories.delete(here, caller, memory_id)
