"""Nobody reaches another user's anything: over every route and every place for an id that the OpenAPI document has."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from uuid import UUID, uuid4

import httpx2

from app.agent.knowledge import Document
from app.api.gate import PUBLIC
from app.main import create_app
from app.settings import Settings
from app.usecases.knowledge import UserPassages
from tests.house import House, send, session

NOUNS = (
    "session_id",
    "message_id",
    "run_id",
    "key_id",
    "user_id",
    "group_id",
    "leaf_id",
    "parent_id",
    "after",
    "file_id",
    "agent_id",
    "task_id",
    "passage_id",
    "memory_id",
    "webhook_id",
    "schedule_id",
)
FILTERS = {("after", "query"), ("after", "body"), ("agent_id", "query"), ("file_id", "query")}
"""Of lists of one's own, where an unknown id finds nothing and is no error."""


@dataclass(frozen=True)
class Place:
    """One id in one operation."""

    method: str
    path: str
    where: str
    noun: str
    body: dict[str, Any] | None


def document() -> dict[str, Any]:
    settings = Settings(_env_file=None, database_url="postgresql://nowhere/nothing")
    return create_app(settings).openapi()


DOCUMENT = document()


def operations() -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, methods in DOCUMENT["paths"].items():
        for method, operation in methods.items():
            yield method.upper(), path, operation


def resolve(schema: dict[str, Any]) -> dict[str, Any]:
    if "$ref" in schema:
        return resolve(DOCUMENT["components"]["schemas"][schema["$ref"].rsplit("/", 1)[1]])
    for key in ("anyOf", "oneOf", "allOf"):
        if key in schema:
            return resolve(schema[key][0])
    return schema


def minimal(schema: dict[str, Any]) -> Any:
    """The smallest value of a schema; ids are not filled in."""
    schema = resolve(schema)
    match schema.get("type"):
        case "object":
            needed = schema.get("required", [])
            return {name: minimal(part) for name, part in schema.get("properties", {}).items() if name in needed}
        case "integer" | "number":
            return schema.get("minimum", 1)
        case "boolean":
            return False
        case "array":
            return []
        case _:
            pattern = schema.get("pattern", "")
            return schema.get("enum", ["scripted_agent" if pattern else "say x"])[0]


def places() -> Iterator[Place]:
    for method, path, operation in operations():
        content = operation.get("requestBody", {}).get("content", {}).get("application/json")
        body = minimal(content["schema"]) if content else None
        if path.endswith("/feedback"):
            body = {"rating": 1}
        properties = resolve(content["schema"]).get("properties", {}) if content else {}
        for parameter in operation.get("parameters", []):
            if parameter["name"] in NOUNS:
                yield Place(method, path, parameter["in"], parameter["name"], body)
        for name in properties:
            if name in NOUNS:
                yield Place(method, path, "body", name, body)


PLACES = list(places())


def like(id: str) -> str:
    """An id that nothing has, made at the same moment."""
    if id.startswith("file-"):
        return f"file-{UUID(like(id.removeprefix('file-'))).hex}"
    return str(UUID(int=UUID(id).int ^ (uuid4().int & 0xFFFFFFFF) ^ 1 << 33))


async def call(client: httpx2.AsyncClient, place: Place, id: str, own: dict[str, str]) -> tuple[int, str]:
    path, body, query = place.path, dict(place.body or {}), {}
    for noun, value in own.items():
        path = path.replace(f"{{{noun}}}", id if place.where == "path" and noun == place.noun else value)
        if noun in body:
            body[noun] = value
    if place.where == "query":
        query[place.noun] = id
    if place.where == "body":
        body[place.noun] = id
    if "q" in str(DOCUMENT["paths"][place.path].get("get", {}).get("parameters", "")):
        query.setdefault("q", "secret")
    answer = await client.request(place.method, path, json=body if place.body is not None else None, params=query)
    return answer.status_code, answer.text


