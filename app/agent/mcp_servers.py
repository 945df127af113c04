"""Tools of MCP servers. Each server is connected when an agent first wants its tools, by this process for all its runs.

A server that died is connected again when it is wanted next, a few times a minute at most. A call is never repeated: nobody knows
whether it was done. Programs are children of this process and end with it; of our variables they see what the file names.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack
from importlib import import_module
from typing import TYPE_CHECKING, Any

from app.agent.mcp_file import ServerSpec
from app.agent.plain import clean
from app.agent.tools import Tool
from app.agent.watchdog import in_agent
from app.errors import AgentFailed, InvalidInput
from app.tasks import Tasks

if TYPE_CHECKING:
    from mcp import Client
    from mcp_types import CallToolResult

log = logging.getLogger(__name__)

PREFIX = "mcp:"
"""How an agent names the tools of a server: `mcp:NAME`."""
FRESH_SECONDS = 60.0
"""How long a list of tools is used before it is asked for again."""
CONNECT_SECONDS = 30.0
"""What connecting, or listing the tools, may take."""
STARTS = 5
"""How often a server is connected within a minute."""
MAX_TOOLS = 128
"""The most tools of one server: OpenAI's protocol takes no more."""
MAX_SCHEMA = 20_000
"""The largest description of a tool's arguments, in characters of JSON."""
MAX_DESCRIPTION = 2_000
MAX_REASON = 1_000
"""The longest text of an error that a model is told, in characters."""
_ODD = re.compile(r"[^a-zA-Z0-9_-]")


async def opened(given: Iterable[Callable[..., Any] | Tool | str], boxes: Servers | None) -> list[Any]:
    """The tools that an agent names, with those of servers in place of `mcp:NAME`."""
    found: list[Any] = []
    for each in given:
        if isinstance(each, str) and each.startswith(PREFIX) and boxes is not None:
            found.extend(await boxes.tools(each.removeprefix(PREFIX)))
        else:
            found.append(each)
    return found


class ServedTool(Tool):
    """A tool of a server, called `SERVER_TOOL`. The server checks its arguments."""

    def __init__(self, server: Server, given: Any) -> None:
        self.name = _ODD.sub("_", f"{server.spec.name}_{given.name}")[:64]
        self.description = clean(given.description or "")[:MAX_DESCRIPTION]
        self.parameters = given.input_schema
        self.timeout = server.spec.timeout

        async def call(**arguments: Any) -> str:
            return await server.call(given.name, arguments)

        self.function = call

    def arguments(self, given: str) -> dict[str, Any]:
        """The arguments that a model wrote: any JSON object."""
        try:
            body = json.loads(given or "{}")
        except (ValueError, RecursionError) as error:
            raise InvalidInput(f"The arguments are no JSON: {error}.") from None
        if not isinstance(body, dict):
            raise InvalidInput("The arguments must be an object.")
        return body


class Servers:
    """All servers of the file, by name."""

    def __init__(self, specs: Mapping[str, ServerSpec], tasks: Tasks) -> None:
        self._servers = {name: Server(spec, tasks) for name, spec in specs.items()}

    @property
    def names(self) -> frozenset[str]:
        """What an agent may name after `mcp:`."""
        return frozenset(self._servers)

    async def tools(self, name: str) -> Sequence[Tool]:
        """The tools of a server; `AgentFailed` when it cannot be reached, `InvalidInput` when there is none of that name."""
        if name not in self._servers:
            raise InvalidInput(f"The tools of mcp:{name[:64]} are not configured on this server.", param="tools")
        return await self._servers[name].tools()


