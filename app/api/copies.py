"""REST: a session as a document, and a session from one."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from functools import partial
from typing import Any

import msgspec
from fastapi import APIRouter, Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from app.api.callers import Chat, Here, StrictRoute
from app.api.fields import Id, Key
from app.api.gate import Allowance
from app.api.models import SessionOut
from app.errors import TooLarge
from app.usecases import copies, session_form

IMPORT_PATH = "/api/v1/imports"
ALLOWANCES = {
    IMPORT_PATH: Allowance(
        copies.MAX_BYTES, partial(TooLarge, f"A session's document may have at most {copies.MAX_BYTES} bytes.")
    )
}
"""How large the bodies of these routes may be."""
EXAMPLE = {
    "format": "chattable.session",
    "version": session_form.VERSION,
    "session": {"agent": {"id": "fake_echo_agent"}, "created_at": "2030-01-01T12:00:00Z"},
    "messages": [],
    "memories": [],
}
_PREFIX = "#/components/schemas/"


def _schema() -> dict[str, Any]:
    """The schema of the document, in one piece."""
    (top,), named = msgspec.json.schema_components([session_form.Document], ref_template=_PREFIX + "{name}")

    def whole(value: Any) -> Any:
        if isinstance(value, list):
            return [whole(item) for item in value]
        if not isinstance(value, dict):
            return value
        if reference := value.get("$ref"):
            return whole(named[reference.removeprefix(_PREFIX)])
        return {name: whole(item) for name, item in value.items()}

    found: dict[str, Any] = whole(top)
    return found


DOCUMENT = {"application/json": {"schema": _schema(), "example": EXAMPLE}}
RESPONSES: dict[int | str, dict[str, Any]] = {200: {"content": DOCUMENT}}

router = APIRouter(route_class=StrictRoute, tags=["sessions"])


@router.get("/api/v1/sessions/{session_id}/export", response_class=Response, responses=RESPONSES)
async def export_session(here: Here, caller: Chat, session_id: Id) -> Response:
    """A session with its parameters, all branches, feedback, agents' state and memories, as one document. It streams."""
    pieces = copies.export(here, caller, session_id)
    first = await anext(pieces)  # so that a refusal comes before the headers
    return _Pieces(first, pieces, f'attachment; filename="session-{session_id}.json"')


@router.post(IMPORT_PATH, status_code=201, openapi_extra={"requestBody": {"required": True, "content": DOCUMENT}})
async def import_session(here: Here, caller: Chat, request: Request, idempotency_key: Key = None) -> SessionOut:
    """A new session of the caller from the document of an export, with new ids. Requests with one `Idempotency-Key` make one."""
    return SessionOut.of(await copies.take(here, caller, await request.body(), key=idempotency_key))


class _Pieces(StreamingResponse):
    """Pieces of JSON that are closed with the answer, whether or not they were read to the end."""

    def __init__(self, first: bytes, rest: AsyncGenerator[bytes, None], disposition: str) -> None:
        headers = {"content-disposition": disposition}
        super().__init__(self._joined(first, rest), media_type="application/json", headers=headers)
        self._rest = rest

    @staticmethod
    async def _joined(first: bytes, rest: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
        yield first
        async for piece in rest:
            yield piece

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with aclosing(self._rest):
            await super().__call__(scope, receive, send)
