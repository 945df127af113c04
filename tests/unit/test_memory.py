"""What an agent remembers, and that its limits hold at once."""

import asyncio
import json
from collections.abc import Sequence
from typing import Any

import pytest

from app.agent import LLM, BaseAgent, Chunk, Completion, History, MemoryManager, Message, Reply, ToolResult
from app.agent.testing import Scripted, call
from app.errors import InvalidInput


class Clock:
    """A time that only passes when it is told."""

    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def told(memory: MemoryManager, **asked: Any) -> list[str]:
    return [message.content for message in memory.build_history(**asked)]


def test_history_is_what_was_said_oldest_first() -> None:
    memory = MemoryManager()
    memory.add_memory(role="user", content="Hello", score=0.8)
    memory.add_memory(content=Completion("Hi."), role="assistant")
    memory.add_memory(content="elsewhere", memory_id="other")
    history = memory.build_history()
    assert isinstance(history, History)
    assert [(message.role, message.content) for message in history] == [("user", "Hello"), ("assistant", "Hi.")]
    assert memory.build_history(format="text") == str(history) == "user: Hello\nassistant: Hi."


def test_roles_of_ones_own_are_names_and_the_first_to_speak_opens_rounds() -> None:
    memory = MemoryManager()
    for number in range(3):
        memory.add_memory(role="student", content=f"q{number}")
        memory.add_memory(role="teacher", content=f"a{number}")
    assert memory.build_history(max_round=1, format="text") == "student: q2\nteacher: a2"
    assert {message.role for message in memory.build_history()} == {"user"}
    assert [message.to_openai()["name"] for message in memory.build_history(max_round=1)] == ["student", "teacher"]


def test_history_is_cut_between_rounds_only() -> None:
    memory = MemoryManager()
    for number in range(5):
        memory.add_user(f"q{number}")
        memory.add_assistant(f"a{number}")
    assert told(memory, max_round=2) == ["q3", "a3", "q4", "a4"]
    assert told(memory, max_round=0) == []
    whole = len("user: q4\nassistant: a4")
    assert told(memory, max_length=whole) == ["q4", "a4"]
    assert told(memory, max_length=2 * whole) == ["q4", "a4"]
    assert told(memory, max_length=2 * whole + 1) == ["q3", "a3", "q4", "a4"]
    assert told(memory, max_length=whole - 1) == []


async def test_tools_are_remembered_in_pairs() -> None:
    memory = MemoryManager()
    llm = Scripted([["Looking.", call("weather", city="Oslo"), call("news")], "Sunny."])
    memory.add_user("Rain?")
    reply = await llm.acall(memory.build_history(), tools=[{"type": "function"}])
    memory.add_assistant(reply)
    assert [message.to_openai() for message in memory.build_history()][1:] == [
        {"role": "assistant", "content": "Looking."}
    ]
    memory.add_tool_result([ToolResult("call_weather", "weather", "sun"), ToolResult("call_unknown", "x", "y")])
    asked = [message.to_openai() for message in memory.build_history()]
    assert [given["id"] for given in asked[1]["tool_calls"]] == ["call_weather"]
    assert asked[2:] == [{"role": "tool", "content": "sun", "tool_call_id": "call_weather"}]
    final = await llm.acall(memory.build_history())
    with pytest.raises(RuntimeError, match="read to its end"):
        memory.add_assistant(final)
    await final.text()
    memory.add_assistant(final)
    memory.add_assistant(Message.assistant("And warm."))
    assert told(memory)[-2:] == ["Sunny.", "And warm."]


async def test_a_reply_that_called_tools_and_went_on_is_remembered_as_its_answer() -> None:
    async def items() -> Any:
        yield [Chunk('{"id":"1","name":"x","arguments":"{}"}', "tool_call"), Chunk("y", "tool"), Chunk("Done.")]

    reply = Reply(items())
    await reply.text()
    assert not reply.has_tool_calls
    memory = MemoryManager()
    assert memory.add_assistant(reply).beside == {}


