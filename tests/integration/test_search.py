"""Full-text search over the real index."""

from __future__ import annotations

from uuid import UUID

import asyncpg
import httpx2

from app.store.search import query_terms
from tests.house import House, send, session


async def found(client: httpx2.AsyncClient, query: str) -> list[str]:
    answer = await client.get("/api/v1/messages", params={"q": query})
    assert answer.status_code == 200, answer.text
    return [item["content"] for item in answer.json()["data"]]


async def test_search_finds_words_and_chinese_of_any_length(house: House) -> None:
    ann, bob = await house.user("ann"), await house.user("bob")
    texts = ["The quick brown fox", "我在北京大学学习", "北方 京城 是别处", "ＦＵＬＬ width Ωmega", "50% off_sale"]
    for client in (ann, bob):
        for text in texts:
            await send(client, await session(client, "fake_echo_agent"), text)
    assert await found(ann, "QUICK fox") == [texts[0]] * 2
    assert await found(ann, "quick dog") == []
    assert await found(ann, "北京") == [texts[1]] * 2
    assert await found(ann, "京") == [texts[2], texts[2], texts[1], texts[1]]
    assert await found(ann, "北京大学") == [texts[1]] * 2
    assert await found(ann, "京大北") == []
    assert await found(ann, "full ωmega") == [texts[3]] * 2
    assert await found(ann, "50% 'off_sale") == [texts[4]] * 2
    assert await found(ann, "%%% --") == []
    page = (await ann.get("/api/v1/messages", params={"q": "北京", "limit": 1})).json()
    assert page["has_more"]
    second = (await ann.get("/api/v1/messages", params={"q": "北京", "after": page["last_id"]})).json()
    assert len(second["data"]) == 1


async def test_search_uses_the_index(house: House, database_url: str) -> None:
    client = await house.user("ann")
    await session(client)
    owner = client.headers["x-test-user"]
    connection = await asyncpg.connect(database_url)
    try:
        await connection.execute(
            """INSERT INTO messages (id, session_id, user_id, seq, role, content, tokens, terms)
            SELECT gen_random_uuid(), s.id, s.user_id, n, 'user', 'x', 1, ARRAY[n, n + 1]
            FROM sessions s, generate_series(10, 20000) n"""
        )
        await connection.execute("ANALYZE messages")
        terms = query_terms(UUID(owner), "北京")
        plan = await connection.fetch(
            "EXPLAIN SELECT id FROM messages WHERE terms @> $1::int[] AND user_id = $2", terms, owner
        )
        assert "ix_messages_terms" in str(plan)
    finally:
        await connection.close()


async def test_search_finds_another_width_and_decomposed_letters(house: House) -> None:
    ann = await house.user("ann")
    texts = ["半角 ｶﾀｶﾅ です", "全角 カタカナ です", "ノカタとカナノとタカ", "ka\u0301 か\u3099き\u3099く\u3099"]
    for text in texts:
        await send(ann, await session(ann, "fake_echo_agent"), text)
    assert set(await found(ann, "ｶﾀｶﾅ")) == {texts[0], texts[1]}
    assert set(await found(ann, "カタカナ")) == {texts[0], texts[1]}
    assert set(await found(ann, "がぎぐ ká")) == {texts[3]}


async def test_a_page_of_found_messages_is_bounded(house: House, database_url: str) -> None:
    ann = await house.user("ann")
    await session(ann)
    terms = query_terms(UUID(ann.headers["x-test-user"]), "word")
    connection = await asyncpg.connect(database_url)
    try:
        await connection.execute(
            """INSERT INTO messages (id, session_id, user_id, seq, role, content, tokens, terms)
            SELECT gen_random_uuid(), s.id, s.user_id, n, 'user', repeat('word ', 300000), 1, $1
            FROM sessions s, generate_series(1, 5) n""",
            terms,
        )
    finally:
        await connection.close()
    first = (await ann.get("/api/v1/messages", params={"q": "word"})).json()
    assert (len(first["data"]), first["has_more"]) == (2, True)
    second = (await ann.get("/api/v1/messages", params={"q": "word", "after": first["last_id"]})).json()
    third = (await ann.get("/api/v1/messages", params={"q": "word", "after": second["last_id"]})).json()
    assert (len(second["data"]), len(third["data"]), third["has_more"]) == (2, 1, False)
