"""What agents keep for users to look things up in, and what users see and erase of it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from typing import Any
from uuid import UUID

from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from app.agent.documents import Content
from app.agent.knowledge import Document
from app.domain import Page, Passage, Principal, new_id
from app.errors import AgentFailed, NotFound, QuotaExceeded, TooLarge, Unavailable, must_exist
from app.llm.embed import embedding_model
from app.store import files, passages
from app.store.database import is_passing
from app.store.passages import Key
from app.usecases.files import content
from app.usecases.platform import Platform
from app.usecases.vectors import forget_missing, forget_soon

SPARE = 20
NO_VECTORS = (
    "Knowledge needs pgvector: have an administrator of the database install it and say CREATE EXTENSION vector."
)


class UserPassages:
    """The passages of one user and one agent."""

    def __init__(self, platform: Platform, user_id: UUID, agent_id: str) -> None:
        self._platform = platform
        self._user_id = user_id
        self._agent_id = agent_id
        self.documents = platform.documents

    async def open(self, file_id: UUID, most: int) -> Content:
        """A file of the user, whole."""
        async with self._database() as db:
            file = must_exist(await files.get(db, file_id, owner=self._user_id), "file", param="file_id")
        if file.size > most:
            raise TooLarge(f"A document may have at most {most} bytes.", param="file")
        async with aclosing(content(self._platform, file)) as pieces:
            body = b"".join([piece async for piece in pieces])
        return Content(body, file.media_type, file.name)

    async def check(self, count: int) -> None:
        """Raise without pgvector, and when the user would have too many."""
        async with self._database() as db:
            await self._check(db, count)

    async def keep(self, documents: Sequence[Document]) -> None:
        """Add what is not there."""
        model = self._model()
        ids = iter(sorted(new_id() for document in documents for _ in document.contents))
        rows = [
            {
                "id": next(ids),
                "user_id": self._user_id,
                "agent_id": self._agent_id,
                "file_id": document.file_id,
                "document": document.digest,
                "position": position,
                "model": model,
                "content": text,
                "meta": dict(document.meta),
                "vector": vector,
            }
            for document in documents
            for position, (text, vector) in enumerate(zip(document.contents, document.vectors, strict=True))
        ]
        vectors = {
            Key(self._user_id, self._agent_id, model, document.digest, position): vector
            for document in documents
            for position, vector in enumerate(document.vectors)
        }
        if self._platform.vectors is not None:
            await self._platform.vectors.put(vectors)
        try:
            async with self._database() as db:
                await passages.lock(db, self._user_id)
                await passages.add(db, rows)
                await self._check(db, 0)
        except Exception as error:
            if self._platform.vectors is not None:
                await forget_missing(self._platform, list(vectors))
            if isinstance(error, IntegrityError):  # the file was erased meanwhile, or the user
                raise NotFound("file" if any(row["file_id"] for row in rows) else "user") from None
            raise

    async def nearest(self, vector: Sequence[float], k: int, meta: Mapping[str, Any]) -> list[Passage]:
        """By pgvector, exactly; or by Milvus, where there is one."""
        model, owner, agent_id = self._model(), self._user_id, self._agent_id
        async with self._database() as db:
            await self._search_is_there(db)
        scores = await self._scored(vector, k, meta)
        async with self._database() as db:
            if scores is not None:
                found = (await passages.found(db, owner=owner, scores=scores))[:k] if scores else []
            else:
                found = await passages.nearest(
                    db, owner=owner, agent_id=agent_id, model=model, vector=vector, meta=meta, limit=k
                )
            if not found and await passages.has_others(db, owner=owner, agent_id=agent_id, model=model):
                raise AgentFailed("What was added was embedded by another model than is used now: add it again.")
        return found

    async def _scored(self, vector: Sequence[float], k: int, meta: Mapping[str, Any]) -> Mapping[Key, float] | None:
        """What Milvus finds, with some to spare for what was erased a moment ago; None without Milvus."""
        if self._platform.vectors is None:
            return None
        chosen = None
        if meta:
            async with self._database() as db:
                chosen = await passages.documents(db, owner=self._user_id, agent_id=self._agent_id, meta=meta)
            if not chosen:
                return {}
        key = Key(self._user_id, self._agent_id, self._model(), b"", 0)
        return dict(await self._platform.vectors.nearest(key, vector, k + SPARE, chosen))

    async def _check(self, db: AsyncConnection, count: int) -> None:
        await self._search_is_there(db)
        most = self._platform.max_passages
        if await passages.count(db, self._user_id) + count > most:
            raise QuotaExceeded(f"A user may have {most} passages of knowledge, and this is more: delete some first.")

    async def _search_is_there(self, db: AsyncConnection) -> None:
        if self._platform.vectors is None and not await passages.can_search(db):
            raise Unavailable(NO_VECTORS)

    def _model(self) -> str:
        return embedding_model(self._platform.catalog()).name

    @asynccontextmanager
    async def _database(self) -> AsyncIterator[AsyncConnection]:
        try:
            async with self._platform.engine.begin() as db:
                yield db
        except Exception as error:
            if not is_passing(error):
                raise
            raise Unavailable("The database is not available at the moment.") from None


async def list_page(
    platform: Platform,
    principal: Principal,
    *,
    agent_id: str | None,
    file_id: UUID | None,
    after: UUID | None,
    limit: int,
) -> Page[Passage]:
    """The caller's own passages, also for an administrator."""
    async with platform.engine.connect() as db:
        return await passages.list_page(
            db, owner=principal.user.id, agent_id=agent_id, file_id=file_id, after=after, limit=limit
        )


async def delete(platform: Platform, principal: Principal, id: UUID) -> None:
    """Erase one of the caller's own passages."""
    async with platform.engine.begin() as db:
        if not await passages.erase(db, owner=principal.user.id, id=id):
            raise NotFound("passage", param="passage_id")
    forget_soon(platform, principal.user.id)


async def delete_all(platform: Platform, principal: Principal, *, agent_id: str | None, file_id: UUID | None) -> None:
    """Erase the caller's own passages, or those of an agent or a file."""
    async with platform.engine.begin() as db:
        await passages.erase(db, owner=principal.user.id, agent_id=agent_id, file_id=file_id)
    forget_soon(platform, principal.user.id)
