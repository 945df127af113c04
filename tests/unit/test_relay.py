"""Entries of a log as they come from Redis: late, twice, or with a gap."""

from __future__ import annotations

import msgspec
import pytest

from app.domain import Chunk, Outcome, Run, RunStatus, Usage, Value, new_id
from app.journal.log import Log, joined
from app.journal.recorder import Bill, Recorder
from app.store.redis import Entry
from app.usecases.answers import layout, stored_answers, stored_log
from app.usecases.relay import extend


def entry(position: int, *texts: str) -> Entry:
    return Entry(position, [Chunk(text) for text in texts], [])


def test_what_comes_twice_is_taken_once() -> None:
    log = Log(new_id())
    for item in (entry(0, "ab", "c"), entry(0, "ab"), entry(2, "cde"), entry(0, "abcdef")):
        extend(log, item)
    assert log.answer() == "abcdef"


def test_what_comes_after_a_gap_waits_for_the_stored_answer() -> None:
    log = Log(new_id())
    extend(log, entry(0, "ab"))
    extend(log, entry(5, "fg"))
    assert log.answer() == "ab"


def test_what_is_begun_anew_with_other_words_is_not_mixed_with_what_was_heard() -> None:
    log = Log(new_id())
    for item in (entry(0, "ab"), entry(0, "ab", "c")):
        extend(log, item)
    assert (log.answer(), log.strayed) == ("abc", False)
    for item in (entry(0, "axcd"), entry(4, "ef")):
        extend(log, item)
    assert (log.answer(), log.strayed) == ("abc", True)


def test_an_entry_is_the_same_after_its_journey() -> None:
    sent = Entry(3, [Chunk("a", "thinking"), Chunk("界")], [Bill(1, "m", 10, 2, 0, 0, False)])
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(sent), type=Entry) == sent


def test_the_bill_has_open_calls_as_estimates_and_ended_ones_as_they_are() -> None:
    recorder = Recorder()
    with recorder.step("llm", "small") as ended:
        ended.usage = Usage(5, 6)
    with recorder.step("tool", "t"), recorder.step("llm", "big", parts=[Value.of(b"x" * 40)]):
        assert recorder.bill() == [Bill(1, "small", 5, 6, 0, 0, False, ended=True), Bill(3, "big", 11)]
    assert [bill.estimated for bill in recorder.bill()] == [False, False]


@pytest.mark.parametrize(
    "said",
    [
        [Chunk("all text")],
        [Chunk("hm", "thinking"), Chunk("a"), Chunk("x = 1", "code"), Chunk("b")],
        [Chunk("a"), Chunk("one", "status"), Chunk("b"), Chunk("two", "status"), Chunk("hm", "thinking")],
        [Chunk("x"), Chunk("ann", "speaker"), Chunk("hm", "thinking"), Chunk("a"), Chunk("ben", "speaker"), Chunk("b")],
        [Chunk("ann", "speaker"), Chunk("hm", "thinking"), Chunk("ben", "speaker")],
        [],
    ],
)
def test_a_stored_answer_gives_its_log_back(said: list[Chunk]) -> None:
    run = Run(new_id(), new_id(), new_id(), "a", new_id(), RunStatus.PARTIAL, layout=layout(joined(said)))
    made = stored_log(run, stored_answers(joined(said), RunStatus.PARTIAL) if said else [])
    assert [event.chunk for event in made.events] == joined(said)
    assert made.outcome == Outcome(run, made.outcome.messages if made.outcome else ())


def test_the_answer_is_what_counts_and_the_rest_stands_beside_it() -> None:
    (message,) = stored_answers([Chunk("hm", "thinking"), Chunk("a"), Chunk("b", "code")], RunStatus.COMPLETED)
    assert message.content == "ab"
    assert message.additional_kwargs == {"asides": [{"content_type": "thinking", "content": "hm"}]}


def test_each_speakers_turn_is_a_message_and_the_last_tells_how_it_ended() -> None:
    said = [
        Chunk("x"),
        Chunk("ann", "speaker"),
        Chunk("a"),
        Chunk("ben", "speaker"),
        Chunk("hm", "thinking"),
        Chunk("b"),
    ]
    messages = stored_answers(said, RunStatus.FAILED)
    assert [(each.name, each.content) for each in messages] == [(None, "x"), ("ann", "a"), ("ben", "b")]
    asides = [{"content_type": "thinking", "content": "hm"}]
    assert [each.additional_kwargs for each in messages] == [{}, {}, {"asides": asides, "status": "failed"}]
