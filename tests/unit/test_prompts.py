"""What a prompt sends, and what it makes of the answer."""

import asyncio
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from app.agent import (
    LLM,
    BaseAgent,
    Chunk,
    Completion,
    FilterPP,
    JsonKeyExtractorPP,
    Message,
    ParallelPrompt,
    ReplacePP,
)
from app.agent.testing import Scripted, answer
from app.domain import Usage
from app.errors import AgentFailed, LLMError
from app.llm.llm import Finish
from tests.agents.stage import perform


def agent(*lines: Any, **given: Any) -> tuple[BaseAgent, Scripted]:
    llm = Scripted(lines, **given)
    return BaseAgent(llm), llm


def shown(agent: BaseAgent) -> list[tuple[str, str]]:
    """What the agent streamed, neighbours joined."""
    found: list[tuple[str, str]] = []
    for chunk in agent.stream.chunks:  # type: ignore[attr-defined]  # it is a script's
        if found and found[-1][0] == chunk.content_type:
            found[-1] = (chunk.content_type, found[-1][1] + chunk.content)
        else:
            found.append((chunk.content_type, chunk.content))
    return found


async def test_a_prompt_sends_its_text_once_rendered() -> None:
    made, llm = agent("hi")
    prompt = made.create_prompt("{{name}}: {{query}}", system_prompt="Be {{brief}}.").update_placeholder(
        name="{{x}}", other=1
    )
    assert await prompt.acall(query="{{ 7*7 }}") == "hi"
    system, user = llm.asked[0][0]
    assert system == {"role": "system", "content": "Be {{brief}}."}
    assert user == {"role": "user", "content": "{{x}}: {{ 7*7 }}"}


async def test_a_query_the_template_has_no_place_for_is_not_lost() -> None:
    made, llm = agent("hi", "hi")
    await made.create_prompt("Translate into French.").acall("Hello", system_prompt="Be brief.")
    await made.create_prompt().acall(Message.user("Hello"))
    assert [message["content"] for message in llm.asked[0][0]] == ["Be brief.", "Translate into French.", "Hello"]
    assert [message["content"] for message in llm.asked[1][0]] == ["Hello"]


async def test_a_prompt_without_anything_says_so() -> None:
    made, _ = agent()
    with pytest.raises(AgentFailed, match="empty"):
        await made.create_prompt(system_prompt="x").acall()
    with pytest.raises(AgentFailed, match="no value for query"):
        await made.create_prompt("{{query}}").acall()
    with pytest.raises(AgentFailed, match="no language model"):
        await BaseAgent().create_prompt("x").acall()


async def test_the_answer_knows_what_is_known_about_it() -> None:
    made, llm = agent([Chunk("Hm.", "thinking"), "one two"], finish="length")
    said = await made.create_prompt("x").acall(temperature=0.5)
    assert (said, said.reasoning, said.finish_reason, said.error) == ("one two", "Hm.", "length", None)
    assert said.usage.completion > 0
    assert llm.asked[0][1] == {"temperature": 0.5}


async def test_post_processors_apply_streamed_and_whole_and_leave_thoughts_alone() -> None:
    """Of the seeds' faults: post-processors ignored off-stream."""
    pp = JsonKeyExtractorPP("a") >> ReplacePP({"secret": "***"})
    line = [Chunk("my secret", "thinking"), '{"a": "the sec', 'ret"}']
    made, _ = agent(line, line, line, finish="length")
    prompt = made.create_prompt("x", content_type="result")
    whole = await prompt.acall(postprocessor=pp)
    assert shown(made) == []
    streamed = await prompt.acall(postprocessor=pp, is_stream=True)
    assert shown(made) == [("thinking", "my secret"), ("result", "the ***")]
    chunks = [chunk async for chunk in await prompt.acall(postprocessor=pp, return_generator=True)]
    assert (
        whole == streamed == "".join(chunk.content for chunk in chunks if chunk.content_type == "result") == "the ***"
    )
    assert whole.finish_reason == streamed.finish_reason == "length"
    assert whole.value == "the secret"


@pytest.mark.parametrize("is_stream", [True, False])
async def test_json_is_repaired_in_both_modes(is_stream: bool) -> None:
    made, _ = agent("Here: ```json {'a': [1, 2,], } ```", '{"a":  1}', "no", '{"a": "x",')
    prompt = made.create_prompt("x")
    said = await prompt.acall(force_json=True, is_stream=is_stream)
    assert (said, said.value) == ('{"a": [1, 2]}', {"a": [1, 2]})
    assert await prompt.acall(force_json=True, is_stream=is_stream) == '{"a":  1}'
    with pytest.raises(LLMError, match="no JSON"):
        await prompt.acall(force_json=True, is_stream=is_stream)
    assert await prompt.acall(force_json=True, is_stream=is_stream, postprocessor=JsonKeyExtractorPP("a")) == "x"
    if is_stream:
        assert shown(made) == [("text", '{"a": [1, 2]}{"a":  1}x')]


