"""Runs as spans at a real receiver of OpenTelemetry's protocol."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from app.domain import Run, RunStatus, Step, new_id, now
from app.journal import genai
from app.main import create_app, spans_of
from app.metrics import SPANS_DROPPED, SPANS_SENT, Metrics, named
from app.settings import Settings
from app.store import spans as sending
from app.store.spans import Spans, headers_of, is_installed
from tests.engines import Engines
from tests.fakes.upstream import FakeUpstream
from tests.house import House, open_house, send, session

if not is_installed():
    pytest.skip("the extra `otel` is not installed", allow_module_level=True)

from tests.otlp import Receiver, receiver

ROOT = Path(__file__).parents[2]
SECRET = "the unspeakable"
AGENT = '''
import asyncio

from app.agent import BaseAgent, Message, tool


@tool
async def weather(city: str) -> str:
    """Current weather in a city."""
    return f"sunny in {city}"


class Planner(BaseAgent):
    id = "planner"
    tools = [weather]

    async def plan(self, text: str) -> str:
        first, second = await asyncio.gather(self.llm.ainvoke(f"say {text} a"), self.llm.ainvoke(f"say {text} b"))
        return f"{first} {second}"

    async def chat(self, message: Message) -> str:
        if message.content == "fail":
            raise ValueError("broken")
        return str(await self.step(self.plan, message.content))
'''


@pytest.fixture
def agents(tmp_path: Path) -> Path:
    (tmp_path / "planner.py").write_text(AGENT)
    return tmp_path


async def until(holds: Callable[[], Any]) -> None:
    async with asyncio.timeout(30):
        while not holds():
            await asyncio.sleep(0.05)


async def told(house: House, at: Receiver, content: str) -> tuple[str, list[dict[str, Any]]]:
    """A run, and its spans by their order."""
    id = await session(house.admin, "planner")
    body = (await send(house.admin, id, content)).json()
    run_id = body.get("run_id") or (await house.admin.get("/api/v1/runs", params={"limit": 1})).json()["first_id"]
    trace = UUID(run_id).hex
    await until(lambda: any(span["trace"] == trace and not span["parent"] for span in at.spans))
    return run_id, [span for span in at.spans if span["trace"] == trace]


async def test_a_run_is_a_trace_of_its_own_id_and_its_steps_are_its_tree(
    database_url: str, fake: FakeUpstream, agents: Path
) -> None:
    given = {"openai_base_url": fake.base_url, "openai_api_key": "sk-test", "agents_dir": agents}
    async with receiver() as at:
        given |= {"otel_exporter_otlp_endpoint": at.url, "otel_exporter_otlp_headers": "authorization=Bearer%20key"}
        async with open_house(database_url, **given) as house:
            run_id, found = await told(house, at, SECRET)
            by = {span["attributes"].get(genai.PATH, "run"): span for span in found}
            run, plan, calls = by["run"], by["/plan"], [span for span in found if span["name"].startswith("chat ")]
            assert len(found) == len(calls) + 2 == 4
            assert (plan["parent"], {call["parent"] for call in calls}) == (run["id"], {plan["id"]})
            assert run["name"] == "invoke_agent planner"
            assert run["attributes"][genai.OPERATION] == "invoke_agent"
            assert run["attributes"][genai.INPUT_TOKENS] > 0
            call = calls[0]["attributes"]
            assert calls[0]["kind"] == 3, "a client's"
            assert (call[genai.OPERATION], call[genai.PROVIDER], call[genai.REQUEST_MODEL]) == (
                "chat",
                "openai",
                "default",
            )
            assert call[genai.FINISH_REASONS] == ["stop"]
            assert (run["schema"], run["resource"]["service.name"]) == (genai.SCHEMA, "chattable")
            assert at.headers[0]["authorization"] == "Bearer key"
            assert run["seconds"] >= plan["seconds"] > 0
            assert SECRET not in str(at.spans)
            numbers = house.platform.metrics.total()
            assert numbers[named(SPANS_SENT)] == 4
            rerun = (await house.admin.post(f"/api/v1/runs/{run_id}/rerun", json={})).json()
            await until(lambda: any(span["trace"] == UUID(rerun["id"]).hex for span in at.spans if not span["parent"]))
            again = [span for span in at.spans if span["trace"] == UUID(rerun["id"]).hex]
            (root,) = (span for span in again if not span["parent"])
            assert root["links"] == [UUID(run_id).hex]
            assert all(span["kind"] == 1 for span in again), "what is served calls nobody"


async def test_what_was_said_is_sent_where_that_is_wanted(database_url: str, fake: FakeUpstream, agents: Path) -> None:
    given = {"openai_base_url": fake.base_url, "openai_api_key": "sk-test", "agents_dir": agents}
    async with receiver() as at:
        given |= {"otel_exporter_otlp_endpoint": f"{at.url}/"}
        async with open_house(database_url, otel_instrumentation_genai_capture_message_content=True, **given) as house:
            _, found = await told(house, at, SECRET)
    call = next(span["attributes"] for span in found if span["name"].startswith("chat "))
    (question,), (answer,) = json.loads(call[genai.INPUT]), json.loads(call[genai.OUTPUT])
    assert (question["role"], question["parts"][0]["type"]) == ("user", "text")
    assert SECRET in question["parts"][0]["content"]
    assert (answer["role"], answer["finish_reason"]) == ("assistant", "stop")
    assert SECRET in answer["parts"][0]["content"]


async def test_a_run_that_failed_is_an_error_and_its_reason_is_a_code(database_url: str, agents: Path) -> None:
    async with (
        receiver() as at,
        open_house(database_url, agents_dir=agents, otel_exporter_otlp_endpoint=at.url) as house,
    ):
        _, found = await told(house, at, "fail")
    (run,) = found
    assert (run["attributes"][genai.ERROR], run["error"]) == ("agent_failed", "agent_failed")


async def test_without_a_receiver_runs_go_on_and_what_is_dropped_is_counted(
    running: Engines, database_url: str
) -> None:
    async with receiver() as at:
        at.status = 400
        async with open_house(database_url, redis_url=running.redis_url, otel_exporter_otlp_endpoint=at.url) as house:
            id = await session(house.admin, "fake_echo_agent")
            for _ in range(3):
                assert (await send(house.admin, id, "hello")).json()["content"] == "hello"
            await until(lambda: house.platform.metrics.total().get(named(SPANS_DROPPED), 0) == 3)
            at.status = 200
            await send(house.admin, id, "hello")
            await until(lambda: at.spans)
            text = (await house.admin.get("/metrics")).text
            assert "chattable_spans_dropped_total 3" in text


async def test_what_waits_is_sent_at_the_end(database_url: str) -> None:
    async with receiver() as at:
        async with open_house(database_url, otel_exporter_otlp_endpoint=at.url) as house:
            await send(house.admin, await session(house.admin, "fake_echo_agent"), "hello")
        assert len(at.spans) == 1


async def test_the_queue_has_bounds_and_telling_never_waits() -> None:
    counted = Metrics()
    spans = Spans("http://127.0.0.1:1", {}, counted, service="test")
    run = Run(new_id(), new_id(), new_id(), "agent", new_id(), RunStatus.COMPLETED)
    step = Step(1, "/x", "llm", "x", "completed", now(), now(), input=b"x" * 1000)
    began = time.perf_counter()
    for _ in range(1000):
        spans.put(run, [step] * 99)
    assert time.perf_counter() - began < 5
    assert counted.total()[named(SPANS_DROPPED)] == 1000 * 100 - sending.MAX_WAITING
    big = Step(1, "/x", "llm", "x", "completed", now(), now(), output=b"x" * sending.MAX_BYTES)
    other = Spans("http://127.0.0.1:1", {}, counted, service="test")
    other.put(run, [big, step])
    assert counted.total()[named(SPANS_DROPPED)] == 1000 * 100 - sending.MAX_WAITING + 3


def test_the_names_are_those_of_the_convention_that_is_installed() -> None:
    from opentelemetry.semconv._incubating.attributes import gen_ai_attributes, user_attributes
    from opentelemetry.semconv.attributes import error_attributes
    from opentelemetry.semconv.schemas import Schemas

    known = {
        value
        for module in (gen_ai_attributes, user_attributes, error_attributes)
        for name, value in vars(module).items()
        if name.isupper() and isinstance(value, str)
    }
    ours = {value for name, value in vars(genai).items() if name.isupper() and isinstance(value, str) and "." in value}
    ours = {value for value in ours if not value.startswith(("chattable.", "https://"))}
    assert ours <= known
    assert len(ours) > 15
    assert {each.value for each in gen_ai_attributes.GenAiOperationNameValues} >= {
        *(genai.CHAT, genai.EMBEDDINGS, genai.INVOKE, genai.EXECUTE, genai.RETRIEVAL)
    }
    assert genai.SCHEMA in {each.value for each in Schemas}


def test_no_other_module_knows_the_names() -> None:
    named_in = [path for path in ROOT.glob("app/**/*.py") if "gen_ai." in path.read_text(encoding="utf-8")]
    assert named_in == [ROOT / "app/journal/genai.py"]


def test_headers_are_read_as_the_specification_has_them() -> None:
    assert headers_of("Authorization=Basic%20dXNlcg%3D%3D, x-scope=a=b") == {
        "authorization": "Basic dXNlcg==",
        "x-scope": "a=b",
    }


def test_the_server_does_not_import_the_exporter() -> None:
    """Nor protobuf. The SDK itself redis-py imports, wherever it is installed."""
    code = "import sys, app.main; print(*(name for name in sys.modules if name.startswith(('opentelemetry.exporter', 'google'))))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "\n"
    settings = Settings(_env_file=None, database_url="postgresql://nobody@localhost/nothing")
    assert spans_of(settings, Metrics()) is None
    assert create_app(settings)
