"""REST: sessions, messages and runs under `/api/v1`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Header, Query
from starlette.responses import Response

from app.api import wire
from app.api.callers import Chat, Here, Reader, StrictRoute
from app.api.fields import After, Id, Key, Limit, Text, Title, UserRef
from app.api.models import (
    AcceptedOut,
    AnswerIn,
    AnswerOut,
    FeedbackIn,
    ListOf,
    MessageOut,
    RegenerateIn,
    RunOut,
    SendIn,
    SessionChange,
    SessionIn,
    SessionOut,
    page,
)
from app.usecases import messages, reading, runs, sessions

router = APIRouter(prefix="/api/v1", route_class=StrictRoute)
EVENTS: dict[int | str, dict[str, Any]] = {200: {"content": wire.EVENT_STREAM}}
Order = Literal["asc", "desc"]
SENT = {**EVENTS, 202: {"model": AcceptedOut}}


@router.post("/sessions", status_code=201, tags=["sessions"])
async def create_session(here: Here, caller: Chat, body: SessionIn, idempotency_key: Key = None) -> SessionOut:
    """Begin a conversation with an agent. Requests with the same `Idempotency-Key` make one session, for a day."""
    user = await sessions.resolve_user(here, caller, body.user_id)
    created = await sessions.create(
        here,
        user,
        agent_id=body.agent.id,
        agent_params=body.agent.params,
        params=body.session_params.to_domain(),
        title=body.title,
        key=idempotency_key,
        sees_all=caller.acts_for_all,
    )
    return SessionOut.of(created)


@router.get("/sessions", tags=["sessions"])
async def list_sessions(
    here: Here,
    caller: Chat,
    limit: Limit = 20,
    after: After = None,
    archived: bool = False,
    title: Title | None = None,
    user_id: Annotated[UserRef | None, Query(description="of this user: for administrators")] = None,
) -> ListOf[SessionOut]:
    """The caller's sessions, the last active first; `title` finds those that contain it.

    An administrator sees of others' that they exist, and with `ADMIN_READS_CHATS` what they are about.
    """
    user = await sessions.resolve_user(here, caller, user_id)
    found = await sessions.list_page(
        here,
        await reading.lister(here, caller, user),
        user,
        after=after,
        limit=limit,
        archived=archived,
        title=title,
    )
    return page(SessionOut.of, found)


@router.get("/sessions/{session_id}", tags=["sessions"])
async def get_session(here: Here, caller: Reader, session_id: Id) -> SessionOut:
    """A session and what it has used."""
    return SessionOut.of(*await sessions.get(here, caller, session_id))


@router.patch("/sessions/{session_id}", tags=["sessions"])
async def update_session(here: Here, caller: Chat, session_id: Id, body: SessionChange) -> SessionOut:
    """Change a session's title, parameters, agent, archive mark or active branch."""
    return SessionOut.of(await sessions.update(here, caller, session_id, body.changes()))


@router.delete("/sessions/{session_id}", status_code=204, tags=["sessions"])
async def delete_session(here: Here, caller: Chat, session_id: Id) -> None:
    """Erase a session with everything in it."""
    await sessions.delete(here, caller, session_id)


@router.post("/sessions/{session_id}/messages", response_model=AnswerOut, responses=SENT, tags=["messages"])
async def send_message(here: Here, caller: Chat, session_id: Id, body: SendIn, idempotency_key: Key = None) -> Response:
    """Send a message and get its answer: whole, or as server-sent events with `stream`; in the background, 202 and the run."""
    live = await messages.send(
        here,
        caller,
        session_id,
        body.content,
        parts=body.parts or (),
        additional_kwargs=body.additional_kwargs,
        parent_id=body.parent_id,
        at_leaf="parent_id" not in body.model_fields_set,
        key=idempotency_key,
        background=body.background,
        batch=body.batch,
    )
    return await wire.respond(here, live, stream=body.stream)


