"""OpenAI's protocol over the same runs, under `/v1` and, as seed 004 has it, under `/api/v1/llm`."""

from __future__ import annotations

import base64
from array import array
from collections.abc import Sequence
from typing import Annotated, Any, TypeVar
from uuid import UUID

import msgspec
from fastapi import APIRouter, Header, Request
from pydantic import BaseModel, Field, TypeAdapter, ValidationError
from starlette.datastructures import Headers
from starlette.responses import Response

from app.api import openai_errors, openai_wire
from app.api.callers import Chat, Here, StrictRoute, need, typed_json
from app.api.fields import Id, Key, checked_key, to_id
from app.api.openai_answers import CHAT_STREAM, TEXT_STREAM, ChatCompletion, Embeddings, TextCompletion
from app.api.openai_models import MAX_CHOICES, ChatBody, ChatIn, CompletionBody, EmbeddingsIn
from app.api.openai_wire import Form
from app.api.problems import sentence
from app.domain import Principal, Scope
from app.errors import InvalidInput
from app.usecases import completions
from app.usecases.completions import Listed
from app.usecases.platform import Platform

T = TypeVar("T")
PREFIXES = openai_errors.PREFIXES
router = APIRouter(route_class=StrictRoute, tags=["openai"])
WITHHELD = frozenset({b"authorization", b"cookie", b"proxy-authorization", b"x-api-key"})
"""Headers that prove who calls, of which no agent is told."""
SessionHeader = Annotated[Id | None, Header(alias="x-session-id", description="as `session_id` in the body")]


class ModelOut(BaseModel):
    """An agent, or an alias of a language model. When it was made is not known."""

    id: str
    object: str = "model"
    created: int = 0
    owned_by: str
    description: str
    name: str | None = Field(None, description="of a preset, whose id is no name")

    @classmethod
    def of(cls, listed: Listed) -> ModelOut:
        """A model as this edge gives it."""
        owner = "agents" if listed.is_agent else "models"
        return cls(id=listed.id, owned_by=owner, description=listed.description, name=listed.name)


class ModelsOut(BaseModel):
    """All that a request may name."""

    object: str = "list"
    data: list[ModelOut]


@router.get("/models")
async def list_models(here: Here, caller: Chat) -> ModelsOut:
    """What the caller may name as `model`: agents, and aliases of language models."""
    return ModelsOut(data=[ModelOut.of(listed) for listed in await completions.models(here, caller)])


@router.get("/models/{model:path}")
async def get_model(here: Here, caller: Chat, model: str) -> ModelOut:
    """One of them."""
    return ModelOut.of(await completions.get_model(here, caller, model))


@router.post("/chat/completions", response_model=ChatCompletion, responses=CHAT_STREAM)
async def complete_chat(
    here: Here,
    caller: Chat,
    body: ChatBody,
    request: Request,
    idempotency_key: Key = None,
    x_session_id: SessionHeader = None,
) -> Response:
    """Have an agent, or a language model, answer: whole, or as server-sent events with `stream`.

    With a `session_id` the last message continues that session; without one the messages are all the history there is.
    """
    return await _complete_chat(here, caller, body, request.headers, idempotency_key, x_session_id)


async def complete_chat_directly(here: Platform, principal: Principal, headers: Headers, content: bytes) -> Response:
    """The same past FastAPI, whose work costs as much as all of the platform's."""
    need(Scope.CHAT, principal)
    body = chat_of(headers, content)
    given = headers.get("x-session-id")
    key = checked_key(headers.get("idempotency-key"))
    return await _complete_chat(here, principal, body, headers, key, to_id(given) if given is not None else None)


def chat_of(headers: Headers, content: bytes) -> ChatIn:
    """A request as it came; `InvalidInput` says what is wrong with it."""
    return _parsed(_CHAT, headers, content)


def embeddings_of(headers: Headers, content: bytes) -> EmbeddingsIn:
    """As `chat_of`, for texts to be embedded."""
    return _parsed(_EMBEDDINGS, headers, content)


