"""Vectors of passages in Milvus, by what they are of. It is an index: the passages are PostgreSQL's, and so is the truth about them.

A collection holds the vectors of one length. The owner is in every filter, and divides a collection into its partitions.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from hashlib import sha256
from importlib import import_module
from typing import Any, TypeVar
from uuid import UUID

from app.errors import SettingsError, Unavailable
from app.store.passages import Key

T = TypeVar("T")
PREFIX = "passages_"
MAX_MODEL = 4000
"""The longest name of a model, in bytes."""
AT_ONCE = 500
"""How many vectors one request carries."""
SECONDS = 20.0
"""How long each request may take: without a limit the client waits for a server that is silent for ever."""
_FIELDS = ("user_id", "agent_id", "model", "document", "position")


class MilvusVectors:
    """A Milvus server. Its client blocks, so it is used in threads; what it fails with is `Unavailable`."""

    def __init__(self, uri: str) -> None:
        """`SettingsError` when the extra `milvus` is not installed."""
        try:
            self._milvus: Any = import_module("pymilvus")
        except ImportError:
            raise SettingsError("MILVUS_HOST needs the package pymilvus: ./scripts/extras installs it.") from None
        self._uri = uri
        self._client: Any = None
        self._known: set[str] = set()
        self._opening = threading.Lock()

    async def close(self) -> None:
        """Let go of the server."""
        if self._client is not None:
            await asyncio.to_thread(self._client.close)

    async def put(self, vectors: Mapping[Key, Sequence[float]]) -> None:
        """Keep these, in the place of what was there."""
        await self._ask(self._put, vectors)

    async def nearest(
        self, key: Key, vector: Sequence[float], limit: int, documents: Sequence[bytes] | None
    ) -> list[tuple[Key, float]]:
        """Those of the owner, agent and model of `key` that are nearest, with their cosines; of these `documents`, if there are any."""
        return await self._ask(self._nearest, key, vector, limit, documents)

    async def listed(self, owner: UUID | None) -> list[tuple[Key, float]]:
        """All that are kept, of this owner, and how many seconds ago each was put."""
        return await self._ask(self._listed, owner)

    async def delete(self, keys: Sequence[Key]) -> None:
        """Forget these."""
        await self._ask(
            self._delete, [f"id in [{', '.join(_quoted(_id(key)) for key in part)}]" for part in _parts(keys)]
        )

    async def delete_owner(self, owner: UUID) -> None:
        """Forget all of one."""
        await self._ask(self._delete, [f"user_id == {_quoted(str(owner))}"])

    async def _ask(self, work: Callable[..., T], *args: Any) -> T:
        try:
            return await asyncio.to_thread(work, *args)
        except Exception as error:
            if type(error).__module__.partition(".")[0] not in ("pymilvus", "grpc"):
                raise
            raise Unavailable("The vector store is not available at the moment.", retry_after=1) from error

    def _opened(self) -> Any:
        with self._opening:
            if self._client is None:
                self._client = self._milvus.MilvusClient(uri=self._uri, timeout=SECONDS)
            return self._client

    def _collection(self, dimensions: int, *, make: bool) -> str | None:
        """The collection of vectors of this length, ready to be used."""
        client, name = self._opened(), f"{PREFIX}{dimensions}"
        with self._opening:
            if name in self._known:
                return name
            if not client.has_collection(name, timeout=SECONDS):
                if not make:
                    return None
                self._make(client, name, dimensions)
            client.load_collection(name, timeout=SECONDS)
            self._known.add(name)
        return name

    def _make(self, client: Any, name: str, dimensions: int) -> None:
        kind = self._milvus.DataType
        schema = client.create_schema()
        schema.add_field("id", kind.VARCHAR, is_primary=True, max_length=64)
        schema.add_field("user_id", kind.VARCHAR, is_partition_key=True, max_length=36)
        schema.add_field("agent_id", kind.VARCHAR, max_length=64)
        schema.add_field("model", kind.VARCHAR, max_length=MAX_MODEL)
        schema.add_field("document", kind.VARCHAR, max_length=64)
        schema.add_field("position", kind.INT64)
        schema.add_field("put_at", kind.INT64)
        schema.add_field("vector", kind.FLOAT_VECTOR, dim=dimensions)
        index = client.prepare_index_params()
        index.add_index("vector", index_type="AUTOINDEX", metric_type="COSINE")
        client.create_collection(name, schema=schema, index_params=index, consistency_level="Strong", timeout=SECONDS)

    def _put(self, vectors: Mapping[Key, Sequence[float]]) -> None:
        lengths = {len(vector) for vector in vectors.values()}
        for length in lengths:
            rows = [
                {**_row(key), "vector": list(vector), "put_at": int(time.time())}
                for key, vector in vectors.items()
                if len(vector) == length
            ]
            name = self._collection(length, make=True)
            for part in _parts(rows):
                self._client.upsert(name, part, timeout=SECONDS)

    def _nearest(
        self, key: Key, vector: Sequence[float], limit: int, documents: Sequence[bytes] | None
    ) -> list[tuple[Key, float]]:
        name = self._collection(len(vector), make=False)
        if name is None:
            return []
        row = _row(key)
        wanted = [f"{field} == {_quoted(row[field])}" for field in ("user_id", "agent_id", "model")]
        if documents is not None:
            wanted.append(f"document in [{', '.join(_quoted(document.hex()) for document in documents)}]")
        found = self._client.search(
            name,
            data=[list(vector)],
            limit=limit,
            filter=" and ".join(wanted),
            output_fields=list(_FIELDS),
            timeout=SECONDS,
        )
        return [(_key(hit["entity"]), float(hit["distance"])) for hit in found[0]]

    def _listed(self, owner: UUID | None) -> list[tuple[Key, float]]:
        now = time.time()
        wanted = f"user_id == {_quoted(str(owner))}" if owner else 'id != ""'
        return [(_key(row), now - row["put_at"]) for name in self._collections() for row in self._rows(name, wanted)]

    def _rows(self, name: str, wanted: str) -> Iterator[Any]:
        fields = [*_FIELDS, "put_at"]
        rows = self._client.query_iterator(
            name, filter=wanted, batch_size=AT_ONCE, output_fields=fields, timeout=SECONDS
        )
        try:
            while part := rows.next():
                yield from part
        finally:
            rows.close()

    def _delete(self, filters: Sequence[str]) -> None:
        for name in self._collections():
            for wanted in filters:
                self._client.delete(name, filter=wanted, timeout=SECONDS)

    def _collections(self) -> list[str]:
        names = [
            name for name in self._opened().list_collections(timeout=SECONDS) if name.removeprefix(PREFIX).isdecimal()
        ]
        return [name for name in names if self._collection(int(name.removeprefix(PREFIX)), make=False)]


def _id(key: Key) -> str:
    return sha256("\0".join(map(str, _row_of(key).values())).encode()).hexdigest()


def _row(key: Key) -> dict[str, Any]:
    return {"id": _id(key), **_row_of(key)}


def _row_of(key: Key) -> dict[str, Any]:
    return {
        "user_id": str(key.user_id),
        "agent_id": key.agent_id,
        "model": key.model,
        "document": key.document.hex(),
        "position": key.position,
    }


def _key(row: Mapping[str, Any]) -> Key:
    document = bytes.fromhex(row["document"])
    return Key(UUID(row["user_id"]), row["agent_id"], row["model"], document, int(row["position"]))


def _quoted(text: str) -> str:
    """A text in the language of filters, in which nothing of it can be more than text."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _parts(items: Sequence[T]) -> Iterator[Sequence[T]]:
    return (items[first : first + AT_ONCE] for first in range(0, len(items), AT_ONCE))