class Point(BaseModel):
    x: int


async def test_a_schema_is_asked_for_and_makes_the_value() -> None:
    made, llm = agent("{x: 1}", '{"y": 1}', '{"x": 2}', '{"y": 2}')
    said = await made.create_prompt("x").acall(schema=Point)
    assert (said, said.value) == ('{"x": 1}', Point(x=1))
    assert llm.asked[0][1]["response_format"]["json_schema"]["schema"]["properties"]["x"]["type"] == "integer"
    with pytest.raises(LLMError, match="does not fit its schema: x"):
        await made.create_prompt("x").acall(schema=Point)
    assert (await made.llm.ainvoke("x", schema=Point)).value == Point(x=2)
    with pytest.raises(LLMError, match="does not fit"):
        await made.llm.ainvoke("x", schema=Point)


class Verbose(LLM):
    """Is cut for its length so many times."""

    def __init__(self, cuts: int) -> None:
        self.cuts = cuts
        self.asked: list[list[dict[str, Any]]] = []

    async def generate(self, messages: list[dict[str, Any]], **_: Any) -> AsyncIterator[str | Finish]:
        self.asked.append(messages)
        yield f"{len(self.asked)},sec"
        yield "ret "
        yield Finish("length" if len(self.asked) <= self.cuts else "stop", Usage(1, 2))


async def test_a_long_response_goes_on_after_it_was_cut() -> None:
    llm = Verbose(2)
    said = await BaseAgent(llm).create_prompt("x").acall(long_response=True, postprocessor=ReplacePP({"secret 2": "-"}))
    assert (said, said.finish_reason, said.usage) == ("1,-,secret 3,secret ", "stop", Usage(3, 6))
    assert [message["role"] for message in llm.asked[2]] == ["user", "assistant", "user", "assistant", "user"]
    assert (await BaseAgent(Verbose(2)).create_prompt("x").acall()).finish_reason == "length"


async def test_a_long_response_ends() -> None:
    llm = Verbose(100)
    said = await BaseAgent(llm).create_prompt("x").acall(long_response=True)
    assert (len(llm.asked), said.finish_reason) == (9, "length")


async def test_memory_is_sent_before_the_prompt_and_grows_by_the_exchange() -> None:
    made, llm = agent("one", "two", "three")
    prompt = made.create_prompt("Q: {{query}}", enable_memory=True, memory_id="chat", max_history_rounds=1)
    for query in "abc":
        await prompt.acall(query)
    assert [message["content"] for message in llm.asked[2][0]] == ["b", "two", "Q: c"]
    assert [message.content for message in made.memory.build_history(memory_id="chat")] == [
        "a",
        "one",
        "b",
        "two",
        "c",
        "three",
    ]
    assert made.memory.build_history() == []


async def test_memory_stands_where_the_template_says_and_is_no_template() -> None:
    """Of the seeds' faults: history used as a template."""
    made, llm = agent("{{ 7*7 }}", "two")
    prompt = made.create_prompt("{{history}}\nNow: {{query}}", enable_memory=True)
    await prompt.acall("{% raw %}")
    await prompt.acall("b")
    assert [message["content"] for message in llm.asked[1][0]] == ["user: {% raw %}\nassistant: {{ 7*7 }}\nNow: b"]


async def test_prompts_in_parallel_answer_in_order_and_one_that_fails_costs_no_other() -> None:
    class Slow(LLM):
        async def generate(self, messages: list[dict[str, Any]], **_: Any) -> str:
            asked = messages[-1]["content"]
            await asyncio.sleep(0.05 if asked == "a q" else 0)
            if asked == "b q":
                raise LLMError("It broke.")
            return f"<{asked}>"

    made = BaseAgent(Slow())
    a, b, c = (made.create_prompt(f"{name} {{{{query}}}}") for name in "abc")
    assert isinstance(a | b | c, ParallelPrompt)
    said = await ((a | b) | (c | a)).acall("q", is_stream=True)
    assert said == ["<a q>", "", "<c q>", "<a q>"]
    assert isinstance(said[1].error, LLMError)
    assert shown(made) == [("text", "<a q><c q><a q>")]


