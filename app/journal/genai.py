"""Runs and steps as spans, by the names of OpenTelemetry's conventions for generative AI. No other module knows these names.

They are those of the semantic conventions 1.44.0 ("Semantic conventions for generative AI systems": spans, agent spans, attributes),
which are still in development: a later version changes this module alone. What the conventions have no name for is `chattable.…`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from hashlib import sha256
from typing import Any
from uuid import UUID

from msgspec import Struct

from app.domain import Run, RunStatus, Step, Usage
from app.journal.replay import unfolded

SCHEMA = "https://opentelemetry.io/schemas/1.44.0"
OPERATION = "gen_ai.operation.name"
PROVIDER = "gen_ai.provider.name"
AGENT = "gen_ai.agent.name"
AGENT_ID = "gen_ai.agent.id"
CONVERSATION = "gen_ai.conversation.id"
REQUEST_MODEL = "gen_ai.request.model"
RESPONSE_MODEL = "gen_ai.response.model"
INPUT_TOKENS = "gen_ai.usage.input_tokens"
OUTPUT_TOKENS = "gen_ai.usage.output_tokens"
CACHED_TOKENS = "gen_ai.usage.cache_read.input_tokens"
REASONING_TOKENS = "gen_ai.usage.reasoning.output_tokens"
FINISH_REASONS = "gen_ai.response.finish_reasons"
TOOL = "gen_ai.tool.name"
TOOL_ARGUMENTS = "gen_ai.tool.call.arguments"
TOOL_RESULT = "gen_ai.tool.call.result"
INPUT = "gen_ai.input.messages"
OUTPUT = "gen_ai.output.messages"
QUERY = "gen_ai.retrieval.query.text"
ERROR = "error.type"
USER = "user.id"
OPENAI = "openai"
"""The provider of every call, by the protocol that it speaks: the conventions ask for what the client knows."""
CHAT, EMBEDDINGS, INVOKE, EXECUTE, RETRIEVAL = "chat", "embeddings", "invoke_agent", "execute_tool", "retrieval"
SEQ, KIND, PATH, STATUS = "chattable.step.seq", "chattable.step.kind", "chattable.step.path", "chattable.status"
COST, FROM_CACHE = "chattable.cost", "chattable.from_cache"
VALUE_IN, VALUE_OUT = "chattable.step.input", "chattable.step.output"
RUN_KIND, BACKGROUND = "chattable.run.kind", "chattable.run.background"
MAX_CONTENT = 16_000
"""The longest attribute that holds what was said, in characters; longer ones are cut."""

Attributes = Mapping[str, str | int | float | bool | Sequence[str]]


class Span(Struct, frozen=True):
    """One span. Ids are numbers, as in OpenTelemetry's API; `calls_out` says that it is a call of another server."""

    trace: int
    id: int
    parent: int | None
    name: str
    begun: datetime
    ended: datetime
    attributes: Attributes
    error: str | None = None
    calls_out: bool = False
    continues: tuple[int, int] | None = None
    """The trace and span of the run that this one is a rerun of."""


def trace_id(run_id: UUID) -> int:
    """The trace of a run: its own id, so that whoever knows the one has the other. An id of version 7 has the random bits W3C asks for."""
    return run_id.int


def span_id(run_id: UUID, seq: int = 0) -> int:
    """The span of a run, or of its step of a number: the same whoever works it out."""
    return int.from_bytes(sha256(run_id.bytes + seq.to_bytes(8, "big")).digest()[:8], "big") or 1


def spans(run: Run, steps: Sequence[Step], *, content: bool) -> Iterator[Span]:
    """The run, if it has ended, and its steps. What was said is among it only when `content` is asked for."""
    if run.status.is_final and run.created_at and run.ended_at:
        yield _of_run(run, run.created_at, run.ended_at)
    open_steps: list[Step] = []
    for step in sorted(steps, key=lambda step: step.seq):
        open_steps = [each for each in open_steps if each.ended_at and each.ended_at >= step.started_at]
        parent = _parent(step, open_steps)
        open_steps.append(step)
        yield _of_step(run, step, parent, content)


def _parent(step: Step, candidates: Sequence[Step]) -> Step | None:
    """The step around it: the last one before it at the path above its own that ended no earlier."""
    above = step.path.removesuffix(f"/{step.name}")
    for each in reversed(candidates):
        if above and each.path == above and step.ended_at and each.ended_at and each.ended_at >= step.ended_at:
            return each
    return None


def _of_run(run: Run, begun: datetime, ended: datetime) -> Span:
    code = str(run.error.get("code", "")) if run.error else ""
    found: dict[str, Any] = {
        OPERATION: INVOKE,
        PROVIDER: "chattable",
        AGENT_ID: run.agent_id,
        AGENT: run.agent_id,
        CONVERSATION: str(run.session_id),
        USER: str(run.user_id),
        STATUS: run.status.value,
        RUN_KIND: run.kind,
        BACKGROUND: run.background,
        **_usage(run.usage),
        **({ERROR: code} if code else {}),
    }
    return Span(
        trace_id(run.id),
        span_id(run.id),
        None,
        f"{INVOKE} {run.agent_id}",
        begun,
        ended,
        found,
        (code or "failed") if run.status is RunStatus.FAILED else None,
        continues=(trace_id(run.parent_id), span_id(run.parent_id)) if run.parent_id else None,
    )


