"""Milvus as the index of knowledge: what was erased is forgotten there too, whenever a process dies. The rest is in test_knowledge.py."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from uuid import UUID, uuid4

import pytest
from sqlalchemy import text

from app.errors import Unavailable
from app.store.milvus import MilvusVectors
from app.store.passages import Key
from app.usecases import vectors
from tests.engines import Engines
from tests.fakes.upstream import FakeUpstream
from tests.house import House
from tests.integration.test_knowledge import found, library, tell, upload

__all__ = ["library"]
pytestmark = [pytest.mark.heavy, pytest.mark.parametrize("library", ["milvus"], indirect=True)]


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vectors, "YOUNG_SECONDS", 0.0)


def store(house: House) -> MilvusVectors:
    assert house.platform.vectors
    return house.platform.vectors


async def kept(house: House, owner: str) -> set[Key]:
    return {key for key, _ in await store(house).listed(UUID(owner))}


async def until_none(house: House, owner: str, count: int = 0) -> None:
    async with asyncio.timeout(20):
        while len(await kept(house, owner)) != count:
            await asyncio.sleep(0.1)


async def test_an_erased_user_is_forgotten_and_no_other(library: House) -> None:
    ada, bob = await library.user("ada"), await library.user("bob")
    for client in (ada, bob):
        await tell(client, add=["one", "two"])
    mine, his = (client.headers["x-test-user"] for client in (ada, bob))
    assert (len(await kept(library, mine)), len(await kept(library, his))) == (2, 2)
    assert (await library.admin.delete(f"/api/v1/users/{mine}")).status_code == 204
    await until_none(library, mine)
    assert len(await kept(library, his)) == 2


async def test_erased_files_and_passages_are_forgotten(library: House) -> None:
    ada = await library.user("ada")
    me = ada.headers["x-test-user"]
    file = await upload(ada, b"of a file")
    await tell(ada, add=[file, "one", "two"])
    assert (await ada.delete(f"/v1/files/{file}")).status_code == 200
    await until_none(library, me, 2)
    (newest, _) = (await ada.get("/api/v1/knowledge")).json()["data"]
    await ada.delete(f"/api/v1/knowledge/{newest['id']}")
    await until_none(library, me, 1)
    await ada.delete("/api/v1/knowledge")
    await until_none(library, me)


async def test_what_a_crash_leaves_is_not_found_and_forgotten_at_the_next_look(
    library: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    ada = await library.user("ada")
    me = ada.headers["x-test-user"]
    await tell(ada, add=["one", "two"])
    async with library.platform.engine.begin() as db:  # as by a process that dies before it has told Milvus
        await db.execute(text("DELETE FROM passages WHERE content = 'one'"))
    assert [content for content, _, _ in await found(ada, query="one")] == ["two"]
    monkeypatch.setattr(vectors, "YOUNG_SECONDS", 3600.0)
    await vectors.forget(library.platform)
    assert len(await kept(library, me)) == 2  # they could be on their way
    monkeypatch.setattr(vectors, "YOUNG_SECONDS", 0.0)
    await vectors.forget(library.platform)
    assert len(await kept(library, me)) == 1
    assert [content for content, _, _ in await found(ada, query="two")] == ["two"]


async def test_what_could_not_be_stored_is_forgotten(library: House) -> None:
    ada = await library.user("ada")
    await tell(ada, add=[f"text {number}" for number in range(20)])
    assert (await tell(ada, add="one more")).status_code == 429
    assert len(await kept(library, ada.headers["x-test-user"])) == 20


async def test_names_are_only_names(library: House) -> None:
    owner, document = uuid4(), b"\x01" * 32
    odd = Key(owner, "a", '" or user_id != "', document, 0)
    await store(library).put({odd: [1.0, 0.0], Key(uuid4(), "a", "m", document, 0): [1.0, 0.0]})
    assert [key for key, _ in await store(library).nearest(odd, [1.0, 0.0], 10, None)] == [odd]
    assert await store(library).nearest(odd, [1.0, 0.0], 10, [b"\x02" * 32]) == []
    await store(library).delete([odd])
    assert await kept(library, str(owner)) == set()


@pytest.fixture
async def away() -> AsyncIterator[MilvusVectors]:
    made = MilvusVectors("http://127.0.0.1:1")
    yield made
    await made.close()


async def test_a_server_that_is_away_is_one_sentence(
    library: House, away: MilvusVectors, running: Engines, fake: FakeUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.store.milvus.SECONDS", 0.5)
    with pytest.raises(Unavailable, match="vector store"):
        await away.put({Key(uuid4(), "a", "m", b"", 0): [1.0]})
    monkeypatch.setattr(store(library), "_client", None)
    monkeypatch.setattr(store(library), "_known", set())
    monkeypatch.setattr(store(library), "_uri", "http://127.0.0.1:1")
    told = await tell(library.admin, add="x")
    assert (told.status_code, told.json()["detail"]) == (503, "The vector store is not available at the moment.")
    assert (await library.admin.get("/api/v1/knowledge")).json()["data"] == []
