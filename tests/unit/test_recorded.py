"""Recorded calls are replayed by what they ask, and a call that is not among them shows how it differs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from app.agent import Chunk
from app.agent.recorded import NotRecorded, Recorded
from app.agent.testing import Scripted, call
from app.errors import LLMError


async def test_text_thoughts_calls_and_usage_come_back_as_they_were(tmp_path: Path) -> None:
    path = tmp_path / "deep/calls.json"
    llm = Recorded(path, Scripted([[Chunk("hm", "thinking"), "It is so."], call("look", at="sea")]))
    first = await llm.ainvoke("Is it?", temperature=0)
    await llm.ainvoke("Look.")
    again = Recorded(path)
    said = await again.ainvoke("Is it?", temperature=0)
    assert (said, said.reasoning, said.usage, said.finish_reason) == ("It is so.", "hm", first.usage, "stop")
    reply = await again.acall("Look.")
    await reply.text()
    assert [made.name for made in reply.tool_calls] == ["look"]


async def test_equal_calls_are_answered_in_turn_and_not_more_often(tmp_path: Path) -> None:
    llm = Recorded(tmp_path / "c.json", Scripted(["one", "two"]))
    assert [await llm.ainvoke("Go."), await llm.ainvoke("Go.")] == ["one", "two"]
    again = Recorded(tmp_path / "c.json")
    assert [await again.ainvoke("Go."), await again.use(None).ainvoke("Go.")] == ["one", "two"]
    with pytest.raises(NotRecorded, match="2 times; it is made once more"):
        await again.ainvoke("Go.")


async def test_a_call_that_differs_shows_the_difference(tmp_path: Path) -> None:
    llm = Recorded(tmp_path / "c.json", Scripted(["a", "b"]))
    await llm.ainvoke("What is the weather?", temperature=0)
    await llm.ainvoke("Something else entirely")
    with pytest.raises(NotRecorded) as raised:
        await Recorded(tmp_path / "c.json").ainvoke("What is the weather?", temperature=1)
    assert '-  "temperature": 0' in raised.value.message
    assert '+  "temperature": 1' in raised.value.message
    assert "Something" not in raised.value.message


async def test_a_recording_that_is_not_there_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(NotRecorded, match="pytest --record"):
        Recorded(tmp_path / "c.json")


async def test_recording_anew_replaces_what_was_there(tmp_path: Path) -> None:
    for line in ("old", "new"):
        await Recorded(tmp_path / "c.json", Scripted([line])).ainvoke("Go.")
    assert await Recorded(tmp_path / "c.json").ainvoke("Go.") == "new"


async def test_keys_are_never_written(tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    llm = Recorded(path, Scripted(["fine", "the key is sk-canary"]), secrets=["sk-canary"])
    await llm.ainvoke("Go.", api_key="sk-canary", extra_headers={"authorization": "sk-canary"})
    assert json.loads(path.read_text())["calls"][0]["options"] == {}
    with pytest.raises(LLMError, match="holds a secret"):
        await llm.ainvoke("Tell me.")
    assert "canary" not in path.read_text()


async def test_a_call_that_fails_is_not_recorded(tmp_path: Path) -> None:
    llm = Recorded(tmp_path / "c.json", Scripted([LLMError("It is down."), "up"]))
    with pytest.raises(LLMError, match="down"):
        await llm.ainvoke("Go.")
    await llm.ainvoke("Go.")
    assert await Recorded(tmp_path / "c.json").ainvoke("Go.") == "up"


async def test_embeddings_are_recorded_too(tmp_path: Path) -> None:
    class Embedder(Scripted):
        async def embed(self, texts: object, *, model: str | None = None) -> list[list[float]]:
            return [[1.0, 2.0]]

    await Recorded(tmp_path / "c.json", Embedder([])).embed(["a"])
    again = Recorded(tmp_path / "c.json")
    assert await again.embed(["a"]) == [[1.0, 2.0]]
    with pytest.raises(NotRecorded):
        await again.embed(["b"])
