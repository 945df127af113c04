"""REST: a session as a document, a session from one, and sessions from what other platforms export."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Annotated, Any, Literal
from uuid import UUID

import msgspec
from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from app.api.callers import Chat, Here, StrictRoute
from app.api.fields import AgentId, Id, Key, is_crowded
from app.api.gate import Allowance
from app.api.models import Out, SessionOut
from app.api.pieces import Pieces
from app.domain import Principal
from app.errors import InvalidInput, TooLarge
from app.usecases import copies, imports, session_form
from app.usecases.platform import Platform

IMPORT_PATH = "/api/v1/imports"
MAX_VALUES = 1_500_000
"""How many values what is imported may have: more than the largest document of a session, whose bounds are in `session_form`."""
ALLOWANCES = {
    IMPORT_PATH: Allowance(
        copies.MAX_BYTES, partial(TooLarge, f"What is imported may have at most {copies.MAX_BYTES} bytes at once.")
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
CHATS = {"type": "array", "items": {"type": "object"}, "description": "chats, as the other platform exports them"}
BODY = {"application/json": {"schema": {"anyOf": [DOCUMENT["application/json"]["schema"], CHATS]}, "example": EXAMPLE}}
RESPONSES: dict[int | str, dict[str, Any]] = {200: {"content": DOCUMENT}}

router = APIRouter(route_class=StrictRoute, tags=["sessions"])


@router.get("/api/v1/sessions/{session_id}/export", response_class=Response, responses=RESPONSES)
async def export_session(here: Here, caller: Chat, session_id: Id) -> Response:
    """A session with its parameters, all branches, feedback, agents' state and memories, as one document. It streams."""
    pieces = copies.export(here, caller, session_id)
    first = await anext(pieces)  # so that a refusal comes before the headers
    headers = {"content-disposition": f'attachment; filename="session-{session_id}.json"'}
    return Pieces(first, pieces, headers, media_type="application/json")


class ImportedOut(Out):
    """What became of a chat: a session is `made`; or it was imported before, is empty, or is refused for an `error` at `param`."""

    index: int
    status: Literal["made", "known", "empty", "refused"]
    title: str | None
    session_id: UUID | None
    left_out: int
    error: str | None
    param: str | None


class ImportOut(Out):
    """What became of the chats of an export, in its order."""

    object: Literal["import"] = "import"
    format: Literal["chatgpt", "open-webui"]
    made: int
    known: int
    empty: int
    refused: int
    data: list[ImportedOut]


Agent = Annotated[AgentId | None, Query(description="who goes on with the chats of another platform")]
Form = Annotated[
    Literal["chattable", "chatgpt", "open-webui"] | None,
    Query(alias="format", description="what the body is; recognised by default"),
]


@router.post(IMPORT_PATH, status_code=201, openapi_extra={"requestBody": {"required": True, "content": BODY}})
async def import_session(
    here: Here,
    caller: Chat,
    request: Request,
    agent: Agent = None,
    form: Form = None,
    idempotency_key: Key = None,
) -> SessionOut | ImportOut:
    """A new session from the document of an export; or one of each chat in an export of ChatGPT or Open WebUI, once. With new ids."""
    body = await request.body()
    async with here.imports.one():
        return await _taken(here, caller, body, agent, form, idempotency_key)


async def _taken(
    here: Platform, caller: Principal, body: bytes, agent: str | None, form: Form, key: str | None
) -> SessionOut | ImportOut:
    if await asyncio.to_thread(is_crowded, body, MAX_VALUES):
        raise InvalidInput(f"What is imported may have at most {MAX_VALUES} values at once.")
    if form == "chattable" or (form is None and await asyncio.to_thread(imports.is_session, body)):
        return SessionOut.of(await copies.take(here, caller, body, key=key))
    name, found = await imports.take(here, caller, body, agent=agent, form=form)
    data = [ImportedOut.model_validate(each) for each in found]
    return ImportOut(format=name, **imports.tally(found), data=data)
