"""An answer on the wire, streamed or whole. The only file that knows server-sent events (HTML standard, section 9.2)."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any

import msgspec
from starlette.responses import Response, StreamingResponse

from app.api.problems import problem
from app.domain import Chunk, Outcome, RunStatus, Usage
from app.usecases.live import LiveRun

HEARTBEAT_SECONDS = 15.0
_encoder = msgspec.json.Encoder()
SSE_HEADERS = {"cache-control": "no-cache", "x-accel-buffering": "no"}
EVENT_STREAM = {
    "text/event-stream": {
        "schema": {"type": "string"},
        "example": 'event: run\ndata: {"run_id":"…","session_id":"…","message_id":"…"}\n\nid: 1\nevent: chunk\n'
        'data: {"content":"Hello","content_type":"text"}\n\nevent: end\ndata: {"status":"completed","content":"Hello"}\n\n',
    }
}


async def respond(live: LiveRun, *, stream: bool) -> Response:
    """The answer of a run: its events as they come, or the whole when it has ended."""
    if stream:
        return StreamingResponse(sse(live), media_type="text/event-stream", headers=SSE_HEADERS)
    return whole(await live.log.ended())


def whole(outcome: Outcome) -> Response:
    """The answer, or the problem that a failed run ended with."""
    if outcome.run.status is RunStatus.FAILED:
        error = outcome.run.error or {"code": "agent_failed", "message": "The run failed.", "status": 502}
        return problem(error, run_id=outcome.run.id, message_id=outcome.run.message_id)
    return Response(_encoder.encode(answer(outcome)), media_type="application/json")


async def sse(live: LiveRun) -> AsyncIterator[bytes]:
    """`run`, then `chunk`s whose ids are their positions, then `end`; a failed run has an `error` before its end."""
    run = live.run
    yield _event("run", {"run_id": run.id, "session_id": run.session_id, "message_id": run.message_id})
    position = 0
    async for chunks in live.log.read(patience=HEARTBEAT_SECONDS):
        yield _chunks(position, chunks) if chunks else b": still here\n\n"
        position += len(chunks)
    outcome = await live.log.ended()
    if outcome.run.status is RunStatus.FAILED:
        yield _event("error", outcome.run.error)
    yield _event("end", {"status": outcome.run.status, **answer(outcome)})


def answer(outcome: Outcome) -> dict[str, Any]:
    """The answer in the words of seed 003, with run, message and usage beside it."""
    message = outcome.messages[-1] if outcome.messages else None
    extra: dict[str, Any] = dict(message.additional_kwargs) if message else {"status": outcome.run.status}
    extra["create_at"] = message.created_at if message else outcome.run.ended_at
    return {
        "content": message.content if message else "",
        "type": "ai",
        "additional_kwargs": extra,
        "run_id": outcome.run.id,
        "message_id": message.id if message else None,
        "usage": usage(outcome.run.usage),
    }


def usage(spent: Usage) -> dict[str, Any]:
    """Usage as JSON."""
    return {
        "prompt": spent.prompt,
        "completion": spent.completion,
        "cached": spent.cached,
        "reasoning": spent.reasoning,
        "total": spent.total,
        "cost": spent.money,
        "estimated": spent.estimated,
    }


def _chunks(position: int, chunks: Sequence[Chunk]) -> bytes:
    return b"".join(
        b"id: %d\n%b"
        % (position + offset, _event("chunk", {"content": chunk.content, "content_type": chunk.content_type}))
        for offset, chunk in enumerate(chunks, 1)
    )


def _event(name: str, data: Any) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (name.encode(), _encoder.encode(data))
