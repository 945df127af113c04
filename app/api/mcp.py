"""The Model Context Protocol at `/mcp`: the agents that the caller may use, as tools, over streamable HTTP.

The package `mcp` serves both eras of the protocol, 2026-07-28 and the ones that begin with `initialize`, the latter without sessions
too: no request needs what another left in this process, so that any of several workers answers it. Who closes the stream of a call
cancels it. A client of the older era keeps it open and sends `notifications/cancelled`; the session's id that it is given does nothing
but tell its requests from those of others then. The package is imported at the first request, for that takes a second and 23 MB.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from app.agent.loader import Listed
from app.api.callers import Chat, Here, typed_json
from app.api.fields import Content, JsonObject
from app.api.gate import LOOPBACK, MAX_BODY_BYTES, host_of
from app.api.problems import known, sentence
from app.domain import MAX_TEXT, Outcome, Principal, RunStatus
from app.errors import InvalidInput, NotAllowed, NotFound, Unavailable
from app.tasks import Tasks
from app.usecases import questions
from app.usecases.platform import Platform

if TYPE_CHECKING:
    from mcp.server.context import ServerRequestContext
    from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
    from mcp_types import CallToolRequestParams, CallToolResult, ListToolsResult, PaginatedRequestParams, Tool

router = APIRouter(tags=["mcp"])
Json = dict[str, Any]

PAGE = 100
"""How many tools a page of the list has."""
SESSION = "mcp-session-id"
_SESSION_ID = re.compile(r"[0-9a-f]{32}")
RUN_ID = "chattable/run_id"
"""Where the run of a call stands in `_meta` of its result."""
INSTRUCTIONS = "Each tool is an agent. It knows nothing of earlier calls: say in the message all that it needs."


class Arguments(BaseModel):
    """What a call of an agent has."""

    model_config = ConfigDict(extra="forbid")

    message: Content
    params: JsonObject = Field(default_factory=dict)


def schema_of(listed: Listed) -> Json:
    """The JSON Schema of an agent's arguments: the message, and its own parameters where it has any."""
    message = {"type": "string", "minLength": 1, "maxLength": MAX_TEXT, "description": "what to say to the agent"}
    schema: Json = {"type": "object", "properties": {"message": message}, "required": ["message"]}
    if listed.params_schema:
        params = dict(listed.params_schema)
        if definitions := params.pop("$defs", None):  # `$ref` names them from the root
            schema["$defs"] = definitions
        schema["properties"]["params"] = params
        if params.get("required"):
            schema["required"].append("params")
    return {**schema, "additionalProperties": False}


class Door:
    """What `/mcp` is served by: made with the application, opened at the first request, closed with the platform's tasks."""

    def __init__(self, hosts: frozenset[str], origins: frozenset[str]) -> None:
        """`hosts` are the names that this server has, besides addresses; `origins` those of pages that may call it."""
        self._hosts = hosts | LOOPBACK
        self._origins = origins
        self._opening = asyncio.Lock()
        self._manager: StreamableHTTPSessionManager | None = None

    def check(self, headers: Headers) -> None:
        """`NotAllowed` for a page of another origin, and for a name that is not this server's (DNS rebinding needs a name)."""
        host = headers.get("host", "")
        name = host_of(f"//{host}")
        if name is None or not (name in self._hosts or _is_address(name)):
            raise NotAllowed("This host name is not served: PUBLIC_URL names the server's own.")
        origin = headers.get("origin")
        if origin is None or origin in self._origins:
            return
        if origin not in (f"http://{host}", f"https://{host}"):
            raise NotAllowed("Pages of this origin are not served: CORS_ORIGINS names those that are.")

    async def manager(self, tasks: Tasks) -> StreamableHTTPSessionManager:
        """What serves the protocol; `Unavailable` without the package."""
        async with self._opening:
            if self._manager is None:
                try:
                    made = await asyncio.to_thread(_made)
                except ImportError:
                    raise Unavailable("This server lacks the package mcp: ./scripts/extras installs it.") from None
                ready = asyncio.Event()
                tasks.start(_run(made, ready), name="mcp")
                await ready.wait()
                self._manager = made
            return self._manager


def _is_address(name: str) -> bool:
    try:
        ip_address(name)
    except ValueError:
        return False
    return True


def _made() -> StreamableHTTPSessionManager:
    from mcp.server.lowlevel.server import Server
    from mcp.server.streamable_http_manager import StreamableHTTPSessionManager

    server: Server[Any] = Server(
        "chattable",
        title="Chattable",
        version="0.1.0",
        instructions=INSTRUCTIONS,
        on_list_tools=_list_tools,
        on_call_tool=_call_tool,
        get_tool_input_schema=lambda _: None,  # no argument is sent as a header
    )
    return StreamableHTTPSessionManager(server, stateless=True, max_request_body_size=MAX_BODY_BYTES)


async def _run(manager: StreamableHTTPSessionManager, ready: asyncio.Event) -> None:
    async with manager.run():
        ready.set()
        await asyncio.Event().wait()


async def _list_tools(
    context: ServerRequestContext[Any, Request], params: PaginatedRequestParams | None
) -> ListToolsResult:
    from mcp_types import ListToolsResult

    platform, principal = _caller(context)
    after = (params.cursor if params else None) or ""
    found = [each for each in await questions.answerers(platform, principal) if (each.id or "") > after]
    more = found[PAGE - 1].id if len(found) > PAGE else None
    return ListToolsResult(tools=[_tool(each) for each in found[:PAGE]], next_cursor=more)