def _parsed(kind: TypeAdapter[T], headers: Headers, content: bytes) -> T:
    try:
        return kind.validate_python(typed_json(headers, content))
    except ValidationError as error:
        raise sentence(error) from None


_CHAT: TypeAdapter[ChatIn] = TypeAdapter(ChatBody)
_EMBEDDINGS = TypeAdapter(EmbeddingsIn)
SHORTCUTS = {f"{prefix}/chat/completions": complete_chat_directly for prefix in PREFIXES}


async def _complete_chat(
    here: Platform, caller: Principal, body: ChatIn, headers: Headers, key: str | None, session_id: UUID | None
) -> Response:
    begun = await completions.begin(
        here,
        caller,
        [body.request()] * (body.n or 1),
        told(headers),
        session_id=body.session_id or session_id,
        key=key,
    )
    return await openai_wire.respond(here, begun, form_of(body), stream=bool(body.stream))


def form_of(body: ChatIn) -> Form:
    """How the answer to a chat is to look."""
    return Form(
        body.model,
        include_usage=body.include_usage,
        tools=body.tool_names,
        speaks_of_functions=body.speaks_of_functions,
    )


@router.post("/completions", response_model=TextCompletion, responses=TEXT_STREAM)
async def complete_text(
    here: Here,
    caller: Chat,
    body: CompletionBody,
    request: Request,
    idempotency_key: Key = None,
    x_session_id: SessionHeader = None,
) -> Response:
    """The same for a bare text, as a message of the user. Several prompts have an answer each."""
    prompts = [prompt for prompt in body.prompt for _ in range(body.n or 1)]
    if len(prompts) > MAX_CHOICES:
        raise InvalidInput(f"prompt: at most {MAX_CHOICES} answers can be asked for at once.", param="prompt")
    begun = await completions.begin(
        here,
        caller,
        [body.request_of(prompt) for prompt in prompts],
        told(request.headers),
        session_id=body.session_id or x_session_id,
        key=idempotency_key,
    )
    echo = prompts if body.echo else ()
    form = Form(body.model, is_chat=False, include_usage=body.include_usage, echo=echo)
    return await openai_wire.respond(here, begun, form, stream=bool(body.stream))


@router.post("/embeddings", response_model=Embeddings)
async def make_embeddings(here: Here, caller: Chat, body: EmbeddingsIn) -> Response:
    """The embedding of each text, by an alias of a language model: numbers, or with `base64` their bytes as 32-bit floats."""
    vectors, outcome = await completions.embed(here, caller, body.input, body.model, dimensions=body.dimensions)
    if error := openai_wire.failure(outcome):
        return openai_errors.response(error, from_run=True)
    response = embeddings(body, vectors, outcome.run.usage.prompt)
    response.headers["x-run-id"] = str(outcome.run.id)
    return response


def embeddings(body: EmbeddingsIn, vectors: Sequence[Sequence[float]], tokens: int) -> Response:
    """Embeddings in the form that was asked for."""
    data = [
        {
            "object": "embedding",
            "index": index,
            "embedding": _base64(vector) if body.encoding_format == "base64" else vector,
        }
        for index, vector in enumerate(vectors)
    ]
    counts = {"prompt_tokens": tokens, "total_tokens": tokens}
    answer = {"object": "list", "data": data, "model": body.model, "usage": counts}
    return Response(msgspec.json.encode(answer), media_type="application/json")


def _base64(vector: Any) -> str:
    numbers = array("f", vector)
    if array("H", b"\x01\x00")[0] != 1:  # the protocol's are little-endian
        numbers.byteswap()
    return base64.b64encode(numbers.tobytes()).decode()


def told(headers: Headers) -> dict[str, str]:
    """The headers that an agent is told of."""
    return {name.decode("latin-1"): value.decode("latin-1") for name, value in headers.raw if name not in WITHHELD}
