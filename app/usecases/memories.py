"""What agents remember, as its owner may see and erase it. Agents themselves are given it with their message."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from uuid import UUID

from app.agent.meaning import Embedded
from app.agent.remembering import uuid_of
from app.domain import Page, Principal, Remembered, Run
from app.errors import NotFound, must_exist
from app.llm.embed import embedding_model
from app.store import memories, passages, sessions
from app.usecases.platform import Platform


class SessionVectors:
    """The vectors of what one agent remembers of one session, and over all sessions of its user.

    Without pgvector none are kept: then entries are embedded for each search, as far as the cache does not have them.
    """

    def __init__(self, platform: Platform, run: Run, agent_id: str) -> None:
        self._platform = platform
        self._of = {"user_id": run.user_id, "session_id": run.session_id, "agent_id": agent_id}

    async def scores(self, wanted: Sequence[float], digests: Mapping[str, bytes]) -> Mapping[str, float]:
        """By pgvector, exactly."""
        ids = {uuid_of(id): id for id in digests}
        async with self._platform.engine.connect() as db:
            if not await passages.can_search(db):
                return {}
            asked = {id: digests[name] for id, name in ids.items()}
            found = await memories.scores(db, self._of, self._model(), wanted, asked)
        return {ids[id]: score for id, score in found.items()}

    async def keep(self, vectors: Mapping[str, Embedded]) -> None:
        """Keep those of entries that are stored; what was added in this run is embedded again in a later one."""
        async with self._platform.engine.begin() as db:
            if await passages.can_search(db):
                kept = {uuid_of(id): (each.digest, each.vector) for id, each in vectors.items()}
                await memories.keep_vectors(db, self._of, self._model(), kept)

    def _model(self) -> str:
        return embedding_model(self._platform.catalog()).name


async def list_page(
    platform: Platform, principal: Principal, *, session_id: UUID | None, after: UUID | None, limit: int
) -> Page[Remembered]:
    """What agents remember on the active branch of a session, or without one of the caller over all his sessions; oldest first."""
    async with platform.engine.connect() as db:
        session = await sessions.get(db, session_id, owner=principal.owner) if session_id else None
        if session_id and session is None:
            raise NotFound("session", param="session_id")
        leaf_id = session.leaf_id if session else None
        return await memories.list_page(
            db, principal.user.id, session_id=session_id, leaf_id=leaf_id, after=after, limit=limit
        )


async def delete(platform: Platform, principal: Principal, id: UUID) -> None:
    """Erase an entry on every branch; a run that is using it does not bring it back."""
    async with platform.engine.begin() as db:
        if not await memories.lock_sessions(db, id, owner=principal.owner):
            raise NotFound("memory", param="memory_id")
        await memories.erase(db, id, owner=principal.owner)


async def clear(platform: Platform, principal: Principal, *, session_id: UUID | None) -> None:
    """Erase what agents remember of a session on all its branches, or without one of the caller over all his sessions."""
    async with platform.engine.begin() as db:
        if session_id is None:
            await memories.erase_of_user(db, principal.user.id)
            return
        must_exist(await sessions.get(db, session_id, owner=principal.owner, lock=True), "session", param="session_id")
        await memories.erase_of_session(db, session_id)
