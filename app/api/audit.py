"""REST: what administrators did, under `/api/v1/audit`."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Query
from pydantic import StringConstraints

from app.api.callers import Admin, Here, StrictRoute
from app.api.fields import After, Id, Limit
from app.api.models import ListOf, Out, page
from app.usecases import audit

router = APIRouter(prefix="/api/v1", route_class=StrictRoute)
Action = Annotated[str, StringConstraints(pattern=r"^[a-z]+\.[a-z_]+$", max_length=50)]
Subject = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.*/-]+$", max_length=200)]


class ActOut(Out):
    """One act: `subject` is the id of what it was done to. Without an actor it was the operator; a name is null once its user is erased."""

    id: UUID
    action: str
    subject: str
    details: dict[str, Any]
    actor_id: UUID | None
    actor_name: str | None
    credential_id: UUID | None
    created_at: datetime


@router.get("/audit", tags=["users"])
async def list_acts(
    here: Here,
    caller: Admin,
    limit: Limit = 20,
    after: After = None,
    action: Annotated[Action | None, Query(description="only these, as `user.create`")] = None,
    subject: Annotated[Subject | None, Query(description="only what was done to the object with this id")] = None,
    actor_id: Id | None = None,
) -> ListOf[ActOut]:
    """What administrators did, newest first."""
    found = await audit.list_page(
        here, caller, after=after, limit=limit, action=action, subject=subject, actor=actor_id
    )
    return page(ActOut.model_validate, found)
