"""A response on the wire: the object, and the events it is streamed as. Both are made of the same `Output`."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from starlette.responses import Response

from app.api import openai_errors
from app.api.openai_models import Json
from app.api.openai_wire import failure, log_of
from app.api.responses_output import Output, after
from app.api.wire import GOES_ON, HEARTBEAT, HEARTBEAT_SECONDS, EventStream
from app.domain import Outcome, Run, RunStatus, Usage
from app.journal.log import LogFull
from app.usecases.live import LiveRun
from app.usecases.platform import Platform

_encoder = msgspec.json.Encoder()
ERROR_CODES = {400: "invalid_prompt", 429: "rate_limit_exceeded"}
"""The words of the protocol for a status; for all others it is `server_error`."""
INCOMPLETE = {"length": "max_output_tokens", "content_filter": "content_filter"}


@dataclass(frozen=True, slots=True)
class Form:
    """How a response is to look: what it repeats of its request, and the request's tools."""

    echo: Mapping[str, Any]
    tools: frozenset[str]
    is_stored: bool = True


def body(run: Run, form: Form, items: Sequence[Json] = (), outcome: Outcome | None = None) -> Json:
    """The response, as it goes on, or as it ended with an outcome."""
    echo = form.echo
    status, error, reason = _state(run, outcome)
    effort = {"effort": echo.get("effort"), "summary": None}
    return {
        "id": f"resp_{run.id.hex}",
        "object": "response",
        "created_at": int(run.created_at.timestamp()) if run.created_at else 0,
        "completed_at": int(run.ended_at.timestamp()) if run.ended_at and status == "completed" else None,
        "status": status,
        "background": echo["background"],
        "conversation": {"id": echo["conversation"]} if "conversation" in echo else None,
        "error": error,
        "incomplete_details": {"reason": reason} if reason else None,
        "instructions": echo.get("instructions"),
        "max_output_tokens": echo.get("max_output_tokens"),
        "metadata": echo["metadata"],
        "model": echo["model"],
        "output": items,
        "parallel_tool_calls": echo["parallel_tool_calls"],
        "previous_response_id": echo.get("previous_response_id"),
        "reasoning": effort,
        "store": form.is_stored,
        "temperature": echo.get("temperature"),
        "text": {"format": echo.get("format", {"type": "text"})},
        "tool_choice": echo["tool_choice"],
        "tools": [{"parameters": None, "strict": None, **tool} for tool in echo["tools"]],
        "top_p": echo.get("top_p"),
        "truncation": "auto",
        "usage": _usage(outcome.run.usage) if outcome and outcome.run.status.is_final else None,
        "user": echo.get("user"),
    }


def _state(run: Run, outcome: Outcome | None) -> tuple[str, Json | None, str | None]:
    """The status, why there is no answer, and why it is not complete."""
    if outcome is None or not outcome.run.status.is_final:
        return ("queued" if run.status is RunStatus.QUEUED else "in_progress"), None, None
    if error := failure(outcome):
        code = ERROR_CODES.get(openai_errors.status_of(error), "server_error")
        return "failed", {"code": code, "message": error["message"]}, None
    if outcome.run.status is RunStatus.CANCELLED:
        return "cancelled", None, None
    if outcome.run.error and outcome.run.error["code"] == LogFull.code:
        return "incomplete", None, INCOMPLETE["length"]
    last = outcome.messages[-1].additional_kwargs if outcome.messages else {}
    reason = INCOMPLETE.get(last.get("finish_reason", ""))
    return ("incomplete" if reason else "completed"), None, reason


def _usage(spent: Usage) -> Json:
    return {
        "input_tokens": spent.prompt,
        "input_tokens_details": {"cached_tokens": spent.cached, "cache_write_tokens": 0},
        "output_tokens": spent.completion,
        "output_tokens_details": {"reasoning_tokens": spent.reasoning},
        "total_tokens": spent.total,
    }


