"""docs/publish.md, done as it says, and the samples of seed 001 where that document lies beside the repository."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import requests

from tests.fakes.upstream import FakeUpstream
from tests.publishing import ROOT, answers, free_port, served, uvicorn_with

PAGE = (ROOT / "docs/publish.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
SEED = next((ROOT.parent / "shared/seeds").glob("001_*.txt"), None)

PRELUDE = """
import requests
from openai import OpenAI
from app.agent import *
from app.publish import *

class MyAgent(BaseAgent):
    async def run(self, request: OpenAIRequest):
        return f"You said: {request.get_user_query()}"

llm = OpenAILike("key", SERVER, "fake")
agent = MyAgent(llm=llm)
config = APIPublisherConfig()
"""
"""What the fragments of the document leave undefined."""


def changed(sample: str, server: str) -> str:
    """A sample with its import lines changed, the server that it names, and what starts a server left out."""
    names = "publish_agent_api|APIPublisherConfig|DataStreamer"
    sample = re.sub(
        rf"^from alphora\.server\.\S+ import (?=.*(?:{names}))", "from app.publish import ", sample, flags=re.M
    )
    sample = re.sub(r"^from (alphora\.\S+|my_agent) import MyAgent$", "", sample, flags=re.M)
    sample = re.sub(r"^from alphora\.\S+ import", "from app.agent import", sample, flags=re.M)
    sample = re.sub(r"^uvicorn\.run\(.*$", "", sample, flags=re.M).partition("\nif __name__")[0]
    return sample.replace("https://api.openai.com/v1", server)


def run(sample: str, server: str, before: str = "") -> ModuleType:
    module = ModuleType("sample")
    sys.modules["sample"] = module
    vars(module)["SERVER"] = server
    code = compile(PRELUDE + before + changed(sample, server), "sample", "exec", dont_inherit=True)
    exec(code, vars(module))  # noqa: S102 - it is what the page shows
    return module


def samples() -> list[str]:
    return re.findall(r"```python\n(.*?)```", SEED.read_text(), re.DOTALL) if SEED else []


def output(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def with_name(name: str) -> str:
    return next(sample for sample in samples() if name in sample)


def ask(url: str, query: str, **fields: Any) -> Any:
    body = {"messages": [{"role": "user", "content": query}], "stream": False, **fields}
    answer = requests.post(url, json=body, timeout=30)
    assert answer.status_code == 200, answer.text
    return answer.json()["choices"][0]


async def off_loop(work: Callable[[], Any]) -> Any:
    return await asyncio.to_thread(work)


async def test_the_page_does_what_it_says(fake: FakeUpstream, tmp_path: Path) -> None:
    agent, client, alone = (block for kind, block in BLOCKS if kind == "python")
    (shell,) = (block for kind, block in BLOCKS if kind == "bash")
    (tmp_path / "served_agent.py").write_text(agent.replace("https://api.openai.com/v1", fake.base_url))
    port = free_port()

    def do() -> None:
        server = uvicorn_with(tmp_path, port, 1)
        try:
            answers(f"http://127.0.0.1:{port}", server)
            said = [
                output(command)
                for command in (
                    ["bash", "-euc", shell.replace(":8000", f":{port}")],
                    [sys.executable, "-c", client.replace(":8000", f":{port}")],
                    [sys.executable, "-c", alone],
                )
            ]
        finally:
            server.terminate()
            server.communicate(timeout=30)
        assert '"content":"hello"' in said[0]
        assert "".join(said[1:]).splitlines() == re.findall(r"^# → (.*)$", client + alone, re.MULTILINE)

    await off_loop(do)


@pytest.mark.skipif(SEED is None, reason="the document is not here")
async def test_the_documents_apps_answer(fake: FakeUpstream, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("REDIS_URL", raising=False)
    basic = next(each for each in samples() if "async for chunk in result" in each and "# my_agent.py" in each)
    server = next(each for each in samples() if "# api_server.py" in each)
    tools = with_name("class ToolAgent")

    def do() -> None:
        for sample, path in (
            (with_name("# 3. 发布 API"), "/alphadata"),
            (with_name("# 可选配置"), "/alphadata"),
            (with_name("# API 文档描述"), "/alphadata"),
            (with_name("logging.basicConfig"), "/api/v1"),
        ):
            module = run(sample, fake.base_url)
            with served(module.app) as url:
                assert ask(f"{url}{path}/chat/completions", "你好")["message"]["content"] == "You said: 你好"
        with served(run(server, fake.base_url, changed(basic, fake.base_url)).app) as url:
            chat = f"{url}/api/v1/chat/completions"
            assert ask(chat, "say 我叫张三", session_id="user-001")["message"]["content"] == "我叫张三"
            again = ask(chat, "what was the first thing I said", session_id="user-001")
            assert again["message"]["content"] == "say 我叫张三"
        published = tools + '\napp = publish_agent_api(ToolAgent(llm), "run")\n'
        with served(run(published, fake.base_url).app) as url:
            said = ask(f"{url}/alphadata/chat/completions", 'call search_web {"query": "x"}')
            assert said["message"]["content"] == "The tool said: 搜索结果: x"
            assert "thinking" in said["delta"]["content"]

    await off_loop(do)


@pytest.mark.skipif(SEED is None, reason="the document is not here")
async def test_the_documents_calls_work(
    fake: FakeUpstream, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("REDIS_URL", raising=False)
    assert SEED
    (shell,) = (block for block in re.findall(r"```bash\n(.*?)```", SEED.read_text(), re.DOTALL) if "curl" in block)

    def do() -> None:
        with served(run(with_name("# 3. 发布 API"), fake.base_url).app) as url:
            here = "http://localhost:8000"
            printed = subprocess.run(
                ["bash", "-euc", shell.replace(here, url)], capture_output=True, text=True, check=True, timeout=60
            ).stdout
            assert "data: [DONE]" in printed
            assert '"mixed-xml"' in printed
            for name in ("# 非流式\n", "# 流式\nstream = client"):
                module = run(with_name(name).replace(here, url), fake.base_url)
                for opened in {"response", "stream", "client"} & vars(module).keys():
                    vars(module)[opened].close()

    await off_loop(do)
    printed = capsys.readouterr().out
    assert '"mixed-xml"' in printed or "'mixed-xml'" in printed
    assert printed.rstrip().endswith("You said: 你好")