@router.get("/sessions/{session_id}/messages", tags=["messages"])
async def list_messages(
    here: Here, caller: Reader, session_id: Id, limit: Limit = 50, after: After = None, order: Order = "asc"
) -> ListOf[MessageOut]:
    """A session's messages, every branch, oldest first unless `order` says otherwise."""
    newest_first = order == "desc"
    found = await messages.list_page(here, caller, session_id, after=after, limit=limit, newest_first=newest_first)
    return page(MessageOut.model_validate, found)


@router.get("/sessions/{session_id}/runs", tags=["runs"])
async def list_runs(
    here: Here, caller: Reader, session_id: Id, limit: Limit = 20, after: After = None, order: Order = "asc"
) -> ListOf[RunOut]:
    """A session's runs, oldest first unless `order` says otherwise."""
    newest_first = order == "desc"
    found = await runs.list_page(here, caller, session_id, after=after, limit=limit, newest_first=newest_first)
    return page(RunOut.model_validate, found)


@router.get("/messages", tags=["messages"])
async def search_messages(
    here: Here, caller: Chat, q: Annotated[Text, Query(min_length=1)], limit: Limit = 20, after: After = None
) -> ListOf[MessageOut]:
    """The caller's messages that have every word of `q`, newest first."""
    return page(MessageOut.model_validate, await messages.find(here, caller, q, after=after, limit=limit))


@router.get("/messages/{message_id}", tags=["messages"])
async def get_message(here: Here, caller: Reader, message_id: Id) -> MessageOut:
    """One message."""
    return MessageOut.model_validate(await messages.get(here, caller, message_id))


@router.patch("/messages/{message_id}/feedback", tags=["messages"])
async def rate_message(here: Here, caller: Chat, message_id: Id, body: FeedbackIn) -> MessageOut:
    """Set thumb and comment of an answer."""
    changes = body.model_dump(include=body.model_fields_set)
    return MessageOut.model_validate(await messages.rate(here, caller, message_id, changes))


@router.post("/messages/{message_id}/regenerate", response_model=AnswerOut, responses=EVENTS, tags=["messages"])
async def regenerate_message(
    here: Here, caller: Chat, message_id: Id, body: RegenerateIn, idempotency_key: Key = None
) -> Response:
    """Answer a message once more; the new answer becomes a sibling."""
    begun = await messages.regenerate(here, caller, message_id, key=idempotency_key)
    return await wire.respond(here, begun, stream=body.stream)


@router.get("/runs/{run_id}", tags=["runs"])
async def get_run(here: Here, caller: Reader, run_id: Id) -> RunOut:
    """A run: its state, usage and error."""
    return RunOut.model_validate(await runs.get(here, caller, run_id))


@router.get("/runs/{run_id}/events", response_class=Response, responses=EVENTS, tags=["runs"])
async def follow_run(
    here: Here, caller: Chat, run_id: Id, last_event_id: Annotated[int, Header(ge=0, le=2**53)] = 0
) -> Response:
    """A run's events after `Last-Event-ID`, from any replica, while it runs or after it has ended."""
    run, log = await runs.resume(here, caller, run_id)
    return wire.EventStream(wire.sse(log, run, last_event_id) if log else wire.followed(here, run, last_event_id))


@router.post("/runs/{run_id}/answer", tags=["runs"], response_model=AnswerOut, responses=EVENTS)
async def answer_run(here: Here, caller: Chat, run_id: Id, body: AnswerIn) -> Response:
    """Answer what a waiting run asks: it goes on, and its answer comes as that of a message does."""
    return await wire.respond(here, await runs.answer(here, caller, run_id, body.answer), stream=body.stream)


@router.post("/runs/{run_id}/cancel", tags=["runs"])
async def cancel_run(here: Here, caller: Chat, run_id: Id) -> RunOut:
    """End an answer early; what was said so far is kept."""
    return RunOut.model_validate(await runs.cancel(here, caller, run_id))
