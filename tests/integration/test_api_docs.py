"""`docs/api.md`: it names every route, decides on every field that our models or OpenAI's SDK know, and each claim is tried.

A new endpoint of OpenAI's protocol is a line in `ENDPOINTS` and a heading `### /v1/…` with a table; a field whose effect is not just that
it reaches the model's server also has a line in `EFFECTS`.
"""

from __future__ import annotations

import asyncio
import base64
import json
import re
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import httpx2
import pytest
import pytest_asyncio
from openai.types import batch_create_params, completion_create_params, embedding_create_params, file_create_params
from openai.types.chat import completion_create_params as chat_create_params
from openai.types.responses import response_create_params

from app.agent.request import OPTIONS
from app.api.batches import BatchIn
from app.api.openai_models import ChatIn, CompletionIn, EmbeddingsIn
from app.api.responses_models import ResponseIn
from app.main import create_app
from app.settings import Settings
from tests.conftest import copy
from tests.engines import Engines
from tests.fakes.upstream import FakeUpstream, upstream
from tests.house import House, open_house, session

PAGE = (Path(__file__).parents[2] / "docs/api.md").read_text()
Json = dict[str, Any]


class Endpoint(NamedTuple):
    """Where a request goes, what it takes here, what OpenAI's SDK may send, and what each test begins with."""

    taken: Iterable[str]
    sdk: tuple[Any, ...]
    body: Json
    extra: tuple[str, ...] = ()
    """Fields of other servers that are passed on."""
    values: Mapping[str, Any] = MappingProxyType({})
    """What is sent as fields that are something else elsewhere."""


SAID = [{"role": "user", "content": "say good morning"}]
ENDPOINTS = {
    "/v1/chat/completions": Endpoint(
        ChatIn.model_fields,
        (chat_create_params.CompletionCreateParamsNonStreaming, chat_create_params.CompletionCreateParamsStreaming),
        {"model": "default", "messages": SAID},
        ("top_k", "min_p", "repetition_penalty"),
    ),
    "/v1/completions": Endpoint(
        CompletionIn.model_fields,
        (
            completion_create_params.CompletionCreateParamsNonStreaming,
            completion_create_params.CompletionCreateParamsStreaming,
        ),
        {"model": "default", "prompt": "say good morning"},
        ("top_k", "min_p", "repetition_penalty"),
    ),
    "/v1/embeddings": Endpoint(
        EmbeddingsIn.model_fields,
        (embedding_create_params.EmbeddingCreateParams,),
        {"model": "default", "input": ["one", "two"]},
    ),
}
ENDPOINTS["/v1/files"] = Endpoint(
    ("file", "purpose", "expires_after"), (file_create_params.FileCreateParams,), {"purpose": "user_data"}
)
ENDPOINTS["/v1/batches"] = Endpoint(
    BatchIn.model_fields,
    (batch_create_params.BatchCreateParams,),
    {"input_file_id": "file-0", "endpoint": "/v1/chat/completions", "completion_window": "24h"},
)
ENDPOINTS["/v1/responses"] = Endpoint(
    ResponseIn.model_fields,
    (
        response_create_params.ResponseCreateParamsNonStreaming,
        response_create_params.ResponseCreateParamsStreaming,
    ),
    {"model": "default", "input": "say good morning"},
    ("top_k", "min_p", "repetition_penalty"),
    {
        "prompt": {"id": "pmpt_1"},
        "store": False,
        "stream_options": {"include_obfuscation": False},
        "tools": [{"type": "function", "name": "weather", "parameters": {"type": "object"}}],
    },
)
FUNCTION = {"name": "weather", "parameters": {"type": "object"}}
TOOL = {"type": "function", "function": FUNCTION}
VALUES: Json = {
    "access_programs": {"cyber": "standard"},
    "background": True,
    "context_management": [{"type": "compaction"}],
    "image": {"context_compression": "auto"},
    "include": ["reasoning.encrypted_content"],
    "instructions": "Be brief.",
    "max_output_tokens": 9,
    "max_tool_calls": 3,
    "reasoning": {"effort": "low"},
    "text": {"format": {"type": "json_object"}},
    "truncation": "auto",
    "audio": {"voice": "ash", "format": "mp3"},
    "best_of": 2,
    "dimensions": 64,
    "echo": True,
    "encoding_format": "base64",
    "expires_after": {"anchor": "created_at", "seconds": 3600},
    "file": b"Why?",
    "frequency_penalty": 0.5,
    "function_call": {"name": "weather"},
    "functions": [FUNCTION],
    "logit_bias": {"50256": -100.0},
    "logprobs": True,
    "max_completion_tokens": 9,
    "max_tokens": 9,
    "metadata": {"colour": "blue"},
    "output_expires_after": {"anchor": "created_at", "seconds": 3600},
    "min_p": 0.1,
    "modalities": ["text"],
    "moderation": {"model": "omni-moderation-latest"},
    "n": 2,
    "parallel_tool_calls": False,
    "prediction": {"type": "content", "content": "good"},
    "presence_penalty": 0.5,
    "prompt_cache_key": "k",
    "prompt_cache_options": {},
    "prompt_cache_retention": "24h",
    "reasoning_effort": "low",
    "repetition_penalty": 1.1,
    "response_format": {"type": "json_object"},
    "safety_identifier": "s",
    "seed": 7,
    "service_tier": "auto",
    "stop": ["\n"],
    "store": True,
    "stream": True,
    "stream_options": {"include_usage": True},
    "suffix": "!",
    "temperature": 0.5,
    "tool_choice": "auto",
    "tools": [TOOL],
    "top_k": 5,
    "top_logprobs": 2,
    "top_p": 0.5,
    "user": "u",
    "verbosity": "low",
    "web_search_options": {},
}
"""What is sent as each field; it must differ from what holds without it."""
NEEDS: Json = {
    "function_call": {"functions": [FUNCTION]},
    "parallel_tool_calls": {"tools": [TOOL]},
    "stream_options": {"stream": True},
    "tool_choice": {"tools": [TOOL]},
}
"""Fields that mean something only with others."""


