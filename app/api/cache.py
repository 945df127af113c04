"""The cache of language models' answers: what it saved, and how to empty it."""

from __future__ import annotations

from fastapi import APIRouter

from app.api.callers import Account, Here, StrictRoute
from app.api.fields import AgentId, Id
from app.api.models import Out
from app.usecases import cache

router = APIRouter(prefix="/api/v1", route_class=StrictRoute, tags=["cache"])


class CacheRow(Out):
    """What was counted of one agent over the last thirty days; `tokens` are those that hits saved."""

    agent_id: str
    hits: int
    misses: int
    stored_bytes: int
    tokens: int


class CacheOut(Out):
    """One row for each agent that used the cache."""

    object: str = "list"
    data: list[CacheRow]


class Purged(Out):
    """How many entries were erased."""

    purged: int


@router.get("/cache")
async def show_cache(
    here: Here, caller: Account, user_id: Id | None = None, agent_id: AgentId | None = None
) -> CacheOut:
    """What the cache did, by agent: for the caller; for another user or all of them, for administrators."""
    found = await cache.statistics(here, caller, user_id=user_id, agent=agent_id)
    rows = [
        CacheRow(agent_id=name, hits=each.hits, misses=each.misses, stored_bytes=each.bytes, tokens=each.tokens)
        for name, each in sorted(found.items())
    ]
    return CacheOut(data=rows)


@router.delete("/cache")
async def purge_cache(
    here: Here, caller: Account, user_id: Id | None = None, agent_id: AgentId | None = None
) -> Purged:
    """Erase cached answers: the caller's; for administrators another user's, or everybody's when none is named."""
    return Purged(purged=await cache.purge(here, caller, user_id=user_id, agent=agent_id))
