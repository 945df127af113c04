"""A published agent, over HTTP."""

from __future__ import annotations

import asyncio
import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import requests
from openai import OpenAI

from app.agent import BaseAgent, BaseMemory, OpenAIRequest
from app.errors import LLMUnavailable
from app.publish import AgentValidationError, APIPublisherConfig, publish_agent_api
from tests.engines import Engines
from tests.publishing import answers, free_port, served, uvicorn_with

CHAT = "/alphadata/chat/completions"


class Sayer(BaseAgent):
    """Does what it is told."""

    default_setting = "clean"

    async def run(self, request: OpenAIRequest) -> Any:
        query = request.get_user_query()
        known = getattr(self, "do_" + query.replace(" ", "_"), self.remember)
        return await known(request)

    async def do_forget_stop(self, request: OpenAIRequest) -> None:
        await self.stream.send("text", "said")

    async def do_return(self, request: OpenAIRequest) -> str:
        return "returned"

    async def do_nothing(self, request: OpenAIRequest) -> None: ...

    async def do_raise(self, request: OpenAIRequest) -> None:
        raise ValueError("a secret")

    async def do_exit(self, request: OpenAIRequest) -> None:
        raise SystemExit

    async def do_upstream(self, request: OpenAIRequest) -> None:
        raise LLMUnavailable("The language model is not available.")

    async def do_say_and_raise(self, request: OpenAIRequest) -> None:
        await self.stream.send("text", "said")
        raise ValueError("a secret")

    async def do_hang(self, request: OpenAIRequest) -> None:
        await self.stream.send("text", "begun")
        await asyncio.sleep(600)

    async def do_types(self, request: OpenAIRequest) -> None:
        for kind, content in (
            ("thinking", "hm <"),
            ("status", "busy"),
            ("text", "a"),
            ("code", "b"),
            ("thinking", " yes"),
        ):
            await self.stream.send(kind, content)
        await self.stream.stop()

    async def do_leak(self, request: OpenAIRequest) -> str:
        before, self.default_setting = self.default_setting, "dirty"
        seen = self.get_config("seen", "no")
        self.update_config(seen="yes")
        return f"{before} {seen}"

    async def do_headers(self, request: OpenAIRequest) -> str:
        return json.dumps([request.get_header("Authorization"), request.get_header("X-Colour")])

    async def remember(self, request: OpenAIRequest) -> str:
        query = request.get_user_query()
        self.memory.add_user(query)
        if query == "fail":
            raise ValueError
        await asyncio.sleep(0.01)
        history = self.memory.build_history()
        self.memory.add_assistant("ok")
        return " ".join(message.content for message in history if message.role == "user")


def ask(url: str, query: str, *, stream: bool = False, key: str | None = None, **fields: Any) -> requests.Response:
    headers = {"Authorization": f"Bearer {key}", "X-Colour": "blue"} if key else {}
    body = {"messages": [{"role": "user", "content": query}], "stream": stream, **fields}
    return requests.post(url + CHAT, json=body, headers=headers, timeout=30)


def text(response: requests.Response) -> str:
    assert response.status_code == 200, response.text
    content: str = response.json()["choices"][0]["message"]["content"]
    return content


def frames(response: requests.Response) -> list[Any]:
    lines = [line.removeprefix("data: ") for line in response.text.split("\n\n") if line.startswith("data: ")]
    return [line if line == "[DONE]" else json.loads(line) for line in lines]


