"""Every sample that publishes an agent runs with only its import lines changed: those of seeds 000 and 001 where these documents lie
beside the repository, and always those of `tests/publish_samples.md`, which stand in the same order.

What a fragment leaves undefined is defined by the stated prelude; made-up addresses are those of servers that are there; `uvicorn.run`
notes what it is to serve.
"""

from __future__ import annotations

import ast
import asyncio
import inspect
import re
import subprocess
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import pytest
import requests
import uvicorn

from app.agent import MemoryManager, OpenAIRequest
from app.publish import publish_agent_api
from tests.fakes.upstream import FakeUpstream
from tests.publishing import ROOT, served

SEEDS = ROOT.parent / "shared/seeds"
OURS = (ROOT / "tests/publish_samples.md").read_text()
HERE = "http://localhost:8000"

PRELUDE = """
import requests
import uvicorn
from typing import Any, Dict, List, Optional
from fastapi import FastAPI
from openai import OpenAI
from app.agent import *
from app.publish import *

class MyAgent(BaseAgent):
    async def run(self, request: OpenAIRequest):
        return f"You said: {request.get_user_query()}"

    async def api_logic(self, request: OpenAIRequest):
        return await self.run(request)

class TeacherAgent(BaseAgent):
    async def api_logic(self, request: OpenAIRequest):
        self.memory.add_memory(role="student", content=request.get_user_query())
        prompt = self.create_prompt("{{history}}").update_placeholder(history=self.memory.build_history())
        return await prompt.acall(is_stream=False)

class WeatherTool(BaseAgent):
    async def get_weather(self, city):
        return f"sunny in {city}"

llm = OpenAILike("key", SERVER, "fake")
agent = MyAgent(llm=llm)
config = APIPublisherConfig()
app = publish_agent_api(agent, "run")
PROMPT_GUIDE = "say {city: '{{city}}', weather: '{{weather}}', asked: '{{query}}'}"
"""


