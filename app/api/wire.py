"""An answer on the wire, streamed or whole. The only file that knows server-sent events (HTML standard, section 9.2)."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import msgspec
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from app.api.problems import problem
from app.domain import Outcome, Run, RunStatus, Usage
from app.journal.log import Event, Log
from app.tasks import Tasks
from app.usecases import runs
from app.usecases.live import LiveRun
from app.usecases.platform import Platform

HEARTBEAT_SECONDS = 15.0
HEARTBEAT = b": still here\n\n"
WRITE_SECONDS = 30.0
"""How long a reader may leave its buffers full."""
GOES_ON = {"code": "goes_on_elsewhere", "message": "The run goes on at another server.", "status": 503}
log = logging.getLogger(__name__)
_encoder = msgspec.json.Encoder()
SSE_HEADERS = {"x-accel-buffering": "no"}
EVENT_STREAM = {
    "text/event-stream": {
        "itemSchema": {
            "type": "object",
            "required": ["event", "data"],
            "properties": {
                "event": {"enum": ["run", "chunk", "snapshot", "waiting", "error", "end"]},
                "id": {"type": "string", "description": "of a chunk: its position, for `Last-Event-ID`"},
                "data": {"type": "string", "contentMediaType": "application/json"},
            },
        },
        "example": 'event: run\ndata: {"run_id":"…","session_id":"…","message_id":"…"}\n\nid: 1\nevent: chunk\n'
        'data: {"content":"Hello","content_type":"text"}\n\nevent: end\ndata: {"status":"completed","content":"Hello"}\n\n',
    }
}


async def respond(platform: Platform, begun: LiveRun | Run, *, stream: bool) -> Response:
    """The answer of a run that was begun here, or of one that is followed: its events as they come, or the whole at its end.

    Of one in the background only that it is accepted, unless its events are wanted.
    """
    if isinstance(begun, LiveRun):
        return EventStream(sse(begun.log, begun.run, begun.shown)) if stream else whole(await begun.log.ended())
    if stream:
        return EventStream(followed(platform, begun, 0))
    if begun.background:
        return accepted(begun)
    async with runs.following(platform, begun) as said:
        return whole(await said.ended())


def accepted(run: Run) -> Response:
    """Where to ask for a run that goes on by itself (RFC 9110, section 15.3.3)."""
    body = {"run_id": run.id, "session_id": run.session_id, "message_id": run.message_id, "status": run.status}
    headers = {"location": f"/api/v1/runs/{run.id}"}
    return Response(_encoder.encode(body), 202, headers, media_type="application/json")


def whole(outcome: Outcome) -> Response:
    """The answer, or the problem that a failed run ended with, or why a run cannot be followed here any longer."""
    if outcome.run.question:
        return Response(_encoder.encode(asked(outcome.run)), media_type="application/json")
    if not outcome.run.status.is_final:
        return problem(outcome.run.error or GOES_ON, retry_after=1, run_id=outcome.run.id)
    if outcome.run.status is RunStatus.FAILED:
        return problem(outcome.run.error or {}, run_id=outcome.run.id, message_id=outcome.run.message_id)
    return Response(_encoder.encode(answer(outcome)), media_type="application/json")


def asked(run: Run) -> dict[str, Any]:
    """What a run asks a person, in the place of an answer."""
    assert run.question  # noqa: S101 - it waits
    return {
        "content": run.question["question"],
        "type": "ai",
        "additional_kwargs": {"status": run.status, "question": run.question},
        "run_id": run.id,
        "message_id": None,
        "usage": usage(run.usage),
    }


async def sse(said: Log, run: Run, after: int = 0) -> AsyncGenerator[bytes, None]:
    """`run`, then `chunk`s whose ids are their positions, then `end`; a run that failed or was broken off has an `error` before it.

    A run that asks a person ends with `waiting`; what follows the answer is to be asked for by the run's id then.

    An `error` without an `end` tells that the run goes on, and that the rest of it is to be asked for elsewhere.

    Who asks for what follows a position beyond the end of an ended log (its server crashed before it was kept) gets one `snapshot`
    of the whole answer instead; so does who heard what a background run said before it was begun anew.
    """
    yield _event("run", {"run_id": run.id, "session_id": run.session_id, "message_id": run.message_id})
    async for events in said.read(after, patience=HEARTBEAT_SECONDS):
        yield b"".join(map(_chunk, events)) or HEARTBEAT
    outcome = await said.ended()
    if outcome.run.question:
        yield _event("waiting", asked(outcome.run))
        return
    if not outcome.run.status.is_final:
        yield _event("error", outcome.run.error or GOES_ON)
        return
    if after > said.position or said.strayed:
        content = answer(outcome)["content"] if said.strayed else said.answer()
        yield b"id: %d\n%b" % (said.position, _event("snapshot", {"content": content}))
    if outcome.run.error:
        yield _event("error", outcome.run.error)
    yield _event("end", {"status": outcome.run.status, **answer(outcome)})


async def followed(platform: Platform, run: Run, after: int) -> AsyncGenerator[bytes, None]:
    """The events of a run, whichever replica conducts it."""
    async with runs.following(platform, run) as said:
        async for events in sse(said, run, after):
            yield events


class EventStream(Response):
    """Sends events until they end or the client leaves; one that does not read is dropped after `WRITE_SECONDS`."""

    def __init__(self, events: AsyncGenerator[bytes, None], first: bytes = b"") -> None:
        """`first` is what was taken of the events already."""
        super().__init__(media_type="text/event-stream", headers=SSE_HEADERS)
        del self.headers["content-length"]
        self._events = events
        self._first = first

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve (ASGI)."""
        loop, sending = asyncio.get_running_loop(), asyncio.current_task()
        assert sending is not None  # noqa: S101 - a coroutine always runs in a task
        leaving = Tasks().start(_left(receive), name="reader")
        leaving.add_done_callback(lambda _: sending.cancel())
        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            async with aclosing(self._events), asyncio.timeout(None) as patience:

                async def put(events: bytes) -> None:
                    patience.reschedule(loop.time() + WRITE_SECONDS)
                    await send({"type": "http.response.body", "body": events, "more_body": True})
                    patience.reschedule(None)

                if self._first:
                    await put(self._first)
                async for events in self._events:
                    await put(events)
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        except TimeoutError:
            log.info("a reader was dropped, because it did not read")
            raise ClientDisconnect from None
        except asyncio.CancelledError:
            if not leaving.done():
                raise
        finally:
            leaving.cancel()


async def _left(receive: Receive) -> None:
    """Wait until the client has gone."""
    while (await receive())["type"] != "http.disconnect":
        pass


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
        "saved": spent.money_saved,
    }


def _chunk(event: Event) -> bytes:
    return b"id: %d\nevent: chunk\ndata: %b\n\n" % (event.position, _encoder.encode(event.chunk))


def _event(name: str, data: Any) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (name.encode(), _encoder.encode(data))
