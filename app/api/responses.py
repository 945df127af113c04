"""The Responses API of OpenAI: our runs, as its clients know them."""

from __future__ import annotations

from typing import Annotated, Any, Literal
from uuid import UUID

from fastapi import APIRouter, Path, Query, Request
from starlette.responses import Response

from app.api.callers import Chat, Here, StrictRoute
from app.api.fields import Key
from app.api.openai import told
from app.api.openai_models import Json
from app.api.responses_items import id_in, items_of, references, to_messages
from app.api.responses_models import DeletedOut, ItemsOut, ResponseBody, ResponseIn, ResponseOut, chat_tools
from app.api.responses_wire import Form, answer, listing, shown, streamed, whole
from app.domain import Principal, Run
from app.errors import InvalidInput
from app.usecases import responses
from app.usecases.calls import names_of
from app.usecases.live import LiveRun
from app.usecases.platform import Platform

router = APIRouter(route_class=StrictRoute, tags=["openai"])
ResponseId = Annotated[str, Path(max_length=100, description="`resp_…`")]
Limit = Annotated[int, Query(ge=1, le=100, description="how many at most")]
Order = Annotated[Literal["asc", "desc"], Query(description="from the oldest or from the newest")]
AfterItem = Annotated[str | None, Query(max_length=100, description="the id of the last item already seen")]
STREAMED: dict[int | str, dict[str, Any]] = {
    200: {
        "model": ResponseOut,
        "content": {
            "text/event-stream": {
                "itemSchema": {
                    "type": "object",
                    "required": ["event", "data"],
                    "properties": {
                        "event": {"type": "string", "description": "as `type` in the data"},
                        "data": {"type": "string", "contentMediaType": "application/json"},
                    },
                },
                "example": 'event: response.created\ndata: {"type":"response.created","sequence_number":0,"response":{…}}\n\n',
            },
        },
    }
}


@router.post("/responses", response_class=Response, responses=STREAMED)
async def create_response(
    here: Here, caller: Chat, body: ResponseBody, request: Request, idempotency_key: Key = None
) -> Response:
    """Have an agent, or a language model, answer: whole, as server-sent events with `stream`, or later with `background`.

    The input follows the conversation or the previous response that is named; else it is all the history there is.
    """
    _check(body)
    begun = await responses.begin(
        here,
        caller,
        body.request(await messages_of(here, caller, body.input, "input")),
        told(request.headers),
        echo=body.echo() if body.store is not False else None,
        conversation_id=None if body.conversation_id is None else id_in("conv", body.conversation_id),
        previous_id=None if body.previous_response_id is None else id_in("resp", body.previous_response_id),
        key=idempotency_key,
    )
    return await _respond(here, begun, body)


def _check(body: ResponseIn) -> None:
    if body.conversation_id is not None and body.previous_response_id is not None:
        raise InvalidInput("conversation: give it, or previous_response_id, but not both.", param="conversation")
    if body.store is False and body.conversation_id is not None:
        raise InvalidInput("store: what is said in a conversation is stored.", param="store")
    if body.store is False and body.background:
        raise InvalidInput("background: a response that is not stored could not be asked for.", param="background")


async def _respond(here: Platform, begun: LiveRun | Run, asked: ResponseIn) -> Response:
    form = Form(asked.echo(), asked.tool_names, is_stored=asked.store is not False)
    if asked.stream:
        return streamed(here, begun, form)
    if asked.background:
        run = begun.run if isinstance(begun, LiveRun) else begun
        return await shown(here, run, form)
    return await whole(here, begun, form)


async def messages_of(here: Platform, caller: Principal, items: list[Json], field: str) -> list[Json]:
    """The messages that items stand for, those among them that are referred to."""
    known: dict[str, Json] = {}
    if wanted := references(items):
        found, runs = await responses.find_messages(here, caller, wanted)
        known = {item["id"]: item for item in items_of(found, runs)}
    messages = to_messages(items, known, field)
    if not messages:
        raise InvalidInput(f"{field} must have a message, or the result of a tool.", param=field)
    return messages


@router.get("/responses/{response_id}", response_class=Response, responses=STREAMED)
async def get_response(
    here: Here,
    caller: Chat,
    response_id: ResponseId,
    stream: bool = False,
    starting_after: Annotated[int, Query(ge=-1, le=2**53)] = -1,
) -> Response:
    """A response as it is now; with `stream` its events, those that follow the sequence number `starting_after`."""
    run, form = await _found(here, caller, id_in("resp", response_id))
    return streamed(here, run, form, starting_after=starting_after) if stream else await shown(here, run, form)


async def _found(here: Platform, caller: Principal, id: UUID) -> tuple[Run, Form]:
    run, echo = await responses.get(here, caller, id)
    return run, Form(echo, names_of(chat_tools(echo["tools"])))


@router.delete("/responses/{response_id}", response_class=Response, responses={200: {"model": DeletedOut}})
async def delete_response(here: Here, caller: Chat, response_id: ResponseId) -> Response:
    """Forget a response. Its messages stay in its conversation; without one they go with the last response that continues it."""
    id = id_in("resp", response_id)
    await responses.delete(here, caller, id)
    return answer({"id": f"resp_{id.hex}", "object": "response", "deleted": True})


@router.post("/responses/{response_id}/cancel", response_class=Response, responses={200: {"model": ResponseOut}})
async def cancel_response(here: Here, caller: Chat, response_id: ResponseId) -> Response:
    """End a response early, in the background or not; what it said so far is kept. One that has ended stays as it is."""
    await responses.cancel(here, caller, id_in("resp", response_id))
    return await shown(here, *await _found(here, caller, id_in("resp", response_id)))


@router.get("/responses/{response_id}/input_items", response_class=Response, responses={200: {"model": ItemsOut}})
async def list_input_items(
    here: Here,
    caller: Chat,
    response_id: ResponseId,
    limit: Limit = 20,
    order: Order = "desc",
    after: AfterItem = None,
) -> Response:
    """The items of a response's own input, without what it continues. While it waits for its turn there are none yet."""
    items = items_of(await responses.input_of(here, caller, id_in("resp", response_id)), {})
    if order == "desc":
        items.reverse()
    return answer(page(items, after, limit))


def page(items: list[Json], after: str | None, limit: int, *, has_more: bool = False) -> Json:
    """The items that follow one of them."""
    places = [index for index, item in enumerate(items) if item["id"] == after]
    rest = items if after is None else items[places[0] + 1 :] if places else []
    data = rest[:limit]
    return listing(data, has_more=bool(data) and (has_more or len(rest) > limit))
