"""The call path: every call is routed, sent, settled and recorded, however it ends."""

import asyncio
import json
from collections.abc import AsyncIterator
from hashlib import sha256
from typing import Any

import pytest

from app.domain import Message, Step, Usage, canonical
from app.errors import InvalidInput, LLMError, LLMUnavailable
from app.journal.recorder import Recorder
from app.llm.call import CallPath
from app.llm.catalog import Catalog
from tests.fakes.upstream import FakeUpstream, upstream
from tests.paths import open_path, run_llm

SLOW = "hi [[fault: chunks=1000 delay=0.05]]"


@pytest.fixture
async def fake() -> AsyncIterator[FakeUpstream]:
    async with upstream() as server:
        yield server


@pytest.fixture
async def path(fake: FakeUpstream) -> AsyncIterator[CallPath]:
    async with open_path(Catalog.from_openai(fake.base_url, None, "default-model")) as path:
        yield path


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


def only(recorder: Recorder) -> tuple[Step, dict[str, Any]]:
    (step,) = recorder.steps
    return step, json.loads(step.output or b"{}")


async def test_a_call_is_one_step_with_its_input_by_hash(path: CallPath, recorder: Recorder) -> None:
    messages = [Message.system("Be brief."), Message.user("say hello there")]
    completion = await run_llm(path, recorder, temperature=0.5).ainvoke(messages, stop=["END"])
    assert completion == "hello there"
    step, output = only(recorder)
    assert (step.kind, step.name, step.model, step.status) == ("llm", "default", "default-model", "completed")
    parts = [b'{"content":"Be brief.","role":"system"}', b'{"content":"say hello there","role":"user"}']
    assert [part.body for part in step.parts] == parts
    assert json.loads(step.input or b"") == {
        "model": "default",
        "options": {"temperature": 0.5, "stop": ["END"]},
        "messages": [sha256(part).hexdigest() for part in parts],
    }
    assert output == {"text": "hello there", "reasoning": "", "finish_reason": "stop"}
    assert step.usage == recorder.usage == completion.usage == Usage(5, 2)


async def test_defaults_hold_until_a_call_says_otherwise(
    fake: FakeUpstream, path: CallPath, recorder: Recorder
) -> None:
    llm = run_llm(path, recorder, model="small", temperature=1)
    await llm.ainvoke("hi")
    await llm.use("big", temperature=0).ainvoke("hi")
    await llm.ainvoke("hi", model="other", temperature=None)
    sent = [(request.body["model"], request.body.get("temperature")) for request in fake.requests]
    assert sent == [("small", 1), ("big", 0), ("other", None)]
    assert [step.name for step in recorder.steps] == ["small", "big", "other"]


async def test_reasoning_is_recorded_beside_the_text(path: CallPath, recorder: Recorder) -> None:
    completion = await run_llm(path, recorder).ainvoke("say hi [[fault: think]]")
    assert (completion, completion.reasoning) == ("hi", "Let me think.")
    assert only(recorder)[1] == {"text": "hi", "reasoning": "Let me think.", "finish_reason": "stop"}


async def test_an_answer_that_was_cut_is_partial_and_paid_for(path: CallPath, recorder: Recorder) -> None:
    completion = await run_llm(path, recorder).ainvoke("say one two three [[fault: drop]]")
    assert (completion, completion.finish_reason) == ("one two ", "cut")
    step, output = only(recorder)
    assert (step.status, output["text"], output["finish_reason"]) == ("partial", "one two ", "cut")
    assert step.usage.estimated
    assert step.usage.completion > 0


async def test_an_error_in_the_middle_keeps_what_came(path: CallPath, recorder: Recorder) -> None:
    reply = await run_llm(path, recorder).acall("say one two three [[fault: error]]")
    with pytest.raises(LLMError, match="overloaded"):
        await reply.text()
    step, output = only(recorder)
    assert (step.status, output["text"], output["finish_reason"]) == ("failed", "one two ", "error")
    assert step.error is not None
    assert step.error["code"] == "llm_error"
    assert step.usage.completion > 0


async def test_a_call_refused_before_it_began_costs_nothing(path: CallPath, recorder: Recorder) -> None:
    with pytest.raises(LLMUnavailable):
        await run_llm(path, recorder).acall("hi [[fault: 429 retry-after=60]]")
    step, _ = only(recorder)
    assert (step.status, step.usage, step.output) == ("failed", Usage(), None)


