"""The Model Coordination Protocol over the running platform: JSON-RPC 2.0 to the letter, real calls, metered."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx2
import pytest
import pytest_asyncio

from tests.conftest import copy
from tests.engines import Engines
from tests.fakes.upstream import FakeUpstream, upstream
from tests.house import House, open_house, session

pytestmark = pytest.mark.asyncio(loop_scope="module")
PATH = "/api/v1/agents/mcp"
MODELS = """
[models.default]
endpoints = [{{ base_url = "{url}", model = "m" }}]
context = 8000
price = {{ prompt = 2.5, completion = 10 }}
fallback = ["spare"]
[models.spare]
endpoints = [{{ base_url = "{url}", model = "spare" }}]
[models.both]
cascade = ["spare", "default"]
"""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def fake() -> AsyncIterator[FakeUpstream]:
    async with upstream() as server:
        yield server


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def house(
    running: Engines, template: str, fake: FakeUpstream, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[House]:
    models: Path = tmp_path_factory.mktemp("models") / "models.toml"
    models.write_text(MODELS.format(url=fake.base_url))
    async with (
        copy(running, template) as url,
        open_house(url, redis_url=running.redis_url, models_file=models) as opened,
    ):
        yield opened


async def post(client: httpx2.AsyncClient, body: Any) -> httpx2.Response:
    content = body if isinstance(body, bytes) else json.dumps(body)
    return await client.post(PATH, content=content, headers={"content-type": "application/json"})


def asked(method: str, params: Any = None, id: Any = 1) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": id, "method": method, **({} if params is None else {"params": params})}


async def call(client: httpx2.AsyncClient, method: str, params: Any = None) -> Any:
    answer = (await post(client, asked(method, params))).json()
    assert answer.keys() == {"jsonrpc", "id", "result"}, answer
    return answer["result"]


async def error(client: httpx2.AsyncClient, body: Any) -> tuple[int, Any]:
    answer = await post(client, body)
    assert (answer.status_code, answer.json().keys()) == (200, {"jsonrpc", "id", "error"}), answer.text
    return answer.json()["error"]["code"], answer.json()["id"]


async def test_the_models_are_those_that_may_be_called(house: House) -> None:
    listed = (await call(house.admin, "list_models"))["models"]
    kinds = {item["id"]: item["kind"] for item in listed}
    assert kinds.keys() == {item["id"] for item in (await house.admin.get("/api/v1/llm/models")).json()["data"]}
    assert (kinds["fake_echo_agent"], kinds["default"]) == ("agent", "model")


async def test_a_models_info_tells_what_it_costs_and_not_where_it_is(house: House, fake: FakeUpstream) -> None:
    info = await call(house.admin, "get_model_info", {"model": "default"})
    assert (info["kind"], info["context"], info["fallback"]) == ("model", 8000, ["spare"])
    assert info["price"] == {"prompt": "2.5", "completion": "10", "cached": "2.5"}
    assert fake.base_url not in json.dumps(info)
    assert (await call(house.admin, "get_model_info", ["both"]))["cascade"] == ["spare", "default"]
    agent = await call(house.admin, "get_model_info", {"model": "scripted_agent"})
    assert (agent["kind"], "greeting" in agent["params_schema"]["properties"]) == ("agent", True)


async def test_a_call_is_a_metered_run(house: House, fake: FakeUpstream) -> None:
    ann = await house.user(f"user {uuid4().hex[:8]}")
    whole = await call(ann, "call_model", {"model": "default", "prompt": "say hi", "temperature": 0.5})
    assert whole["object"] == "chat.completion"
    assert (whole["choices"][0]["message"]["content"], whole["model"]) == ("hi", "default")
    assert fake.requests[-1].body["temperature"] == 0.5
    run = (await ann.get(f"/api/v1/runs/{whole['id'].removeprefix('chatcmpl-')}")).json()
    assert (run["status"], run["usage"]["total"]) == ("completed", whole["usage"]["total_tokens"])
    assert run["usage"]["total"] > 0
    said = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "say ho"}]
    for params in ({"model": "fake_echo_agent", "messages": said}, ["fake_echo_agent", "say ho"]):
        answer = await call(ann, "call_model", params)
        assert answer["choices"][0]["message"]["content"] == "say ho"
    id = await session(ann)
    counted = {"model": "scripted_agent", "prompt": "count", "session_id": id}
    assert [(await call(ann, "call_model", counted))["choices"][0]["message"]["content"] for _ in "12"] == ["1", "3"]


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b'{"jsonrpc": "2.0", "method": "list_models", "id": 1', -32700),
        (b"", -32700),
        (b'"\xff"', -32700),
        (b"NaN", -32700),
        (b"[" + b"1," * 30_000 + b"1]", -32700),
        ([], -32600),
        ("list_models", -32600),
        (None, -32600),
        ({"method": "list_models", "id": 1}, -32600),
        ({"jsonrpc": "1.0", "method": "list_models", "id": 1}, -32600),
        ({"jsonrpc": "2.0", "id": 1}, -32600),
        ({"jsonrpc": "2.0", "method": 7, "id": 1}, -32600),
        (asked("list_models", "all"), -32600),
        ([asked("list_models")] * 21, -32600),
        (asked("no_such"), -32601),
        (asked("rpc.discover"), -32601),
        (asked("list_models", {"page": 1}), -32602),
        (asked("list_models", [1]), -32602),
        (asked("get_model_info"), -32602),
        (asked("get_model_info", {"model": 7}), -32602),
        (asked("get_model_info", {"model": "nothing"}), -32602),
        (asked("get_model_info", ["default", "more"]), -32602),
        (asked("call_model", {"model": "default"}), -32602),
        (asked("call_model", {"model": "default", "prompt": 7}), -32602),
        (asked("call_model", {"model": "default", "prompt": "x", "messages": []}), -32602),
        (asked("call_model", {"model": "default", "prompt": "x", "stream": True}), -32602),
        (asked("call_model", {"model": "default", "prompt": "x", "n": 2}), -32602),
        (asked("call_model", {"model": "default", "prompt": "x", "temperature": 3}), -32602),
        (asked("call_model", {"model": "nothing", "prompt": "x"}), -32602),
        (asked("call_model", {"model": "default", "prompt": "x", "session_id": str(uuid4())}), -32602),
        (asked("call_model", {"model": "scripted_agent", "prompt": "fail: on purpose"}), -32603),
    ],
)
async def test_errors_have_the_codes_of_json_rpc(house: House, body: Any, code: int) -> None:
    given = body.get("id") if isinstance(body, dict) else None
    assert await error(house.admin, body) == (code, given)


async def test_a_failed_call_says_why(house: House, fake: FakeUpstream) -> None:
    body = asked("call_model", {"model": "scripted_agent", "prompt": "fail: on purpose"})
    told = (await post(house.admin, body)).json()["error"]
    assert (told["data"]["status"], told["data"]["code"]) == (502, "agent_failed")
    told = (await post(house.admin, asked("call_model", {"model": "nothing", "prompt": "x"}))).json()["error"]
    assert told["data"] == {"status": 404, "code": "not_found", "param": "model"}


@pytest.mark.parametrize("id", [True, [], {}, "x" * 201, 2**64])
async def test_what_is_no_id_is_not_given_back(house: House, id: Any) -> None:
    assert await error(house.admin, asked("list_models", id=id)) == (-32600, None)


@pytest.mark.parametrize("id", ["text", "", 0, -1, 1.5, None])
async def test_the_id_is_given_back_as_it_was(house: House, id: Any) -> None:
    assert (await post(house.admin, asked("get_model_info", ["both"], id))).json()["id"] == id


async def test_a_notification_is_done_and_not_answered(house: House) -> None:
    ann = await house.user(f"user {uuid4().hex[:8]}")
    id = await session(ann)
    params = {"model": "scripted_agent", "prompt": "repeat: done", "session_id": id}
    note = {"jsonrpc": "2.0", "method": "call_model", "params": params}
    for body in (note, [note], {"jsonrpc": "2.0", "method": "no_such"}):
        answer = await post(ann, body)
        assert (answer.status_code, answer.content) == (204, b"")
    said = (await ann.post("/ListMessages", json={"session_id": id})).json()["items"]
    assert [message["content"] for message in said] == ["repeat: done", "done"] * 2


async def test_a_batch_is_answered_each_for_itself(house: House) -> None:
    note = {"jsonrpc": "2.0", "method": "list_models"}
    slow = asked("call_model", {"model": "scripted_agent", "prompt": "sleep: 0.2"}, id="slow")
    answers = (
        await post(house.admin, [slow, note, asked("no_such", id=2), 1, asked("get_model_info", ["both"], id=3)])
    ).json()
    by_id = {answer["id"]: answer for answer in answers}
    assert len(answers) == 4
    assert by_id["slow"]["result"]["choices"][0]["message"]["content"] == "asleep and awake"
    assert (by_id[2]["error"]["code"], by_id[None]["error"]["code"]) == (-32601, -32600)
    assert by_id[3]["result"]["id"] == "both"


async def test_each_request_of_a_batch_counts_against_the_limit(running: Engines, template: str) -> None:
    async with copy(running, template) as url, open_house(url, requests_per_minute=5) as limited:
        answers = await asyncio.gather(*(post(limited.admin, [asked("list_models")] * 3) for _ in range(2)))
        assert sorted(answer.status_code for answer in answers) == [200, 429]


async def test_without_a_right_to_models_they_are_not_there(running: Engines, template: str, tmp_path: Path) -> None:
    models = tmp_path / "models.toml"
    models.write_text(MODELS.format(url="http://127.0.0.1:9/v1"))
    async with copy(running, template) as url, open_house(url, models_file=models) as house:
        ann = await house.user("ann")
        groups = (await house.admin.get("/api/v1/groups")).json()["data"]
        await house.admin.delete(f"/api/v1/groups/{groups[0]['id']}/agents/*")
        assert await call(ann, "list_models") == {"models": []}
        assert (await error(ann, asked("get_model_info", ["default"])))[0] == -32602
        told = (await post(ann, asked("call_model", ["default", "x"]))).json()["error"]
        assert (told["code"], told["data"]["status"]) == (-32603, 403)
        assert (await post(await house.client(), asked("list_models"))).status_code == 401
