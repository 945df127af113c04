"""Sessions: listing, changing, archiving, erasing."""

from __future__ import annotations

import asyncio
import zlib
from uuid import UUID

import asyncpg

from app.store import messages
from tests.fakes.upstream import FakeUpstream
from tests.house import House, send, session


async def test_sessions_are_listed_by_their_last_activity_and_paged(house: House) -> None:
    client = await house.user("ann")
    ids = [await session(client) for _ in range(5)]
    await send(client, ids[1], "repeat: x")
    first = (await client.post("/ListSessions", json={"limit": 2})).json()
    assert [item["id"] for item in first["items"]] == [ids[1], ids[4]]
    assert first["has_more"]
    rest = (await client.post("/ListSessions", json={"after": ids[4]})).json()
    assert [item["id"] for item in rest["items"]] == [ids[3], ids[2], ids[0]]
    assert not rest["has_more"]
    page = (await client.get("/api/v1/sessions", params={"limit": 2})).json()
    assert (page["object"], page["first_id"], page["last_id"], page["has_more"]) == ("list", ids[1], ids[4], True)


async def test_a_session_is_shown_with_its_agent_and_parameters(house: House) -> None:
    client = await house.user("ann")
    id = await session(client, "simple_openai_agent", {"system_prompt": "hi"}, session_params={"model": "m"})
    item = (await client.post("/GetSession", json={"session_id": id})).json()
    assert item["agent"] == {"id": "simple_openai_agent", "params": {"system_prompt": "hi"}}
    assert item["session_params"] == {"model": "m"}
    assert item["user_id"] == "ann"


async def test_agent_and_parameters_change_in_the_middle_of_a_session(house: House) -> None:
    client = await house.user("ann")
    id = await session(client, "fake_echo_agent")
    assert (await send(client, id, "repeat: x")).json()["content"] == "repeat: x"
    change = {"session_id": id, "agent": {"id": "scripted_agent", "params": {"greeting": "hi"}}}
    assert (await client.post("/UpdateSession", json=change)).json()["agent"]["id"] == "scripted_agent"
    assert (await send(client, id, "repeat: x")).json()["content"] == "x"
    assert '"hi"' in (await send(client, id, "param")).json()["content"]
    bad = {"session_id": id, "agent": {"id": "scripted_agent", "params": {"number": -1}}}
    answer = await client.post("/UpdateSession", json=bad)
    assert (answer.status_code, answer.json()["param"]) == (400, "agent.params.number")


async def test_parameters_that_are_left_out_stay(house: House) -> None:
    client = await house.user("ann")
    id = await session(client, session_params={"model": "m", "busy": "queue"})
    change = {"session_id": id, "session_params": {"temperature": 0.5}}
    kept = (await client.post("/UpdateSession", json=change)).json()["session_params"]
    assert kept == {"model": "m", "busy": "queue", "temperature": 0.5}
    answer = await client.patch(f"/api/v1/sessions/{id}", json={"session_params": {"model": None}})
    assert {name: value for name, value in answer.json()["session_params"].items() if value is not None} == {
        "busy": "queue",
        "temperature": 0.5,
    }


async def test_an_archived_session_is_out_of_the_list_and_refuses_messages(house: House) -> None:
    client = await house.user("ann")
    id = await session(client)
    await client.patch(f"/api/v1/sessions/{id}", json={"archived": True, "title": "Old"})
    assert (await client.get("/api/v1/sessions")).json()["data"] == []
    listed = (await client.get("/api/v1/sessions", params={"archived": True, "title": "old"})).json()["data"]
    assert [item["id"] for item in listed] == [id]
    assert (await send(client, id, "repeat: x")).status_code == 409
    await client.patch(f"/api/v1/sessions/{id}", json={"archived": False})
    assert (await send(client, id, "repeat: x")).status_code == 200


async def test_a_deleted_session_is_gone_from_every_store(
    llm_house: House, database_url: str, fake: FakeUpstream
) -> None:
    client = await llm_house.user("ann")
    secret = "xyzzy-plugh-42"
    id = await session(client, "simple_openai_agent", title=secret)
    kept = await session(client, "simple_openai_agent")
    await send(client, id, f"say {secret}", additional_kwargs={"note": secret})
    await send(client, kept, "say other")
    assert await places_of(database_url, secret) >= {"messages", "sessions"}
    assert (await client.post("/DeleteSession", json={"session_id": id})).status_code == 204
    assert await places_of(database_url, secret) == set()
    assert await places_of(database_url, id) == {"ledger"}
    assert (await client.post("/GetSession", json={"session_id": id})).status_code == 404
    assert (await client.post("/ListMessages", json={"session_id": kept})).json()["items"][1]["content"] == "other"
    assert await count(database_url, "SELECT count(*) FROM step_values") > 0


