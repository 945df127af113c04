"""Tools of real MCP servers: a program over stdio, and one over HTTP."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

import psutil
import pytest
from sqlalchemy import text

pytest.importorskip("mcp", reason="needs the extra mcp")
from app.agent import mcp_servers
from app.agent.mcp_file import ServerSpec
from app.agent.mcp_servers import Servers
from app.agent.tools import MAX_RESULT, ToolExecutor, ToolRegistry, ToolResult
from app.errors import AgentFailed, InvalidInput
from app.llm.catalog import Secret
from app.llm.llm import ToolCall
from app.tasks import Tasks
from tests.engines import Engines
from tests.fakes import mcp_server
from tests.fakes.upstream import FakeUpstream
from tests.house import open_house, send, session

PROGRAM = (sys.executable, mcp_server.__file__)
LOCAL = ServerSpec("local", command=PROGRAM, env={"GIVEN": Secret("a value")})


@asynccontextmanager
async def having(*specs: ServerSpec) -> AsyncIterator[Servers]:
    tasks = Tasks()
    try:
        yield Servers({spec.name: spec for spec in specs}, tasks)
    finally:
        await tasks.close(10)


async def used(servers: Servers, server: str, tool: str, **arguments: Any) -> ToolResult:
    """What a model would be told."""
    executor = ToolExecutor(ToolRegistry(await servers.tools(server)))
    return (await executor.execute([ToolCall("1", f"{server}_{tool}", json.dumps(arguments))]))[0]


async def until_gone(pid: int) -> None:
    async with asyncio.timeout(15):
        while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
            await asyncio.sleep(0.05)


async def test_a_program_is_started_once_sees_only_what_it_is_given_and_ends_with_us(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgresql://secret")
    async with having(LOCAL) as servers:
        assert [child.cmdline() for child in psutil.Process().children() if "mcp_server" in str(child.cmdline())] == []
        seen = await asyncio.gather(*(used(servers, "local", "who_am_i") for _ in range(5)))
        pid, *names = seen[0].content.split()
        assert {result.content for result in seen} == {seen[0].content}
        assert "GIVEN" in names
        assert "DATABASE_URL" not in names
        assert (await used(servers, "local", "value", name="GIVEN")).content == "a value"
        assert (await used(servers, "local", "add", first=2, second=3)).content == "5"
        assert int(pid) != os.getpid()
    await until_gone(int(pid))


async def test_tools_are_described_as_the_server_has_them() -> None:
    async with having(LOCAL) as servers:
        described = {
            each["function"]["name"]: each["function"]
            for each in ToolRegistry(await servers.tools("local")).get_all_tools()
        }
    assert described["local_add"]["description"] == "Adds two numbers."
    assert set(described["local_add"]["parameters"]["properties"]) == {"first", "second"}
    assert "local_who_am_i" in described


async def test_errors_are_told_to_the_model_and_results_are_bounded() -> None:
    async with having(LOCAL) as servers:
        failed = await used(servers, "local", "fail")
        wrong = await used(servers, "local", "add", first="two", second=3)
        large = await used(servers, "local", "large", length=MAX_RESULT + 10)
    assert failed.failed
    assert wrong.failed
    assert not large.failed
    assert len(large.content) < MAX_RESULT + 100


async def test_a_call_has_its_time() -> None:
    slow = ServerSpec("slow", command=PROGRAM, timeout=0.5)
    async with having(slow) as servers:
        assert "took longer" in (await used(servers, "slow", "rest", seconds=60)).content
        assert (await used(servers, "slow", "rest", seconds=0)).content == "rested"


async def test_a_program_that_died_is_started_again_but_not_without_end() -> None:
    async with having(LOCAL) as servers:
        for _ in range(mcp_servers.STARTS):
            died = await used(servers, "local", "die")
            assert died.failed
            assert "went away" in died.content
        with pytest.raises(AgentFailed, match="ended too often"):
            await servers.tools("local")


async def test_what_cannot_be_reached_is_one_sentence() -> None:
    none = ServerSpec("none", command=("/no/such/program",))
    async with having(none) as servers:
        with pytest.raises(AgentFailed, match="The MCP server none cannot be reached"):
            await servers.tools("none")
        with pytest.raises(InvalidInput, match="mcp:other are not configured"):
            await servers.tools("other")


async def test_a_server_over_http_is_called_with_its_key() -> None:
    async with mcp_server.served(key="k-1") as url:
        web = ServerSpec("web", url=url, api_key=Secret("k-1"), private=True)
        keyless = ServerSpec("keyless", url=url, private=True)
        async with having(web, keyless) as servers:
            assert (await used(servers, "web", "add", first=2, second=3)).content == "5"
            with pytest.raises(AgentFailed):
                await servers.tools("keyless")


async def test_a_server_over_http_that_died_is_found_again_when_it_is_back() -> None:
    async with mcp_server.served() as url:
        port = int(url.split(":")[2].split("/")[0])
        web = ServerSpec("web", url=url, private=True)
        tasks = Tasks()
        servers = Servers({"web": web}, tasks)
        executor = ToolExecutor(ToolRegistry(await servers.tools("web")))
    call = ToolCall("1", "web_add", '{"first": 2, "second": 2}')
    assert (await executor.execute([call]))[0].failed
    async with mcp_server.served(port=port):
        assert (await executor.execute([call]))[0].content == "4"
        await tasks.close(10)


async def test_private_addresses_and_redirects_are_refused() -> None:
    async with mcp_server.served() as url, mcp_server.served(redirect=url) as elsewhere:
        by_name = url.replace("127.0.0.1", "localhost")
        refused = [
            ServerSpec("number", url=url),
            ServerSpec("name", url=by_name),
            ServerSpec("moved", url=elsewhere, private=True),
        ]
        async with having(*refused, ServerSpec("good", url=by_name, private=True)) as servers:
            for spec in refused:
                with pytest.raises(AgentFailed, match="cannot be reached"):
                    await servers.tools(spec.name)
            assert await servers.tools("good")


AGENT = '''
"""Adds."""

from app.agent import Chattable, Message, Reply


class Adder(Chattable):
    id = "adder"
    tools = ["mcp:local"]

    async def chat(self, message: Message) -> Reply:
        return await self.run_tools(message)


class Lost(Adder):
    id = "lost"
    tools = ["mcp:nowhere"]
'''


async def test_an_agent_names_servers_and_its_calls_are_steps(
    running: Engines, database_url: str, fake: FakeUpstream, tmp_path: Path
) -> None:
    agents = tmp_path / "agents"
    agents.mkdir()
    (agents / "adder.py").write_text(AGENT)
    file = tmp_path / "mcp.toml"
    file.write_text(f"[servers.local]\ncommand = {json.dumps(PROGRAM)}\n")
    settings = {"redis_url": running.redis_url, "openai_base_url": fake.base_url, "openai_api_key": "sk-test"}
    async with open_house(database_url, agents_dir=agents, mcp_file=file, **settings) as house:
        listed = {agent["id"]: agent for agent in (await house.admin.get("/api/v1/agents")).json()["data"]}
        assert listed["lost"]["error"] == "needs the MCP server nowhere, which MCP_FILE does not have"
        chat = await session(house.admin, "adder")
        answer = await send(house.admin, chat, 'call local_add {"first": 20, "second": 22}')
        assert answer.status_code == 200, answer.text
        assert answer.json()["content"] == "The tool said: 42"
        async with house.platform.engine.connect() as db:
            query = text("SELECT kind, name FROM steps WHERE run_id = :run_id ORDER BY seq")
            steps = (await db.execute(query, {"run_id": UUID(answer.json()["run_id"])})).all()
        assert [tuple(step) for step in steps][1] == ("tool", "local_add")
        child = next(each for each in psutil.Process().children() if "mcp_server" in " ".join(each.cmdline()))
    await until_gone(child.pid)