@pytest.fixture(params=["here", "redis"])
def url(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.delenv("REDIS_URL", raising=False)
    if request.param == "redis":
        running: Engines = request.getfixturevalue("running")
        monkeypatch.setenv("REDIS_URL", running.redis_url)
    config = APIPublisherConfig(timeout=3)
    with served(publish_agent_api(Sayer(), "run", config)) as found:
        yield found


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("REDIS_URL", raising=False)


def test_every_end_is_told_at_once(url: str) -> None:
    """Of the seeds' faults: a reply that hangs when stop is forgotten or the agent raises; upstream errors as HTTP 200."""
    assert text(ask(url, "forget stop")) == "said"
    assert text(ask(url, "return")) == "returned"
    for query, status, code in (
        ("nothing", 502, "agent_failed"),
        ("raise", 502, "agent_failed"),
        ("exit", 502, "agent_failed"),
        ("upstream", 503, "llm_unavailable"),
    ):
        for stream in (False, True):
            answer = ask(url, query, stream=stream)
            assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
            assert "secret" not in answer.text
    *_, last = frames(ask(url, "say and raise", stream=True))
    assert last["error"]["code"] == "agent_failed"
    assert ask(url, "say and raise").status_code == 502


def test_an_answer_whose_time_is_over_says_so(url: str) -> None:
    assert ask(url, "hang").json()["choices"][0]["finish_reason"] == "timeout"
    assert frames(ask(url, "hang", stream=True))[-2]["choices"][0]["finish_reason"] == "timeout"


def test_types_stand_beside_the_answer_and_never_in_it(url: str) -> None:
    whole = ask(url, "types").json()
    (choice,) = whole["choices"]
    assert choice["delta"] == {
        "content": '<content type="thinking">hm &lt; yes</content><content type="status">busy</content>'
        '<content type="text">a</content><content type="code">b</content>',
        "content_type": "mixed-xml",
    }
    assert (choice["message"]["content"], choice["message"]["reasoning_content"]) == ("ab", "hm < yes")
    assert whole["object"] == "chat.completion"
    chunks = frames(ask(url, "types", stream=True, stream_options={"include_usage": True}))
    assert chunks[-1] == "[DONE]"
    assert chunks[-2]["usage"]["completion_tokens"] > 0
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks[:-2]]
    assert deltas[0]["role"] == "assistant"
    assert "".join(delta.get("content", "") for delta in deltas) == "ab"
    assert {delta.get("content_type") for delta in deltas[1:]} == {"thinking", "status", "text", "code", "stop"}
    assert chunks[-3]["choices"][0]["finish_reason"] == "stop"
    assert isinstance(chunks[0]["created"], int)


def test_openais_client_works_and_the_last_message_counts(url: str) -> None:
    """Of the seeds' faults: first instead of last user message."""
    with OpenAI(base_url=f"{url}/alphadata", api_key="not-needed", max_retries=0) as client:
        messages: Any = [{"role": "user", "content": "first"}, {"role": "assistant", "content": None}]
        messages.append({"role": "user", "content": "last"})
        whole = client.chat.completions.create(model="agent", messages=messages, stream=False)
        assert (whole.choices[0].message.content, whole.model) == ("last", "agent")
        with client.chat.completions.create(model="agent", messages=messages, stream=True) as stream:
            assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == "last"


def test_a_session_is_remembered_in_order_and_a_failed_turn_is_not(url: str) -> None:
    assert text(ask(url, "one", session_id="order")) == "one"
    assert ask(url, "fail", session_id="order").status_code == 502
    with ThreadPoolExecutor(8) as pool:
        said = list(pool.map(lambda at: text(ask(url, f"n{at}", session_id="order")), range(8)))
    assert sorted(len(each.split()) for each in said) == list(range(2, 10))
    assert "fail" not in max(said, key=len)
    assert text(ask(url, "else")) == "else"


def test_a_session_is_its_owners(url: str) -> None:
    """Of the seeds' faults: foreign session memory readable."""
    assert text(ask(url, "mine", session_id="s", key="a")) == "mine"
    assert text(ask(url, "other", session_id="s", key="b")) == "other"
    assert text(ask(url, "user", session_id="s", key="a", user="u")) == "user"
    assert text(ask(url, "again", session_id="s", key="a")) == "mine again"


def test_nothing_leaks_into_the_next_request(url: str) -> None:
    """Of the seeds' faults: state leaking between requests."""
    assert [text(ask(url, "leak")), text(ask(url, "leak"))] == ["clean no", "clean no"]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (b"{", None),
        (b"[]", "body"),
        (b'{"messages": 1}', "messages"),
        (b'{"messages": [{"role": "nobody"}]}', None),
        (b'{"session_id": 5}', "session_id"),
        (b'{"session_id": "%s"}' % (b"x" * 300), "session_id"),
    ],
)
@pytest.mark.usefixtures("alone")
def test_a_wrong_body_is_400_in_openais_shape(body: bytes, param: str | None) -> None:
    with served(publish_agent_api(Sayer(), "run")) as url:
        answer = requests.post(url + CHAT, data=body, timeout=30)
        assert (answer.status_code, answer.json()["error"]["type"]) == (400, "invalid_request_error")
        assert answer.json()["error"]["param"] == param
        assert requests.get(url + CHAT, timeout=30).json()["error"]["code"] == "method_not_allowed"
        assert requests.post(url + CHAT, data=b" " * 9_000_000, timeout=30).status_code == 413