def answer(value: Json, run: Run | None = None) -> Response:
    """An object, and where its run is."""
    headers = {"x-session-id": str(run.session_id), "x-run-id": str(run.id)} if run else {}
    return Response(_encoder.encode(value), headers=headers, media_type="application/json")


def listing(data: list[Json], *, has_more: bool) -> Json:
    """A page of objects."""
    ends = {"first_id": data[0]["id"] if data else None, "last_id": data[-1]["id"] if data else None}
    return {"object": "list", "data": data, **ends, "has_more": has_more}


async def shown(platform: Platform, run: Run, form: Form) -> Response:
    """A response as it is now."""
    if not run.status.is_final:
        return answer(body(run, form), run)
    return await _ended(platform, run, form)


async def whole(platform: Platform, begun: LiveRun | Run, form: Form) -> Response:
    """A response when it has ended; one that failed is the error it failed with."""
    return await _ended(platform, begun, form, raises=True)


async def _ended(platform: Platform, begun: LiveRun | Run, form: Form, *, raises: bool = False) -> Response:
    run = begun.run if isinstance(begun, LiveRun) else begun
    async with log_of(platform, begun) as said:
        outcome = await said.ended()
    if raises and (error := failure(outcome)):
        failed = openai_errors.response(error, from_run=True)
        failed.headers.update({"x-session-id": str(run.session_id), "x-run-id": str(run.id)})
        return failed
    output = Output(run.id, form.tools)
    output.take(said.events)
    output.end(outcome)
    return answer(body(outcome.run, form, output.items, outcome), run)


def streamed(platform: Platform, begun: LiveRun | Run, form: Form, *, starting_after: int = -1) -> Response:
    """A response as the events that follow a sequence number."""
    run = begun.run if isinstance(begun, LiveRun) else begun
    response = EventStream(_frames(platform, begun, form, starting_after))
    response.headers.update({"x-session-id": str(run.session_id), "x-run-id": str(run.id)})
    return response


async def _frames(
    platform: Platform, begun: LiveRun | Run, form: Form, starting_after: int
) -> AsyncGenerator[bytes, None]:
    async for events in _events(platform, begun, form):
        told = filter(None, (after(event, starting_after) for event in events or ()))
        frames = b"".join(
            b"event: %b\ndata: %b\n\n" % (event["type"].encode(), _encoder.encode(event)) for event in told
        )
        if frames or events is None:
            yield frames or HEARTBEAT


async def _events(platform: Platform, begun: LiveRun | Run, form: Form) -> AsyncGenerator[list[Json] | None, None]:
    """The events in their order; None after a while of silence.

    One that is said to be in the background was queued, however soon it began. An `error` tells that the rest is to be asked for
    elsewhere; a response that failed says so itself.
    """
    run = begun.run if isinstance(begun, LiveRun) else begun
    output = Output(run.id, form.tools)

    def state(kind: str, status: RunStatus) -> Json:
        now = body(msgspec.structs.replace(run, status=status), form)
        return output.event(f"response.{kind}", response=now)

    waits = form.echo["background"]
    first = RunStatus.QUEUED if waits else RunStatus.RUNNING
    begins = [state("created", first)]
    if waits:
        yield [*begins, state("queued", first)]
        begins = []
    begins.append(state("in_progress", RunStatus.RUNNING))
    if not waits:
        yield begins
        begins = []
    async with log_of(platform, begun) as said:
        async for batch in said.read(patience=HEARTBEAT_SECONDS):
            yield [*begins, *output.take(batch)] if batch else None
            begins = [] if batch else begins
        outcome = await said.ended()
    if not outcome.run.status.is_final:
        error = openai_errors.body(outcome.run.error or GOES_ON)["error"]
        told = {name: error[name] for name in ("code", "message", "param")}
        yield [{"type": "error", "sequence_number": output.number, **told}]
        return
    done = output.end(outcome)
    ended = body(outcome.run, form, output.items, outcome)
    kind = ended["status"] if ended["status"] in ("completed", "failed") else "incomplete"
    yield [*begins, *done, output.event(f"response.{kind}", response=ended)]
