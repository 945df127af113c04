"""A `BaseAgent` is the same in a plain script and on the platform."""

import asyncio
import subprocess
import sys
from typing import Any

import pytest
from pydantic import BaseModel

from app.agent import BaseAgent, BaseMemory, Chattable, Completion, MemoryManager, Message, OpenAILike, OpenAIRequest
from app.agent.testing import Scripted, answer, answered
from app.errors import AgentFailed, InvalidInput, LLMError
from tests.fakes.upstream import FakeUpstream


class Talker(BaseAgent):
    id = "talker"


class Child(BaseAgent):
    """Has an argument of its own."""

    def __init__(self, llm: Any = None, extra: str = "", **more: Any) -> None:
        super().__init__(llm=llm, **more)
        self.extra = extra


async def test_a_script_talks_and_remembers(fake: FakeUpstream) -> None:
    agent = BaseAgent(llm=OpenAILike("key", fake.base_url, "fake"))
    assert await agent.chat(query="say hello") == "hello"
    assert await agent.chat("what was the first thing I said") == "say hello"
    assert agent.memory.build_history(format="text").startswith("user: say hello\nassistant: hello")


def test_the_same_agent_answers_on_the_platform() -> None:
    llm = Scripted(["one two"])
    said = answer(Talker, "new", llm=llm, before=[Message.user("old"), Message.assistant("yes")])
    assert said.text == "one two"
    assert [message["content"] for message in llm.asked[0][0]] == ["old", "yes", "new"]


async def test_a_scripts_stream_collects_and_prints_if_verbose(capsys: pytest.CaptureFixture[str]) -> None:
    for verbose in (False, True):
        agent = BaseAgent(Scripted([]), verbose=verbose)
        await agent.stream.astream_message(content="working ", content_type="status")
        await agent.stream.send("text", "done")
        assert [(chunk.content_type, chunk.content) for chunk in agent.stream.chunks] == [  # type: ignore[attr-defined]  # a script's
            ("status", "working "),
            ("text", "done"),
        ]
        assert capsys.readouterr().out == ("working done" if verbose else "")
        await agent.stream.astop(stop_reason="completed")
        with pytest.raises(AgentFailed, match="stopped"):
            await agent.stream.send("text", "more")
    with pytest.raises(InvalidInput):
        await BaseAgent().stream.send("no type", "x")


async def test_in_a_script_steps_just_run_and_what_needs_a_server_says_so() -> None:
    agent = BaseAgent()
    assert await agent.step(max, 1, 2) == 2
    assert await agent.step(asyncio.sleep, 0, "async") == "async"
    with pytest.raises(AgentFailed, match="Only a running server can ask"):
        await agent.ask("Really?")
    with pytest.raises(AgentFailed, match="Only a running server has other agents"):
        await agent.delegate("other", "x")


def test_a_derived_agent_shares_llm_memory_stream_and_configuration() -> None:
    parent = BaseAgent(Scripted([]), memory=MemoryManager(), tone="dry", size=1)
    child = parent.derive(Child, extra="value", size=2)
    assert (child.llm, child.memory, child.stream) == (parent.llm, parent.memory, parent.stream)
    assert (child.extra, child.get_config()) == ("value", {"tone": "dry", "size": 2})
    assert parent.get_config("size") == 1
    parent.update_config(late=3)
    child.update_config(own=4)
    assert (child.get_config("late"), parent.get_config("own", "none")) == (3, "none")
    assert child.derive(Child).get_config() == {"tone": "dry", "size": 2, "late": 3, "own": 4}


def test_deriving_from_an_instance_makes_another_and_leaves_it_alone() -> None:
    parent, given = BaseAgent(Scripted([])), Child(Scripted([]), "theirs", size=1)
    child = parent.derive(given, size=2)
    assert (child is given, child.extra, child.get_config("size")) == (False, "theirs", 2)
    assert given.llm is not parent.llm
    assert given.memory is not parent.memory
    assert child.memory is parent.memory
    own = MemoryManager()
    assert parent.derive(Child, memory=own).memory is own