class Ground:
    """Where samples run. `run` gives what one has made; `serves` is what it had uvicorn serve."""

    def __init__(self, fake: FakeUpstream, monkeypatch: pytest.MonkeyPatch) -> None:
        self.fake = fake
        self.serves: list[Any] = []
        monkeypatch.delenv("REDIS_URL", raising=False)
        monkeypatch.setattr(uvicorn, "run", lambda app, **_: self.serves.append(app))

    def run(self, sample: str, *, url: str = "", before: str = "") -> Any:
        module: Any = ModuleType("__main__")  # so that what stands below it in a sample is run too
        module.SERVER, module.url = self.fake.base_url, f"{url}/alphadata/chat/completions"
        exec(PRELUDE + before, vars(module))  # noqa: S102 - that is what is tested
        ours = self.changed(sample).replace(HERE, url)
        code = compile(ours, "sample.py", "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)
        result = eval(code, vars(module))  # noqa: S307 - as above; gives a coroutine where the sample awaits
        if inspect.iscoroutine(result):
            asyncio.run(result)
        return module

    def changed(self, sample: str) -> str:
        """The sample with its import lines changed, and the address of its language model."""
        published = "publish_agent_api|APIPublisherConfig|DataStreamer"
        sample = re.sub(
            rf"^(\s*)from alphora\.\S+ import (?=.*(?:{published}))", r"\1from app.publish import ", sample, flags=re.M
        )
        sample = re.sub(r"^from my_agent import MyAgent$", "", sample, flags=re.M)
        sample = re.sub(r"^(\s*)from alphora\.\S+ import", r"\1from app.agent import", sample, flags=re.M)
        return sample.replace("https://api.openai.com/v1", self.fake.base_url)


def ask(app: Any, query: str, path: str = "/alphadata", **fields: Any) -> Any:
    with served(app) as url:
        return ask_at(f"{url}{path}/chat/completions", query, **fields)


def ask_at(url: str, query: str, **fields: Any) -> Any:
    body = {"messages": [{"role": "user", "content": query}], "stream": False, **fields}
    answer = requests.post(url, json=body, timeout=30)
    assert answer.status_code == 200, answer.text
    return answer.json()["choices"][0]


# Of seed 000


def teacher(ground: Ground, sample: str) -> None:
    made = ground.run(sample)
    assert ground.serves == [made.app]
    assert "say hello" in ask(made.app, "say hello")["message"]["content"]
    assert "Teacher" in made.app.title


def deployed(ground: Ground, sample: str) -> None:
    made = ground.run(sample)
    assert ground.serves == [made.app]
    assert ask(made.app, "hi")["message"]["content"] == "You said: hi"


def guided(ground: Ground, sample: str) -> None:
    made = ground.run(sample)
    assert ground.serves == [made.app]
    said = ask(made.app, "where")["message"]["content"]
    assert said == '{"city": "Beijing", "weather": "sunny in Beijing", "asked": "where"}'


# Of seed 001


def quick(ground: Ground, sample: str) -> None:
    deployed(ground, sample)


def published(ground: Ground, sample: str) -> None:
    assert ask(ground.run(sample).app, "hi")["message"]["content"] == "You said: hi"


def started(ground: Ground, sample: str) -> None:
    assert ground.serves == [ground.run(sample).app]


def configured(ground: Ground, sample: str) -> None:
    made = ground.run(sample)
    assert (made.config.memory_ttl, made.config.max_memory_items, made.config.auto_clean_interval) == (3600, 1000, 600)
    assert (made.app.title, made.app.description) == ("My Agent API", "Agent API")
    published(ground, sample)


def titled(ground: Ground, sample: str) -> None:
    made = ground.run(sample)
    app = publish_agent_api(made.agent, "run", made.config)
    assert (app.title, app.description) == ("MyAgent API Service", "MyAgent.run API")


def message(ground: Ground, sample: str) -> None:
    ground.run(sample)
    assert OpenAIRequest(messages=[ast.literal_eval(sample)]).get_user_query() == "你好"


def requested(ground: Ground, sample: str) -> None:
    with served(ground.run("").app) as url:
        made = ground.run(sample, url=url)
        assert made.line in (b"data: [DONE]", b"")
        made.response.close()


def openai(ground: Ground, sample: str) -> None:
    with served(ground.run("").app) as url:
        made = ground.run(sample, url=url)
        assert made.chunk.choices[0].finish_reason == "stop"
        made.stream.close()
        made.client.close()


def kept(ground: Ground, sample: str) -> None:
    config = ground.run(sample).config
    assert (config.memory_ttl, config.max_memory_items, config.auto_clean_interval) == (3600, 1000, 600)


def two_turns(ground: Ground, sample: str) -> None:
    with served(ground.run("app = publish_agent_api(TeacherAgent(llm=llm), 'api_logic')").app) as url:
        ground.run(sample, url=url)
    asked = ground.fake.requests[-1].body["messages"][-1]["content"]
    assert "我叫张三" in asked
    assert "我叫什么名字？" in asked


def memory(ground: Ground, sample: str) -> None:
    made = ground.run(sample)
    assert isinstance(made.MyAgent().memory, MemoryManager)
    publish_agent_api(made.MyAgent(), "run")


def method(ground: Ground, sample: str) -> None:
    publish_agent_api(ground.run(sample).MyAgent(), "run")


def request(ground: Ground, sample: str) -> None:
    given = OpenAIRequest(messages=[{"role": "user", "content": "hi"}], custom_field=1)  # type: ignore[call-arg]
    given.set_headers({"Authorization": "Bearer x"})
    made = ground.run(sample)
    assert asyncio.run(made.run(made.agent, given)) is None


def answered(ground: Ground, sample: str) -> None:
    made = ground.run(sample)
    made.MyAgent.run = made.run
    said = ask(publish_agent_api(made.MyAgent(), "run"), "hi")
    assert said["message"]["content"] == "这是回答的内容print('Hello')"
    assert '<content type="thinking">' in said["delta"]["content"]


def streamed(ground: Ground, sample: str) -> None:
    assert b"Hello" in ground.run(sample).response.body


def timed(ground: Ground, sample: str) -> None:
    made = ground.run(f"async def main():\n    {sample.strip()}\n    return streamer.seconds_left")
    assert 59 < asyncio.run(made.main()) <= 60


def basic(ground: Ground, sample: str) -> None:
    app = ground.run(f"{sample}\napp = publish_agent_api(MyAgent(llm=llm), 'run')").app
    assert ask(app, "say hello")["message"]["content"] == "hello"


def server(ground: Ground, sample: str) -> None:
    before = next(each for each in pythons(OURS) if "self.memory.add_assistant(result.response)" in each)
    made = ground.run(sample, before=ground.changed(before))
    assert ground.serves == [made.app]
    with served(made.app) as url:
        chat = f"{url}/api/v1/chat/completions"
        assert ask_at(chat, "say 我叫张三", session_id="user-001")["message"]["content"] == "我叫张三"
        again = ask_at(chat, "what was the first thing I said", session_id="user-001")
        assert again["message"]["content"] == "say 我叫张三"


def tools(ground: Ground, sample: str) -> None:
    app = ground.run(f"{sample}\napp = publish_agent_api(ToolAgent(llm), 'run')").app
    said = ask(app, 'call search_web {"query": "x"}')
    assert said["message"]["content"] == "The tool said: 搜索结果: x"
    assert "thinking" in said["delta"]["content"]


def production(ground: Ground, sample: str) -> None:
    made = ground.run(sample)
    assert made.config.max_memory_items == 10000
    assert ask(made.app, "hi", "/api/v1")["message"]["content"] == "You said: hi"


def signature(ground: Ground, sample: str) -> None:
    wanted = ground.run(f"{sample.strip()}: ...").publish_agent_api
    assert list(inspect.signature(publish_agent_api).parameters) == list(inspect.signature(wanted).parameters)


Check = Callable[[Ground, str], None]
OF_000: list[Check] = [teacher, deployed, guided]
OF_001: list[Check] = [
    *(quick, published, started, configured, titled, message, requested, openai, kept, two_turns, memory, method),
    *(request, answered, streamed, timed, basic, server, tools, production, signature),
]
"""What is checked of each sample, in their order."""


def pythons(text: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)


def documents() -> Iterator[tuple[str, list[str], list[Check]]]:
    yield "ours", pythons(OURS), OF_000 + OF_001
    for path in sorted(SEEDS.glob("00[01]_*.txt")):
        found = pythons(path.read_text())
        if path.name.startswith("000"):  # the others are in test_samples.py
            yield "000", [each for each in found if "APIPublisherConfig" in each], OF_000
        else:
            yield "001", found, OF_001


def found() -> Iterator[Any]:
    for name, samples, checks in documents():
        for sample, check in zip(samples, checks, strict=True):
            yield pytest.param(sample, check, id=f"{name}-{check.__name__}")


@pytest.mark.parametrize(("sample", "check"), list(found()))
async def test_a_sample_publishes_with_only_its_imports_changed(
    sample: str, check: Check, fake: FakeUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    await asyncio.to_thread(check, Ground(fake, monkeypatch), sample)


@pytest.mark.skipif(not any(SEEDS.glob("001_*")), reason="the document is not here; docs/publish.md has one like it")
async def test_the_documents_curl_works(fake: FakeUpstream, monkeypatch: pytest.MonkeyPatch) -> None:
    (text,) = (path.read_text() for path in SEEDS.glob("001_*"))
    (shell,) = (block for block in re.findall(r"```bash\n(.*?)```", text, re.DOTALL) if "curl" in block)
    ground = Ground(fake, monkeypatch)

    def do() -> str:
        with served(ground.run("").app) as url:
            command = ["bash", "-euc", shell.replace(HERE, url)]
            return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout

    printed = await asyncio.to_thread(do)
    assert "data: [DONE]" in printed
    assert '"mixed-xml"' in printed
