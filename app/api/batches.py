"""Batches, as OpenAI's protocol has them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Annotated, Any, Literal
from uuid import UUID

import msgspec
from fastapi import APIRouter, Path, Query, Request
from pydantic import BaseModel, BeforeValidator, Field, TypeAdapter, ValidationError
from starlette.datastructures import Headers
from starlette.responses import Response

from app.api import openai, responses
from app.api.callers import Chat, Here, StrictRoute, strict_json
from app.api.fields import Key, Text, file_ref, to_file_id, to_id
from app.api.openai_models import CompletionBody, EmbeddingsIn
from app.api.problems import from_exception, sentence
from app.api.responses_models import Metadata, ResponseBody, ResponseIn
from app.api.responses_wire import answer, listing
from app.domain import Batch, BatchStatus, Principal
from app.usecases import batches
from app.usecases.batch_work import Answered
from app.usecases.platform import Platform

Answer = Callable[[Platform, Principal, dict[str, Any], Headers], Awaitable[Response]]
router = APIRouter(route_class=StrictRoute, tags=["openai"])

Endpoint = Literal["/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses"]
ENDED = ("completed_at", "failed_at", "expired_at", "cancelled_at")


def to_batch_id(value: Any) -> UUID:
    """The id in a batch's name in OpenAI's protocol, `batch_` and its hexadecimal digits; or one that nothing has."""
    return to_id(value.removeprefix("batch_") if isinstance(value, str) and value.startswith("batch_") else None)


BatchId = Annotated[UUID, BeforeValidator(to_batch_id)]
InPath = Annotated[BatchId, Path(description="the batch's id: `batch_…`")]


class ExpiresIn(BaseModel):
    """How long the files of answers are kept; without it until they are deleted."""

    anchor: Literal["created_at"] = "created_at"
    seconds: Annotated[int, Field(ge=3600, le=2_592_000)]


class BatchIn(BaseModel):
    """Requests to answer when there is room."""

    input_file_id: Annotated[UUID, BeforeValidator(to_file_id)]
    endpoint: Endpoint
    completion_window: Literal["24h"]
    metadata: Metadata | None = None
    output_expires_after: ExpiresIn | None = None


class LineError(BaseModel):
    """Why a line of the file is no request."""

    code: str
    line: int | None
    message: Text
    param: str | None


class LineErrors(BaseModel):
    """Lines that are no requests; at most a hundred are told of."""

    object: Literal["list"] = "list"
    data: list[LineError]


class Counts(BaseModel):
    """How many requests there are, and how many were answered, well or not."""

    total: int
    completed: int
    failed: int


class TokenCounts(BaseModel):
    """What the answers took."""

    input_tokens: int
    output_tokens: int
    total_tokens: int


class BatchOut(BaseModel):
    """A batch. Times are seconds since 1970."""

    id: str
    object: Literal["batch"] = "batch"
    endpoint: Endpoint
    errors: LineErrors | None
    input_file_id: str
    completion_window: Literal["24h"] = "24h"
    status: BatchStatus
    output_file_id: str | None
    error_file_id: str | None
    created_at: int
    expires_at: int
    in_progress_at: int | None
    finalizing_at: int | None
    completed_at: int | None
    failed_at: int | None
    expired_at: int | None
    cancelling_at: int | None
    cancelled_at: int | None
    request_counts: Counts
    usage: TokenCounts | None
    metadata: dict[str, str]


class BatchesOut(BaseModel):
    """Some of the caller's batches, the newest first."""

    object: Literal["list"] = "list"
    data: list[BatchOut]
    first_id: str | None
    last_id: str | None
    has_more: bool


def _shape(batch: Batch) -> dict[str, Any]:
    moments: Mapping[str, int] = batch.times
    return {
        "id": f"batch_{batch.id.hex}",
        "object": "batch",
        "endpoint": batch.endpoint,
        "errors": {"object": "list", "data": batch.errors} if batch.errors else None,
        "input_file_id": file_ref(batch.input_file_id),
        "completion_window": "24h",
        "status": batch.status,
        "output_file_id": batch.output_file_id and file_ref(batch.output_file_id),
        "error_file_id": batch.error_file_id and file_ref(batch.error_file_id),
        "created_at": int(batch.created_at.timestamp()),
        "expires_at": int(batch.expires_at.timestamp()),
        **{name: moments.get(name) for name in ("in_progress_at", "finalizing_at", "cancelling_at", *ENDED)},
        "request_counts": {"total": batch.total, "completed": batch.completed, "failed": batch.failed},
        "usage": batch.usage,
        "metadata": batch.metadata,
    }