def test_derived_agents_work_in_the_same_run() -> None:
    class Parent(BaseAgent):
        id = "parent"

        async def chat(self, message: Message) -> Completion:
            child = self.derive(Child)
            await child.stream.send("status", "asking ")
            said: Completion = await child.chat(f"{child.session.user.name}: sub-question")
            return said

    llm = Scripted(["fine"])
    said = answer(Parent, "question", llm=llm)
    assert (said.text, said.chunks[0].content_type) == ("fine", "status")
    assert [message["content"] for message in llm.asked[0][0]] == ["Ada: sub-question"]
    assert [step.kind for step in said.steps] == ["llm"]


def test_another_is_made_with_the_same_arguments_and_shares_nothing() -> None:
    """Of the seeds' faults: state leaking between requests."""
    first = Child(Scripted([]), "x", size=1)
    first.memory.add_memory("secret")
    first.update_config(size=5)
    second = first.again()
    assert (second.extra, second.get_config("size"), second.llm) == ("x", 1, first.llm)
    assert second.memory.build_history() == []
    assert second.stream is not first.stream


def test_another_is_made_however_a_subclass_takes_its_arguments() -> None:
    class Any(BaseAgent):
        def __init__(self, *args: object, **named: object) -> None:
            super().__init__(*args, **named)  # type: ignore[arg-type]  # whatever they are

    class Named(Any):
        def __init__(self, name: str, *args: object, **named: object) -> None:
            super().__init__(*args, **named)
            self.name = name

    llm, other = Scripted([]), Scripted([])
    made = Any(llm, size=1).again(size=2)
    assert (made.llm, made.get_config()) == (llm, {"size": 2})
    assert BaseAgent(other).derive(Any(llm)).llm is other
    named = Named("Ada", llm, size=1).again(name="Bob", llm=other)
    assert (named.name, named.llm, named.get_config()) == ("Bob", other, {"size": 1})


async def test_two_messages_at_once_share_nothing() -> None:
    """Of the seeds' faults: state leaking between requests."""

    class Remembering(BaseAgent):
        id = "remembering"

        async def chat(self, message: Message) -> str:
            seen = [entry.content for entry in self.memory.get_top_memories()]
            self.memory.add_user(message.content)
            self.update_config(said=[*self.get_config("said", []), message.content])
            await asyncio.sleep(0.01)
            return f"{seen} {self.get_config('said')}"

    said = await asyncio.gather(*(answered(Remembering, text) for text in "ab"))
    assert [given.text for given in said] == ["[] ['a']", "[] ['b']"]


class Custom(BaseMemory):
    """Asynchronous, and empty when it is made."""

    def __init__(self) -> None:
        self.kept: list[tuple[str, str]] = []

    def __len__(self) -> int:
        return len(self.kept)

    async def add_memory(self, content: str, **kwargs: Any) -> None:
        self.kept.append((kwargs["role"], content))

    async def build_history(self, **kwargs: Any) -> str:
        return " / ".join(content for _, content in self.kept[-2 * kwargs["max_round"] :])


async def test_a_memory_of_ones_own_may_be_asynchronous() -> None:
    llm, memory = Scripted(["one", "two", "three"]), Custom()
    agent = BaseAgent(llm, memory=memory)
    assert agent.memory is memory
    await agent.create_prompt("{{history}} > {{query}}", enable_memory=True).acall("a")
    await agent.chat("b")
    await agent.create_prompt("{{history}} > {{query}}", enable_memory=True, max_history_rounds=1).acall("c")
    assert [message["content"] for message in llm.asked[1][0]] == ["a / one", "b"]
    assert llm.asked[2][0][0]["content"] == "b / two > c"


def test_the_class_may_name_its_memory() -> None:
    class Own(BaseAgent):
        default_memory_cls = Custom

    assert isinstance(Own().memory, Custom)