@pytest.mark.usefixtures("alone")
def test_keys_and_rates_hold() -> None:
    config = APIPublisherConfig(path="/api/v1", api_keys=("one", "two"), requests_per_minute=2)
    app = publish_agent_api(Sayer(), "run", config)
    with served(app) as found:
        url = found + "/api/v1/chat/completions"
        body: Any = {"messages": [{"role": "user", "content": "headers"}], "stream": False}
        for header in (None, "Bearer three", "one", "Basic one"):
            refused = requests.post(url, json=body, headers={"Authorization": header} if header else {}, timeout=30)
            assert (refused.status_code, refused.json()["error"]["type"]) == (401, "authentication_error")
        given = [requests.post(url, json=body, headers={"Authorization": "Bearer two"}, timeout=30) for _ in range(3)]
        if given[-1].status_code == 200:  # a new minute began
            given = [requests.post(url, json=body, headers={"Authorization": "Bearer two"}, timeout=30) for _ in "123"]
        assert given[-1].status_code == 429
        assert int(given[-1].headers["retry-after"]) > 0
        assert text(given[0]) == "[null, null]"


@pytest.mark.usefixtures("alone")
def test_only_an_async_method_with_an_openai_request_is_published() -> None:
    class Wrong(BaseAgent):
        def sync(self, request: OpenAIRequest) -> None: ...
        async def other(self, request: str) -> None: ...
        async def bare(self, request) -> None: ...  # type: ignore[no-untyped-def]  # the fault
        async def two(self, request: OpenAIRequest, more: int) -> None: ...

    for agent, method in [(object(), "run"), *((Wrong(), name) for name in ("none", "sync", "other", "bare", "two"))]:
        with pytest.raises(AgentValidationError):
            publish_agent_api(agent, method)  # type: ignore[arg-type]  # the fault
    named = APIPublisherConfig(api_title="{agent_name}!", api_description="{agent_name}.{method_name} {other}")
    app = publish_agent_api(Sayer(), "run", named)
    assert (app.title, app.description) == ("Sayer!", "Sayer.run {other}")


class Noting(BaseMemory):
    """A memory of an author's own."""

    def __init__(self) -> None:
        self.said: list[str] = []

    async def add_memory(self, content: str, role: str = "user", **kwargs: Any) -> None:
        self.said.append(content)

    async def build_history(self, **kwargs: Any) -> str:
        return ", ".join(self.said)


class Keeping(BaseAgent):
    async def run(self, request: OpenAIRequest) -> str:
        await self.memory.add_memory(request.get_user_query())
        return str(await self.memory.build_history())


def test_a_memory_of_ones_own_is_that_of_each_session() -> None:
    with served(publish_agent_api(Keeping(memory=Noting()), "run")) as url:
        said = [
            text(ask(url, query, session_id=session_id)) for query, session_id in (("a", "1"), ("b", "2"), ("c", "1"))
        ]
    assert said == ["a", "b", "a, c"]


def test_a_memory_that_cannot_be_made_for_each_session_is_refused() -> None:
    class Needy(Noting):
        def __init__(self, place: str) -> None:
            super().__init__()
            self.place = place

    with pytest.raises(AgentValidationError, match="Needy must be made without arguments"):
        publish_agent_api(Keeping(memory=Needy("x")), "run")


SERVED = """
from app.agent import BaseAgent
from app.publish import OpenAIRequest, publish_agent_api
import os

class Counter(BaseAgent):
    async def run(self, request: OpenAIRequest) -> str:
        self.memory.add_user(request.get_user_query())
        return f"{len(self.memory.build_history())} {os.getpid()}"

app = publish_agent_api(Counter(), "run")
"""


def test_several_workers_share_sessions_in_redis(running: Engines, tmp_path: Path) -> None:
    (tmp_path / "served_agent.py").write_text(SERVED)
    port = free_port()
    server = uvicorn_with(tmp_path, port, 4, REDIS_URL=running.redis_url)
    try:
        url = f"http://127.0.0.1:{port}"
        answers(url, server)
        said: list[list[str]] = []
        deadline = time.monotonic() + 30
        with ThreadPoolExecutor(8) as pool:
            while len({worker for _, worker in said}) < 2:  # who of them takes a connection is the kernel's choice
                assert time.monotonic() < deadline
                said += [
                    each.split() for each in pool.map(lambda _: text(ask(url, "x", session_id=str(port))), range(20))
                ]
        assert sorted(int(count) for count, _ in said) == list(range(1, len(said) + 1))
    finally:
        server.terminate()
        server.communicate(timeout=30)


def test_several_workers_without_redis_are_refused_with_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "served_agent.py").write_text(SERVED)
    server = uvicorn_with(tmp_path, free_port(), 2)
    try:
        printed, _ = server.communicate(timeout=60)
    finally:
        server.kill()
    assert "Several workers need REDIS_URL" in printed
    assert "Traceback" not in printed