def _of_step(run: Run, step: Step, parent: Step | None, content: bool) -> Span:
    code = str(step.error.get("code", "")) if step.error else ""
    found: dict[str, Any] = {SEQ: step.seq, KIND: step.kind, PATH: step.path, STATUS: step.status}
    found |= {CONVERSATION: str(run.session_id)} | ({ERROR: code} if code else {})
    operation = _operation(step)
    found |= {OPERATION: operation} if operation else {}
    match step.kind:
        case "llm":
            found |= {PROVIDER: OPENAI, REQUEST_MODEL: step.name, FROM_CACHE: step.from_cache, **_usage(step.usage)}
            found |= {RESPONSE_MODEL: step.model} if step.model else {}
            found |= _finish(step)
        case "tool":
            found[TOOL] = step.name
        case "agent":
            found |= {AGENT: step.name, AGENT_ID: step.name, PROVIDER: "chattable"}
    if content:
        found |= _content(step)
    return Span(
        trace_id(run.id),
        span_id(run.id, step.seq),
        span_id(run.id, parent.seq if parent else 0),
        f"{operation or step.kind} {step.name}",
        step.started_at,
        step.ended_at or step.started_at,
        found,
        (code or "failed") if step.status == "failed" else None,
        calls_out=step.kind == "llm" and not step.from_cache and step.status != "replayed",
    )


def _operation(step: Step) -> str | None:
    if step.kind == "llm":
        return EMBEDDINGS if step.input and b'"texts":' in step.input else CHAT
    return {"agent": INVOKE, "tool": EXECUTE, "retrieval": RETRIEVAL}.get(step.kind)


def _usage(usage: Usage) -> dict[str, int | float]:
    counts = {
        INPUT_TOKENS: usage.prompt,
        OUTPUT_TOKENS: usage.completion,
        CACHED_TOKENS: usage.cached,
        REASONING_TOKENS: usage.reasoning,
    }
    found: dict[str, int | float] = {name: count for name, count in counts.items() if count}
    return found | ({COST: float(usage.cost)} if usage.cost else {})


def _finish(step: Step) -> dict[str, Sequence[str]]:
    output = _read(step.output)
    reason = output.get("finish_reason") if isinstance(output, dict) else None
    return {FINISH_REASONS: [reason]} if isinstance(reason, str) and reason else {}


def _content(step: Step) -> dict[str, str]:
    """What went in and came out, as JSON."""
    given = unfolded(_read(step.input), {part.digest.hex(): part.body for part in step.parts})
    told = _read(step.output)
    found: dict[str, Any]
    if step.kind == "llm" and isinstance(given, dict) and "messages" in given:
        found = {INPUT: [_message(each) for each in given["messages"]], OUTPUT: _answers(told)}
    elif step.kind == "tool" and isinstance(given, dict):
        found = {TOOL_ARGUMENTS: given.get("arguments"), TOOL_RESULT: told}
    elif step.kind == "retrieval" and isinstance(given, dict) and "query" in given:
        found = {QUERY: given["query"], VALUE_OUT: told}
    else:
        found = {VALUE_IN: given, VALUE_OUT: told}
    return {name: _text(value) for name, value in found.items() if value not in (None, [])}


def _message(given: Any) -> Any:
    """A message of OpenAI's protocol in the form of the conventions (`gen_ai.input.messages`)."""
    if not isinstance(given, dict):
        return given
    content = given.get("content")
    parts = content if isinstance(content, list) else [{"type": "text", "content": content}] if content else []
    return {"role": given.get("role"), "parts": [*parts, *map(_called, given.get("tool_calls") or [])]}


def _answers(told: Any) -> Sequence[Mapping[str, Any]]:
    """The output of a call in the form of the conventions (`gen_ai.output.messages`)."""
    if not isinstance(told, dict) or "text" not in told:
        return []
    parts: list[Any] = [{"type": "reasoning", "content": told["reasoning"]}] if told.get("reasoning") else []
    parts += [{"type": "text", "content": told["text"]}] if told["text"] else []
    parts += [_called(_read(call.encode())) for call in told.get("tool_calls") or []]
    return [{"role": "assistant", "parts": parts, "finish_reason": told.get("finish_reason") or "error"}]


def _called(call: Any) -> Any:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict):
        return call
    named = {"id": call.get("id"), "name": function.get("name"), "arguments": function.get("arguments")}
    return {"type": "tool_call"} | named


def _read(body: bytes | None) -> Any:
    try:
        return json.loads(body) if body else None
    except ValueError:
        return body.decode(errors="replace") if body else None


def _text(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return text[:MAX_CONTENT]