class Answered(NamedTuple):
    """An answer, and what reached the model's server for it."""

    answer: httpx2.Response
    upstream: list[Json]

    @property
    def sent(self) -> Json:
        return self.upstream[-1]

    @property
    def choices(self) -> list[Json]:
        found: list[Json] = self.answer.json()["choices"]
        return found


EFFECTS: dict[str, Callable[[Answered], bool]] = {
    "echo": lambda it: it.choices[0]["text"] == "say good morninggood morning",
    "encoding_format": lambda it: len(base64.b64decode(it.answer.json()["data"][0]["embedding"])) == 16,
    "expires_after": lambda it: it.answer.json()["expires_at"] == it.answer.json()["created_at"] + 3600,
    "file": lambda it: it.answer.json()["bytes"] == 4,
    "function_call": lambda it: it.sent["tool_choice"] == {"type": "function", "function": {"name": "weather"}},
    "functions": lambda it: it.sent["tools"] == [TOOL],
    "input": lambda it: it.sent["input"] == ["one", "two"],
    "messages": lambda it: it.sent["messages"] == SAID,
    "model": lambda it: it.sent["model"] == "upstream-default",
    "n": lambda it: len(it.choices) == 2 and len(it.upstream) == 2,
    "prompt": lambda it: it.sent["messages"] == SAID,
    "purpose": lambda it: it.answer.json()["purpose"] == "user_data",
    "stream": lambda it: it.answer.headers["content-type"].startswith("text/event-stream"),
    "stream_options": lambda it: '"choices":[],"usage":{"prompt_tokens":' in it.answer.text,
}
EFFECTS |= {
    "/v1/batches completion_window": lambda it: (
        it.answer.json()["expires_at"] - it.answer.json()["created_at"] == 86_400
    ),
    "/v1/batches endpoint": lambda it: it.answer.json()["endpoint"] == "/v1/chat/completions",
    "/v1/batches input_file_id": lambda it: it.answer.json()["input_file_id"].startswith("file-"),
    "/v1/batches metadata": lambda it: it.answer.json()["metadata"] == {"colour": "blue"},
    "/v1/batches output_expires_after": lambda it: it.answer.json()["status"] == "validating",
    "background": lambda it: it.answer.json()["status"] in ("queued", "in_progress") and it.answer.json()["background"],
    "conversation": lambda it: [message["content"] for message in it.sent["messages"]] == ["so", "say good morning"],
    "instructions": lambda it: it.sent["messages"][0] == {"role": "system", "content": "Be brief."},
    "max_output_tokens": lambda it: it.sent["max_completion_tokens"] == 9,
    "previous_response_id": lambda it: len(it.sent["messages"]) == 3,
    "reasoning": lambda it: it.sent["reasoning_effort"] == "low",
    "text": lambda it: it.sent["response_format"] == {"type": "json_object"},
    "/v1/responses input": lambda it: it.sent["messages"] == SAID,
    "/v1/responses metadata": lambda it: it.answer.json()["metadata"] == {"colour": "blue"},
    "/v1/responses store": lambda it: it.answer.json()["store"] is False,
    "/v1/responses tools": lambda it: it.sent["tools"] == [TOOL],
}
"""How it shows that a field is supported, where it is not simply passed on."""


def tables() -> Iterator[tuple[str, str, str]]:
    """Every claim of the page: endpoint, field, and what is said of it."""
    for path, table in re.findall(r"^### `(/v1/\S+)`\n(.*?)(?=^##|\Z)", PAGE, re.MULTILINE | re.DOTALL):
        for fields, claim in re.findall(r"^\| (`.*?) \| (\w+)\b.*\|$", table, re.MULTILINE):
            yield from ((path, field, claim) for field in re.findall(r"`(\w+)`", fields))