def _tool(listed: Listed) -> Tool:
    from mcp_types import Tool

    return Tool(name=listed.id or "", description=listed.description, input_schema=schema_of(listed))


async def _call_tool(context: ServerRequestContext[Any, Request], params: CallToolRequestParams) -> CallToolResult:
    """An agent's answer. Progress is told as it is said: how many characters, and the newest of them."""
    from mcp.shared.exceptions import MCPError
    from mcp_types import INVALID_PARAMS

    platform, principal = _caller(context)
    try:
        given = _arguments(params.arguments or {})
        name = _name_of(_session(context.request), context.request_id)
        async with questions.asked(platform, principal, params.name, given.message, given.params, name=name) as live:
            async for batch in live.log.read():
                said = "".join(event.chunk.content for event in batch)
                await context.session.report_progress(batch[-1].position, message=said)
            outcome = await live.log.ended()
            return _result(outcome.text or live.log.answer(), outcome)
    except NotFound:
        raise MCPError(INVALID_PARAMS, "There is no such tool.") from None
    except Exception as error:
        return _content(known(error).message, failed=True)


def _caller(context: ServerRequestContext[Any, Request]) -> tuple[Platform, Principal]:
    request = context.request
    assert request is not None  # noqa: S101 - all of it comes over HTTP
    return request.app.state.platform, request.scope["state"]["principal"]


def _session(request: Request | None) -> str | None:
    """The id that a client of the older era was given, when it has the form of one."""
    given = request.headers.get(SESSION, "") if request else ""
    return given if _SESSION_ID.fullmatch(given) else None


def _name_of(session: str | None, request_id: object) -> str | None:
    """What a client calls a request: a number and a text are not the same."""
    return f"mcp {session} {request_id!r}" if session and isinstance(request_id, int | str) else None


def _arguments(given: Mapping[str, Any]) -> Arguments:
    try:
        return Arguments.model_validate(given)
    except ValidationError as error:
        raise sentence(error) from None


def _result(answer: str, outcome: Outcome) -> CallToolResult:
    """What was said, and when it is not all of it, why."""
    run = outcome.run
    if run.status is RunStatus.COMPLETED:
        return _content(answer, run_id=str(run.id))
    why = (run.error or {}).get("message") or f"The run ended early: {run.status.value}."
    return _content(*filter(None, (answer, why)), run_id=str(run.id), failed=True)


def _content(*texts: str, failed: bool = False, run_id: str | None = None) -> CallToolResult:
    from mcp_types import CallToolResult, TextContent

    said = [TextContent(text=text) for text in texts]
    return CallToolResult(content=[*said], is_error=failed, meta={RUN_ID: run_id} if run_id else None)


BODY: Json = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {
                    "type": "object",
                    "required": ["jsonrpc", "method"],
                    "properties": {
                        "jsonrpc": {"const": "2.0"},
                        "id": {"anyOf": [{"type": "string"}, {"type": "integer"}]},
                        "method": {"type": "string"},
                        "params": {"type": "object"},
                    },
                },
                "example": {"jsonrpc": "2.0", "id": 1, "method": "tools/list"},
            }
        },
    }
}
ANSWERS: dict[int | str, Json] = {
    200: {
        "description": "the result, or an error of JSON-RPC; as events when it takes time",
        "content": {
            "application/json": {"schema": {"type": "object"}, "example": {"jsonrpc": "2.0", "id": 1, "result": {}}},
            "text/event-stream": {"itemSchema": {"type": "object"}, "example": "event: message\ndata: {}\n\n"},
        },
    },
    202: {"description": "there was a notification only"},
    406: {"description": "the header Accept lacks `application/json` or `text/event-stream`"},
}


@router.post("/mcp", response_class=Response, responses=ANSWERS, openapi_extra=BODY)
async def serve_mcp(here: Here, caller: Chat, request: Request) -> Response:
    """The Model Context Protocol over streamable HTTP: the agents that the caller may use are its tools, and each call is a run."""
    door: Door = request.app.state.mcp
    door.check(request.headers)
    body = await request.body()
    asked = typed_json(request.headers, body)
    method = asked.get("method") if isinstance(asked, dict) else None
    if method == "notifications/cancelled":
        params = asked.get("params")
        request_id = params.get("requestId") if isinstance(params, dict) else None
        if name := _name_of(_session(request), request_id):
            here.tasks.start(questions.cancel(here, caller, name), name="mcp cancel")
    manager = await door.manager(here.tasks)
    if not _is_message(asked):
        raise InvalidInput("The body is no request, notification or answer of JSON-RPC 2.0.")
    return _Served(manager, body, opens=method == "initialize")


def _is_message(asked: Any) -> bool:
    from mcp_types import jsonrpc_message_adapter

    try:
        jsonrpc_message_adapter.validate_python(asked, by_name=False)
    except ValidationError:  # which would be told with all that pydantic has to say
        return False
    return True


class _Served(Response):
    """An answer that the package gives."""

    def __init__(self, manager: StreamableHTTPSessionManager, body: bytes, *, opens: bool) -> None:
        super().__init__()
        self._opens = opens
        self._manager = manager
        self._asked = body

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve (ASGI)."""
        waiting: list[Message] = [{"type": "http.request", "body": self._asked, "more_body": False}]

        async def receiving() -> Message:
            return waiting.pop() if waiting else await receive()

        async def sending(message: Message) -> None:
            if self._opens and message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (SESSION.encode(), uuid4().hex.encode())]
            await send(message)

        await self._manager.handle_request(scope, receiving, sending)
