"""The Conversations API of OpenAI: our sessions, as its clients know them."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path
from starlette.responses import Response

from app.api.callers import Chat, Here, StrictRoute
from app.api.fields import Key
from app.api.openai_models import Json
from app.api.responses import AfterItem, Limit, Order, messages_of, page
from app.api.responses_items import id_in, items_of, message_in
from app.api.responses_models import (
    ChangeBody,
    ConversationBody,
    ConversationOut,
    DeletedOut,
    ItemOut,
    ItemsBody,
    ItemsOut,
)
from app.api.responses_wire import answer
from app.domain import Session
from app.errors import InvalidInput, NotFound
from app.usecases import conversations
from app.usecases.completions import stored_form

router = APIRouter(route_class=StrictRoute, tags=["openai"], default_response_class=Response)
ConversationId = Annotated[str, Path(max_length=100, description="`conv_…`")]
ItemId = Annotated[str, Path(max_length=100, description="`msg_…`, `fc_…`, `fco_…` or `rs_…`")]


def _shown(session: Session) -> Json:
    made = int(session.created_at.timestamp()) if session.created_at else 0
    id = f"conv_{session.id.hex}"
    return {"id": id, "object": "conversation", "created_at": made, "metadata": session.metadata}


@router.post("/conversations", responses={200: {"model": ConversationOut}})
async def create_conversation(
    here: Here, caller: Chat, body: ConversationBody, idempotency_key: Key = None
) -> Response:
    """Begin a conversation, with what was said before. It is a session like any other, of the agent `model` until another is chosen."""
    said = stored_form(await messages_of(here, caller, body.items, "items")) if body.items else []
    return answer(_shown(await conversations.create(here, caller, body.metadata or {}, said, idempotency_key)))


@router.get("/conversations/{conversation_id}", responses={200: {"model": ConversationOut}})
async def get_conversation(here: Here, caller: Chat, conversation_id: ConversationId) -> Response:
    """A conversation: any session of the caller."""
    return answer(_shown(await conversations.get(here, caller, id_in("conv", conversation_id))))


@router.post("/conversations/{conversation_id}", responses={200: {"model": ConversationOut}})
async def update_conversation(here: Here, caller: Chat, conversation_id: ConversationId, body: ChangeBody) -> Response:
    """Keep other metadata with a conversation, instead of what was kept."""
    id = id_in("conv", conversation_id)
    return answer(_shown(await conversations.update(here, caller, id, body.metadata or {})))


@router.delete("/conversations/{conversation_id}", responses={200: {"model": DeletedOut}})
async def delete_conversation(here: Here, caller: Chat, conversation_id: ConversationId) -> Response:
    """Erase a conversation with all that was said in it, and all its responses."""
    id = id_in("conv", conversation_id)
    await conversations.delete(here, caller, id)
    return answer({"id": f"conv_{id.hex}", "object": "conversation.deleted", "deleted": True})


@router.post("/conversations/{conversation_id}/items", responses={200: {"model": ItemsOut}})
async def add_items(here: Here, caller: Chat, conversation_id: ConversationId, body: ItemsBody) -> Response:
    """Add items that nobody is to answer; not while an answer is on its way."""
    said = stored_form(await messages_of(here, caller, body.items, "items"))
    added = await conversations.append(here, caller, id_in("conv", conversation_id), said)
    items = items_of(added, {})
    return answer(page(items, None, len(items)))


@router.get("/conversations/{conversation_id}/items", responses={200: {"model": ItemsOut}})
async def list_items(
    here: Here,
    caller: Chat,
    conversation_id: ConversationId,
    limit: Limit = 20,
    order: Order = "desc",
    after: AfterItem = None,
) -> Response:
    """The items of the active branch. A page ends early where its content is large."""
    found, runs = await conversations.page(
        here,
        caller,
        id_in("conv", conversation_id),
        after=None if after is None else message_in(after),
        limit=limit + 1,
        newest_first=order == "desc",
    )
    step = -1 if order == "desc" else 1
    items = [item for message in found.items for item in items_of([message], runs)[::step]]
    return answer(page(items, after, limit, has_more=found.has_more))


@router.get("/conversations/{conversation_id}/items/{item_id}", responses={200: {"model": ItemOut}})
async def get_item(here: Here, caller: Chat, conversation_id: ConversationId, item_id: ItemId) -> Response:
    """One of them."""
    found, runs = await conversations.page(
        here, caller, id_in("conv", conversation_id), after=message_in(item_id), limit=1, newest_first=False
    )
    for item in items_of(found.items, runs):
        if item["id"] == item_id:
            return answer(item)
    raise NotFound("item", param="item_id")


@router.delete("/conversations/{conversation_id}/items/{item_id}")
async def delete_item(here: Here, caller: Chat, conversation_id: ConversationId, item_id: ItemId) -> Response:
    """Refused: what was said is the history that later answers were given to. A conversation is deleted as a whole."""
    await get_item(here, caller, conversation_id, item_id)
    raise InvalidInput("An item cannot be deleted by itself; delete the conversation.", param="item_id")
