"""One answer of the OpenAI protocol, from its bytes."""

import json
from decimal import Decimal
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.domain import Chunk, Usage
from app.errors import LLMError
from app.journal.log import joined
from app.llm.answer import Answer
from app.llm.llm import Finish

MESSAGES = [{"role": "user", "content": "Hello?"}]


def event(delta: dict[str, Any] | None = None, reason: str | None = None, **fields: Any) -> bytes:
    choices = [] if delta is None else [{"index": 0, "delta": delta, "finish_reason": reason}]
    return b"data: " + json.dumps({"choices": choices, **fields}).encode() + b"\n\n"


def read(*pieces: bytes, max_bytes: int = 100_000) -> list[Chunk | Finish]:
    answer = Answer(MESSAGES, max_bytes=max_bytes, max_line=10_000)
    chunks = [chunk for piece in pieces for chunk in answer.feed(piece)]
    if answer.error:
        raise answer.error
    return [*joined([*chunks, *answer.end()]), answer.finish()]


def usage(given: object) -> Usage:
    finish = read(event({"content": "Hi."}, "stop"), event(usage=given), b"data: [DONE]\n\n")[-1]
    assert isinstance(finish, Finish)
    return finish.usage


STREAM = (
    event({"role": "assistant", "content": ""}, model="real")
    + event({"reasoning_content": "思考"})
    + event({"content": "Gr\u00fc\u00dfe, "})
    + event({"content": "😀"})
    + event({}, "stop")
    + event(usage={"prompt_tokens": 5, "completion_tokens": 7})
    + b"data: [DONE]\n\n"
)
ITEMS = [Chunk("思考", "thinking"), Chunk("Grüße, 😀"), Finish("stop", Usage(5, 7), "real")]


@given(st.lists(st.integers(0, len(STREAM)), max_size=30))
@settings(deadline=None)
def test_any_cuts_of_the_bytes_give_the_same_answer(places: list[int]) -> None:
    cuts = [0, *sorted(places), len(STREAM)]
    assert read(*(STREAM[start:end] for start, end in pairwise(cuts))) == ITEMS


def test_both_names_of_reasoning_are_known() -> None:
    assert read(event({"reasoning": "Hm."}), event({"content": "Hi."}, "stop"))[0] == Chunk("Hm.", "thinking")


def test_a_refusal_is_what_the_model_said() -> None:
    pieces = [{"role": "assistant", "content": "", "refusal": None}, {"refusal": "I'm "}, {"refusal": "sorry."}, {}]
    said = [Chunk("I'm sorry."), Finish("stop", Usage(5, 7))]
    ending = event({}, "stop") + event(usage={"prompt_tokens": 5, "completion_tokens": 7}) + b"data: [DONE]\n\n"
    assert read(*map(event, pieces), ending) == said
    whole = {"message": {"content": None, "refusal": "I'm sorry."}, "finish_reason": "stop"}
    counts = {"prompt_tokens": 5, "completion_tokens": 7}
    assert read(json.dumps({"choices": [whole], "usage": counts}).encode()) == said


def test_usage_with_cached_and_reasoning_tokens_is_taken_as_given() -> None:
    given = {
        "prompt_tokens": 50,
        "completion_tokens": 7,
        "prompt_tokens_details": {"cached_tokens": 40},
        "completion_tokens_details": {"reasoning_tokens": 3},
    }
    assert usage(given) == Usage(50, 7, 40, 3, Decimal(0), estimated=False)


@pytest.mark.parametrize(
    "given",
    [
        None,
        {},
        [],
        "many",
        {"prompt_tokens": -5, "completion_tokens": 7},
        {"prompt_tokens": 10**15, "completion_tokens": -1},
        {"prompt_tokens": True, "completion_tokens": 1.5},
        {"prompt_tokens": 0, "completion_tokens": 0},
        {"prompt_tokens": "5", "completion_tokens": None},
    ],
)
def test_usage_that_cannot_be_is_counted_here_and_flagged(given: object) -> None:
    counted = usage(given)
    assert counted.estimated
    assert 0 < counted.prompt < 50
    assert 0 < counted.completion < 50


@pytest.mark.parametrize("details", [None, [], {"cached_tokens": -1}, {"cached_tokens": "x"}])
def test_strange_details_are_no_details(details: object) -> None:
    given = {"prompt_tokens": 5, "completion_tokens": 7, "prompt_tokens_details": details}
    assert usage(given) == Usage(5, 7)


@pytest.mark.parametrize(
    ("ending", "reason"),
    [
        (event({}, "length") + b"data: [DONE]\n\n", "length"),
        (event({}, "stop"), "stop"),
        (event({}, "stop").rstrip(), "stop"),
        (b"data: [DONE]\n\n", "stop"),
        (b"data: [DONE]", "stop"),
        (b"", "cut"),
        (b'data: {"choices": [{"del', "cut"),
        (event({}, "<script>" * 9), "stop"),
    ],
)
def test_only_a_stream_with_neither_reason_nor_done_was_cut(ending: bytes, reason: str) -> None:
    finish = read(event({"content": "Hi."}), ending)[-1]
    assert isinstance(finish, Finish)
    assert finish.reason == reason