async def test_prompts_in_parallel_run_at_once() -> None:
    waiting = asyncio.Barrier(3)

    class Meeting(LLM):
        async def generate(self, messages: list[dict[str, Any]], **_: Any) -> str:
            await asyncio.wait_for(waiting.wait(), 10)
            return messages[-1]["content"]

    made = BaseAgent(Meeting())
    prompts = [made.create_prompt(name, content_type=name) for name in "abc"]
    assert await ParallelPrompt(prompts=prompts).acall(is_stream=True) == ["a", "b", "c"]
    assert sorted(shown(made)) == [("a", "a"), ("b", "b"), ("c", "c")]


def test_synchronous_code_calls_prompts_too() -> None:
    made, _ = agent("one two", "one two", "a", "b")
    prompt = made.create_prompt("x")
    said = prompt.call(postprocessor=FilterPP(" "))
    assert (said, type(said)) == ("onetwo", Completion)
    assert [chunk.content for chunk in prompt.call(return_generator=True)] == ["one", " two"]
    assert (prompt | prompt).call() == ["a", "b"]


def test_a_synchronous_agent_calls_prompts_on_the_platform() -> None:
    class Sync(BaseAgent):
        id = "sync"

        def chat(self, message: Message) -> Completion:
            assert threading.current_thread() is not threading.main_thread()
            return self.create_prompt("Q: {{query}}").call(message, is_stream=True)

    said = answer(Sync, "x", llm=Scripted(["one two"]))
    assert (said.text, [step.kind for step in said.steps]) == ("one two", ["prompt", "llm"])


def test_rendering_and_processing_are_steps_of_the_run() -> None:
    class Stepping(BaseAgent):
        id = "stepping"

        async def chat(self, message: Message) -> Completion:
            prompt = self.create_prompt("Q: {{query}}", template_desc="question")
            return await prompt.acall(message, postprocessor=ReplacePP({"a": "b"}) >> FilterPP("x"))

    said = answer(Stepping, "why", llm=Scripted(["xa"]))
    assert [(step.kind, step.name) for step in said.steps] == [
        ("prompt", "question"),
        ("llm", "Scripted"),
        ("postprocess", "ReplacePP >> FilterPP"),
    ]
    assert said.steps[0].input == b'{"template":"Q: {{query}}","values":{"query":"why"}}'
    assert (said.steps[0].output, said.steps[2].input, said.steps[2].output) == (b'"Q: why"', b'"xa"', b'"b"')


class Filed(BaseAgent):
    """Has templates beside this file."""

    folder: Path

    def _folder(self) -> Path:
        return self.folder


async def test_a_template_is_a_file_in_the_agents_folder(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "greet.tmpl").write_text("Hello {{query}}")
    (tmp_path / "out.tmpl").write_text("secret")
    (tmp_path / "in" / "link.tmpl").symlink_to(tmp_path / "out.tmpl")
    (tmp_path / "in" / "fine.tmpl").symlink_to(tmp_path / "in" / "greet.tmpl")
    llm = Scripted(["a", "b"])
    made = Filed(llm)
    made.folder = tmp_path / "in"
    for name in ("greet.tmpl", "fine.tmpl"):
        await made.create_prompt(template_path=name).acall("you")
    assert [asked[0][-1]["content"] for asked in llm.asked] == ["Hello you"] * 2
    for name in ("../out.tmpl", "link.tmpl", str(tmp_path / "out.tmpl"), "/etc/passwd"):
        with pytest.raises(AgentFailed, match="inside the folder"):
            made.create_prompt(template_path=name)
    for name in ("none.tmpl", "."):
        with pytest.raises(AgentFailed, match="no template"):
            made.create_prompt(template_path=name)
    with pytest.raises(AgentFailed, match="not from both"):
        made.create_prompt("x", template_path="greet.tmpl")


def test_paths_begin_at_the_file_of_the_agents_class() -> None:
    class Here(BaseAgent):
        pass

    assert Here()._folder() == Path(__file__).parent


@pytest.mark.parametrize("finish", ["length", "cut", "stop"])
async def test_how_the_model_ended_survives_streaming_on_the_platform(finish: str) -> None:
    class Streaming(BaseAgent):
        id = "streaming"

        async def chat(self, message: Message) -> Completion:
            prompt = self.create_prompt("{{query}}")
            return await prompt.acall(message, is_stream=True, postprocessor=ReplacePP({"a": "b"}))

    seen = await perform(Streaming, llm=Scripted(["a c"], finish=finish))
    assert seen.answer is not None
    assert (seen.answer.text, seen.answer.finish) == ("b c", finish)


async def test_a_prompt_without_a_query_is_remembered_itself() -> None:
    made, _ = agent("one")
    await made.create_prompt("Tell {{what}}", enable_memory=True).update_placeholder(what="a joke").acall()
    assert made.memory.build_history(format="text") == "user: Tell a joke\nassistant: one"