CLAIMS = list(tables())


def test_the_page_has_a_table_for_each_endpoint() -> None:
    assert {path for path, _, _ in CLAIMS} == ENDPOINTS.keys()
    assert len(set(CLAIMS)) == len(CLAIMS)
    assert {claim for _, _, claim in CLAIMS} <= {"supported", "ignored", "refused"}


@pytest.mark.parametrize("path", ENDPOINTS)
def test_every_field_of_ours_and_of_the_sdk_is_decided(path: str) -> None:
    endpoint = ENDPOINTS[path]
    known = set(endpoint.taken) | set(endpoint.extra)
    for params in endpoint.sdk:
        known |= typing.get_type_hints(params).keys()
    decided = [field for at, field, _ in CLAIMS if at == path]
    assert sorted(decided) == sorted(known)
    assert set(endpoint.extra) <= set(OPTIONS)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def fake() -> typing.AsyncIterator[FakeUpstream]:
    async with upstream() as server:
        yield server


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def here(
    running: Engines, template: str, fake: FakeUpstream, tmp_path_factory: pytest.TempPathFactory
) -> typing.AsyncIterator[House]:
    models: Path = tmp_path_factory.mktemp("models") / "models.toml"
    models.write_text(
        f'[models.default]\nendpoints = [{{ base_url = "{fake.base_url}", model = "upstream-default" }}]\n'
    )
    async with (
        copy(running, template) as url,
        open_house(url, redis_url=running.redis_url, models_file=models) as opened,
    ):
        yield opened


async def ask(here: House, fake: FakeUpstream, path: str, fields: Json) -> Answered:
    await here.platform.cache.purge()  # or equal texts would not be embedded again
    before = len(fake.requests)
    body = ENDPOINTS[path].body | fields
    if path == "/v1/batches":
        line = {"custom_id": "a", "method": "POST", "url": body["endpoint"], "body": {"model": "nobody"}}
        given = {"data": {"purpose": "batch"}, "files": {"file": ("b.jsonl", json.dumps(line).encode())}}
        body["input_file_id"] = (await here.admin.post("/v1/files", **given)).json()["id"]
    if path == "/v1/files":
        file = {"file": ("q.txt", body.pop("file", VALUES["file"]))}
        after = {f"expires_after[{name}]": str(value) for name, value in body.pop("expires_after", {}).items()}
        answer = await here.admin.post(path, data=body | after, files=file)
    else:
        answer = await here.admin.post(path, json=body)
    return Answered(answer, [seen.body for seen in list(fake.requests)[before:]])


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize(("path", "field", "claim"), CLAIMS)
async def test_each_claim_holds(here: House, fake: FakeUpstream, path: str, field: str, claim: str) -> None:
    endpoint = ENDPOINTS[path]
    given = {**VALUES, **endpoint.values, **endpoint.body}.get(field)
    if field == "conversation":
        made = await here.admin.post("/v1/conversations", json={"items": [{"role": "user", "content": "so"}]})
        given = made.json()["id"]
    if field == "previous_response_id":
        given = (await here.admin.post(path, json=endpoint.body)).json()["id"]
    if field == "session_id":
        given = await session(here.admin, "model")
    needed = {name: endpoint.values.get(name, value) for name, value in NEEDS.get(field, {}).items()}
    found = await ask(here, fake, path, {**needed, field: given})
    if field == "background":
        async with asyncio.timeout(30):  # or its call would be among those of the next test
            while (await here.admin.get(f"{path}/{found.answer.json()['id']}")).json()["status"] != "completed":
                await asyncio.sleep(0.05)
    if claim == "refused":
        assert found.answer.status_code == 400, found.answer.text
        assert found.answer.json()["error"]["param"] == field
        return
    assert found.answer.status_code == 200, found.answer.text
    if claim == "ignored":
        assert found.sent.get(field) != given
    elif field == "session_id":
        assert found.answer.headers["x-session-id"] == given
    elif effect := EFFECTS.get(f"{path} {field}", EFFECTS.get(field)):
        assert effect(found), (found.sent, found.answer.text)
    else:
        assert found.sent[field] == given


# Routes


def expected() -> list[str]:
    """A line for each route: what it is, and what its docstring begins with."""
    document = create_app(Settings(_env_file=None, database_url="postgresql://localhost/none")).openapi()
    return [
        f"| `{method.upper()} {path}` | {operation['description'].partition(chr(10))[0]} |"
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    ]


def test_every_route_has_its_line() -> None:
    listed = re.findall(r"^\| `[A-Z]+ /.*\|$", PAGE, re.MULTILINE)
    lines = expected()
    assert [line for line in lines if line not in listed] == [], "to be added to docs/api.md"
    assert [line for line in listed if line not in lines] == [], "to be taken out of docs/api.md"
