"""The Model Coordination Protocol of seed 004: JSON-RPC 2.0 over the registry of models, at `/api/v1/agents/mcp`.

What may be called is what `/v1/models` lists, and a call is a chat completion. It has nothing to do with the Model Context Protocol.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
from fastapi import APIRouter, Request
from pydantic import TypeAdapter, ValidationError
from starlette.responses import Response

from app.api import openai_wire
from app.api.callers import Chat, Here, StrictRoute, strict_json
from app.api.fields import MAX_INTEGER, ModelName
from app.api.models import In
from app.api.openai_models import ChatBody, ChatIn
from app.api.problems import known, sentence
from app.domain import Principal
from app.errors import AppError, InvalidInput
from app.usecases import completions
from app.usecases.platform import Platform

router = APIRouter(prefix="/api/v1/agents", route_class=StrictRoute, tags=["agents"])

PARSE_ERROR, INVALID_REQUEST, METHOD_NOT_FOUND, INVALID_PARAMS, INTERNAL_ERROR = -32700, -32600, -32601, -32602, -32603
"""JSON-RPC 2.0, section 5.1."""
MAX_BATCH = 20
"""How many requests one batch may hold; each may be a run."""
MAX_ID = 200
FAULTS = frozenset({400, 404, 413})
"""Statuses that say that the parameters are wrong."""
Json = dict[str, Any]
Method = Callable[[Platform, Principal, Json], Awaitable[Any]]


class _Failed(Exception):
    """An error as JSON-RPC has it."""

    def __init__(self, code: int, message: str, data: Mapping[str, Any] | None = None) -> None:
        super().__init__(message)
        self.body = {"code": code, "message": message, **({"data": data} if data else {})}


class _ModelIn(In):
    model: ModelName


_CHAT: TypeAdapter[ChatIn] = TypeAdapter(ChatBody)


async def _list_models(here: Platform, caller: Principal, params: Json) -> Any:
    if params:
        raise InvalidInput("list_models has no parameters.")
    return {"models": [_listed(each) for each in await completions.models(here, caller)]}


async def _get_model_info(here: Platform, caller: Principal, params: Json) -> Any:
    named = _ModelIn.model_validate(params).model
    info = _listed(await completions.get_model(here, caller, named))
    if info["kind"] == "agent":
        if named in here.agents.ids:
            info["params_schema"] = here.agents.get(named).params_schema
        return info
    model = here.catalog().get(named)
    price = {name: str(getattr(model.price, name)) for name in ("prompt", "completion", "cached")}
    beside = {
        "context": model.context,
        "price": price,
        "fallback": model.fallback,
        "cascade": model.cascade,
        "away": here.is_away(model),
    }
    return info | beside


def _listed(listed: completions.Listed) -> Json:
    kind = "agent" if listed.is_agent else "model"
    return {"id": listed.id, "kind": kind, "name": listed.name or listed.id, "description": listed.description}


async def _call_model(here: Platform, caller: Principal, params: Json) -> Any:
    prompt = params.pop("prompt", None)
    said = params.get("messages", prompt)
    if prompt is not None and "messages" in params:
        raise InvalidInput("prompt: give a prompt or messages.", param="prompt")
    params["messages"] = [{"role": "user", "content": said}] if isinstance(said, str) else said
    body = _CHAT.validate_python(params)
    if body.stream or (body.n or 1) > 1:
        raise InvalidInput("An answer comes whole and alone here: leave out stream and n.", param="stream")
    begun = await completions.begin(here, caller, [body.request()], {}, session_id=body.session_id)
    form = openai_wire.Form(body.model, tools=body.tool_names, speaks_of_functions=body.speaks_of_functions)
    answer = await openai_wire.respond(here, begun, form, stream=False)
    if answer.status_code != 200:
        error = msgspec.json.decode(answer.body)["error"]
        raise _failed(answer.status_code, error["message"], error["code"], error["param"])
    return msgspec.Raw(bytes(answer.body))


@dataclass(frozen=True, slots=True)
class _Verb:
    """A method, and the names of its parameters that may be given by position."""

    call: Method
    names: tuple[str, ...] = ()


VERBS = {
    "list_models": _Verb(_list_models),
    "get_model_info": _Verb(_get_model_info, ("model",)),
    "call_model": _Verb(_call_model, ("model", "messages")),
}


def _failed(status: int, message: str, code: str, param: str | None) -> _Failed:
    data = {"status": status, "code": code, **({"param": param} if param else {})}
    return _Failed(INVALID_PARAMS if status in FAULTS else INTERNAL_ERROR, message, data)


def _checked(asked: Any) -> tuple[_Verb, Json]:
    """The method of a request and its parameters by name."""
    if not isinstance(asked, dict) or asked.get("jsonrpc") != "2.0" or not isinstance(asked.get("method"), str):
        raise _Failed(INVALID_REQUEST, 'A request is an object with "jsonrpc": "2.0" and a method.')
    if not _is_id(asked.get("id")):
        raise _Failed(INVALID_REQUEST, f"id must be a number, or a text of at most {MAX_ID} characters.")
    params = asked.get("params", {})
    if not isinstance(params, dict | list):
        raise _Failed(INVALID_REQUEST, "params must be an object or a list.")
    verb = VERBS.get(asked["method"])
    if verb is None:
        raise _Failed(METHOD_NOT_FOUND, f"The methods are {', '.join(VERBS)}.")
    if isinstance(params, list):
        if len(params) > len(verb.names):
            raise _Failed(INVALID_PARAMS, f"By position there are {len(verb.names)} parameters.")
        params = dict(zip(verb.names, params, strict=False))
    return verb, dict(params)


def _is_id(id: Any) -> bool:
    if isinstance(id, str):
        return len(id) <= MAX_ID
    if isinstance(id, int | float) and not isinstance(id, bool):
        return abs(id) <= MAX_INTEGER
    return id is None


async def _answered(here: Platform, caller: Principal, asked: Any) -> Json | None:
    """The answer to one request; None to a notification, which is done all the same."""
    given = asked.get("id") if isinstance(asked, dict) else None
    answer: Json = {"jsonrpc": "2.0", "id": given if _is_id(given) else None}
    try:
        verb, params = _checked(asked)
        answer["result"] = await _done(verb, here, caller, params)
    except _Failed as failed:
        if failed.body["code"] == INVALID_REQUEST:
            return answer | {"error": failed.body}
        answer["error"] = failed.body
    return answer if "id" in asked else None


async def _done(verb: _Verb, here: Platform, caller: Principal, params: Json) -> Any:
    try:
        return await verb.call(here, caller, params)
    except _Failed:
        raise
    except Exception as error:
        told = _told(error)
        raise _failed(told.status, told.message, told.code, told.param) from None


def _told(error: Exception) -> AppError:
    if isinstance(error, ValidationError):
        return sentence(error)
    return known(error)


BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {
                    "oneOf": [
                        {
                            "type": "object",
                            "required": ["jsonrpc", "method"],
                            "properties": {
                                "jsonrpc": {"const": "2.0"},
                                "id": {"anyOf": [{"type": "string"}, {"type": "number"}, {"type": "null"}]},
                                "method": {"enum": list(VERBS)},
                                "params": {"anyOf": [{"type": "object"}, {"type": "array"}]},
                            },
                        },
                        {"type": "array", "minItems": 1, "maxItems": MAX_BATCH, "items": {"type": "object"}},
                    ]
                },
                "example": {
                    "jsonrpc": "2.0",
                    "id": 1,
                    "method": "call_model",
                    "params": {"model": "fake_echo_agent", "prompt": "Hello"},
                },
            }
        },
    }
}
ANSWERS: dict[int | str, Json] = {
    200: {
        "content": {
            "application/json": {
                "schema": {"anyOf": [{"type": "object"}, {"type": "array"}]},
                "example": {"jsonrpc": "2.0", "id": 1, "result": {"models": [{"id": "fake_echo_agent"}]}},
            }
        }
    },
    204: {"description": "there were notifications only"},
}


@router.post("/mcp", response_class=Response, responses=ANSWERS, openapi_extra=BODY)
async def coordinate_models(here: Here, caller: Chat, request: Request) -> Response:
    """The Model Coordination Protocol: `list_models`, `get_model_info` and `call_model` by JSON-RPC 2.0, one or in a batch.

    `call_model` takes what `/v1/chat/completions` takes, or a `prompt` in place of messages, and gives what that gives; each call is a
    run, and metered. Errors of JSON-RPC come with the status 200.
    """
    body = await request.body()
    try:
        asked = strict_json(body)
    except InvalidInput as error:
        return _response({"jsonrpc": "2.0", "id": None, "error": {"code": PARSE_ERROR, "message": error.message}})
    if not isinstance(asked, list):
        return _response(await _answered(here, caller, asked))
    if not 0 < len(asked) <= MAX_BATCH:
        error_of_batch = {"code": INVALID_REQUEST, "message": f"A batch has 1 to {MAX_BATCH} requests."}
        return _response({"jsonrpc": "2.0", "id": None, "error": error_of_batch})
    for _ in asked[1:]:  # the gate has counted one
        if rate := await here.rates.take(caller.user.id):
            rate.check()
    answers = await asyncio.gather(*(_answered(here, caller, each) for each in asked))
    return _response([answer for answer in answers if answer is not None] or None)


def _response(answer: Any) -> Response:
    if answer is None:
        return Response(status_code=204)
    return Response(msgspec.json.encode(answer), media_type="application/json")