async def belongings(house: House, name: str) -> tuple[httpx2.AsyncClient, dict[str, str]]:
    client = await house.user(name)
    id = await session(client)
    answer = (await send(client, id, f"repeat: secret of {name}")).json()
    key = (await client.post("/api/v1/keys", json={"name": "mine"})).json()["id"]
    group = (await house.admin.post("/api/v1/groups", json={"name": f"group of {name}"})).json()["id"]
    agent = {"id": "scripted_agent"}
    preset = (await client.post("/api/v1/agents", json={"name": f"secret of {name}", "agent": agent})).json()["id"]
    task = {"name": f"secret of {name}", "input": "x", "agent": agent}
    task_id = (await client.post("/api/v1/agents/tasks", json=task)).json()["id"]
    form = {"files": {"file": b"secret"}, "data": {"purpose": "user_data"}}
    file = (await client.post("/v1/files", **form)).json()["id"]
    passages = UserPassages(house.platform, UUID(client.headers["x-test-user"]), "scripted_agent")
    await passages.keep([Document(b"digest", [f"secret of {name}"], [[1.0, 2.0]], {})])
    passage = (await client.get("/api/v1/knowledge")).json()["first_id"]
    document = (await client.get(f"/api/v1/sessions/{id}/export")).json()
    moment = document["session"]["created_at"]
    entry = {"id": str(uuid4()), "message_id": answer["message_id"], "agent_id": "scripted_agent", "memory_id": "x"}
    entry |= {"role": "user", "content": f"secret of {name}", "score": 1, "importance": 1}
    document["memories"] = [entry | {"created_at": moment, "used_at": moment}]
    copy = (await client.post("/api/v1/imports", json=document)).json()["id"]
    memory = (await client.get("/api/v1/memories", params={"session_id": copy})).json()["first_id"]
    hook = {"url": f"https://{name}.example/hook", "events": ["run.completed"]}
    timed = {"name": f"secret of {name}", "cron": "0 0 1 1 *", "agent": agent, "input": f"secret of {name}"}
    own = {
        "webhook_id": (await client.post("/api/v1/webhooks", json=hook)).json()["id"],
        "schedule_id": (await client.post("/api/v1/schedules", json=timed)).json()["id"],
        "memory_id": memory,
        "passage_id": passage,
        "file_id": file,
        "agent_id": preset,
        "task_id": task_id,
        "session_id": id,
        "message_id": answer["message_id"],
        "run_id": answer["run_id"],
        "key_id": key,
    }
    own |= {"user_id": client.headers["x-test-user"], "group_id": group}
    return client, own | {"leaf_id": answer["message_id"], "parent_id": answer["message_id"], "after": id}


async def everything(client: httpx2.AsyncClient, own: dict[str, str]) -> list[str]:
    paths = ["sessions", f"sessions/{own['session_id']}", f"sessions/{own['session_id']}/messages", "keys"]
    paths += [f"agents/{own['agent_id']}", f"agents/tasks/{own['task_id']}", f"agents/tasks/{own['task_id']}/log"]
    paths += [f"runs/{own['run_id']}", f"users/{own['user_id']}", "messages?q=secret", "knowledge"]
    paths += [f"sessions/{own['session_id']}/export", "memories"]
    paths += ["webhooks", f"webhooks/{own['webhook_id']}", "schedules", f"schedules/{own['schedule_id']}"]
    answers = [await client.get(f"/api/v1/{path}") for path in paths]
    assert {answer.status_code for answer in answers} == {200}
    return [answer.text for answer in answers]


def test_the_document_has_places_for_every_noun() -> None:
    assert {place.noun for place in PLACES} == set(NOUNS)
    assert len(PLACES) > 40


async def test_another_users_id_is_answered_exactly_like_an_unknown_one(llm_house: House) -> None:
    alice, hers = await belongings(llm_house, "alice")
    bob, own = await belongings(llm_house, "bob")
    before = await everything(alice, hers)
    for place in PLACES:
        targets = set(hers.values()) if place.noun == "after" else {hers[place.noun]}
        for target in targets:
            foreign = await call(bob, place, target, own)
            unknown = await call(bob, place, like(target), own)
            assert foreign == unknown, place
            assert "alice" not in foreign[1], place
            assert (place.noun, place.where) in FILTERS or 400 <= foreign[0] < 500, (place, foreign)
        if place.method == "DELETE" or place.path in ("/DeleteSession", "/api/v1/auth/logout"):
            bob, own = await belongings(llm_house, f"bob{uuid4().hex}")
    assert await everything(alice, hers) == before


async def test_a_malformed_id_is_answered_like_an_unknown_one(llm_house: House) -> None:
    bob, own = await belongings(llm_house, "bob")
    for place in PLACES:
        if place.noun in ("after", "user_id"):
            continue
        status, text = await call(bob, place, "not-an-id", own)
        assert (status, text) == await call(bob, place, str(uuid4()), own), place


async def test_another_users_run_cannot_be_cancelled(llm_house: House) -> None:
    alice, hers = await belongings(llm_house, "alice")
    bob, _ = await belongings(llm_house, "bob")
    slow = asyncio.ensure_future(send(alice, hers["session_id"], "sleep: 1"))
    run_id = await llm_house.until_live()
    assert (await bob.post("/CancelRun", json={"run_id": run_id})).status_code == 404
    assert (await llm_house.admin.post("/CancelRun", json={"run_id": run_id})).status_code == 404
    assert (await slow).json()["content"] == "asleep and awake"


async def test_every_route_but_the_public_ones_asks_for_a_credential(house: House) -> None:
    stranger = await house.client()
    for method, path, _ in operations():
        answer = await stranger.request(method, path.replace("{", "").replace("}", ""))
        assert (answer.status_code != 401) == (path in PUBLIC), (method, path)


async def test_a_path_that_is_no_route_asks_for_a_credential_first(house: House) -> None:
    assert (await (await house.client()).get("/nothing/here")).status_code == 401
    assert (await house.admin.get("/nothing/here")).status_code == 404
