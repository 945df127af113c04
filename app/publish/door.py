"""The one route of a published agent: who calls, how often, with what; and every error in the form of OpenAI's protocol."""

from __future__ import annotations

import hmac
from collections.abc import Sequence
from hashlib import sha256
from typing import Any
from uuid import NAMESPACE_URL, uuid5

from fastapi import FastAPI
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from app.agent.request import OpenAIRequest
from app.api import openai_errors
from app.api.callers import strict_json
from app.api.gate import bounded, whole_body
from app.api.openai_models import MAX_MESSAGES, checked, messages_of
from app.api.problems import STATUS_CODES, known, sentence
from app.errors import AppError, InvalidInput, NotAuthenticated
from app.llm.tokens import count_messages
from app.publish.answering import Asked
from app.publish.sessions import Sessions
from app.publish.streamer import MODEL, DataStreamer
from app.usecases.calls import names_of
from app.usecases.rates import Rates

MAX_NAME = 256
"""The longest `session_id`, `user` and `model`, in characters."""
MAX_TOOLS = 128


class Keys:
    """The keys of callers."""

    def __init__(self, keys: Sequence[str]) -> None:
        if not all(keys):
            raise ValueError("an API key must not be empty")
        self._digests = [_digest(key) for key in keys]

    def __bool__(self) -> bool:
        return bool(self._digests)

    def owner(self, request: Request) -> str:
        """Who calls: the key that was shown, or where none is asked for whatever proves him, or his address.

        Every key is compared, in constant time; `NotAuthenticated` for none of them.
        """
        scheme, _, secret = request.headers.get("authorization", "").partition(" ")
        digest = _digest(secret.strip()) if scheme.lower() == "bearer" and secret.strip() else ""
        if self._digests:
            if not sum(hmac.compare_digest(digest, each) for each in self._digests):
                raise NotAuthenticated("A valid API key is required.")
            return f"key {digest}"
        return f"bearer {digest}" if digest else f"address {request.client.host if request.client else ''}"


class Door:
    """Takes requests."""

    def __init__(
        self, asked: Asked, sessions: Sessions, wanted: type[OpenAIRequest], keys: Keys, rates: Rates, timeout: float
    ) -> None:
        self._asked, self._sessions, self._wanted = asked, sessions, wanted
        self._keys, self._rates, self._timeout = keys, rates, timeout

    async def enter(self, request: Request) -> Response:
        """Answer a request, or say what is wrong with it."""
        headers: dict[str, str] = {}
        try:
            owner = self._keys.owner(request)
            # Without keys a caller could choose a new name for each request, but not a new address.
            counted = owner if self._keys else f"address {request.client.host if request.client else ''}"
            if rate := await self._rates.take(uuid5(NAMESPACE_URL, counted)):
                headers.update(rate.headers)
                rate.check()
            response = await self._answer(await self._read(request), owner)
        except ClientDisconnect:
            raise
        except Exception as error:
            response = refused(error)
        response.headers.update({**headers, "cache-control": "no-store"})
        return response

    async def _answer(self, body: OpenAIRequest, owner: str) -> Response:
        options = getattr(body, "stream_options", None)
        streamer = DataStreamer(
            self._timeout,
            body.model or MODEL,
            include_usage=isinstance(options, dict) and options.get("include_usage") is True,
            tools=names_of(body.tools),
            prompt_tokens=count_messages(body.messages),
        )
        turn = None
        if body.session_id:
            key = _digest("\0".join([owner, body.user or "", body.session_id]))
            turn = self._sessions.turn(key, self._asked.memory_cls)
        self._asked.start(body, streamer, turn)
        return await streamer.respond(stream=body.stream)

    async def _read(self, request: Request) -> OpenAIRequest:
        given = strict_json(await whole_body(bounded(request.receive)))
        if not isinstance(given, dict):
            raise InvalidInput("The body must be an object.", param="body")
        try:
            checked(given)
            body = self._wanted.model_validate({name: value for name, value in given.items() if value is not None})
            if len(body.messages) > MAX_MESSAGES:
                raise InvalidInput(f"messages: must be at most {MAX_MESSAGES}.", param="messages")
            body.messages = messages_of(body.messages)
        except ValidationError as error:
            raise sentence(error) from None
        except ValueError as error:
            raise InvalidInput(f"messages{error}." if str(error).startswith("[") else f"The body {error}.") from None
        for name in ("session_id", "user", "model"):
            if len(getattr(body, name) or "") > MAX_NAME:
                raise InvalidInput(f"{name}: must have at most {MAX_NAME} characters.", param=name)
        if len(body.tools or ()) > MAX_TOOLS:
            raise InvalidInput(f"tools: must be at most {MAX_TOOLS}.", param="tools")
        hidden = {"authorization"} if self._keys else set()
        body.set_headers({name: value for name, value in request.headers.items() if name not in hidden})
        return body


def refused(raised: Exception) -> Response:
    """The answer for anything that was raised."""
    error: AppError = known(raised)
    return openai_errors.response(error.to_dict(), retry_after=error.retry_after)


def install(app: FastAPI, door: Door, path: str) -> None:
    """Add the route, and errors in its form for all others."""

    async def chat_completions(request: Request) -> Response:
        """An answer of the agent, whole or with `stream`, which is the default, as server-sent events."""
        return await door.enter(request)

    schema: Any = {"application/json": {"schema": door._wanted.model_json_schema(ref_template="#/$defs/{model}")}}
    app.add_api_route(
        path,
        chat_completions,
        methods=["POST"],
        response_model=None,
        openapi_extra={"requestBody": {"required": True, "content": schema}},
    )

    async def strayed(_: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)  # noqa: S101 - what it is installed for
        code = STATUS_CODES.get(error.status_code, "http_error")
        answer = openai_errors.response({"code": code, "status": error.status_code, "message": str(error.detail)[:200]})
        answer.headers.update(error.headers or {})
        return answer

    app.add_exception_handler(HTTPException, strayed)


def _digest(text: str) -> str:
    return sha256(text.encode(errors="replace")).hexdigest()