async def test_a_deleted_user_leaves_only_counts(llm_house: House, database_url: str) -> None:
    client = await llm_house.user("xyzzy-user", password="long enough")
    id = await session(client, "simple_openai_agent")
    await send(client, id, "say xyzzy-text")
    user = client.headers["x-test-user"]
    assert (await llm_house.admin.delete(f"/api/v1/users/{user}")).status_code == 204
    assert (await client.get("/api/v1/sessions")).status_code == 401
    assert await places_of(database_url, "xyzzy") == set()
    assert await places_of(database_url, user) == {"audit", "ledger"}
    assert await count(database_url, "SELECT count(*) FROM step_values") == 0
    assert await count(database_url, "SELECT count(*) FROM steps") == 0


async def test_deleting_a_session_ends_its_run_and_leaves_nothing_behind(house: House, database_url: str) -> None:
    client = await house.user("ann")
    id = await session(client)
    slow = asyncio.ensure_future(send(client, id, "sleep: 20"))
    await house.until_live()
    assert (await client.delete(f"/api/v1/sessions/{id}")).status_code == 204
    assert (await slow).status_code == 404
    assert await places_of(database_url, id) == set()


async def places_of(database_url: str, needle: str) -> set[str]:
    """The tables that hold a text anywhere, compressed values included."""

    connection = await asyncpg.connect(database_url)
    try:
        tables = await connection.fetch("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
        found = set()
        for (table,) in tables:
            rows = await connection.fetch(f'SELECT * FROM "{table}"')
            for row in rows:
                body = zlib.decompress(row["body"]).decode() if table == "step_values" else ""
                if needle in body or needle in str(dict(row)):
                    found.add(table)
        return {table for table in found if not table.startswith("steps_")}
    finally:
        await connection.close()


async def count(database_url: str, query: str) -> int:
    connection = await asyncpg.connect(database_url)
    try:
        return int(await connection.fetchval(query))
    finally:
        await connection.close()


async def test_a_message_in_a_window_is_the_message_itself(house: House, database_url: str) -> None:
    id = await session(house.admin)
    said = (await send(house.admin, id, "hello")).json()["message_id"]
    connection = await asyncpg.connect(database_url)
    try:
        await connection.execute(
            """UPDATE messages SET parts = '[{"type": "text", "text": "x"}]', name = 'ann', additional_kwargs = '{"a": [1.5, null]}',
            state = '{"b": "\u00e9"}', rating = 1, comment = 'good', tokens = 7"""
        )
    finally:
        await connection.close()
    async with house.platform.engine.connect() as db:
        window = await messages.window(db, UUID(said), max_tokens=100, max_messages=10)
        assert [each.role for each in window] == ["user", "assistant"]
        assert window == [await messages.get(db, each.id, owner=None) for each in window if each.id]


async def test_a_long_session_gives_an_agent_a_window_and_not_everything(house: House, database_url: str) -> None:
    client = await house.user("ann")
    id = await session(client)
    connection = await asyncpg.connect(database_url)
    try:
        await connection.execute(
            """INSERT INTO messages (id, session_id, user_id, parent_id, seq, role, content, tokens, terms)
            SELECT ('00000000-0000-7000-8000-' || lpad(n::text, 12, '0'))::uuid, s.id, s.user_id,
              CASE WHEN n > 1 THEN ('00000000-0000-7000-8000-' || lpad((n - 1)::text, 12, '0'))::uuid END,
              n, CASE WHEN n % 2 = 1 THEN 'user' ELSE 'assistant' END, 'text ' || n, 100, '{}'
            FROM sessions s, generate_series(1, 10000) n"""
        )
        await connection.execute(
            "UPDATE sessions SET next_seq = 10001, leaf_id = '00000000-0000-7000-8000-000000010000'"
        )
    finally:
        await connection.close()
    assert (await send(client, id, "count")).json()["content"] == "60"
    listed = (await client.post("/ListMessages", json={"session_id": id, "limit": 100})).json()
    assert listed["has_more"]
