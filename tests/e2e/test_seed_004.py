"""What the document of seed 004 shows, done on a running platform, row by row. L5, L7 and L8 have tests of their own elsewhere."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
import pytest_asyncio
from openai import AsyncOpenAI

from tests.conftest import copy
from tests.engines import Engines
from tests.fakes.upstream import FakeUpstream, upstream
from tests.house import ADMIN_KEY, House, open_house

pytestmark = pytest.mark.asyncio(loop_scope="module")
DOCUMENT = Path(__file__).parents[3] / "shared/seeds/004_a7e864957c4fc990.txt"
PATHS = ["/api/v1/llm/completions", "/api/v1/llm/chat/completions", "/api/v1/llm/models"]
SETTINGS = {"OPENAI_API_KEY", "OPENAI_API_BASE", "DATABASE_URL", "REDIS_URL"}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def fake() -> AsyncIterator[FakeUpstream]:
    async with upstream() as server:
        yield server


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def house(running: Engines, template: str, fake: FakeUpstream) -> AsyncIterator[House]:
    async with (
        copy(running, template) as url,
        open_house(
            url, redis_url=running.redis_url, openai_base_url=fake.base_url, openai_api_key="sk-of-the-operator"
        ) as opened,
    ):
        yield opened


@pytest_asyncio.fixture(loop_scope="module")
async def client(house: House) -> AsyncIterator[AsyncOpenAI]:
    """Any library for OpenAI's API, its address pointed here, as the document says."""
    async with AsyncOpenAI(base_url=f"{house.url}/api/v1/llm", api_key=ADMIN_KEY, max_retries=0) as made:
        yield made


async def rpc(client: httpx2.AsyncClient, method: str, **params: Any) -> dict[str, Any]:
    body = {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}
    answer = await client.post("/api/v1/agents/mcp", json=body)
    assert answer.status_code == 200
    return dict(answer.json())


async def test_every_path_and_setting_of_the_document_is_here(house: House) -> None:
    text = DOCUMENT.read_text() if DOCUMENT.exists() else " ".join(f"`{name}`" for name in [*PATHS, *SETTINGS])
    shown = re.findall(r"`(/api/v1/llm/[a-z/]+)`", text)
    assert shown == PATHS
    assert shown == [path for path in shown if path in house.app.openapi()["paths"]]
    assert set(re.findall(r"`([A-Z]+_[A-Z_]+)`", text)) >= SETTINGS


async def test_l1_models_are_listed_as_openai_lists_them(client: AsyncOpenAI) -> None:
    listed = [model async for model in await client.models.list()]
    assert {(model.id, model.object) for model in listed} >= {("fake_echo_agent", "model"), ("default", "model")}
    assert (await client.models.retrieve("default")).owned_by == "models"


