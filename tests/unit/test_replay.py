"""A run that begins anew is served what it did before, by what it was and not by when."""

from __future__ import annotations

import asyncio
from hashlib import sha256
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from app.agent.asking import Suspended, ask
from app.agent.plain import canonical, revived
from app.errors import InvalidInput
from app.journal.recorder import Recorder
from app.journal.replay import Done, Replay


def done(seq: int, path: str, given: bytes, output: bytes | None, kind: str = "step") -> Done:
    return Done(seq, path, kind, sha256(given).digest(), output)


@given(st.permutations(range(6)))
def test_steps_that_ran_side_by_side_are_served_in_whatever_order_they_are_asked_for(order: list[int]) -> None:
    replay = Replay(done(seq, "/fetch", str(seq).encode(), f"page {seq}".encode()) for seq in range(6))
    for seq in order:
        assert replay.take("step", "/fetch", sha256(str(seq).encode()).digest()) == f"page {seq}".encode()
    assert not replay


def test_equal_steps_are_served_once_each_in_the_order_they_began() -> None:
    replay = Replay([done(2, "/roll", b"", b"5"), done(1, "/roll", b"", b"3")])
    empty = sha256(b"").digest()
    assert [replay.take("step", "/roll", empty) for _ in range(3)] == [b"3", b"5", None]


def test_the_same_call_inside_another_step_is_another_one() -> None:
    recorder = Recorder(replay=Replay([done(1, "/outer/fetch", b"x", b"inner"), done(2, "/fetch", b"x", b"top")]))
    assert recorder.served("step", "fetch", b"x") == b"top"
    with recorder.step("step", "outer", nested=True):
        assert recorder.served("step", "fetch", b"x") == b"inner"


def test_what_has_no_form_in_json_happens_again() -> None:
    recorder = Recorder(replay=Replay([done(1, "/open", b"x", None)]))
    assert recorder.served("step", "open", b"x") is None


class Approval(BaseModel):
    ok: bool


def fetch() -> Approval:
    raise AssertionError("it is not called")


def unknown() -> Nowhere:  # type: ignore[name-defined]  # noqa: F821 - as in a file that imports for type checkers only
    raise AssertionError("it is not called")


def test_a_result_comes_back_as_the_type_that_the_function_says() -> None:
    assert revived(b'{"ok":true}', fetch) == Approval(ok=True)
    assert revived(b'{"ok":true}', unknown) == {"ok": True}
    assert revived(b"[1]", lambda: None) == [1]


# Questions


class Person:
    """Asks again and again, with the answers that were given so far."""

    def __init__(self, question: str, schema: Any) -> None:
        self.question, self.schema = question, schema
        self.given: list[Done] = []
        self.shown: list[tuple[str, str]] = []

    def ask(self) -> Any:
        self.shown = []
        recorder = Recorder(after=10 * len(self.given), replay=Replay(self.given))
        return ask(recorder, lambda kind, said: self.shown.append((kind, said)), self.question, self.schema, 60)

    def is_asked(self) -> Suspended:
        with pytest.raises(Suspended) as asked:
            self.ask()
        return asked.value

    def answer(self, answer: Any) -> None:
        asked = self.is_asked()
        given = canonical({"question": self.question, "schema": asked.schema}) or b""
        self.given.append(done(asked.seq, "/ask", given, msgspec.json.encode(answer), "ask"))


def test_a_question_ends_the_run_and_its_answer_is_there_when_it_begins_anew() -> None:
    person = Person("Who?", str)
    assert person.is_asked().question == "Who?"
    assert person.shown == [("question", "Who?")]
    person.answer("Ann")
    assert person.ask() == "Ann"
    assert person.shown == [("question", "Who?"), ("answer", "Ann")]
    other = Person("Who else?", str)
    other.given = person.given
    other.is_asked()


@pytest.mark.parametrize("answer", [{"ok": True}, '{"ok": true}', "yes", " true "])
def test_a_person_may_answer_in_json_or_with_the_one_value_that_is_asked_for(answer: object) -> None:
    person = Person("Publish?", Approval)
    person.answer(answer)
    assert person.ask() == Approval(ok=True)


def test_an_answer_that_cannot_be_read_is_asked_for_again_and_told_why() -> None:
    person = Person("Publish?", Approval)
    person.answer("perhaps")
    again = person.is_asked()
    assert again.question.startswith("I could not read your answer: ")
    assert again.question.endswith("Publish?")
    person.answer("no")
    assert person.ask() == Approval(ok=False)


def test_no_handler_for_exceptions_keeps_a_run_from_waiting() -> None:
    assert not issubclass(Suspended, Exception)


@pytest.mark.parametrize(("question", "seconds"), [("", 1), ("x" * 10_001, 1), ("x", 0), ("x", 1e9)])
def test_questions_and_their_time_are_bounded(question: str, seconds: float) -> None:
    with pytest.raises(InvalidInput):
        ask(Recorder(), lambda kind, said: None, question, str, seconds)


async def test_paths_are_those_of_each_task() -> None:
    recorder = Recorder()

    async def work(name: str) -> str:
        with recorder.step("step", name, nested=True):
            await asyncio.sleep(0)
            return recorder.path("inner")

    assert await asyncio.gather(work("a"), work("b")) == ["/a/inner", "/b/inner"]
