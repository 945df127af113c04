"""`discover = true`: what a server lists as its models becomes aliases, and stays what it was while the server is away."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from app.errors import NotFound
from app.llm import discovery
from app.llm.endpoints import Endpoints
from app.llm.models_file import ModelsFile
from app.tasks import Tasks
from tests.calling import call, calling_house
from tests.engines import Engines
from tests.fakes.upstream import FakeUpstream, upstream
from tests.paths import model


@pytest.fixture
async def fake() -> AsyncIterator[FakeUpstream]:
    async with upstream() as server:
        server.models = ["one", "two/b"]
        yield server


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(discovery, "LOOK_SECONDS", 0.02)
    monkeypatch.setattr(discovery, "AGAIN_SECONDS", 0.1)


@asynccontextmanager
async def discovering(file: Path) -> AsyncIterator[ModelsFile]:
    """A file that is followed only when a test says so, and its models discovered."""
    models, endpoints, tasks = ModelsFile(file, dict), Endpoints(), Tasks()
    going = tasks.start(discovery.discover(models, endpoints), name="discovery")
    yield models
    assert not going.done()
    await tasks.close()
    await endpoints.close()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.02)


async def test_listed_models_are_aliases_beside_those_of_the_file(tmp_path: Path, fake: FakeUpstream) -> None:
    file = tmp_path / "models.toml"
    file.write_text(model("vllm", fake.base_url, discover="true", context="1000") + model("big", fake.base_url))
    async with discovering(file) as models:
        await until(lambda: "vllm/one" in models.catalog.aliases)
        assert set(models.catalog.aliases) == {"vllm", "big", "vllm/one", "vllm/two/b"}
        found = models.catalog.get("vllm/two/b")
        assert (found.endpoints[0].model, found.context) == ("two/b", 1000)
        fake.models.append("three")
        await until(lambda: "vllm/three" in models.catalog.aliases)


async def test_an_edited_file_is_followed_and_asked_for_again(tmp_path: Path, fake: FakeUpstream) -> None:
    file = tmp_path / "models.toml"
    async with upstream() as other:
        other.models = ["elsewhere"]
        file.write_text(model("a", fake.base_url, discover="true"))
        async with discovering(file) as models:
            await until(lambda: "a/one" in models.catalog.aliases)
            file.write_text(model("b", other.base_url, discover="true"))
            await models.refresh()
            await until(lambda: "b/elsewhere" in models.catalog.aliases)
            assert set(models.catalog.aliases) == {"b", "b/elsewhere"}


async def test_a_file_edited_while_a_server_is_asked_wins(tmp_path: Path, fake: FakeUpstream) -> None:
    file = tmp_path / "models.toml"
    file.write_text(model("a", fake.base_url, discover="true"))
    async with upstream() as slow:
        slow.models = ["late"]
        slow.models_delay = 0.5
        file.write_text(model("slow", slow.base_url, discover="true"))
        async with discovering(file) as models:
            await asyncio.sleep(0.1)
            file.write_text(model("a", fake.base_url, discover="true"))
            await models.refresh()
            await until(lambda: "a/one" in models.catalog.aliases)
            assert set(models.catalog.aliases) == {"a", "a/one", "a/two/b"}


async def test_what_a_server_said_holds_while_it_is_away(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "models.toml"
    async with upstream() as fake:
        file.write_text(
            model("a", fake.base_url, discover="true") + model("b", "http://127.0.0.1:1/v1", discover="true")
        )
        async with discovering(file) as models:
            await until(lambda: "a/fake" in models.catalog.aliases)
            fake.key = "sk-other"
            caplog.clear()
            await until(lambda: len(caplog.records) >= 4)
            assert "a/fake" in models.catalog.aliases
    assert "the models of b are not known" in caplog.text


async def test_a_long_list_is_read_to_its_end(tmp_path: Path, fake: FakeUpstream) -> None:
    file = tmp_path / "models.toml"
    fake.models = [f"{number:04}-{'x' * 150}" for number in range(3000)]
    file.write_text(model("a", fake.base_url, discover="true"))
    async with discovering(file) as models:
        await until(lambda: len(models.catalog.aliases) == 1001)


async def test_a_discovered_model_answers(
    tmp_path: Path, running: Engines, database_url: str, fake: FakeUpstream
) -> None:
    text = model("default", fake.base_url) + model("all", fake.base_url, discover="true")
    async with calling_house(running, database_url, tmp_path, text) as house:
        models = house.platform.catalog
        await until(lambda: "all/one" in models().aliases)
        assert (await call(house.admin, say="say hi", model="all/one"))["content"] == "hi"
        with pytest.raises(NotFound):
            models().get("all/none")
    assert fake.requests[-1].body["model"] == "one"