def test_ttl_holds_at_once(clock: Clock) -> None:
    """Of the seeds' faults: cap and TTL only at sweeps."""
    memory = MemoryManager(ttl=60, clock=clock)
    memory.add_user("old")
    memory.add_user("kept", ttl=600)
    clock.now += 59.9
    assert told(memory) == ["old", "kept"]
    clock.now += 0.1
    assert told(memory) == ["kept"]
    assert [entry.content for entry in memory.get_top_memories()] == ["kept"]
    assert [entry["content"] for entry in memory.export()["entries"]] == ["kept"]


def test_the_window_holds_at_once_and_what_earned_it_becomes_long_term() -> None:
    memory = MemoryManager(window=2, long_term=2)
    memory.add_user("plain")
    memory.add_user("scored", score=0.8)
    memory.add_user("important", importance=0.9)
    assert told(memory) == ["scored", "important"]
    memory.add_user("a")
    memory.add_user("b")
    assert told(memory) == ["a", "b"]
    assert {entry.content: entry.term for entry in memory.get_top_memories(top_n=9)} == {
        "important": "long", "scored": "long", "a": "short", "b": "short",
    }  # fmt: skip
    memory.add_user("best", score=1.0, importance=1.0)
    memory.add_user("c")
    memory.add_user("d")
    kept = {entry.content for entry in memory.get_top_memories(top_n=9) if entry.term == "long"}
    assert "best" in kept
    assert len(kept) == 2


async def test_what_is_found_often_becomes_long_term() -> None:
    memory = MemoryManager(window=1)
    memory.add_user("useful")
    for _ in range(3):
        await memory.search("useful")
    memory.add_user("next")
    assert [entry.content for entry in await memory.search("use")] == ["useful"]


def test_size_holds_at_once_and_the_least_goes_first() -> None:
    memory = MemoryManager(window=2, max_characters=1_000)
    memory.add_user("x" * 200, score=0.9)
    memory.add_user("y" * 200)
    memory.add_user("z" * 200)
    memory.add_user("w" * 200)
    assert [entry.content[0] for entry in memory.get_top_memories(top_n=9)].count("x") == 1
    assert sum(len(entry.content) + 100 for entry in memory.get_top_memories(top_n=9)) <= 1_000
    with pytest.raises(InvalidInput):
        memory.add_user("x" * 1_000)


def test_rank_weighs_score_importance_and_recency(clock: Clock) -> None:
    memory = MemoryManager(clock=clock)
    old = memory.add_user("old", score=0.6)
    clock.now += 10 * 86_400
    new = memory.add_user("new", score=0.6)
    scored = memory.add_user("scored", score=1.0)
    important = memory.add_user("important", score=0.6, importance=0.9)
    assert [entry.id for entry in memory.get_top_memories(top_n=3)] == [scored.id, important.id, new.id]
    assert 0 <= memory.rank(old) < memory.rank(new) <= 1


async def test_search_finds_by_words_tags_and_time(clock: Clock) -> None:
    memory = MemoryManager(clock=clock)
    memory.add_user("The cat sat", tags=["animal", "calm"])
    clock.now += 10
    memory.add_user("A CAT ran", tags=["animal"])
    memory.add_user("北京的天气", memory_id="other")

    async def found(*args: Any, **asked: Any) -> list[str]:
        return sorted(entry.content for entry in await memory.search(*args, **asked))

    assert await found("cat") == ["A CAT ran", "The cat sat"]
    assert await found("cat the") == ["The cat sat"]
    assert await found("天气") == ["北京的天气"]
    assert await found(tags=["animal", "calm"]) == ["The cat sat"]
    assert await found("cat", after=clock.now) == await found("cat", after=clock.now - 5) == ["A CAT ran"]
    assert await found(before=clock.now) == ["The cat sat"]
    assert await found(memory_id="other") == ["北京的天气"]
    assert len(await found(top_n=1)) == 1


def test_forgetting_is_at_once() -> None:
    memory = MemoryManager()
    first = memory.add_user("a")
    memory.add_user("b")
    memory.add_user("c", memory_id="other")
    assert (memory.forget(first.id), memory.forget(first.id)) == (True, False)
    assert told(memory) == ["b"]
    memory.clear("default")
    assert (told(memory), told(memory, memory_id="other")) == ([], ["c"])
    memory.clear()
    assert memory.get_top_memories() == []