@pytest.mark.parametrize("model", ["default", "fake_echo_agent"])
async def test_l1_a_chat_is_completed_whole_and_streamed(client: AsyncOpenAI, model: str) -> None:
    said: Any = [{"role": "user", "content": "say two words"}]
    expected = "two words" if model == "default" else "say two words"
    whole = await client.chat.completions.create(model=model, messages=said, temperature=0.5, max_tokens=50)
    assert (whole.object, whole.choices[0].message.content) == ("chat.completion", expected)
    assert whole.choices[0].finish_reason == "stop"
    assert whole.usage
    assert (whole.usage.completion_tokens > 0) == (model == "default")
    stream = await client.chat.completions.create(
        model=model, messages=said, stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    assert "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices) == expected
    assert chunks[-1].usage
    assert chunks[-1].usage.total_tokens == whole.usage.total_tokens


async def test_l1_a_text_is_completed_whole_and_streamed(client: AsyncOpenAI) -> None:
    whole = await client.completions.create(model="default", prompt="say more")
    assert (whole.object, whole.choices[0].text) == ("text_completion", "more")
    stream = await client.completions.create(model="default", prompt="say more", stream=True)
    assert "".join([choice.text async for chunk in stream for choice in chunk.choices]) == "more"


async def test_l2_an_agent_is_created_got_listed_updated_and_deleted(house: House, client: AsyncOpenAI) -> None:
    agent = {"id": "simple_openai_agent", "params": {"system_prompt": "Be brief."}}
    made = (await house.admin.post("/api/v1/agents", json={"name": "Brief", "agent": agent})).json()
    path = f"/api/v1/agents/{made['id']}"
    assert (await house.admin.get(path)).json()["agent"] == agent
    assert made["id"] in [item["id"] for item in (await house.admin.get("/api/v1/agents")).json()["data"]]
    updated = (await house.admin.patch(path, json={"description": "One sentence."})).json()
    assert (updated["name"], updated["description"]) == ("Brief", "One sentence.")
    answer = await client.chat.completions.create(model=made["id"], messages=[{"role": "user", "content": "say it"}])
    assert answer.choices[0].message.content == "it"
    assert (await house.admin.delete(path)).status_code == 204
    assert (await house.admin.get(path)).status_code == 404


async def test_l2_a_task_is_created_assigned_executed_and_watched(house: House) -> None:
    ann = await house.user("ann of l2")
    made = (await ann.post("/api/v1/agents/tasks", json={"name": "Greet", "input": "say good morning"})).json()
    path = f"/api/v1/agents/tasks/{made['id']}"
    assert made["status"] == "created"
    assigned = await ann.post(f"{path}/assign", json={"agent": {"id": "simple_openai_agent"}})
    assert assigned.json()["status"] == "assigned"
    assert (await ann.post(f"{path}/execute")).status_code == 202
    async with asyncio.timeout(30):
        while (told := (await ann.get(path)).json())["status"] != "completed":
            assert told["status"] in ("queued", "running")
            await asyncio.sleep(0.05)
    assert (told["result"], told["usage"]["total"] > 0) == ("good morning", True)
    log = (await ann.get(f"{path}/log")).json()["data"]
    assert [(entry["kind"], entry["status"]) for entry in log] == [("execution", "completed"), ("llm", "completed")]


async def test_l3_models_are_found_described_and_called_in_one_way(house: House) -> None:
    listed = (await rpc(house.admin, "list_models"))["result"]["models"]
    assert {"default", "fake_echo_agent"} <= {model["id"] for model in listed}
    for model in ("default", "fake_echo_agent"):
        assert (await rpc(house.admin, "get_model_info", model=model))["result"]["id"] == model
        answer = (await rpc(house.admin, "call_model", model=model, prompt="say hi"))["result"]
        assert answer["choices"][0]["message"]["content"] in ("hi", "say hi")
    assert (await rpc(house.admin, "no_such_method"))["error"]["code"] == -32601
    assert (await rpc(house.admin, "call_model", model="scripted_agent", prompt="fail: it"))["error"]["code"] == -32603


async def test_l4_a_form_gives_a_token_and_the_token_proves_who_calls(house: House) -> None:
    name, password = "ann of l4", "a long password of hers"
    await house.admin.post("/api/v1/users", json={"name": name, "password": password})
    stranger = await house.client()
    form = {"username": name, "password": password}
    assert (await stranger.post("/api/v1/auth/token", data={**form, "password": "wrong"})).status_code == 401
    oauth = {"grant_type": "password", "scope": "", "client_id": "string", "client_secret": "string"}
    for given in (form, form | oauth):
        token = (await stranger.post("/api/v1/auth/token", data=given)).json()
        assert (token["token_type"], token["expires_in"]) == ("bearer", 900)
        mine = await house.client(token["access_token"])
        assert (await mine.get("/api/v1/auth/users/me")).json()["name"] == name
        assert (await mine.get("/api/v1/llm/models")).status_code == 200
    assert (await stranger.get("/api/v1/auth/users/me")).status_code == 401
    assert (await (await house.client("not.a.token")).get("/api/v1/auth/users/me")).status_code == 401


async def test_l6_health_is_told_to_anybody_and_true(house: House, running: Engines, template: str) -> None:
    stranger = await house.client()
    for path in ("/health", "/api/v1/health", "/api/v1/llm/health", "/readyz"):
        answer = await stranger.get(path)
        assert (answer.status_code, answer.json()) == (200, {"status": "ready"}), path
    async with copy(running, template) as url, open_house(url) as bare:
        stranger = await bare.client()
        answer = await stranger.get("/api/v1/llm/health")
        assert (answer.status_code, answer.json()) == (503, {"status": "no language model is set up"})
        assert (await stranger.get("/api/v1/health")).status_code == 200


async def test_l6_a_database_or_language_model_that_is_away_is_told(running: Engines, template: str) -> None:
    async with (
        copy(running, template) as url,
        open_house(url, openai_base_url="http://127.0.0.1:9/v1", openai_api_key="sk") as house,
    ):
        stranger = await house.client()
        assert (await stranger.get("/api/v1/llm/health")).status_code == 200, "nobody has asked it yet"
        body = {"model": "default", "messages": [{"role": "user", "content": "x"}]}
        assert (await house.admin.post("/api/v1/llm/chat/completions", json=body)).status_code == 503
        answer = await stranger.get("/api/v1/llm/health")
        assert (answer.status_code, answer.json()) == (503, {"status": "language models unavailable"})
        house.platform.draining.set()
        assert (await stranger.get("/api/v1/health")).json() == {"status": "draining"}


async def test_l9_the_page_of_the_api_has_every_route_with_words_and_examples(house: House) -> None:
    assert (await (await house.client()).get("/docs")).status_code == 200
    document = (await (await house.client()).get("/openapi.json")).json()
    mine = [path for path in document["paths"] if re.match(r"/api/v1/(agents|llm|auth)|/health", path)]
    assert len(mine) > 15
    for path in mine:
        for method, operation in document["paths"][path].items():
            assert operation["description"], (method, path)
            content = operation.get("requestBody", {}).get("content", {}).get("application/json")
            assert content is None or content["example"], (method, path)
