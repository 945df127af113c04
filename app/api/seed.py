"""The verbs of seed 003, and others in the same style."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import UUID

from fastapi import APIRouter
from msgspec.structs import asdict
from pydantic import BaseModel, Field, ValidationError, computed_field
from starlette.datastructures import Headers
from starlette.responses import Response

from app import domain
from app.api import rest
from app.api.callers import Chat, Here, StrictRoute, need, typed_json
from app.api.fields import Id, Key, UserRef, checked_key
from app.api.models import (
    AgentOfSession,
    AgentOut,
    AnswerOut,
    In,
    MessageOut,
    RunOut,
    SendIn,
    SessionChange,
    SessionIn,
    UsageOut,
)
from app.api.presets import PresetOut, listed
from app.api.problems import sentence
from app.domain import Principal, Scope
from app.usecases import messages, runs, sessions
from app.usecases.platform import Platform

router = APIRouter(route_class=StrictRoute, tags=["verbs"])


class SessionId(In):
    """Which session."""

    session_id: Id


class RunId(In):
    """Which run."""

    run_id: Id


class ListIn(In):
    """A page: how many at most, after the id of the last one already seen."""

    limit: int = Field(20, ge=1, le=100)
    after: Id | None = None


class ListSessionsIn(ListIn):
    """Whose sessions."""

    user_id: UserRef | None = None
    archived: bool = False


class ListMessagesIn(ListIn):
    """Which session's messages."""

    session_id: Id
    limit: int = Field(50, ge=1, le=100)


class SendMessageIn(SendIn):
    """A message. With `parent_id` it follows that message (null: nothing) instead of the active branch's last."""

    session_id: Id


class UpdateSessionIn(SessionChange):
    """Which session, and what to change."""

    session_id: Id


class Created(BaseModel):
    """The new session's id."""

    id: UUID


class SessionItem(BaseModel):
    """A session in the words of seed 003. `user_id` is the user's name, as a number when it is one."""

    id: UUID
    user_id: int | str
    session_params: dict[str, Any]
    agent: AgentOfSession
    title: str | None
    leaf_id: UUID | None
    create_at: datetime | None
    update_at: datetime | None
    archived: bool
    usage: UsageOut | None = None

    @classmethod
    def of(cls, session: domain.Session, usage: domain.Usage | None = None) -> SessionItem:
        """A session as this edge gives it."""
        params = asdict(session.params)
        return cls(
            id=session.id,
            user_id=_user_id(session.user.name),
            session_params={name: value for name, value in params.items() if value is not None},
            agent=AgentOfSession.of(session),
            title=session.title,
            leaf_id=session.leaf_id,
            create_at=session.created_at,
            update_at=session.updated_at,
            archived=session.archived_at is not None,
            usage=UsageOut.model_validate(usage) if usage else None,
        )


class SessionItems(BaseModel):
    """A page of sessions."""

    items: list[SessionItem]
    has_more: bool


class MessageItem(MessageOut):
    """A message, with its time under the seed's name too."""

    @computed_field  # type: ignore[prop-decorator]  # mypy does not know decorated properties
    @property
    def create_at(self) -> datetime | None:
        """When it was made."""
        return self.created_at


class MessageItems(BaseModel):
    """A page of messages, oldest first."""

    items: list[MessageItem]
    has_more: bool


class AgentItems(BaseModel):
    """Agents that can be picked, and files that failed to load; presets by the page, after all of these."""

    items: list[AgentOut | PresetOut]
    has_more: bool


def _user_id(name: str) -> int | str:
    return int(name) if name.isascii() and name.isdigit() and str(int(name)) == name else name


@router.post("/CreateSession")
async def create_session(here: Here, caller: Chat, body: SessionIn, idempotency_key: Key = None) -> Created:
    """Begin a conversation with an agent."""
    return Created(id=(await rest.create_session(here, caller, body, idempotency_key)).id)


@router.post("/ListSessions")
async def list_sessions(here: Here, caller: Chat, body: ListSessionsIn) -> SessionItems:
    """A user's sessions, the last active first."""
    user = await sessions.resolve_user(here, caller, body.user_id)
    found = await sessions.list_page(here, caller, user, after=body.after, limit=body.limit, archived=body.archived)
    return SessionItems(items=[SessionItem.of(session) for session in found.items], has_more=found.has_more)


@router.post("/GetSession")
async def get_session(here: Here, caller: Chat, body: SessionId) -> SessionItem:
    """A session and what it has used."""
    return SessionItem.of(*await sessions.get(here, caller, body.session_id))


@router.post("/UpdateSession")
async def update_session(here: Here, caller: Chat, body: UpdateSessionIn) -> SessionItem:
    """Change a session's title, parameters, agent, archive mark or active branch."""
    return SessionItem.of(await sessions.update(here, caller, body.session_id, body.changes()))


@router.post("/DeleteSession", status_code=204)
async def delete_session(here: Here, caller: Chat, body: SessionId) -> None:
    """Erase a session with everything in it."""
    await sessions.delete(here, caller, body.session_id)


@router.post("/SendMessage", response_model=AnswerOut, responses=rest.SENT)
async def send_message(here: Here, caller: Chat, body: SendMessageIn, idempotency_key: Key = None) -> Response:
    """Send a message and get its answer: whole, or as server-sent events with `stream`; in the background, 202 and the run.

    Requests with the same `Idempotency-Key` are one message with one answer, for a day.
    """
    return await rest.send_message(here, caller, body.session_id, body, idempotency_key)


async def send_message_directly(here: Platform, principal: Principal, headers: Headers, body: bytes) -> Response:
    """`/SendMessage` past FastAPI: the same models, the same function, a third of a millisecond less."""
    need(Scope.CHAT, principal)
    try:
        wanted = SendMessageIn.model_validate(typed_json(headers, body))
    except ValidationError as error:
        raise sentence(error) from None
    return await send_message(here, principal, wanted, checked_key(headers.get("idempotency-key")))


SHORTCUTS = {"/SendMessage": send_message_directly}


@router.post("/ListMessages")
async def list_messages(here: Here, caller: Chat, body: ListMessagesIn) -> MessageItems:
    """A session's messages, every branch, oldest first."""
    found = await messages.list_page(here, caller, body.session_id, after=body.after, limit=body.limit)
    return MessageItems(items=[MessageItem.model_validate(item) for item in found.items], has_more=found.has_more)


@router.post("/ListAgents")
async def list_agents(here: Here, caller: Chat, body: ListIn | None = None) -> AgentItems:
    """The agents that can be picked, with the schema of their parameters; `limit` and `after` are about presets."""
    wanted = body or ListIn(limit=100, after=None)
    found = await listed(here, caller, after=wanted.after, limit=wanted.limit)
    return AgentItems(items=found.data, has_more=found.has_more)


@router.post("/CancelRun")
async def cancel_run(here: Here, caller: Chat, body: RunId) -> RunOut:
    """End an answer early; what was said so far is kept."""
    return RunOut.model_validate(await runs.cancel(here, caller, body.run_id))
