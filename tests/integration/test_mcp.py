"""The Model Context Protocol at `/mcp`: the package's own client, in both eras, against the running platform."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID

import httpx2
import pytest

from tests.house import ADMIN_KEY, House

pytest.importorskip("mcp", reason="needs the extra mcp")
from mcp import Client
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.exceptions import MCPError

pytestmark = pytest.mark.asyncio(loop_scope="module")
SCRIPTED = "scripted_agent"
ERAS = pytest.mark.parametrize("mode", ["legacy", "2026-07-28", "auto"])
LIST = {"jsonrpc": "2.0", "id": 1, "method": "tools/list"}
ACCEPT = {"accept": "application/json, text/event-stream"}


@asynccontextmanager
async def client(house: House, mode: str, key: str = ADMIN_KEY) -> AsyncIterator[Client]:
    headers = {"authorization": f"Bearer {key}"}
    async with (
        httpx2.AsyncClient(headers=headers, trust_env=False, timeout=30) as http,
        Client(streamable_http_client(f"{house.url}/mcp", http_client=http), mode=mode) as found,
    ):
        yield found


def key_of(user: httpx2.AsyncClient) -> str:
    return user.headers["authorization"].removeprefix("Bearer ")


def texts(result: Any) -> list[str]:
    return [part.text for part in result.content]


@ERAS
async def test_agents_are_tools_with_their_parameters(shared: House, mode: str) -> None:
    async with client(shared, mode) as mcp:
        tools = {tool.name: tool for tool in (await mcp.list_tools()).tools}
        assert mcp.protocol_version == ("2025-11-25" if mode == "legacy" else "2026-07-28")
    schema = tools[SCRIPTED].input_schema
    assert schema["required"] == ["message"]
    assert set(schema["properties"]["params"]["properties"]) == {"greeting", "number"}
    assert "params" not in tools["fake_echo_agent"].input_schema["properties"]
    assert tools["fake_echo_agent"].description


@ERAS
async def test_a_call_is_a_run_of_the_caller(shared: House, mode: str) -> None:
    user = await shared.user(f"caller-{mode}")
    async with client(shared, mode, key_of(user)) as mcp:
        result = await mcp.call_tool(SCRIPTED, {"message": "param", "params": {"number": 7}})
    assert not result.is_error
    assert '"number":7' in texts(result)[0].replace(" ", "")
    run = (await user.get(f"/api/v1/runs/{result.meta['chattable/run_id']}")).json()
    assert run["status"] == "completed"
    assert (await user.get("/api/v1/sessions")).json()["data"] == []


@ERAS
async def test_what_is_said_comes_as_progress(shared: House, mode: str) -> None:
    said: list[tuple[float, str | None]] = []

    async def heard(progress: float, total: float | None, message: str | None) -> None:
        said.append((progress, message))

    async with client(shared, mode) as mcp:
        result = await mcp.call_tool(SCRIPTED, {"message": "sleep: 0.2"}, progress_callback=heard)
    assert texts(result) == ["asleep and awake"]
    assert len(said) > 1
    assert "".join(message or "" for _, message in said) == "asleep and awake"
    assert said[-1][0] == len("asleep and awake")


@ERAS
async def test_errors_of_the_agent_are_errors_of_the_tool_and_leak_nothing(shared: House, mode: str) -> None:
    async with client(shared, mode) as mcp:
        failed = await mcp.call_tool(SCRIPTED, {"message": "fail: a secret of the agent"})
        wrong = await mcp.call_tool(SCRIPTED, {"message": "x", "params": {"number": "many"}})
        empty = await mcp.call_tool(SCRIPTED, {"message": ""})
        more = await mcp.call_tool(SCRIPTED, {"message": "x", "more": 1})
    assert all(each.is_error for each in (failed, wrong, empty, more))
    assert "secret" not in str(failed)
    assert "integer" in texts(wrong)[0]
    assert texts(empty)[0].startswith("message: ")
    assert texts(more)[0].startswith("more: ")


@ERAS
async def test_only_granted_agents_exist(shared: House, mode: str) -> None:
    user = await shared.user(f"granted-{mode}")
    key = key_of(user)
    everyone = next(g for g in (await shared.admin.get("/api/v1/groups")).json()["data"] if g["name"] == "everyone")
    path = f"/api/v1/groups/{everyone['id']}/agents"
    await shared.admin.delete(f"{path}/*")
    await shared.admin.put(f"{path}/fake_echo_agent")
    try:
        async with client(shared, mode, key) as mcp:
            assert [tool.name for tool in (await mcp.list_tools()).tools] == ["fake_echo_agent"]
            with pytest.raises(MCPError, match="There is no such tool") as hidden:
                await mcp.call_tool(SCRIPTED, {"message": "x"})
            with pytest.raises(MCPError) as unknown:
                await mcp.call_tool("nobody", {"message": "x"})
        assert hidden.value.error == unknown.value.error
    finally:
        await shared.admin.put(f"{path}/*")


@ERAS
async def test_who_cancels_a_call_cancels_its_run(shared: House, mode: str) -> None:
    user = await shared.user(f"leaver-{mode}")
    async with client(shared, mode, key_of(user)) as mcp:
        calling = asyncio.create_task(mcp.call_tool(SCRIPTED, {"message": "sleep: 30"}))
        run_id = await shared.until_live()
        calling.cancel()
        with pytest.raises(asyncio.CancelledError):
            await calling
        await shared.until_idle()  # while the client is still there
    run = (await user.get(f"/api/v1/runs/{UUID(run_id)}")).json()
    assert run["status"] == "cancelled"


async def test_who_leaves_cancels(shared: House) -> None:
    user = await shared.user("leaver")
    for version in ("2025-11-25", "2025-03-26"):
        headers = {**ACCEPT, "mcp-protocol-version": version}
        params = {"name": SCRIPTED, "arguments": {"message": "sleep: 30"}}
        call = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}
        calling = asyncio.create_task(user.post("/mcp", json=call, headers=headers))
        run_id = await shared.until_live()
        calling.cancel()
        await shared.until_idle()
        assert (await user.get(f"/api/v1/runs/{run_id}")).json()["status"] == "cancelled"


async def test_nobody_cancels_the_calls_of_others(shared: House) -> None:
    user, other = await shared.user("called"), await shared.user("other")
    opened = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "t", "version": "1"}}
    opening = {"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": opened}
    id = (await user.post("/mcp", json=opening, headers=ACCEPT)).headers["mcp-session-id"]
    headers = {**ACCEPT, "mcp-protocol-version": "2025-11-25", "mcp-session-id": id}
    params = {"name": SCRIPTED, "arguments": {"message": "sleep: 1"}}
    call = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}
    calling = asyncio.create_task(user.post("/mcp", json=call, headers=headers))
    await shared.until_live()
    cancel = {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": 1}}
    assert (await other.post("/mcp", json=cancel, headers=headers)).status_code == 202
    cancel["params"] = {"requestId": "1"}
    assert (await user.post("/mcp", json=cancel, headers=headers)).status_code == 202
    assert "asleep and awake" in (await calling).text


async def test_strangers_and_keys_without_the_scope_are_refused(shared: House) -> None:
    nobody = await shared.client()
    refused = await nobody.post("/mcp", json=LIST, headers=ACCEPT)
    assert refused.status_code == 401
    assert refused.headers["www-authenticate"] == "Bearer"
    made = await shared.admin.post("/api/v1/keys", json={"name": "narrow", "scopes": ["account"]})
    narrow = await shared.client(made.json()["key"])
    assert (await narrow.post("/mcp", json=LIST, headers=ACCEPT)).status_code == 403


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"host": "evil.example"}, 403),
        ({"host": "localhost:1"}, 200),
        ({"origin": "https://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"host": "[::1"}, 403),
        ({"content-type": "text/plain"}, 400),
        ({"accept": "text/html"}, 406),
    ],
)
async def test_host_origin_and_types_are_checked(shared: House, headers: dict[str, str], status: int) -> None:
    given = {**ACCEPT, "content-type": "application/json", **headers}
    assert (await shared.admin.post("/mcp", json=LIST, headers=given)).status_code == status


@pytest.mark.parametrize("body", [b"", b"{", b'{"jsonrpc": "2.0", "id": 1}', b'{"a": NaN}', b'"\\ud800"'])
async def test_a_broken_body_is_one_clear_error(shared: House, body: bytes) -> None:
    answer = await shared.admin.post("/mcp", content=body, headers={**ACCEPT, "content-type": "application/json"})
    assert answer.status_code == 400
    assert answer.json()["code"] == "invalid_input"


async def test_there_is_no_stream_and_no_session_beside_the_calls(shared: House) -> None:
    for method in ("GET", "DELETE"):
        answer = await shared.admin.request(method, "/mcp", headers=ACCEPT)
        assert answer.status_code == 405
        assert answer.headers["allow"] == "POST"
