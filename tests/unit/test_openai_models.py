"""Requests of OpenAI's protocol: every form that clients send becomes one, and nothing else passes."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from app.agent import Message, OpenAIRequest
from app.api.openai_models import ChatBody, ChatIn, CompletionBody
from app.domain import MAX_TEXT
from app.llm.messages import normalise
from app.llm.options import checked

CHAT: TypeAdapter[ChatIn] = TypeAdapter(ChatBody)
HELLO = {"role": "user", "content": "hi"}
PICTURE = {"type": "image_url", "image_url": {"url": "https://h/i.png"}}
CALL = {"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}


def taken(*messages: Any, **fields: Any) -> dict[str, Any]:
    return CHAT.validate_python({"model": "m", "messages": messages or [HELLO], **fields}).request()


@pytest.mark.parametrize(
    ("message", "form"),
    [
        ({"role": "developer", "content": "x"}, {"role": "system", "content": "x"}),
        ({"role": "user", "content": None}, {"role": "user", "content": ""}),
        ({"role": "user", "content": ["a", "b"]}, {"role": "user", "content": "ab"}),
        (
            {"role": "user", "content": [{"type": "text", "text": "a"}], "name": "ann"},
            {"role": "user", "content": "a", "name": "ann"},
        ),
        (
            {"role": "assistant", "tool_calls": [CALL], "refusal": None},
            {"role": "assistant", "content": "", "tool_calls": [CALL]},
        ),
        (
            {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": "{}"}},
            {"role": "assistant", "content": "", "tool_calls": [CALL | {"id": "f"}]},
        ),
        ({"role": "tool", "tool_call_id": "a", "content": "x"}, {"role": "tool", "content": "x", "tool_call_id": "a"}),
        ({"role": "function", "name": "f", "content": "x"}, {"role": "tool", "content": "x", "tool_call_id": "f"}),
    ],
)
def test_a_message_has_one_form(message: dict[str, Any], form: dict[str, Any]) -> None:
    (found,) = taken(message)["messages"]
    assert found == form
    (again,) = OpenAIRequest(messages=[found]).said()
    assert again.to_openai() == form
    assert normalise([again]) == [form]


def test_parts_that_are_more_than_text_stay() -> None:
    parts = [{"type": "text", "text": "look"}, {"type": "image_url", "image_url": {"url": "https://h/i.png"}}]
    request = OpenAIRequest.model_validate(taken({"role": "user", "content": parts}))
    assert request.get_user_query() == "look"
    (message,) = request.said()
    assert (message.content, message.to_openai()["content"]) == ("look", parts)
    assert message.tokens > 700


def test_an_address_alone_is_a_picture_and_other_kinds_are_the_models() -> None:
    parts = [{"type": "image_url", "image_url": "https://h/i.png"}, {"type": "video_url", "video_url": {"url": "x"}}]
    (message,) = taken({"role": "user", "content": parts})["messages"]
    assert message["content"] == [{"type": "image_url", "image_url": {"url": "https://h/i.png"}}, parts[1]]


def test_null_is_nothing_and_unknown_fields_are_the_agents() -> None:
    body = taken(temperature=None, tools=[], tool_choice="auto", stop=[], colour="blue", n=2)
    assert body == {"model": "m", "messages": [HELLO], "stream": False, "colour": "blue"}
    assert OpenAIRequest.model_validate(body).model_extra == {"colour": "blue"}


def test_old_functions_are_tools() -> None:
    old = CHAT.validate_python(
        {"model": "m", "messages": [HELLO], "functions": [{"name": "f"}], "function_call": {"name": "f"}}
    )
    assert (old.speaks_of_functions, old.tool_names) == (True, {"f"})
    body = old.request()
    assert body["tools"] == [{"type": "function", "function": {"name": "f"}}]
    assert body["tool_choice"] == {"type": "function", "function": {"name": "f"}}


@pytest.mark.parametrize(
    "wrong",
    [
        {"messages": []},
        {"messages": [{"content": "no role"}]},
        {"messages": [HELLO] * 5001},
        {"messages": [{"role": "user", "content": "x" * (MAX_TEXT + 1)}]},
        {"messages": [{"role": "user", "content": "\x00"}]},
        {"messages": [{"role": "user", "content": [{"text": "no type"}]}]},
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "file:///a"}}]}]},
        {"messages": [{"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": "AA"}}]}]},
        {"messages": [{"role": "user", "content": [PICTURE, {"type": "text", "text": "x" * (MAX_TEXT + 1)}]}]},
        {"messages": [{"role": "assistant", "tool_calls": "f"}]},
        {"colour": {"deep": "\x00"}},
        {"seed": 2**70},
        {"n": 0},
        {"tools": [{"type": "function"}] * 129},
        {"tool_choice": "perhaps"},
        {"user": "x" * 201},
    ],
)
def test_what_is_too_large_or_senseless_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        CHAT.validate_python({"model": "m", "messages": [HELLO], **wrong})


def test_a_prompt_is_a_message_of_the_user() -> None:
    adapter: TypeAdapter[Any] = TypeAdapter(CompletionBody)
    fields = {"echo": True, "max_tokens": 5, "response_format": "a chat's", "messages": 1, "suffix": "end"}
    body = adapter.validate_python({"model": "m", "prompt": ["a", "b"], **fields})
    assert body.request_of("b") == {
        "model": "m",
        "messages": [{"role": "user", "content": "b"}],
        "max_tokens": 5,
        "suffix": "end",
        "stream": False,
    }
    for prompt in ("", [], [1, 2], [[1]], None, ["a"] * 9):
        with pytest.raises(ValidationError):
            adapter.validate_python({"model": "m", "prompt": prompt})


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
MESSAGE = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "assistant", "tool", "function", "developer"])},
    optional=dict.fromkeys(("content", "name", "tool_calls", "function_call", "tool_call_id"), JSON),
)
FIELDS = [
    "temperature",
    "stop",
    "n",
    "tools",
    "tool_choice",
    "functions",
    "function_call",
    "stream",
    "response_format",
    "seed",
]


@given(st.lists(MESSAGE, max_size=3), st.dictionaries(st.sampled_from(FIELDS), JSON, max_size=4))
def test_whatever_is_sent_is_refused_or_fits(messages: list[Any], fields: dict[str, Any]) -> None:
    try:
        request = CHAT.validate_python({"model": "m", "messages": messages, **fields})
    except ValidationError:
        return
    for message in normalise(OpenAIRequest.model_validate(request.request()).said()):
        assert isinstance(message["content"], str | list)
    assert isinstance(request.tool_names, frozenset)


def test_a_requests_options_are_those_of_a_call() -> None:
    body = taken(
        temperature=0.5, tools=[{"type": "function", "function": {"name": "f"}}], max_tokens=3, stop="x", top_k=2
    )
    request = OpenAIRequest.model_validate(body)
    assert checked(request.options()) == {
        name: body[name] for name in ("temperature", "max_tokens", "stop", "tools", "top_k")
    }


def test_headers_are_found_in_any_case() -> None:
    request = OpenAIRequest(messages=[HELLO, {"role": "assistant", "content": "ho"}, {"role": "user", "content": None}])
    request.set_headers({"X-Colour": "blue"})
    assert (request.get_header("x-colour"), request.get_header("other")) == ("blue", None)
    assert request.get_header() == {"x-colour": "blue"}
    assert request.get_user_query() == ""  # the last one of the user, also when it says nothing
    assert (request.stream, OpenAIRequest().get_user_query()) == (True, "")


def test_calls_are_only_an_assistants() -> None:
    assert Message.user("x", additional_kwargs={"tool_calls": [CALL]}).to_openai() == {"role": "user", "content": "x"}
