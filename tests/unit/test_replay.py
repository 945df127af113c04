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

from app.agent.asking import ask
from app.agent.plain import canonical, revived
from app.errors import AppError, InvalidInput, LLMRejected, NotFound
from app.journal.recorder import Recorder
from app.journal.replay import Done, Replay, ReplayDiverged, Rerun, Suspended


def taken(replay: Replay, path: str, given: bytes) -> bytes | None:
    found = replay.take("step", path, sha256(given).digest())
    return found.output if found else None


def served(recorder: Recorder, name: str, given: bytes = b"x", kind: str = "step") -> bytes | None:
    with recorder.step(kind, name, input=given) as step:
        return step.served


def done(seq: int, path: str, given: bytes, output: bytes | None, kind: str = "step") -> Done:
    return Done(seq, path, kind, sha256(given).digest(), output)


@given(st.permutations(range(6)))
def test_steps_that_ran_side_by_side_are_served_in_whatever_order_they_are_asked_for(order: list[int]) -> None:
    replay = Replay(done(seq, "/fetch", str(seq).encode(), f"page {seq}".encode()) for seq in range(6))
    for seq in order:
        assert taken(replay, "/fetch", str(seq).encode()) == f"page {seq}".encode()
    assert taken(replay, "/fetch", b"0") is None


def test_equal_steps_are_served_once_each_in_the_order_they_began() -> None:
    replay = Replay([done(2, "/roll", b"", b"5"), done(1, "/roll", b"", b"3")])
    assert [taken(replay, "/roll", b"") for _ in range(3)] == [b"3", b"5", None]


def test_the_same_call_inside_another_step_is_another_one() -> None:
    recorder = Recorder(replay=Replay([done(1, "/outer/fetch", b"x", b"inner"), done(2, "/fetch", b"x", b"top")]))
    assert served(recorder, "fetch") == b"top"
    with recorder.step("step", "outer", nested=True):
        assert served(recorder, "fetch") == b"inner"
    assert [step.name for step in recorder.steps] == ["outer"]


def test_what_has_no_form_in_json_happens_again() -> None:
    recorder = Recorder(replay=Replay([done(1, "/open", b"x", None)]))
    assert served(recorder, "open") is None
    assert [step.name for step in recorder.steps] == ["open"]


@pytest.mark.parametrize("how", [None, Rerun()])
def test_what_an_attempt_has_not_ended_gives_way_to_what_a_later_one_has(how: Rerun | None) -> None:
    steps = [done(1, "/agent", b"x", None, "agent"), done(10_001, "/agent", b"x", b"said", "agent")]
    assert served(Recorder(replay=Replay(steps, how)), "agent", kind="agent") == b"said"


def failed(seq: int, path: str, error: dict[str, Any], output: bytes | None = None, kind: str = "step") -> Done:
    return Done(seq, path, kind, sha256(b"x").digest(), output, "failed", error)


@pytest.mark.parametrize(
    ("recorded", "kind"),
    [
        ({"code": "KeyError"}, KeyError),
        (LLMRejected("No.", param="messages").to_dict(), LLMRejected),
        (NotFound("file").to_dict(), NotFound),
        ({"code": "odd", "message": "Odd.", "status": 418}, AppError),
    ],
)
def test_a_step_that_failed_fails_in_the_same_way(recorded: dict[str, Any], kind: type[Exception]) -> None:
    recorder = Recorder(replay=Replay([failed(1, "/fetch", recorded)]))
    with pytest.raises(kind) as raised, recorder.step("step", "fetch", input=b"x"):
        raise AssertionError("it does not happen")
    if isinstance(raised.value, AppError):
        assert raised.value.to_dict() == recorded
    assert not recorder.steps


# Reruns


def rerun(*steps: Done, seq: int | None = None, **how: Any) -> Recorder:
    return Recorder(replay=Replay(steps, Rerun(seq, **how)))


def test_a_replay_records_what_it_serves_and_refuses_what_is_not_recorded() -> None:
    recorder = rerun(done(1, "/fetch", b"x", b"page"), told=lambda step: '{\n "city": "Oslo"\n}')
    assert served(recorder, "fetch") == b"page"
    assert [(step.name, step.status, step.output) for step in recorder.steps] == [("fetch", "replayed", b"page")]
    recorder = rerun(done(1, "/fetch", b"x", b"page"), told=lambda step: '{\n "city": "Oslo"\n}')
    with pytest.raises(ReplayDiverged) as diverged:
        recorder.step("step", "fetch", input=b'{"city":"Rome"}')
    assert diverged.value.to_dict()["path"] == "/fetch"
    assert [line for line in diverged.value.difference.splitlines() if line[:2] in ("- ", "+ ")] == [
        '- "city": "Oslo"',
        '+ "city": "Rome"',
    ]
    with pytest.raises(ReplayDiverged):  # also what was recorded, once it has diverged, if it was not
        recorder.step("llm", "other", input=b"{}")


def test_what_a_step_gives_anew_is_recorded_and_what_it_gave_is_handed_on() -> None:
    recorder = rerun(done(1, "/fetch", b"x", b"old"), done(2, "/next", b"x", b"next"), seq=1)
    with recorder.step("step", "fetch", input=b"x") as step:
        assert step.served is None
        step.done(b"new")
        assert step.served == b"old"
    assert served(recorder, "next") == b"next"
    assert [(step.status, step.output) for step in recorder.steps] == [("completed", b"new"), ("replayed", b"next")]
    with pytest.raises(ReplayDiverged):
        served(recorder, "next", b"1")


def test_downstream_what_follows_happens_when_its_input_is_new_and_only_then() -> None:
    recorder = rerun(*(done(n, f"/{n}", b"x", b"old") for n in (1, 2, 3)), seq=2, downstream=True)
    assert served(recorder, "1") == b"old"
    with pytest.raises(ReplayDiverged):
        rerun(done(2, "/2", b"x", b"old"), seq=2, downstream=True).step("llm", "1", input=b"{}")
    with recorder.step("step", "2", input=b"x") as step:
        step.done(b"new")
        assert step.served is None
    assert served(recorder, "3") == b"old"
    assert served(recorder, "4", b"{}", "llm") is None
    with pytest.raises(ReplayDiverged, match="/mail"):
        recorder.step("tool", "mail", input=b"{}")


def test_tools_are_called_again_only_when_they_are_to_be_live() -> None:
    recorder = rerun(done(1, "/a", b"x", b"old"), seq=1, downstream=True, live=True)
    with recorder.step("step", "a", input=b"x"):
        pass
    assert served(recorder, "mail", b"{}", "tool") is None


def test_what_failed_and_is_done_anew_is_handed_on_as_it_failed() -> None:
    recorder = rerun(failed(1, "/fetch", {"code": "KeyError"}), seq=1)
    with pytest.raises(KeyError), recorder.step("step", "fetch", input=b"x") as step:
        step.done(b"new")
    assert [(step.status, step.output) for step in recorder.steps] == [("completed", b"new")]


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
