"""What a run says, as deltas and reasons of OpenAI's protocol."""

from __future__ import annotations

import json
from typing import Any

import pytest
from msgspec.structs import replace

from app.api import openai_errors
from app.api.openai_wire import BROKEN_OFF, Choice, Form, failure, respond
from app.domain import Chunk, Message, Outcome, Run, RunStatus, Usage, new_id
from app.errors import AgentFailed, LLMRejected, NotFound, QuotaExceeded
from app.journal.log import Event, Log, LogFull
from app.usecases.live import LiveRun

FORM = Form("m", tools=frozenset({"f"}))
RUN = Run(new_id(), new_id(), new_id(), "a", new_id(), RunStatus.COMPLETED)


def said(choice: Choice, *chunks: tuple[str, str]) -> list[dict[str, Any]]:
    return choice.deltas(Event(0, Chunk(content, kind)) for kind, content in chunks)


def call(name: str, arguments: Any = "{}", **more: Any) -> str:
    return json.dumps({"name": name, "arguments": arguments, **more})


def test_calls_that_a_log_has_joined_are_taken_apart() -> None:
    choice = Choice(FORM, 0, RUN.id)
    found = said(choice, ("tool_call", call("f", id="one") + "\n" + call("f", {"x": 1})))
    assert [(delta["tool_calls"][0]["index"], delta["tool_calls"][0]["function"]["arguments"]) for delta in found] == [
        (0, "{}"),
        (1, '{"x": 1}'),
    ]
    first, second = (delta["tool_calls"][0]["id"] for delta in found)
    assert (first, second) == ("one", f"call_{RUN.id.hex}_1")
    assert choice.finish(Outcome(RUN)) == "tool_calls"


def test_a_call_that_is_cut_waits_for_its_rest() -> None:
    choice, text = Choice(FORM, 0, RUN.id), call("f")
    assert said(choice, ("tool_call", text[:9])) == []
    (delta,) = said(choice, ("tool_call", text[9:]))
    assert delta["tool_calls"][0]["function"] == {"name": "f", "arguments": "{}"}


@pytest.mark.parametrize("text", [call("g"), "calling f", "[1]", '"f"', '{"name": []}'])
def test_what_is_no_call_of_the_requests_tools_is_an_aside(text: str) -> None:
    choice = Choice(FORM, 0, RUN.id)
    assert said(choice, ("tool_call", text)) == [{"aside": text, "content_type": "tool_call"}]
    assert choice.finish(Outcome(RUN)) == "stop"


def test_a_bare_text_has_neither_thoughts_nor_asides() -> None:
    choice = Choice(Form("m", is_chat=False), 0, RUN.id)
    found = said(choice, ("thinking", "hm"), ("status", "busy"), ("text", "a"), ("code", "b"))
    assert [delta["content"] for delta in found] == ["a", "b"]


async def test_a_whole_answer_is_what_its_deltas_come_to() -> None:
    log = Log(RUN.id)
    for kind, content in (("thinking", "hm"), ("tool_call", call("f")), ("status", "busy"), ("tool_call", call("f"))):
        log.append(Chunk(content, kind))
    log.close(Outcome(RUN))
    for form, named in ((FORM, "tool_calls"), (replace(FORM, speaks_of_functions=True), "function_call")):
        answer = await respond(None, [LiveRun(RUN, log)], form, stream=False)
        (choice,) = json.loads(answer.body)["choices"]
        assert choice["message"].keys() == {"role", "content", "refusal", "reasoning_content", named}
        assert (choice["message"]["content"], choice["message"]["reasoning_content"]) == (None, "hm")
        assert choice["finish_reason"] == ("tool_calls" if named == "tool_calls" else "function_call")
    assert answer.headers["x-run-id"] == str(RUN.id)


async def test_two_answers_are_counted_together() -> None:
    lives = []
    for text in ("one", "two"):
        run = replace(RUN, id=new_id(), usage=Usage(7, 3))
        lives.append(LiveRun(run, Log(run.id)))
        lives[-1].log.append(Chunk(text))
        lives[-1].log.close(Outcome(run))
    answer = json.loads((await respond(None, lives, FORM, stream=False)).body)
    assert [choice["message"]["content"] for choice in answer["choices"]] == ["one", "two"]
    assert (answer["object"], answer["usage"]["total_tokens"]) == ("chat.completion", 20)


def test_the_reason_of_the_end() -> None:
    choice = Choice(FORM, 0, RUN.id)
    for reason, told in (("length", "length"), ("content_filter", "content_filter"), ("tool_calls", "stop")):
        answer = Message.assistant("x", additional_kwargs={"finish_reason": reason})
        assert choice.finish(Outcome(RUN, [answer])) == told
    full = replace(RUN, status=RunStatus.PARTIAL, error=LogFull().to_dict())
    assert (choice.finish(Outcome(full)), failure(Outcome(full))) == ("length", None)


def test_what_is_no_whole_answer_is_an_error() -> None:
    lost = {"code": "shutdown", "message": "…", "status": 503}
    assert failure(Outcome(replace(RUN, status=RunStatus.PARTIAL))) == BROKEN_OFF
    assert failure(Outcome(replace(RUN, status=RunStatus.PARTIAL, error=lost))) == lost
    assert failure(Outcome(replace(RUN, status=RunStatus.FAILED, error=lost))) == lost
    assert failure(Outcome(replace(RUN, status=RunStatus.QUEUED, error=lost))) == lost
    assert failure(Outcome(replace(RUN, status=RunStatus.CANCELLED))) is None
    assert failure(Outcome(RUN)) is None


def test_errors_have_the_form_that_clients_know() -> None:
    assert openai_errors.body(NotFound("model", param="model").to_dict()) == {
        "error": {
            "message": "There is no such model.",
            "type": "invalid_request_error",
            "param": "model",
            "code": "model_not_found",
        }
    }
    told = [
        (LLMRejected().to_dict(), True, 400, None, "false"),
        (AgentFailed().to_dict(), True, 502, None, "false"),
        (QuotaExceeded().to_dict(), False, 429, None, "false"),
        ({"code": "shutdown", "message": "…", "status": 503}, True, 503, "1", None),
    ]
    for error, from_run, status, retry_after, should_retry in told:
        answer = openai_errors.response(error, from_run=from_run)
        headers = answer.headers.get("retry-after"), answer.headers.get("x-should-retry")
        assert (answer.status_code, headers) == (status, (retry_after, should_retry))
    assert openai_errors.response(QuotaExceeded().to_dict(), retry_after=5000).headers["retry-after"] == "120"