@pytest.mark.parametrize("fault", ["chunks=1000 delay=0.05", "hang"])
async def test_a_cancelled_call_is_recorded_and_never_free(
    fake: FakeUpstream, path: CallPath, recorder: Recorder, fault: str
) -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.3):
            await run_llm(path, recorder).ainvoke(f"hi [[fault: {fault}]]")
    await fake.until(lambda: fake.aborted == 1)
    step, output = only(recorder)
    assert (step.status, output["finish_reason"]) == ("cancelled", "cancelled")
    assert step.usage.estimated
    assert step.usage.prompt > 0
    assert bool(output["text"]) == bool(step.usage.completion) == (fault != "hang")


async def test_without_an_upstream_the_sentence_names_the_settings(recorder: Recorder) -> None:
    async with open_path(Catalog()) as path:
        with pytest.raises(LLMUnavailable, match="set OPENAI_API_KEY, or OPENAI_BASE_URL"):
            await run_llm(path, recorder).acall("hi")
    assert not recorder.steps


async def test_bad_options_and_messages_reach_no_upstream(
    fake: FakeUpstream, path: CallPath, recorder: Recorder
) -> None:
    llm = run_llm(path, recorder)
    with pytest.raises(InvalidInput, match="temperature"):
        await llm.acall("hi", temperature=9)
    with pytest.raises(InvalidInput, match="wings"):
        await llm.acall("hi", wings=2)
    with pytest.raises(InvalidInput, match=r"messages\[1\]"):
        await llm.acall([Message.user("hi"), Message.user("\ud800")])
    with pytest.raises(InvalidInput, match="temperature"):
        run_llm(path, recorder, temperature=-1)
    assert (fake.hits, list(recorder.steps)) == (0, [])


async def test_close_ends_what_is_open_and_refuses_what_comes(
    fake: FakeUpstream, path: CallPath, recorder: Recorder
) -> None:
    llm = run_llm(path, recorder)
    reply = await llm.acall(SLOW)
    other = await llm.use("big").acall(SLOW)
    await llm.close()
    assert reply.ended
    assert other.ended
    assert [step.status for step in recorder.steps] == ["cancelled", "cancelled"]
    assert all(step.usage.completion for step in recorder.steps)
    await fake.until(lambda: fake.aborted == 2)
    with pytest.raises(asyncio.CancelledError):
        await llm.acall("hi")
    with pytest.raises(asyncio.CancelledError):
        await llm.use("big").ainvoke("hi")


async def test_a_synchronous_agent_in_a_thread_is_stopped_by_close(
    fake: FakeUpstream, path: CallPath, recorder: Recorder
) -> None:
    llm = run_llm(path, recorder)
    seen: list[str] = []

    def work() -> None:
        seen.append(llm.invoke("say hi"))
        try:
            for chunk in llm.stream(SLOW):
                seen.append(chunk.content)
        except Exception:  # as a careless agent would
            seen.append("swallowed")
        seen.append("went on")

    thread = asyncio.gather(asyncio.to_thread(work), return_exceptions=True)
    await fake.until(lambda: len(seen) > 2)
    await llm.close()
    (error,) = await thread
    assert isinstance(error, asyncio.CancelledError)
    assert seen[:2] == ["hi", "word0 "]
    assert "swallowed" not in seen
    assert "went on" not in seen
    assert [step.status for step in recorder.steps] == ["completed", "cancelled"]
    assert fake.open == 0


async def test_equal_messages_have_equal_bytes() -> None:
    first, second = canonical({"role": "user", "content": "hé"}), canonical({"content": "hé", "role": "user"})
    assert first == second == Message.user("hé").value.body == '{"content":"hé","role":"user"}'.encode()


async def test_many_calls_of_a_run_are_steps_in_the_order_they_began(path: CallPath, recorder: Recorder) -> None:
    llm = run_llm(path, recorder)
    texts = await asyncio.gather(*(llm.ainvoke(f"say {index}") for index in range(20)))
    assert texts == [str(index) for index in range(20)]
    assert [step.seq for step in recorder.steps] == list(range(1, 21))
    assert recorder.usage == Usage(40, 20)
