"""Which entries of a memory are near to a question in what they mean: each is embedded once, when it is first searched that way."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from hashlib import sha256
from typing import TYPE_CHECKING, NamedTuple, Protocol
from weakref import ref

import msgspec

from app.agent.knowledge import MAX_QUERY, cosine, sound
from app.agent.plain import canonical, clean
from app.errors import InvalidInput
from app.journal.recorder import Recorder

if TYPE_CHECKING:
    from app.agent.chattable import Chattable
    from app.agent.memory import Memory

MAX_NEW = 1000
"""How many entries one search embeds at most, the newest; the others are not found before a later one."""

NO_MODEL = "Only the memory of an agent is searched by meaning: it has the model for it."


class Embedded(NamedTuple):
    """A vector, and the SHA-256 of the text that it is of."""

    digest: bytes
    vector: Sequence[float]


class Vectors(Protocol):
    """Where the vectors of entries are kept."""

    async def scores(self, wanted: Sequence[float], digests: Mapping[str, bytes]) -> Mapping[str, float]:
        """How near the entries are, by id, from -1 to 1; only those whose vector is kept, and is of the text with that digest."""
        ...

    async def keep(self, vectors: Mapping[str, Embedded]) -> None:
        """Keep vectors by the ids of their entries."""
        ...


class InProcess:
    """Vectors of a script, gone with it."""

    def __init__(self) -> None:
        self._kept: dict[str, Embedded] = {}

    async def scores(self, wanted: Sequence[float], digests: Mapping[str, bytes]) -> Mapping[str, float]:
        """Look at each."""
        kept = {id: self._kept[id] for id, digest in digests.items() if id in self._kept}
        return {id: cosine(wanted, each.vector) for id, each in kept.items() if each.digest == digests[id]}

    async def keep(self, vectors: Mapping[str, Embedded]) -> None:
        """Keep them in memory."""
        self._kept.update(vectors)


class Meaning:
    """Search by vector, each a recorded step. It does not hold its agent, which holds it: a circle a message is garbage to look for."""

    def __init__(self, agent: Chattable, recorder: Recorder, vectors: Vectors | None = None) -> None:
        self._agent = ref(agent)
        self._recorder = recorder
        self._vectors = vectors or InProcess()

    async def nearest(self, query: str, entries: Sequence[Memory], k: int) -> list[Memory]:
        """The `k` entries nearest to `query`, the nearest first."""
        if not query.strip() or len(query) > MAX_QUERY:
            raise InvalidInput(f"query: use 1 to {MAX_QUERY} characters.", param="query")
        texts = {entry.id: text for entry in entries if (text := clean(entry.content)).strip()}
        if not texts:
            return []
        given = canonical({"query": clean(query), "among": len(texts), "k": k})
        with self._recorder.step("retrieval", "memory.search", input=given, nested=True) as step:
            if step.served is None:
                scores = await self._scores(clean(query), texts)
                near = sorted(scores, key=lambda id: -scores[id])[: max(k, 0)]
                step.done(canonical([{"id": id, "score": scores[id]} for id in near]))
        known = {entry.id: entry for entry in entries}
        found = msgspec.json.decode((step.output if step.served is None else step.served) or b"[]")
        return [known[each["id"]] for each in found if each["id"] in known]

    async def _embed(self, texts: Sequence[str]) -> Sequence[Sequence[float]]:
        if (agent := self._agent()) is None:
            raise InvalidInput(NO_MODEL, param="by")
        return sound(await agent.embed(texts))

    async def _scores(self, query: str, texts: Mapping[str, str]) -> Mapping[str, float]:
        (wanted,) = await self._embed([query])
        digests = {id: sha256(text.encode()).digest() for id, text in texts.items()}
        known = await self._vectors.scores(wanted, digests)
        new = [id for id in texts if id not in known][-MAX_NEW:]
        if not new:
            return known
        vectors = await self._embed([texts[id][:MAX_QUERY] for id in new])
        await self._vectors.keep({id: Embedded(digests[id], vector) for id, vector in zip(new, vectors, strict=True)})
        made = await asyncio.to_thread(lambda: [cosine(wanted, vector) for vector in vectors])
        return {**known, **dict(zip(new, made, strict=True))}