class Server:
    """One server, and the connection to it while there is one."""

    def __init__(self, spec: ServerSpec, tasks: Tasks) -> None:
        self.spec = spec
        self._tasks = tasks
        self._lock = asyncio.Lock()
        self._living: asyncio.Task[None] | None = None
        self._ready: asyncio.Future[Client]
        self._leave = asyncio.Event()
        self._starts: deque[float] = deque(maxlen=STARTS)
        self._tools: Sequence[Tool] = ()
        self._listed_at = -FRESH_SECONDS

    async def tools(self) -> Sequence[Tool]:
        """Its tools, as it listed them within the last minute. A list may be asked for twice: once more after connecting again."""
        async with self._lock:
            if self._is_connected() and time.monotonic() - self._listed_at < FRESH_SECONDS:
                return self._tools
            had = self._is_connected()
            try:
                self._tools = await self._listed()
            except AgentFailed:
                if not had:
                    raise
                self._tools = await self._listed()
            self._listed_at = time.monotonic()
            return self._tools

    async def call(self, tool: str, arguments: dict[str, Any]) -> str:
        """What a tool answers; `AgentFailed` with the server's own words when it refuses, with ours when it is away."""
        from mcp.shared.exceptions import MCPError

        client = await self._connected()
        try:
            result = await client.call_tool(tool, arguments)
        except Exception as error:
            if isinstance(error, MCPError) and await self._answers(client):
                raise AgentFailed(f"{self.spec.name} refused the call: {_short(error.error.message)}") from None
            self._drop(client, error)
            raise AgentFailed(f"{self.spec.name} went away during the call, which it may have done or not.") from None
        said = _text(result)
        if result.is_error:
            raise AgentFailed(_short(said) or f"{tool} failed.")
        return said

    async def _answers(self, client: Client) -> bool:
        """Whether the server is there: the package has one error for what it refuses and for a connection that is lost."""
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                await client.list_tools()
        except Exception:
            return False
        return True

    async def _listed(self) -> Sequence[Tool]:
        client = await self._connected()
        found: dict[str, Tool] = {}
        cursor: str | None = None
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                while True:
                    page = await client.list_tools(cursor=cursor)
                    for each in page.tools:
                        tool = ServedTool(self, each)
                        if len(json.dumps(tool.parameters)) <= MAX_SCHEMA:
                            found.setdefault(tool.name, tool)
                    cursor = page.next_cursor
                    if cursor is None or not page.tools or len(found) >= MAX_TOOLS:
                        return list(found.values())[:MAX_TOOLS]
        except Exception as error:
            self._drop(client, error)
            raise AgentFailed(f"The MCP server {self.spec.name} does not list its tools.") from None

    def _is_connected(self) -> bool:
        return self._living is not None and not self._living.done() and not self._leave.is_set()

    async def _connected(self) -> Client:
        if not self._is_connected():
            self._start()
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                return await asyncio.shield(self._ready)  # others may wait for it too
        except (AgentFailed, TimeoutError):
            self._end()
            raise AgentFailed(f"The MCP server {self.spec.name} cannot be reached.") from None

    def _start(self) -> None:
        now = time.monotonic()
        if len(self._starts) == STARTS and now - self._starts[0] < 60:
            raise AgentFailed(f"The MCP server {self.spec.name} ended too often; it is tried again within a minute.")
        self._starts.append(now)
        self._leave = asyncio.Event()
        self._ready = asyncio.get_running_loop().create_future()
        self._ready.add_done_callback(lambda ready: ready.cancelled() or ready.exception())  # who waited may be gone
        self._living = self._tasks.start(self._live(self._ready, self._leave), name=f"mcp {self.spec.name}")

    def _end(self) -> None:
        self._leave.set()
        if self._living is not None and not (self._ready.done() and self._ready.exception() is None):
            self._living.cancel()  # it is still connecting

    async def _live(self, ready: asyncio.Future[Client], leave: asyncio.Event) -> None:
        """Hold the connection: the package wants it opened and closed by one task."""
        in_agent.set(False)  # the connection outlives the agent that wanted it
        try:
            await asyncio.to_thread(import_module, "mcp")
            async with AsyncExitStack() as stack:
                ready.set_result(await self._opened(stack))
                await leave.wait()
        except ImportError:
            log.error("MCP servers need the package mcp: ./scripts/extras installs it")
        except Exception as error:
            log.warning("the MCP server %s is lost: %s", self.spec.name, type(error).__name__)
        finally:
            if not ready.done():
                ready.set_exception(AgentFailed())

    async def _opened(self, stack: AsyncExitStack) -> Client:
        import httpx2
        from mcp import Client, StdioServerParameters
        from mcp.client.streamable_http import streamable_http_client

        from app.agent.egress import Egress

        spec = self.spec
        if spec.command:
            env = {name: value.reveal() for name, value in spec.env.items()}
            program = StdioServerParameters(command=spec.command[0], args=list(spec.command[1:]), env=env)
            return await stack.enter_async_context(Client(program, cache=None))
        headers = {"authorization": f"Bearer {spec.api_key.reveal()}"} if spec.api_key else {}
        http = await stack.enter_async_context(
            httpx2.AsyncClient(
                transport=Egress(private=spec.private),
                trust_env=False,
                headers=headers,
                timeout=httpx2.Timeout(CONNECT_SECONDS, read=spec.timeout),
            )
        )
        return await stack.enter_async_context(Client(streamable_http_client(spec.url, http_client=http), cache=None))

    def _drop(self, client: Client, error: Exception) -> None:
        """Close the connection, if it is still this one."""
        if self._is_connected() and self._ready.done() and self._ready.result() is client:
            log.warning("the MCP server %s went away: %s", self.spec.name, type(error).__name__)
            self._end()


def _text(result: CallToolResult) -> str:
    """A result as a model reads it; what is no text is named."""
    parts = [part.text if part.type == "text" else f"[{part.type}]" for part in result.content]
    if not parts and result.structured_content is not None:
        return json.dumps(result.structured_content, ensure_ascii=False)
    return "\n".join(parts)


def _short(text: str) -> str:
    return clean(text)[:MAX_REASON]
