"""Who calls, as routes declare it, and the platform they call."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine
from typing import Annotated, Any

import msgspec
from fastapi import Depends, Request
from fastapi.routing import APIRoute
from starlette.datastructures import Headers
from starlette.responses import Response

from app.api.fields import is_crowded, to_id
from app.domain import Principal, Scope
from app.errors import InvalidInput, NotAllowed
from app.usecases import reading
from app.usecases.platform import Platform


async def _platform(request: Request) -> Platform:
    platform: Platform = request.app.state.platform
    return platform


def need(scope: Scope, principal: Principal) -> Principal:
    """The caller, or `NotAllowed` when its credential lacks the scope."""
    if scope not in principal.scopes:
        raise NotAllowed(f"This credential lacks the scope {scope}.")
    return principal


def _with(scope: Scope) -> Callable[[Request], Awaitable[Principal]]:
    async def caller(request: Request) -> Principal:
        return need(scope, request.state.principal)

    return caller


async def _reader(request: Request) -> Principal:
    ids = {name: to_id(value) for name, value in request.path_params.items() if name in _READ}
    return await reading.reader(await _platform(request), need(Scope.CHAT, request.state.principal), **ids)


_READ = ("session_id", "message_id", "run_id")
Here = Annotated[Platform, Depends(_platform)]
Chat = Annotated[Principal, Depends(_with(Scope.CHAT))]
Reader = Annotated[Principal, Depends(_reader)]
"""Who reads the session, message or run of the path: only for routes that change nothing."""
Account = Annotated[Principal, Depends(_with(Scope.ACCOUNT))]
Admin = Annotated[Principal, Depends(_with(Scope.ADMIN))]


def strict_json(body: bytes) -> Any:
    """A decoded body; `InvalidInput` for what is no JSON, and for NaN, infinite numbers and broken Unicode too, and for too many values."""
    if is_crowded(body):
        raise InvalidInput("The body has too many values.")
    try:
        return msgspec.json.decode(body)
    except RecursionError:
        raise InvalidInput("The body is nested too deep.") from None
    except (msgspec.MsgspecError, UnicodeError):
        raise InvalidInput("The body is not valid JSON.") from None


def typed_json(headers: Headers, body: bytes) -> Any:
    """A decoded body that is said to be JSON, as FastAPI's own routes want it to be."""
    if headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise InvalidInput("Send the header Content-Type: application/json.", param="content-type")
    return strict_json(body)


class _StrictRequest(Request):
    async def json(self) -> Any:
        return strict_json(await self.body())


class StrictRoute(APIRoute):
    """A route whose JSON body is read strictly."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """FastAPI's handler on a request that decodes strictly."""
        handler = super().get_route_handler()

        async def strict(request: Request) -> Response:
            return await handler(_StrictRequest(request.scope, request.receive))

        return strict