def test_it_is_carried_as_plain_json(clock: Clock) -> None:
    memory = MemoryManager(clock=clock)
    memory.add_user("a", tags=["t"], ttl=10)
    memory.add_memory("b", "assistant", tool_calls=[{"id": "1"}], score=0.9)
    carried = json.loads(json.dumps(memory.export()))
    other = MemoryManager(clock=clock)
    other.add_user("in its place")
    other.load(carried)
    assert other.export() == memory.export()
    assert other.changes() == ([], [])
    clock.now += 10
    late = MemoryManager(clock=clock)
    late.load(carried)
    assert [entry["content"] for entry in late.export()["entries"]] == ["b"]
    for wrong in ({}, {"version": 2, "entries": []}, {"version": 1, "entries": [{}]}):
        with pytest.raises(InvalidInput, match="no exported memory"):
            other.load(wrong)


async def test_changes_are_what_has_to_be_saved() -> None:
    memory = MemoryManager(window=2)
    first, second = memory.add_user("a"), memory.add_user("b")
    assert memory.changes() == ([first, second], [])
    assert memory.changes() == ([], [])
    third = memory.add_user("c")
    await memory.search("b")
    saved, forgotten = memory.changes()
    assert ({entry.id for entry in saved}, forgotten) == ({second.id, third.id}, [first.id])


def test_the_users_memory_is_another_one() -> None:
    memory = MemoryManager()
    memory.user.add_memory("likes tea")
    assert memory.user.get_top_memories()[0].content == "likes tea"
    assert memory.get_top_memories() == []


@pytest.mark.parametrize("field", ["score", "importance"])
@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan")])
def test_scores_are_from_0_to_1(field: str, value: float) -> None:
    with pytest.raises(InvalidInput, match=field):
        MemoryManager().add_memory("x", **{field: value})


def test_a_thousand_entries_take_a_moment() -> None:
    memory = MemoryManager()
    for number in range(3_000):
        memory.add_memory(f"entry {number}", score=number % 10 / 10, memory_id=str(number % 4))
    assert len(memory.export()["entries"]) <= 4 * 200 + 1_000
    assert asyncio.run(memory.search("entry 2999"))[0].content == "entry 2999"


class Letters(LLM):
    """Embeds by how often letters occur."""

    def __init__(self) -> None:
        self.embedded: list[str] = []

    async def generate(self, messages: list[dict[str, Any]], **options: Any) -> str:
        return "ok"

    async def embed(self, texts: Sequence[str], *, model: str | None = None) -> list[list[float]]:
        self.embedded += texts
        return [[text.count(letter) + 0.01 for letter in "abcdefgh"] for text in texts]


async def test_a_script_searches_by_meaning_and_embeds_each_entry_once() -> None:
    llm = Letters()
    agent = BaseAgent(llm)
    for content in ("aab", "cdd", "ffg", " "):
        agent.memory.add_user(content, tags=[content[0]])
    found = await agent.memory.search("dc", by="meaning", top_n=2)
    assert found[0].content == "cdd"
    assert (found[0].uses, len(found)) == (1, 2)
    assert (await agent.memory.search("gf", by="meaning", tags=["f"]))[0].content == "ffg"
    assert llm.embedded == ["dc", "aab", "cdd", "ffg", "gf"]
    found[0].content = "hhh"
    assert (await agent.memory.search("h", by="meaning"))[0].content == "hhh"
    agent.memory.user.add_user("bbb")
    assert (await agent.memory.user.search("b", by="meaning"))[0].content == "bbb"


async def test_a_search_by_meaning_wants_words_and_a_model() -> None:
    with pytest.raises(InvalidInput, match="of an agent"):
        await MemoryManager().search("x", by="meaning")
    memory = BaseAgent(Letters()).memory
    with pytest.raises(InvalidInput, match="query"):
        await memory.search(" ", by="meaning")
    with pytest.raises(InvalidInput, match="by must be"):
        await memory.search("x", by="magic")
    memory.add_user("x")
    with pytest.raises(InvalidInput, match="of an agent"):
        await memory.search("x", by="meaning")  # the agent is gone, and its model with it