@router.post("/batches", response_model=BatchOut)
async def create_batch(here: Here, caller: Chat, body: BatchIn, idempotency_key: Key = None) -> Response:
    """Have the requests of a file answered: one a line, with a `custom_id` by which its answer is found in the output file.

    The input file has the purpose `batch`, and each of its lines is
    `{"custom_id": "…", "method": "POST", "url": "/v1/chat/completions", "body": {…}}`.
    """
    batch = await batches.create(
        here,
        caller,
        endpoint=body.endpoint,
        input_file_id=body.input_file_id,
        metadata=body.metadata or {},
        output_expires_seconds=body.output_expires_after.seconds if body.output_expires_after else None,
        key=idempotency_key,
    )
    return answer(_shape(batch))


@router.get("/batches", response_model=BatchesOut)
async def list_batches(
    here: Here,
    caller: Chat,
    after: Annotated[BatchId | None, Query(description="the id of the last one already seen")] = None,
    limit: Annotated[int, Query(ge=1, le=100, description="how many at most")] = 20,
) -> Response:
    """The caller's batches, the newest first."""
    page = await batches.list_page(here, caller, after=after, limit=limit)
    return answer(listing([_shape(batch) for batch in page.items], has_more=page.has_more))


@router.get("/batches/{batch_id}", response_model=BatchOut)
async def get_batch(here: Here, caller: Chat, batch_id: InPath) -> Response:
    """How far a batch is."""
    return answer(_shape(await batches.get(here, caller, batch_id)))


@router.post("/batches/{batch_id}/cancel", response_model=BatchOut)
async def cancel_batch(here: Here, caller: Chat, batch_id: InPath) -> Response:
    """Begin no more of a batch's requests. What was answered is in its files when it is `cancelled`."""
    return answer(_shape(await batches.cancel(here, caller, batch_id)))


# Their requests


async def _chat(platform: Platform, principal: Principal, body: dict[str, Any], headers: Headers) -> Response:
    return await openai.complete_chat_directly(platform, principal, headers, msgspec.json.encode(body))


async def _text(platform: Platform, principal: Principal, body: dict[str, Any], headers: Headers) -> Response:
    request = Request({"type": "http", "headers": headers.raw})
    given = _COMPLETION.validate_python(body)
    return await openai.complete_text(platform, principal, given, request, headers["idempotency-key"])


async def _embeddings(platform: Platform, principal: Principal, body: dict[str, Any], headers: Headers) -> Response:
    return await openai.make_embeddings(platform, principal, _EMBEDDINGS.validate_python(body))


async def _response(platform: Platform, principal: Principal, body: dict[str, Any], headers: Headers) -> Response:
    request = Request({"type": "http", "headers": headers.raw})
    given = _RESPONSE.validate_python(body | {"background": False})
    return await responses.create_response(platform, principal, given, request, headers["idempotency-key"])


_RESPONSE: TypeAdapter[ResponseIn] = TypeAdapter(ResponseBody)
_COMPLETION: TypeAdapter[CompletionBody] = TypeAdapter(CompletionBody)
_EMBEDDINGS: TypeAdapter[EmbeddingsIn] = TypeAdapter(EmbeddingsIn)
ANSWERS: Mapping[str, Answer] = {
    "/v1/chat/completions": _chat,
    "/v1/completions": _text,
    "/v1/embeddings": _embeddings,
    "/v1/responses": _response,
}


async def ask(platform: Platform, principal: Principal, endpoint: str, body: bytes, key: str) -> Answered:
    """Answer a request of a batch as its route would, but whole."""
    headers = Headers({"content-type": "application/json", "idempotency-key": key})
    try:
        response = await ANSWERS[endpoint](platform, principal, strict_json(body) | {"stream": False}, headers)
    except ValidationError as error:
        refusal = sentence(error)
        response = from_exception(refusal, endpoint)
    except Exception as error:  # whatever is wrong with one request is no matter of the others
        response = from_exception(error, endpoint)
    later = response.headers.get("retry-after")
    is_told = later is not None or response.status_code in (429, 503)
    may_do_better = is_told and response.headers.get("x-should-retry") != "false"
    return Answered(response.status_code, bytes(response.body), float(later or 1) if may_do_better else None)
