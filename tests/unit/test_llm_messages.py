"""Messages and options of a call, before anything is sent."""

import json
from typing import Any

import pytest

from app.domain import Message
from app.errors import InvalidInput
from app.llm.llm import Completion
from app.llm.messages import Prompt, named, normalise
from app.llm.options import checked


def test_a_text_is_a_message_of_the_user() -> None:
    assert normalise("{{ 7*7 }} {brace}") == [{"role": "user", "content": "{{ 7*7 }} {brace}"}]
    assert type(normalise(Completion("hi"))[0]["content"]) is str


def test_messages_and_dictionaries_may_be_mixed() -> None:
    tool = {"role": "tool", "tool_call_id": "1", "content": "sunny"}
    called = {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}
    assert normalise([Message.system("Be brief."), called, tool]) == [
        {"role": "system", "content": "Be brief."},
        called,
        tool,
    ]
    assert normalise(Message.user("hi", name="ann")) == [{"role": "user", "content": "hi", "name": "ann"}]


def test_the_callers_dictionaries_are_not_shared() -> None:
    given = {"role": "user", "content": "hi"}
    normalise([given])[0]["content"] = "changed"
    assert given["content"] == "hi"


@pytest.mark.parametrize(
    ("messages", "place"),
    [
        ([], "messages"),
        (None, "messages"),
        (5, "messages"),
        ({"role": "user", "content": "hi"}, "messages"),
        (["hi"], "messages[0]"),
        ([Message.user("hi"), None], "messages[1]"),
        ([Message("robot", "hi")], "messages[0].role"),
        ([{"content": "hi"}], "messages[0].role"),
        ([{"role": ["user"], "content": "hi"}], "messages[0].role"),
        ([{"role": "user"}], "messages[0].content"),
        ([{"role": "user", "content": None}], "messages[0].content"),
        ([{"role": "user", "content": 5}], "messages[0].content"),
        ([{"role": "user", "content": []}], "messages[0].content"),
        ([{"role": "user", "content": ["hi"]}], "messages[0].content"),
    ],
)
def test_a_bad_message_is_named_by_its_place(messages: Any, place: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        normalise(messages)
    assert caught.value.param == place
    assert place in caught.value.message


def test_good_options_pass_and_none_means_the_default() -> None:
    options = {
        "model": "org/model:7b",
        "temperature": 2,
        "top_p": 0.5,
        "max_tokens": 1,
        "stop": ["\n", "END"],
        "seed": -(2**63),
        "presence_penalty": -2.0,
        "frequency_penalty": 0,
        "response_format": {"type": "json_object"},
        "reasoning_effort": "low",
        "user": "42",
    }
    assert checked({**options, "max_completion_tokens": None}) == options


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("temperature", value) for value in (-0.1, 2.1, float("nan"), float("inf"), "1", True, [])),
        *(("top_p", value) for value in (-1, 1.5, float("nan"))),
        *(("max_tokens", value) for value in (0, -1, 1.5, 2**63, True)),
        *(("max_completion_tokens", value) for value in (0, "9")),
        *(("model", value) for value in ("", "a\0b", "x" * 201, 5)),
        *(("stop", value) for value in ("", [], ["a"] * 5, [""], [5], 5)),
        *(("seed", value) for value in (1.5, 2**63, True)),
        *(("presence_penalty", value) for value in (-2.1, float("nan"))),
        *(("frequency_penalty", value) for value in (2.1, "0")),
        *(("response_format", value) for value in ("json", {}, {"type": "xml"})),
        *(("user", value) for value in ("", "x" * 201)),
        ("reasoning_effort", "a\nb"),
        ("wings", 2),
        ("stream", True),
        ("messages", []),
    ],
)
def test_a_bad_option_is_named(name: str, value: object) -> None:
    with pytest.raises(InvalidInput) as caught:
        checked({"temperature": 1, name: value})
    assert caught.value.param == name
    assert name in caught.value.message


def told(name: str, values: dict[str, bytes]) -> list[bytes]:
    """The messages that a name leads to."""
    body = values[name]
    return [each for inner in json.loads(body) for each in told(inner, values)] if body.startswith(b"[") else [body]


def test_a_long_conversation_is_named_by_runs_that_stay_the_same_as_it_moves_on() -> None:
    said = [Message.user(f"number {at}") for at in range(400)]
    kept: set[bytes] = set()
    for first in (0, 1, 2, 9):
        prompt = Prompt.of(said[first : first + 200])
        names, values = named(prompt.values)
        known = {value.digest.hex(): value.body for value in values}
        assert [body for name in names for body in told(name, known)] == [value.body for value in prompt.values]
        assert len(names) < 80
        new = {value.body for value in values} - kept
        assert first == 0 or len(new) < 12, "what moves on by a message stores little more than that"
        kept |= new


def test_a_conversation_that_has_lost_its_beginning_is_named_as_one_that_never_had_it() -> None:
    kept = [Message.user(f"word {number}", tokens=3) for number in range(120)]
    named(Prompt.of(kept).values)
    names, values = named(Prompt.of(kept[7:]).values)
    fresh, others = named(Prompt.of([Message.user(each.content, tokens=3) for each in kept[7:]]).values)
    assert names == fresh
    assert [value.body for value in values] == [value.body for value in others]


def test_a_message_that_is_not_good_for_a_prompt_is_refused_though_it_was_recorded() -> None:
    odd = Message("robot", "hello")
    assert odd.value
    with pytest.raises(InvalidInput, match=r"messages\[1\].role"):
        Prompt.of([Message.user("hello"), odd])


def test_a_short_conversation_is_named_message_by_message() -> None:
    values = Prompt.of([Message.user(str(at)) for at in range(32)]).values
    assert named(values) == ([value.digest.hex() for value in values], values)


def test_a_message_may_have_a_picture_or_sound_beside_its_text() -> None:
    assert normalise(
        [Message.image("https://h/i.png", "Who?"), Message.image(b"png"), Message.audio(b"wav", "What?")]
    ) == [
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "Who?"},
                {"type": "image_url", "image_url": {"url": "https://h/i.png"}},
            ],
        },
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,cG5n"}}]},
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "What?"},
                {"type": "input_audio", "input_audio": {"data": "d2F2", "format": "wav"}},
            ],
        },
    ]
