"""The log of a run and the record of its steps."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.domain import Chunk, Outcome, Run, RunStatus, Usage, new_id
from app.errors import NotFound
from app.journal import recorder as recorder_module
from app.journal.log import CHUNK_BYTES, Log, LogFull, joined
from app.journal.recorder import JournalFull, Recorder
from app.journal.replay import Done, Replay, Suspended, suspension


def ended(log: Log) -> Outcome:
    return Outcome(Run(log.run_id, new_id(), new_id(), "a", new_id(), RunStatus.COMPLETED))


async def collect(log: Log, after: int = 0) -> list[str]:
    return [event.chunk.content async for batch in log.read(after) for event in batch]


async def test_every_reader_gets_everything_from_where_it_stands() -> None:
    log = Log(new_id())
    readers = [asyncio.ensure_future(collect(log, after)) for after in (0, 0, 2)]
    for text in "abcd":
        log.append(Chunk(text))
        await asyncio.sleep(0)
    log.close(ended(log))
    assert await asyncio.gather(*readers) == [list("abcd"), list("abcd"), list("cd")]
    assert await collect(log, 3) == ["d"]
    assert (await log.ended()).run.status is RunStatus.COMPLETED


async def test_the_answer_is_text_code_and_result_in_order() -> None:
    log = Log(new_id())
    for chunk in (Chunk("a"), Chunk("hm", "thinking"), Chunk("b", "code"), Chunk("x", "mine"), Chunk("c", "result")):
        log.append(chunk)
    assert log.answer() == "abc"


async def test_the_log_is_capped_in_bytes() -> None:
    log = Log(new_id(), max_bytes=5 + 2 * CHUNK_BYTES)
    log.append(Chunk("界"))
    with pytest.raises(LogFull):
        log.append(Chunk("界"))
    assert log.answer() == "界"


@given(st.lists(st.text(min_size=1, max_size=5), max_size=8), st.data())
def test_a_position_means_the_same_place_however_the_text_was_cut(texts: list[str], data: st.DataObject) -> None:
    whole, whole_text = Log(new_id()), "".join(texts)
    for text in texts:
        whole.append(Chunk(text))
    again = Log(new_id())
    for chunk in joined(event.chunk for event in whole.events):
        again.append(chunk)
    position = data.draw(st.integers(0, len(whole_text) + 2))
    for log in (whole, again):
        found = log.since(position)
        assert "".join(event.chunk.content for event in found) == whole_text[position:]
        assert all(event.position > position for event in found)
        assert log.position == len(whole_text)


def test_an_empty_chunk_says_nothing() -> None:
    log = Log(new_id())
    log.append(Chunk("", "status"))
    assert log.events == []


async def test_a_silent_log_lets_its_reader_know() -> None:
    log = Log(new_id())
    reading = log.read(patience=0.01)
    assert await anext(reading) == ()
    log.append(Chunk("a"))
    assert [event.chunk.content for event in await anext(reading)] == ["a"]
    log.close(ended(log))
    with pytest.raises(StopAsyncIteration):
        await anext(reading)


def test_steps_are_recorded_in_the_order_they_began_with_their_parents() -> None:
    recorder = Recorder()
    with recorder.step("step", "outer", nested=True), recorder.step("llm", "m") as inner:
        inner.usage = Usage(1, 2)
    with recorder.step("step", "after"):
        pass
    assert [(step.seq, step.path, step.status) for step in recorder.steps] == [
        (1, "/outer", "completed"),
        (2, "/outer/m", "completed"),
        (3, "/after", "completed"),
    ]
    assert recorder.usage.total == 3


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (NotFound("x"), "failed", "not_found"),
        (KeyError("secret"), "failed", "KeyError"),
        (asyncio.CancelledError(), "cancelled", "cancelled"),
        (GeneratorExit(), "cancelled", "cancelled"),
        (BaseExceptionGroup("", [KeyError(), SystemExit()]), "failed", "BaseExceptionGroup"),
    ],
)
def test_an_error_ends_its_step_and_goes_on(error: BaseException, status: str, code: str) -> None:
    recorder = Recorder()
    with pytest.raises(type(error)), recorder.step("tool", "t"):
        raise error
    (step,) = recorder.steps
    assert step.status == status
    assert step.error is not None
    assert step.error["code"] == code
    assert "secret" not in str(step.error)


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_step_that_is_left_by_a_question_has_not_failed_and_happens_again(wrapped: bool) -> None:
    asked: BaseException = Suspended("Why?", {}, 60, 2)
    error = BaseExceptionGroup("", [KeyError(), BaseExceptionGroup("", [asked])]) if wrapped else asked
    recorder = Recorder()
    with pytest.raises(type(error)), recorder.step("step", "s"):
        raise error
    (step,) = recorder.steps
    assert (step.status, step.error) == ("partial", None)
    assert suspension(error) is asked
    again = Recorder(1, Replay([Done(step.seq, step.path, step.kind, b"", step.output, step.status, step.error)]))
    with again.step("step", "s") as anew:
        assert anew.served is None
    assert [(step.seq, step.status) for step in again.steps] == [(2, "completed")]


def test_the_record_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorder_module, "MAX_STEPS", 2)
    recorder = Recorder()
    for _ in range(2):
        with recorder.step("s", "x"):
            pass
    with pytest.raises(JournalFull), recorder.step("s", "x"):
        pass
    monkeypatch.setattr(recorder_module, "MAX_BYTES", 10)
    recorder = Recorder()
    with recorder.step("s", "x", input=b"12345678901"):
        pass
    with pytest.raises(JournalFull), recorder.step("s", "x"):
        pass


# A run that begins anew


def begun(*said: Chunk) -> Log:
    log = Log(new_id())
    log.begin_with(said)
    return log


def chunks(log: Log) -> list[tuple[str, str]]:
    return [(event.chunk.content_type, event.chunk.content) for event in log.events]


@given(st.permutations([Chunk("ab", "text"), Chunk("xyz", "thinking"), Chunk("cd", "code")]))
def test_what_was_said_is_not_said_twice_in_whatever_order_its_types_come(said: list[Chunk]) -> None:
    log = begun(Chunk("ab", "text"), Chunk("xyz", "thinking"), Chunk("c", "code"))
    for chunk in said:
        log.append(chunk)
    assert chunks(log) == [("text", "ab"), ("thinking", "xyz"), ("code", "c"), ("code", "d")]
    assert not log.strayed


def test_a_run_that_says_something_else_is_heard_as_it_is_now() -> None:
    log = begun(Chunk("one two", "text"), Chunk("hm", "thinking"))
    for chunk in (Chunk("one", "text"), Chunk("hm", "thinking"), Chunk(" too", "text")):
        log.append(chunk)
    assert chunks(log) == [("text", "one"), ("thinking", "hm"), ("text", " too")]
    assert log.strayed


def test_what_a_run_has_not_said_again_at_its_end_was_not_meant() -> None:
    log = begun(Chunk("one two"))
    log.append(Chunk("one"))
    assert log.answer() == "one two"
    log.settle()
    assert (log.answer(), log.strayed) == ("one", True)