async def test_setters_take_effect_on_the_next_call(fake: FakeUpstream) -> None:
    """Of the seeds' faults: setters without effect."""
    llm = OpenAILike("key", fake.base_url, "first", temperature=0.1)
    agent = BaseAgent(llm)
    await agent.chat("a")
    llm.set_model_name("second")
    llm.set_temperature(0.9)
    llm.set_max_tokens(7)
    llm.set_top_p(0.5)
    await agent.chat("b")
    sent = [request.body for request in fake.requests]
    assert (sent[0]["model"], sent[0]["temperature"]) == ("first", 0.1)
    assert [sent[1][name] for name in ("model", "temperature", "max_tokens", "top_p")] == ["second", 0.9, 7, 0.5]


async def test_two_llms_fail_over(fake: FakeUpstream) -> None:
    """Of the seeds' faults: failover that does not fail over."""
    fake.fail("503", times=1)
    agent = BaseAgent(OpenAILike("k", fake.base_url, "a") + OpenAILike("k", fake.base_url, "b"))
    assert await agent.create_prompt("say {{query}}").acall("hi") == "hi"
    assert [request.body["model"] for request in fake.requests] == ["a", "b"]


def test_the_last_message_of_the_user_is_the_query() -> None:
    """Of the seeds' faults: first instead of last user message."""
    said = [{"role": role, "content": role + number} for number in "12" for role in ("user", "assistant")]
    assert OpenAIRequest(messages=said).get_user_query() == "user2"


class Kept(BaseModel):
    words: list[str] = []


class Keys(BaseModel):
    key: str


class Tone(BaseModel):
    system: str = "Brief."


class Stateful(Chattable):
    id = "stateful"
    params: Tone
    settings: Keys
    state: Kept

    async def chat(self, message: Message) -> str:
        self.state.words.append(message.content)
        return f"{self.params.system} {self.settings.key} {await self.llm.ainvoke(message)}"


def test_agents_are_tested_without_a_server() -> None:
    given = {"params": {"system": "Long."}, "settings": {"AGENT_STATEFUL_KEY": "k"}, "state": {"words": ["a"]}}
    said = answer(Stateful, "b", llm=Scripted(["hi"]), **given)
    assert (said.text, said.state) == ("Long. k hi", {"words": ["a", "b"]})
    assert (said.usage.prompt > 0, said.steps[0].kind) == (True, "llm")
    with pytest.raises(InvalidInput, match=r"parameters are system"):
        answer(Stateful, "b", params={"nope": 1}, settings=given["settings"])


async def test_an_answer_can_be_had_while_a_loop_runs() -> None:
    assert answer(Talker, "x", llm=Scripted(["hi"])).text == "hi"
    llm = Scripted(["hi"])
    await llm.ainvoke("a")
    with pytest.raises(LLMError, match="has 1 lines, and this is call 2"):
        await llm.ainvoke("b")


ADDED = """
import sys, pydantic
class M(pydantic.BaseModel): a: int
before = set(sys.modules)
import app.agent
print(*set(sys.modules) - before)
"""
GROWTH = """
import resource
def size(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
start = size()
import app.agent
print(size() - start)
"""


def test_what_agents_import_is_little_more_than_pydantic() -> None:
    """Beside what a model of pydantic needs: msgspec, asyncio, and these modules of ours. It takes about as long as pydantic alone."""
    added = set(run(ADDED).split())
    ours = {name for name in added if name.partition(".")[0] == "app"}
    assert {name.partition(".")[0] for name in added - ours} - sys.stdlib_module_names == {"msgspec", "pydantic"}
    assert {name.removeprefix("app.") for name in ours - {"app", "app.agent", "app.journal", "app.llm"}} == {
        *(f"agent.{name}" for name in ("asking", "chattable", "history", "plain", "stream", "threads")),
        *("domain", "errors", "journal.log", "journal.recorder", "journal.replay"),
        *(f"llm.{name}" for name in ("bridge", "llm", "messages", "tokens")),
    }
    assert int(run(GROWTH)) <= 45 * 1024


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
