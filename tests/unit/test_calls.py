"""Calls of tools: read from a log however it was cut, and told to a model only with their results."""

from __future__ import annotations

import json
from typing import Any
from uuid import UUID

import pytest

from app.api.responses_output import Output, after
from app.domain import Chunk, Message, Outcome, Run, RunStatus
from app.journal.log import Log
from app.usecases.calls import Calls, called, names_of, paired

ID = UUID(int=7)
TOOLS = frozenset({"weather"})
CALL = json.dumps({"id": "c1", "name": "weather", "arguments": '{"city": "北京"}'}, ensure_ascii=False)
OWN = json.dumps({"name": "search", "arguments": {}})


@pytest.mark.parametrize("size", [1, 2, 7, 1000])
def test_calls_are_the_same_however_they_were_cut(size: int) -> None:
    text = f"{CALL}\n{OWN}{json.dumps({'name': 'weather'})}"
    calls = Calls(ID, TOOLS)
    read = [piece for at in range(0, len(text), size) for piece in calls.read(text[at : at + size])]
    assert "".join(piece for piece, _ in read) == text
    made = [call for _, call in read if call]
    assert [(call.id, call.arguments, call.index) for call in made] == [
        ("c1", '{"city": "北京"}', 0),
        (f"call_{ID.hex}_1", "{}", 1),
    ]


def test_what_is_no_call_is_nobodys() -> None:
    assert called([Chunk("not json", "tool_call"), Chunk(CALL)], ID, TOOLS) == []
    assert names_of(None) == names_of([1, {"function": 2}, {"function": {"name": 3}}]) == frozenset()


def calling(*ids: str, text: str = "") -> Message:
    return Message.assistant(text, additional_kwargs={"tool_calls": [{"id": id} for id in ids], "x": 1})


def result(id: str) -> Message:
    return Message("tool", "sunny", additional_kwargs={"tool_call_id": id})


def test_a_model_is_told_calls_with_their_results_only() -> None:
    ask = Message.user("weather?")
    whole = [ask, calling("a", "b"), result("a"), result("b")]
    assert paired(whole) is whole
    told = paired([result("gone"), ask, calling("a", "b"), result("a"), calling("c"), calling("d", text="well"), ask])
    assert [(message.role, message.to_openai().get("tool_calls")) for message in told] == [
        ("user", None),
        ("assistant", [{"id": "a"}]),
        ("tool", None),
        ("assistant", None),
        ("user", None),
    ]
    assert paired([result("gone")]) == [result("gone")]


def events(log: Log) -> list[dict[str, Any]]:
    output = Output(ID, TOOLS)
    found = output.take(log.events)
    run = Run(ID, ID, ID, "a", ID, RunStatus.COMPLETED)
    return [*found, *output.end(Outcome(run))]


def test_sequence_numbers_do_not_depend_on_how_a_log_was_cut() -> None:
    said = [("hm", "thinking"), ("one two", "text"), ("at work", "status"), ("3", "code"), (CALL + OWN, "tool_call")]
    whole, cut = Log(ID), Log(ID)
    for content, kind in said:
        whole.append(Chunk(content, kind))
        for character in content:
            cut.append(Chunk(character, kind))
    structure = [[event for event in events(log) if "delta" not in event] for log in (whole, cut)]
    assert structure[0] == structure[1]
    last = events(whole)[-1]["sequence_number"]
    for number in range(last):
        rest = [[part for event in events(log) if (part := after(event, number))] for log in (whole, cut)]
        texts = ["".join(part["delta"] for part in each if part["type"].endswith("text.delta")) for each in rest]
        assert texts[0] == texts[1]


def test_an_answer_without_a_word_is_an_empty_message() -> None:
    assert [event["type"] for event in events(Log(ID))][-1] == "response.output_item.done"
