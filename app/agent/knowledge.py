"""What an agent can look things up in: passages of texts and files, of one user by one agent, found by what they mean."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from hashlib import sha256
from typing import Any, Protocol, TypeAlias
from uuid import UUID

import msgspec
from msgspec import Struct

from app.agent.documents import Content, Documents
from app.agent.plain import canonical, clean
from app.agent.splitter import split
from app.domain import Passage, new_id
from app.errors import InvalidInput, LLMError, NotFound, TooLarge
from app.journal.recorder import Recorder

Source: TypeAlias = str | bytes | UUID
"""A text, a document, or a file by its id: a UUID, or a text that is nothing but `file-…`."""
Embed: TypeAlias = Callable[[Sequence[str]], Awaitable[list[list[float]]]]

MAX_SOURCES = 100
"""The most sources of one `add`."""
MAX_CHARACTERS = 4_000_000
"""The most characters of all texts of one `add`."""
MAX_META = 4000
"""The longest meta or filter, in characters of JSON."""
MAX_QUERY = 8000
"""The longest query, in characters."""
MAX_FOUND = 50
"""The most passages that a search gives."""
MAX_DIMENSIONS = 16_000
"""Of pgvector's `vector` (its README, "Vector Type")."""
MAX_NUMBER = 1e15
"""The largest number of a vector: squares and sums of such still are 32-bit floats."""
_FILE = "file-"


class Document(Struct, frozen=True):
    """Passages of one source with their vectors, as they are kept. `digest` tells equal ones: text, file and meta."""

    digest: bytes
    contents: Sequence[str]
    vectors: Sequence[Sequence[float]]
    meta: Mapping[str, Any]
    file_id: UUID | None = None


class Passages(Protocol):
    """Where the passages of one user and one agent are kept."""

    documents: Documents

    async def open(self, file_id: UUID, most: int) -> Content:
        """A file of the user; `NotFound`, or `TooLarge` for one with more than `most` bytes."""
        ...

    async def check(self, count: int) -> None:
        """Raise when so many more cannot be kept: what they cost is not spent for nothing."""
        ...

    async def keep(self, documents: Sequence[Document]) -> None:
        """Keep documents, all or none; one that is kept already stays as it is."""
        ...

    async def nearest(self, vector: Sequence[float], k: int, meta: Mapping[str, Any]) -> list[Passage]:
        """The passages nearest to a vector among those whose meta holds all of `meta`, the nearest first."""
        ...


class Knowledge:
    """`add` and `search`, each a recorded step. What one agent adds for a user, no other agent or user finds."""

    def __init__(self, passages: Passages, embed: Embed, recorder: Recorder) -> None:
        self._passages = passages
        self._embed = embed
        self._recorder = recorder

    async def add(self, source: Source | Sequence[Source], /, *, media_type: str = "", **meta: Any) -> int:
        """Keep texts, documents or files, all of them or none; gives how many passages they have.

        `media_type` is that of `bytes` where it is not plain to see. `meta` is kept with each passage, for `filter` and to be
        shown: texts, numbers, booleans, None, or lists of these. What is there already is not kept again. A file's passages
        are erased with the file.
        """
        sources = [source] if isinstance(source, str | bytes | UUID) else list(source)
        if not sources or len(sources) > MAX_SOURCES:
            raise InvalidInput(f"Give 1 to {MAX_SOURCES} sources.", param="source")
        kept = _checked(meta, "meta")
        given = canonical({"sources": [_named(each) for each in sources], "media_type": media_type, "meta": kept})
        with self._recorder.step("retrieval", "knowledge.add", input=given, nested=True) as step:
            if step.served is None:
                step.done(canonical(await self._add(sources, media_type, kept)))
        return int(step.served or step.output or 0)

    async def search(self, query: str, k: int = 5, filter: Mapping[str, Any] | None = None) -> list[Passage]:
        """The `k` passages that are nearest to `query` in what they mean, the nearest first.

        With `filter` only those whose meta has all of its values; in a list, any order and more beside them. Scores are
        cosines, and tell which is nearer; how near is enough depends on the model.
        """
        query, k = _asked(query, k)
        meta = _checked(filter or {}, "filter")
        given = canonical({"query": query, "k": k, "filter": meta})
        with self._recorder.step("retrieval", "knowledge.search", input=given, nested=True) as step:
            if step.served is None:
                if "input" in step.changes:
                    query, k = _asked(step.changes["input"].get("query", query), step.changes["input"].get("k", k))
                    step.input = canonical({"query": query, "k": k, "filter": meta})
                (vector,) = sound(await self._embed([query]))
                found = await self._passages.nearest(vector, k, meta)
                step.done(canonical([passage.to_dict() for passage in found]))
        return found if step.served is None else msgspec.json.decode(step.served, type=list[Passage])

    async def _add(self, sources: Sequence[Source], media_type: str, meta: Mapping[str, Any]) -> int:
        documents, characters = [], 0
        for source in sources:
            file_id = file_of(source)
            text = await self._text(source, file_id, media_type)
            characters += len(text)
            if characters > MAX_CHARACTERS:
                raise TooLarge(f"At most {MAX_CHARACTERS} characters can be added at once.", param="source")
            named = canonical([text, str(file_id), meta]) or b""
            documents.append(Document(sha256(named).digest(), await asyncio.to_thread(split, text), (), meta, file_id))
        contents = [content for document in documents for content in document.contents]
        if not contents:
            return 0
        await self._passages.check(len(contents))
        vectors = iter(sound(await self._embed(contents)))
        await self._passages.keep(
            [
                Document(each.digest, each.contents, [next(vectors) for _ in each.contents], meta, each.file_id)
                for each in documents
            ]
        )
        return len(contents)

    async def _text(self, source: Source, file_id: UUID | None, media_type: str) -> str:
        if isinstance(source, bytes):
            return await self._passages.documents.text(Content(source, media_type))
        if file_id is None:
            return clean(str(source))
        from app.agent.documents import MAX_BYTES

        return await self._passages.documents.text(await self._passages.open(file_id, MAX_BYTES))


