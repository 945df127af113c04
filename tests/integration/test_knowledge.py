"""Knowledge on the platform: found by its owner alone, by meaning and meta, and gone with its user and its file."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx2
import pytest
from sqlalchemy import text

from app.agent import documents, pages
from app.agent.knowledge import MAX_CHARACTERS, MAX_FOUND, MAX_SOURCES
from app.store.migrations import add_vectors, upgrade
from app.usecases.knowledge import NO_VECTORS
from tests.conftest import execute, on
from tests.engines import Engines
from tests.fakes.upstream import FakeUpstream
from tests.house import ADMIN_KEY, House, open_house, send, session

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/knowledge.md").read_text()
(LIBRARIAN,), (BASH,) = (
    re.findall(rf"^```{kind}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL) for kind in ("python", "bash")
)
KEEPER = '''
"""Does what JSON says to its knowledge."""

import json

from app.agent import BaseAgent, Message


class Keeper(BaseAgent):
    id = "keeper"

    async def chat(self, message: Message) -> str:
        given = json.loads(message.content)
        if "add" in given:
            return str(await self.derive(Keeper).knowledge.add(given["add"], **given.get("meta", {})))
        found = await self.knowledge.search(**given)
        return json.dumps([[passage.content, passage.meta, round(passage.score, 6)] for passage in found])


class Other(Keeper):
    id = "other_keeper"
'''


@pytest.fixture(params=["pgvector", pytest.param("milvus", marks=pytest.mark.heavy)])
async def library(
    request: pytest.FixtureRequest, running: Engines, database_url: str, fake: FakeUpstream, tmp_path: Path
) -> AsyncIterator[House]:
    agents = tmp_path / "agents"
    agents.mkdir()
    (agents / "keeper.py").write_text(KEEPER)
    (agents / "librarian.py").write_text(LIBRARIAN)
    settings = {"redis_url": running.redis_url, "openai_base_url": fake.base_url, "openai_api_key": "sk-test"}
    if request.param == "milvus":
        settings |= {"milvus_host": "127.0.0.1", "milvus_port": request.getfixturevalue("milvus")}
    async with open_house(database_url, agents_dir=agents, user_max_passages=20, **settings) as house:
        yield house


async def tell(client: httpx2.AsyncClient, agent: str = "keeper", **given: Any) -> httpx2.Response:
    return await send(client, await session(client, agent), json.dumps(given))


async def found(client: httpx2.AsyncClient, agent: str = "keeper", **given: Any) -> list[Any]:
    answer = await tell(client, agent, **given)
    assert answer.status_code == 200, answer.text
    return list(json.loads(answer.json()["content"]))


async def upload(client: httpx2.AsyncClient, body: bytes, name: str = "a.txt") -> str:
    made = await client.post("/v1/files", files={"file": (name, body)}, data={"purpose": "user_data"})
    assert made.status_code == 200, made.text
    return str(made.json()["id"])


async def test_a_search_ranks_filters_and_is_recorded(library: House) -> None:
    for name, tags in (("one", ["a"]), ("two", ["a", "b"]), ("three", None)):
        added = await tell(library.admin, add=f"about {name}", meta={"name": name, "tags": tags, "number": len(name)})
        assert added.json()["content"] == "1", added.text
    for name in ("one", "two", "three"):
        best, *others = await found(library.admin, query=f"about {name}")
        assert (best[0], best[2]) == (f"about {name}", 1.0)
        assert [other[2] for other in others] == sorted((other[2] for other in others), reverse=True)
        assert len(others) == 2
    for filter, names in (
        ({"name": "two"}, {"two"}),
        ({"tags": ["b"]}, {"two"}),
        ({"tags": ["a"]}, {"one", "two"}),
        ({"number": 3, "name": "one"}, {"one"}),
        ({"tags": None}, {"three"}),
        ({"name": "four"}, set()),
        ({"none": None}, set()),
    ):
        got = await found(library.admin, query="about", filter=filter)
        assert {meta["name"] for _, meta, _ in got} == names, filter
    answer = await tell(library.admin, query="about one", k=1)
    async with library.platform.engine.connect() as db:
        query = text("SELECT kind, name, path, from_cache FROM steps WHERE run_id = :run_id ORDER BY seq")
        steps = (await db.execute(query, {"run_id": UUID(answer.json()["run_id"])})).all()
    assert [step[:2] for step in steps] == [("retrieval", "knowledge.search"), ("llm", "default")]
    assert steps[1].path == "/knowledge.search/default"
    assert steps[1].from_cache  # equal texts were embedded before


async def test_the_same_added_twice_is_there_once(library: House) -> None:
    both = await asyncio.gather(*(tell(library.admin, add=["same", "other"]) for _ in range(4)))
    assert {answer.json()["content"] for answer in both} == {"2"}
    assert len((await library.admin.get("/api/v1/knowledge")).json()["data"]) == 2
    await tell(library.admin, add="same", meta={"but": "meta"})
    assert len(await found(library.admin, query="same")) == 3


async def test_users_and_agents_with_equal_texts_share_nothing(library: House) -> None:
    ada, bob = await library.user("ada"), await library.user("bob")
    for client, who in ((ada, "ada"), (bob, "bob")):
        await tell(client, add="equal text", meta={"who": who})
    for client, who in ((ada, "ada"), (bob, "bob")):
        assert [meta for _, meta, _ in await found(client, query="equal text", k=50)] == [{"who": who}]
        assert await found(client, "other_keeper", query="equal text") == []
    assert await found(library.admin, query="equal text") == []
    (mine,), (his,) = [(await client.get("/api/v1/knowledge")).json()["data"] for client in (ada, bob)]
    for client in (bob, library.admin):
        assert (await client.delete(f"/api/v1/knowledge/{mine['id']}")).status_code == 404
        assert mine["id"] not in (await client.get("/api/v1/knowledge")).text
    stolen = await tell(bob, add=await upload(ada, b"of ada"))
    unknown = await tell(bob, add=f"file-{'0' * 32}")
    assert (stolen.status_code, unknown.status_code) == (404, 404)
    assert stolen.json()["detail"] == unknown.json()["detail"]
    assert (await library.admin.delete(f"/api/v1/users/{ada.headers['x-test-user']}")).status_code == 204
    async with library.platform.engine.connect() as db:
        assert (await db.execute(text("SELECT id FROM passages"))).scalars().all() == [UUID(his["id"])]


async def test_a_files_passages_are_erased_with_it(library: House) -> None:
    file = await upload(library.admin, "第一段。\n\n第二段。".encode())
    html = await upload(library.admin, b"<h1>A page</h1><script>no</script>", "b.html")
    assert (await tell(library.admin, add=[file, html, "a text"])).json()["content"] == "3"
    assert {content for content, _, _ in await found(library.admin, query="a")} == {
        "第一段。\n\n第二段。",
        "A page",
        "a text",
    }
    assert [(await library.admin.get("/api/v1/knowledge", params={"file_id": file})).json()["data"][0]["file_id"]] == [
        file
    ]
    assert (await library.admin.delete(f"/v1/files/{file}")).status_code == 200
    assert len(await found(library.admin, query="a")) == 2
    assert (await library.admin.delete("/api/v1/knowledge", params={"file_id": html})).status_code == 204
    assert [content for content, _, _ in await found(library.admin, query="a")] == ["a text"]


async def test_a_user_sees_and_erases_it_by_the_page(library: House) -> None:
    await tell(library.admin, add=[f"text {number}" for number in range(5)])
    await tell(library.admin, "other_keeper", add="of another")
    seen, after = [], None
    while True:
        page = (
            await library.admin.get("/api/v1/knowledge", params={"limit": 2} | ({"after": after} if after else {}))
        ).json()
        seen += [item["content"] for item in page["data"]]
        after = page["last_id"]
        if not page["has_more"]:
            break
    assert seen == ["of another", *(f"text {number}" for number in (4, 3, 2, 1, 0))]
    assert (await library.admin.delete(f"/api/v1/knowledge/{after}")).status_code == 204
    assert (await library.admin.delete(f"/api/v1/knowledge/{after}")).status_code == 404
    await library.admin.delete("/api/v1/knowledge", params={"agent_id": "keeper"})
    assert [item["agent_id"] for item in (await library.admin.get("/api/v1/knowledge")).json()["data"]] == [
        "other_keeper"
    ]


@pytest.mark.parametrize(
    ("given", "status", "param"),
    [
        ({"add": []}, 400, "source"),
        ({"add": ["x"] * (MAX_SOURCES + 1)}, 400, "source"),
        ({"add": [1]}, 400, "source"),
        ({"add": "x", "meta": {"deep": {"er": 1}}}, 400, "meta"),
        ({"add": "x", "meta": {"large": "x" * 5000}}, 400, "meta"),
        ({"add": "x", "meta": {"number": 2**63}}, 400, "meta"),
        ({"add": [f"{number}" for number in range(21)]}, 429, None),
        ({"query": ""}, 400, "query"),
        ({"query": "x" * 9000}, 400, "query"),
        ({"query": "x", "k": 0}, 400, "k"),
        ({"query": "x", "k": MAX_FOUND + 1}, 400, "k"),
        ({"query": "x", "filter": {"a": {"b": 1}}}, 400, "filter"),
    ],
)
async def test_what_is_too_much_or_wrong_names_itself(
    library: House, fake: FakeUpstream, given: dict[str, Any], status: int, param: str | None
) -> None:
    answer = await tell(library.admin, **given)
    assert (answer.status_code, answer.json().get("param")) == (status, param), answer.text
    assert not any(request.path.endswith("embeddings") for request in fake.requests)  # and costs nothing
    assert (await tell(library.admin, add="\x00nul and \ud800")).status_code in (200, 400)


async def test_vectors_of_another_model_are_not_compared(library: House) -> None:
    await tell(library.admin, add="old")
    async with library.platform.engine.begin() as db:
        await db.execute(text("UPDATE passages SET model = 'earlier', vector = '{1,2}'"))
    told = await tell(library.admin, query="old")
    assert (told.status_code, "another model" in told.text) == (502, True)
    await tell(library.admin, add="old")
    assert [content for content, _, _ in await found(library.admin, query="old")] == ["old"]


@pytest.mark.parametrize("library", ["pgvector"], indirect=True)
async def test_without_pgvector_everything_else_works_and_use_is_a_sentence(library: House, database_url: str) -> None:
    await execute(database_url, "DROP EXTENSION vector")
    for given in ({"add": "x"}, {"query": "x"}):
        told = await tell(library.admin, **given)
        assert (told.status_code, told.json()["detail"]) == (503, NO_VECTORS)
    assert (await library.admin.get("/api/v1/knowledge")).json()["data"] == []
    await execute(database_url, "CREATE EXTENSION vector")
    assert (await tell(library.admin, add="x")).json()["content"] == "1"


async def test_a_role_that_may_not_create_extensions_migrates_all_the_same(running: Engines) -> None:
    name = f"restricted_{os.getpid()}"
    await execute(running.database_url, f"CREATE ROLE {name} LOGIN PASSWORD 'x'")
    await execute(running.database_url, f"CREATE DATABASE {name} OWNER {name}")
    admins = on(running.database_url, name)
    try:
        from sqlalchemy.engine import make_url

        url = make_url(admins).set(username=name, password="x").render_as_string(hide_password=False)
        await asyncio.to_thread(upgrade, url)
        await execute(url, "SELECT content FROM passages")
        for _ in range(2):
            await asyncio.to_thread(add_vectors, admins)
        await execute(url, "SELECT '{1,2}'::real[]::vector <=> '[1,2]'")
    finally:
        await execute(running.database_url, f"DROP DATABASE {name} WITH (FORCE)")
        await execute(running.database_url, f"DROP ROLE {name}")


async def test_the_page_does_what_it_says(library: House, tmp_path: Path) -> None:
    if not (shutil.which("bash") and shutil.which("curl")):
        pytest.skip("bash and curl are needed to follow the page")
    (tmp_path / "data").mkdir()
    (tmp_path / "data/admin.key").write_text(f"{ADMIN_KEY}\n")
    process = await asyncio.create_subprocess_exec(
        *("bash", "-euc", BASH.replace("http://127.0.0.1:8080", library.url)),
        cwd=tmp_path,
        env={"PATH": os.environ["PATH"]},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    output, errors = await process.communicate()
    assert process.returncode == 0, errors.decode()
    assert output.decode().splitlines() == re.findall(r"^# → (.*)$", BASH, re.MULTILINE)


def test_the_pages_limits_are_those_of_the_code() -> None:
    assert (documents.MAX_BYTES, documents.MAX_CHARACTERS, pages.MAX_PAGES) == (10_000_000, 2_000_000, 2000)
    assert (MAX_SOURCES, MAX_CHARACTERS, MAX_FOUND) == (100, 4_000_000, 50)