def test_a_whole_completion_is_understood() -> None:
    body = {
        "choices": [{"message": {"content": "Hi.", "reasoning_content": "Hm."}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 1, "completion_tokens": 2},
    }
    data = json.dumps(body, indent=2).encode()
    assert read(b"  \n", data[:30], data[30:]) == [Chunk("Hm.", "thinking"), Chunk("Hi."), Finish("stop", Usage(1, 2))]


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"data: {garbage}\n\n", "not of the OpenAI protocol"),
        (b'data: {"choices": [{"delta": {"content": 5}}]}\n\n', "not of the OpenAI protocol"),
        (b'data: {"choices": [{"delta": {"content": "\xff"}}]}\n\n', "not of the OpenAI protocol"),
        (b"data: " + b"[" * 5000 + b"\n\n", "not of the OpenAI protocol"),
        (b'{"choices": [', "not of the OpenAI protocol"),
        (b"\xef\xbb\xbf <!doctype html>", "web page"),
        (b"", "answered nothing"),
        (b"Welcome to my server.\n", "answered nothing"),
        (event({"role": "assistant"}), "broke off"),
        (event({"content": ""}, "stop"), "empty answer"),
        (b"{}", "empty answer"),
        (b'data: {"error": {"message": "Overloaded."}}\n\n', "failed: Overloaded."),
        (b'data: {"error": "<b>no</b>"}\n\n', "could not be used"),
        (b"data: " + b"x" * 20_000, "line that is too long"),
        (event({"content": "x" * 900}) * 200, "answer is too long"),
    ],
)
def test_what_is_no_answer_is_one_clear_sentence(data: bytes, sentence: str) -> None:
    with pytest.raises(LLMError, match=sentence):
        read(data)


def test_a_halved_emoji_is_shown_as_a_replacement_and_harms_nothing() -> None:
    items = read(b'data: {"choices": [{"delta": {"content": "a\\ud83d"}, "finish_reason": "stop"}]}\n\n')
    assert items[0] == Chunk("a\ufffd")


def test_a_models_name_that_is_no_name_is_not_kept() -> None:
    finish = read(event({"content": "Hi."}, "stop", model="a\0b"))[-1]
    assert isinstance(finish, Finish)
    assert finish.model is None


def test_nothing_after_done_counts() -> None:
    assert read(event({"content": "Hi."}, "stop") + b"data: [DONE]\n\n" + event({"content": "More."}))[:-1] == [
        Chunk("Hi.")
    ]


def calls(*deltas: dict[str, Any], reason: str | None = "tool_calls") -> list[Any]:
    """What is called when these come, each in an event of its own."""
    pieces = [event({"tool_calls": [delta]}) for delta in deltas]
    answer = Answer(MESSAGES, max_bytes=100_000, max_line=10_000)
    ended = event({}, reason) if reason else b"data: [DONE]\n\n"
    chunks = [chunk for piece in (*pieces, ended) for chunk in answer.feed(piece)]
    assert {chunk.content_type for chunk in chunks} <= {"tool_call"}
    return [tuple(json.loads(chunk.content).values()) for chunk in chunks]


def test_the_pieces_of_a_tools_call_become_one_chunk() -> None:
    first = {"index": 0, "id": "a", "type": "function", "function": {"name": "f", "arguments": ""}}
    pieces = [{"index": 0, "function": {"arguments": text}} for text in ('{"x"', ": 1}")]
    assert calls(first, *pieces) == [("a", "f", '{"x": 1}')]
    second = {"index": 1, "id": "b", "function": {"name": "g", "arguments": None}}
    assert calls(first, *pieces, second) == [("a", "f", '{"x": 1}'), ("b", "g", "{}")]
    assert calls(first, *pieces, reason=None) == [("a", "f", '{"x": 1}')]


def test_calls_that_are_not_numbered_are_told_apart_by_their_ids() -> None:
    unnumbered = [{"id": id, "function": {"name": "f", "arguments": "{}"}} for id in "ab"]
    assert calls(*unnumbered) == [("a", "f", "{}"), ("b", "f", "{}")]
    assert calls(*({**call, "index": 0} for call in unnumbered)) == [("a", "f", "{}"), ("b", "f", "{}")]


def test_a_whole_completion_may_call_tools_and_say_nothing() -> None:
    function = {"name": "f", "arguments": '{"x": 1}'}
    message = {"content": None, "tool_calls": [{"id": "a", "function": function}, {"id": "b", "function": function}]}
    for reason in ("tool_calls", "stop"):
        body = json.dumps({"choices": [{"message": message, "finish_reason": reason}]}).encode()
        *said, finish = read(body)
        assert isinstance(finish, Finish)
        assert finish.reason == reason
        assert len(said) == 1  # joined by `read`


def test_half_a_call_is_no_call() -> None:
    begun = event({"content": "Hm."}) + event({"tool_calls": [{"index": 0, "id": "a", "function": {"name": "f"}}]})
    said, finish = read(begun)
    assert said == Chunk("Hm.")
    assert isinstance(finish, Finish)
    assert finish.reason == "cut"
