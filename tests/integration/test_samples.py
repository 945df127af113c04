"""Every sample of the toolkit runs with only its import lines changed.

They come out of seed 000 where that document lies beside the repository, and always out of `tests/samples.md`. What a
fragment leaves undefined is defined by the stated prelude, and the made-up addresses of servers are that of a fake one.
Samples that publish an agent are run where publishing is tested.
"""

from __future__ import annotations

import ast
import inspect
import re
import sys
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from app.agent import BaseAgent, BaseLLM, Completion, OpenAIRequest
from app.llm.balance import Balanced
from tests.fakes.upstream import FakeUpstream

ROOT = Path(__file__).parents[2]
SEED = next((ROOT.parent / "shared/seeds").glob("000_*.txt"), None)
OURS = ROOT / "tests/samples.md"

PRELUDE = """
from typing import List

from app.agent import *

class CustomAgent(BaseAgent): ...

class Translator(BaseAgent):
    async def translate(self, text, target_langs):
        prompts = [self.create_prompt(f"say {text} in {lang}") for lang in target_langs]
        return await ParallelPrompt(prompts).acall()

class WeatherTool(BaseAgent):
    async def get_weather(self, city):
        return f"sunny in {city}"

llm = parent_llm = OpenAILike("key", SERVER, "fake")
agent = Translator(llm=llm)
prompt = agent.create_prompt("say {{query}}")
prompt1, prompt2, prompt3 = (agent.create_prompt(f"say {name} {{{{query}}}}") for name in "abc")
query = '{"response": "a sensitive_word", "data": "old 12 times"}'
tool_result, final_result, processed_content = "found", "done", "processed"
PROMPT_GUIDE = "say {city: '{{city}}', weather: '{{weather}}', asked: '{{query}}'}"
"""
TEMPLATE = "say {{query}} for a {{profession}}"


def samples(document: Path) -> Iterator[str]:
    """The Python samples of a document, but for those that publish."""
    for sample in re.findall(r"```python\n(.*?)```", document.read_text(), re.DOTALL):
        body = sample.partition("\nif __name__")[0].partition("# Deploy API")[0]
        if "publish_agent_api" not in body:
            yield body


def changed(sample: str, server: str) -> str:
    """The sample with its import lines changed, and the addresses of its servers, which are nowhere."""
    ours = re.sub(r"^from alphora\.\S+ import", "from app.agent import", sample, flags=re.MULTILINE)
    return re.sub(r'"(https://api\.example\.com/v1|url\d)"', f'"{server}"', ours)


# What is checked after each sample.


async def said(module: Any, name: str, *args: Any, **kwargs: Any) -> Any:
    made = getattr(module, name.partition(".")[0])(llm=module.llm)
    return made, await getattr(made, name.partition(".")[2])(*args, **kwargs)


def shown(agent: BaseAgent, content_type: str) -> str:
    chunks: Any = agent.stream
    return "".join(chunk.content for chunk in chunks.chunks if chunk.content_type == content_type)


async def first_agent(module: Any, fake: FakeUpstream) -> None:
    await module.main()
    assert fake.requests[-1].body["messages"][-1]["content"].endswith("What is artificial intelligence?")


async def teacher(module: Any, fake: FakeUpstream) -> None:
    made, answer = await said(module, "TeacherAgent.teacher", "say {{ 7*7 }}")
    assert isinstance(answer, Completion)
    assert "7*7" in made.memory.build_history(format="text")
    request = OpenAIRequest(messages=[{"role": "user", "content": "first"}, {"role": "user", "content": "last"}])
    await made.api_logic(request)
    asked = fake.requests[-1].body["messages"][-1]["content"]
    assert "student: say {{ 7*7 }}" in asked
    assert "last" in asked
    assert "first" not in asked


async def derived(module: Any, fake: FakeUpstream) -> None:
    assert (module.child_agent.llm, module.child_agent.memory) == (module.parent_llm, module.parent_agent.memory)
    assert module.child_agent.get_config("additional_param") == "value"


async def memory(module: Any, fake: FakeUpstream) -> None:
    assert isinstance(module.history, list)
    assert [entry.content for entry in module.memories] == ["Hello"]


async def prompts(module: Any, fake: FakeUpstream) -> None:
    assert len(module.parallel_prompt.prompts) == 3
    assert module.prompt.template == TEMPLATE


async def masked(module: Any, fake: FakeUpstream) -> None:
    assert module.response == "a ***"


async def balanced(module: Any, fake: FakeUpstream) -> None:
    assert isinstance(module.combined_llm, Balanced)
    assert module.agent.llm is module.combined_llm


async def streamed(module: Any, fake: FakeUpstream) -> None:
    assert (shown(module.agent, "tool"), shown(module.agent, "result")) == ("found", "done")
    assert module.agent.stream.stopped == "completed"