class InProcess:
    """Passages of a script or a test, gone with it. It has no files."""

    def __init__(self) -> None:
        self.documents = Documents()
        self._kept: dict[tuple[bytes, int], tuple[Passage, Sequence[float]]] = {}

    async def open(self, file_id: UUID, most: int) -> Content:
        """None is here."""
        raise NotFound("file", param="source")

    async def check(self, count: int) -> None:
        """There is room."""

    async def keep(self, documents: Sequence[Document]) -> None:
        """Keep them in memory."""
        for document in documents:
            for at, (content, vector) in enumerate(zip(document.contents, document.vectors, strict=True)):
                passage = Passage(new_id(), content, at, document.meta, document.file_id)
                self._kept.setdefault((document.digest, at), (passage, vector))

    async def nearest(self, vector: Sequence[float], k: int, meta: Mapping[str, Any]) -> list[Passage]:
        """Look at each."""
        scored = [
            passage.scored(cosine(vector, other))
            for passage, other in self._kept.values()
            if len(other) == len(vector) and all(_holds(passage.meta.get(name), meta[name]) for name in meta)
        ]
        return sorted(scored, key=lambda passage: (-passage.score, passage.id))[:k]


def file_of(source: Source) -> UUID | None:
    """The id of the file that a source names."""
    if isinstance(source, UUID):
        return source
    if isinstance(source, str) and len(source) == len(_FILE) + 32 and source.startswith(_FILE):
        try:
            return UUID(source.removeprefix(_FILE))
        except ValueError:
            return None
    return None


def _named(source: Source) -> Mapping[str, str]:
    if (file_id := file_of(source)) is not None:
        return {"file": str(file_id)}
    if not isinstance(source, str | bytes):
        raise InvalidInput("A source is a text, the bytes of a document, or the id of a file.", param="source")
    body = source if isinstance(source, bytes) else source.encode(errors="surrogatepass")
    return {"document" if isinstance(source, bytes) else "text": sha256(body).hexdigest()}


def _checked(meta: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """Meta as it can be stored; `InvalidInput` names what it came as."""
    values = [item for value in meta.values() for item in (value if isinstance(value, list | tuple) else [value])]
    sound = all(_is_plain(value) for value in values)
    text = canonical(meta) if sound else None
    if text is None or len(text) > MAX_META:
        raise InvalidInput(
            f"{name}: use texts, numbers, booleans, None, or lists of these, at most {MAX_META} bytes of JSON.",
            param=name,
        )
    return {clean(key): list(value) if isinstance(value, tuple) else value for key, value in meta.items()}


def _asked(query: Any, k: Any) -> tuple[str, int]:
    """A question that can be asked; `InvalidInput` for another."""
    if not isinstance(query, str) or not query.strip() or len(query) > MAX_QUERY:
        raise InvalidInput(f"query: use 1 to {MAX_QUERY} characters.", param="query")
    if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k <= MAX_FOUND:
        raise InvalidInput(f"k: use 1 to {MAX_FOUND}.", param="k")
    return clean(query), k


def _is_plain(value: Any) -> bool:
    if isinstance(value, str):
        return value == clean(value)
    if isinstance(value, int):
        return abs(value) < 2**63
    return value is None or (isinstance(value, float) and math.isfinite(value))


def sound(vectors: list[list[float]]) -> list[list[float]]:
    """Vectors that can be kept and compared; `LLMError` when a model gave others."""
    for vector in vectors:
        if not 0 < len(vector) <= MAX_DIMENSIONS or not max(map(abs, vector)) <= MAX_NUMBER:
            raise LLMError("The model's embeddings cannot be searched: they are empty, too long or too large.")
    return vectors


def cosine(one: Sequence[float], other: Sequence[float]) -> float:
    """How near two vectors of one length are, from -1 to 1; 0 where one has no direction."""
    length = math.hypot(*one) * math.hypot(*other)
    return sum(map(float.__mul__, map(float, one), map(float, other))) / length if length else 0.0


def _holds(value: Any, wanted: Any) -> bool:
    """Whether a value is `wanted`, or a list with all of its items: as PostgreSQL's `@>` on JSON sees it."""
    if isinstance(value, list):
        return isinstance(wanted, list) and all(item in value for item in wanted)
    return bool(value == wanted and isinstance(value, bool) == isinstance(wanted, bool))
