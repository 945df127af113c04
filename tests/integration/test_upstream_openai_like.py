"""`OpenAILike`: any OpenAI-compatible server as an LLM, in a program and in a plain script."""

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from app.agent import BaseAgent
from app.domain import Message
from app.errors import InvalidInput, LLMUnavailable, SettingsError
from app.llm.llm import Endpoint
from app.llm.openai_like import MAX_EMBEDDED, OpenAILike
from tests.fakes.upstream import FakeUpstream, upstream


@pytest.fixture
async def fake() -> AsyncIterator[FakeUpstream]:
    async with upstream("secret") as server:
        yield server


@pytest.fixture
async def llm(fake: FakeUpstream) -> AsyncIterator[OpenAILike]:
    llm = OpenAILike(
        "secret", fake.base_url, "small", header={"X-Team": "blue"}, temperature=0.5, max_tokens=9, top_p=1
    )
    yield llm
    await llm.close()


async def hello(llm: OpenAILike) -> str:
    try:
        return await llm.ainvoke("say hello")
    finally:
        await llm.close()


async def test_what_it_is_made_with_is_sent(fake: FakeUpstream, llm: OpenAILike) -> None:
    completion = await llm.ainvoke([Message.system("Be brief."), Message.user("say hello there")])
    assert (completion, completion.finish_reason) == ("hello there", "stop")
    assert (completion.usage.prompt, completion.usage.completion) == (5, 2)
    sent = fake.requests[0]
    assert {name: sent.body[name] for name in ("model", "temperature", "max_tokens", "top_p")} == {
        "model": "small",
        "temperature": 0.5,
        "max_tokens": 9,
        "top_p": 1,
    }
    assert sent.headers["x-team"] == "blue"


async def test_texts_are_embedded_by_the_same_server(fake: FakeUpstream, llm: OpenAILike) -> None:
    one, other, same = await llm.embed(["one", "other", "one"])
    assert (one == same != other, fake.requests[-1].body["model"]) == (True, "small")
    await llm.embed(["x"], model="vectors")
    assert fake.requests[-1].body["model"] == "vectors"
    assert len(await llm.embed(["x"] * (MAX_EMBEDDED + 1))) == MAX_EMBEDDED + 1
    agent = BaseAgent(llm)
    await agent.knowledge.add(["about cats", "about dogs"])
    assert [found.content for found in await agent.knowledge.search("about dogs", k=1)] == ["about dogs"]
    with pytest.raises(InvalidInput, match="OpenAILike needs a model_name"):
        await OpenAILike("secret", fake.base_url).embed(["x"])


async def test_setters_take_effect(fake: FakeUpstream, llm: OpenAILike) -> None:
    other = llm.use("big")
    llm.set_model_name("medium")
    llm.set_temperature(0)
    llm.set_max_tokens(100)
    llm.set_top_p(0.25)
    await llm.ainvoke("hi")
    await other.ainvoke("hi", max_tokens=3)
    sent = [
        [request.body[name] for name in ("model", "temperature", "max_tokens", "top_p")] for request in fake.requests
    ]
    assert sent == [["medium", 0, 100, 0.25], ["big", 0.5, 3, 1]]


async def test_what_is_not_given_is_read_from_the_environment(
    fake: FakeUpstream, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)  # where there is no .env
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    monkeypatch.setenv("OPENAI_BASE_URL", fake.base_url + "/")
    monkeypatch.setenv("OPENAI_MODEL", "of the environment")
    assert await hello(OpenAILike()) == "hello"
    assert await hello(OpenAILike(model_name="given", base_url=fake.base_url)) == "hello"
    assert [request.body["model"] for request in fake.requests] == ["of the environment", "given"]
    with pytest.raises(LLMUnavailable):
        await hello(OpenAILike("wrong"))
    assert OpenAILike().endpoint() == Endpoint(fake.base_url, "secret", "of the environment")
    monkeypatch.setenv("OPENAI_BASE_URL", "nowhere")
    with pytest.raises(SettingsError, match="OPENAI_BASE_URL"):
        OpenAILike()


async def test_the_key_of_the_environment_is_for_its_server_alone(
    fake: FakeUpstream, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    other = OpenAILike(model_name="given", base_url=fake.base_url)
    assert other.endpoint().api_key == ""
    with pytest.raises(LLMUnavailable):
        await other.ainvoke("say hello")
    assert not any("secret" in str(request) for request in fake.requests)


async def test_bad_values_are_refused_where_they_are_given(
    fake: FakeUpstream, llm: OpenAILike, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InvalidInput, match="temperature"):
        OpenAILike(temperature=3)
    with pytest.raises(InvalidInput, match="max_tokens"):
        llm.set_max_tokens(0)
    monkeypatch.delenv("OPENAI_MODEL", raising=False)
    with pytest.raises(InvalidInput, match="model_name"):
        await OpenAILike("secret", fake.base_url).ainvoke("hi")
    with pytest.raises(InvalidInput, match="wings"):
        await llm.ainvoke("hi", wings=2)
    assert fake.hits == 0


async def test_the_live_answer_streams_and_leaving_it_frees_the_server(fake: FakeUpstream, llm: OpenAILike) -> None:
    reply = await llm.acall("hi [[fault: chunks=1000 delay=0.05]]")
    async for _ in reply:
        break
    await reply.close()
    await fake.until(lambda: fake.aborted == 1)


async def test_an_error_before_the_first_token_is_raised_by_acall(llm: OpenAILike) -> None:
    with pytest.raises(LLMUnavailable):
        await llm.acall("hi [[fault: 503]]")


async def test_ping_tells_whether_the_server_accepts_the_key(fake: FakeUpstream) -> None:
    good, bad = OpenAILike("secret", fake.base_url), OpenAILike("wrong", fake.base_url)
    assert await asyncio.to_thread(good.ping)
    assert not await asyncio.to_thread(bad.ping)


SCRIPT = """
import asyncio, sys
from app.llm.openai_like import MAX_EMBEDDED, OpenAILike
llm = OpenAILike("secret", sys.argv[1], "small")
print(llm.ping(), llm.invoke("say one"), "".join(chunk.content for chunk in llm.stream("say two")))
print(asyncio.run(llm.ainvoke("say three")), asyncio.run(llm.ainvoke("say four")), llm.invoke("say five"))
"""


async def test_a_plain_script_needs_no_event_loop_and_ends_in_silence(fake: FakeUpstream) -> None:
    arguments = [sys.executable, "-X", "dev", "-W", "error", "-c", SCRIPT, fake.base_url]
    ran = await asyncio.to_thread(subprocess.run, arguments, capture_output=True, text=True, timeout=60, check=False)
    assert (ran.stdout, ran.stderr, ran.returncode) == ("True one two\nthree four five\n", "", 0)