async def combined(module: Any, fake: FakeUpstream) -> None:
    assert module.response == "new  times"


async def parallel(module: Any, fake: FakeUpstream) -> None:
    assert [answer[:2] for answer in module.response] == ["a ", "b ", "c "]
    assert any("Hello in de" in request.body["messages"][-1]["content"] for request in fake.requests)


async def own_llm(module: Any, fake: FakeUpstream) -> None:
    assert isinstance(module.agent.llm, BaseLLM)
    assert set(vars(module.llm)) == {"api_key", "base_url"}


async def own_memory(module: Any, fake: FakeUpstream) -> None:
    assert type(module.agent.memory).__name__ == "MyCustomMemory"


async def own_postprocess(module: Any, fake: FakeUpstream) -> None:
    assert module.response == "processed"


async def talk(module: Any, fake: FakeUpstream) -> None:
    await module.main()
    assert fake.requests[-1].body["messages"] == [{"role": "user", "content": "What is artificial intelligence?"}]


async def remembering(module: Any, fake: FakeUpstream) -> None:
    made, _ = await said(module, "MemoryAgent.chat_with_memory", "one")
    await made.chat_with_memory("two")
    assert "user: one\nassistant: " in fake.requests[-1].body["messages"][-1]["content"]


async def templated(module: Any, fake: FakeUpstream) -> None:
    _, answer = await said(module, "PromptAgent.chat_with_template", "hello", "doctor")
    assert answer == "hello for a doctor"


async def processed(module: Any, fake: FakeUpstream) -> None:
    explained = 'say {"sql": "x", "explain": "schools named PLACEHOLDER"}'
    made, answer = await said(module, "PostProcessAgent.sql_coder", explained, "Athena")
    assert answer == shown(made, "text") == "schools named Athena"


async def languages(module: Any, fake: FakeUpstream) -> None:
    made, answers = await said(module, "ParallelAgent.translate", "hello", ["fr", "de"])
    assert [shown(made, "fr"), shown(made, "de")] == answers
    assert ["to fr" in answers[0], "to de" in answers[1]] == [True, True]


async def guided(module: Any, fake: FakeUpstream) -> None:
    made = module.MyAgent(llm=module.llm)
    await made.api_logic(OpenAIRequest(messages=[{"role": "user", "content": "where"}]))
    assert shown(made, "text") == '{"city": "Beijing", "weather": "sunny in Beijing", "asked": "where"}'


AFTER: dict[str, Callable[[Any, FakeUpstream], Awaitable[None]]] = {
    "agent.create_prompt(prompt=": first_agent,
    "await agent.chat(query=": talk,
    "class TeacherAgent": teacher,
    "parent_agent.derive": derived,
    "get_top_memories": memory,
    "prompt.update_placeholder(name=": prompts,
    'target_key="response"': masked,
    "llm1 + llm2": balanced,
    "astream_message": streamed,
    'target_key="data"': combined,
    "agent.translate(": parallel,
    "class MyCustomLLM": own_llm,
    "class MyCustomMemory": own_memory,
    "class MyCustomPostprocess": own_postprocess,
    "class MemoryAgent": remembering,
    "class PromptAgent": templated,
    "class PostProcessAgent": processed,
    "class ParallelAgent": languages,
    "class MyAgent": guided,
}
"""What is checked after a sample that holds these words."""


def found() -> Iterator[Any]:
    for document in filter(None, (SEED, OURS)):
        for sample in samples(document):
            marks = [mark for mark in AFTER if mark in sample]
            yield pytest.param(sample, id=f"{document.stem[:7]}-{AFTER[marks[0]].__name__ if marks else 'unknown'}")


@pytest.mark.parametrize("sample", list(found()))
async def test_a_sample_runs_with_only_its_imports_changed(sample: str, fake: FakeUpstream, tmp_path: Path) -> None:
    (tmp_path / "prompt_template.tmpl").write_text(TEMPLATE)
    module: Any = ModuleType("sample")
    module.__file__, module.SERVER = str(tmp_path / "sample.py"), fake.base_url
    sys.modules["sample"] = module
    try:
        exec(PRELUDE, vars(module))  # noqa: S102 - that is what is tested
        code = compile(changed(sample, fake.base_url), "sample.py", "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        result = eval(code, vars(module))  # noqa: S307 - as above; gives a coroutine where the sample awaits
        if inspect.isawaitable(result):
            await result
        (mark,) = [mark for mark in AFTER if mark in sample]
        await AFTER[mark](module, fake)
    finally:
        del sys.modules["sample"]


def test_every_kind_of_sample_is_there() -> None:
    for document in filter(None, (SEED, OURS)):
        together = "\n".join(samples(document))
        assert [mark for mark in AFTER if mark not in together] == []
