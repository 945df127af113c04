"""An LLM class of the operator's own behind an alias."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from app.domain import Chunk, Usage
from app.errors import LLMError, SettingsError
from app.journal.recorder import Recorder
from app.llm.endpoints import OwnLLMs
from app.llm.llm import LLM, Finish
from app.llm.models_file import ModelsFile
from tests.fakes.upstream import upstream
from tests.paths import Models, catalog_of, model, open_models, run_llm

HERE = "tests.integration.test_own_llm"
CANARY = "what only the operator"
"""May be anything that his code knows."""


class Whole(LLM):
    async def generate(self, messages: list[dict[str, Any]], **options: Any) -> str:
        return f"{messages[-1]['content']} {sorted(options.items())}"


class Streaming(LLM):
    async def generate(self, messages: list[dict[str, Any]], **options: Any) -> AsyncIterator[str | Chunk | Finish]:
        yield Chunk("Hm.", "thinking")
        yield "one "
        yield "two"
        yield Finish("stop", Usage(3, 2))


class Raising(LLM):
    async def generate(self, messages: list[dict[str, Any]], **_: Any) -> str:
        raise ZeroDivisionError(CANARY)


class Breaking(LLM):
    async def generate(self, messages: list[dict[str, Any]], **_: Any) -> AsyncIterator[str]:
        yield "one "
        raise ZeroDivisionError(CANARY)


class NeedsMore(LLM):
    def __init__(self, more: str) -> None:
        self.more = more

    async def generate(self, messages: list[dict[str, Any]], **_: Any) -> str:
        return self.more


class NoLLM:
    pass


def own(name: str, alias: str = "default", **rest: str) -> str:
    return model(alias, llm=f'"{HERE}:{name}"', **rest)


async def ask(models: Models, recorder: Recorder | None = None, **options: Any) -> str:
    return await run_llm(models.path, recorder or Recorder()).ainvoke("hi", **options)


async def test_a_class_that_answers_whole(tmp_path: Path) -> None:
    recorder = Recorder()
    text = own("Whole", defaults="{ temperature = 0.5 }", price="{ prompt = 1, completion = 1 }")
    async with open_models(catalog_of(tmp_path, text)) as models:
        assert await ask(models, recorder, seed=1) == "hi [('seed', 1), ('temperature', 0.5)]"
    (step,) = recorder.steps
    assert (step.name, step.model, step.status, step.usage.estimated) == ("default", "default", "completed", True)
    assert step.usage.cost > 0


async def test_a_class_that_streams(tmp_path: Path) -> None:
    recorder = Recorder()
    async with open_models(catalog_of(tmp_path, own("Streaming"))) as models:
        reply = await run_llm(models.path, recorder).acall("hi")
        assert [chunk.content async for chunk in reply] == ["Hm.", "one ", "two"]
    assert reply.response.usage == recorder.usage == Usage(3, 2)


async def test_a_class_that_fails_is_stood_in_for_before_its_first_token_only(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    recorder = Recorder()
    async with upstream() as fake:
        text = own("Raising", fallback='["big"]') + model("big", fake.base_url)
        text += own("Breaking", "half", fallback='["big"]') + own("Raising", "alone")
        async with open_models(catalog_of(tmp_path, text)) as models:
            assert await ask(models, recorder) == "You said: hi"
            assert recorder.steps[0].model == "big-0"
            for alias in ("half", "alone"):
                with pytest.raises(LLMError, match="ZeroDivisionError") as raised:
                    await ask(models, model=alias)
                assert CANARY not in str(raised.value)
        assert fake.hits == 1
    assert f"{HERE}:Raising failed" in caplog.text
    assert CANARY not in caplog.text


async def test_a_class_may_stand_in_for_a_server(tmp_path: Path) -> None:
    recorder = Recorder()
    text = model("default", "http://127.0.0.1:1/v1", fallback='["mine"]') + own("Whole", "mine")
    async with open_models(catalog_of(tmp_path, text)) as models:
        assert await ask(models, recorder) == "hi []"
    assert recorder.steps[0].model == "mine"


@pytest.fixture
def broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "broken_llm_of_tests.py").write_text("raise SystemExit(3)")
    monkeypatch.syspath_prepend(tmp_path)
    return "broken_llm_of_tests:Any"


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("no_such_package:Any", "ModuleNotFoundError"),
        (f"{HERE}:Missing", "AttributeError"),
        (f"{HERE}:NeedsMore", "TypeError"),
        (f"{HERE}:NoLLM", "is no BaseLLM"),
        ("broken_llm_of_tests:Any", "SystemExit"),
    ],
)
async def test_a_class_that_cannot_be_made_is_refused_and_the_last_good_file_stays(
    tmp_path: Path, broken: str, name: str, why: str
) -> None:
    file, loaded = tmp_path / "models.toml", OwnLLMs()
    file.write_text(model("default", llm=f'"{name}"'))
    with pytest.raises(SettingsError, match=why):
        await asyncio.to_thread(ModelsFile, file, dict, None, loaded.load)
    file.write_text(own("Whole"))
    models = ModelsFile(file, dict, None, loaded.load)
    good, made = models.catalog, loaded.get(f"{HERE}:Whole")
    file.write_text(own("Whole") + model("more", llm=f'"{name}"'))
    await models.refresh()
    assert models.catalog is good
    assert why in (models.problem or "")
    assert loaded.get(f"{HERE}:Whole") is made
    file.write_text(own("Whole") + own("Streaming", "more"))
    await models.refresh()
    assert (models.problem, models.catalog.aliases) == (None, ("default", "more"))
    assert loaded.get(f"{HERE}:Whole") is made, "it is made once"
    assert isinstance(loaded.get(f"{HERE}:Streaming"), LLM)
