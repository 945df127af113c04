"""`chattable models`: what is known, and whether it answers, without ever showing a key."""

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from app.cli.commands import commands
from app.errors import SettingsError
from app.llm.models_file import read
from app.settings import Settings, load, variables
from tests.fakes.upstream import FakeUpstream, upstream

FILE = """\
[models.small]
endpoints = [
  { base_url = "URL", model = "one", api_key_env = "KEY_A", weight = 2, rpm = 600 },
  { base_url = "http://127.0.0.1:1/v1", model = "two" },
]
fallback = ["big"]
context = 32_768
price = { prompt = 0.10, completion = 0.40, cached = 0.05 }
defaults = { temperature = 0.2 }
[models.big]
endpoints = [{ base_url = "URL", model = "large", api_key_env = "KEY_A" }]
discover = true
[models.smart]
cascade = ["big", "mine"]
[models.mine]
llm = "my_package:MyLLM"
"""
OWN = """\
from app.agent import BaseLLM

class MyLLM(BaseLLM):
    async def generate(self, messages, **options):
        return "ok"

class Broken(BaseLLM):
    async def generate(self, messages, **options):
        return options["canary"]

    async def embed(self, texts, **options):
        return [[1.0] for text in texts]
"""


@pytest.fixture(autouse=True)
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    for name in (*Settings.model_fields, "openai_api_base", "key_a"):
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
async def fake() -> AsyncIterator[FakeUpstream]:
    async with upstream("sk-canary") as server:
        yield server


async def run(*words: str) -> Result:
    """What a command prints; in a thread, for it has an event loop of its own."""
    result = await asyncio.to_thread(CliRunner().invoke, commands, ["models", *words])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert "canary" not in result.output
    return result


def described(folder: Path, url: str = "http://127.0.0.1:1/v1", key: str = "sk-canary") -> None:
    (folder / "models.toml").write_text(FILE.replace("URL", url))
    (folder / ".env").write_text(f"KEY_A={key}\n")


async def test_list_shows_what_stands_behind_each_alias(folder: Path) -> None:
    described(folder)
    assert (await run("list")).output.splitlines() == [
        'small  context 32768; price per million 0.1 prompt, 0.4 completion, 0.05 cached; fallback big; defaults {"temperature": 0.2}',
        "  http://127.0.0.1:1/v1  one  key in KEY_A, weight 2, rpm 600",
        "  http://127.0.0.1:1/v1  two  no key, weight 1",
        "big  and big/NAME for all models of the server",
        "  http://127.0.0.1:1/v1  large  key in KEY_A, weight 1",
        "smart  cascade big → mine",
        "mine  my_package:MyLLM",
    ]


async def test_list_is_json_on_request(folder: Path) -> None:
    described(folder)
    rows: list[dict[str, Any]] = json.loads((await run("list", "--json")).output)["data"]
    assert [row["alias"] for row in rows] == ["small", "big", "smart", "mine"]
    assert rows[0]["endpoints"][0] == {
        "base_url": "http://127.0.0.1:1/v1",
        "model": "one",
        "api_key_env": "KEY_A",
        "weight": 2,
        "max_concurrency": None,
        "rpm": 600,
        "tpm": None,
    }
    assert rows[0]["price"] == {"prompt": "0.1", "completion": "0.4", "cached": "0.05"}
    assert (rows[2]["cascade"], rows[3]["llm"], rows[1]["discover"]) == (["big", "mine"], "my_package:MyLLM", True)


async def test_the_openai_settings_alone_are_the_default(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-canary")
    assert (await run("list")).output.splitlines() == [
        "default",
        "  https://api.openai.com/v1  gpt-4o-mini  key in OPENAI_API_KEY, weight 1",
    ]


async def test_without_any_model_there_is_one_sentence() -> None:
    with pytest.raises(SettingsError, match=r"write models\.toml, or set OPENAI_API_KEY"):
        await run("list")


async def test_a_broken_file_is_one_sentence(folder: Path) -> None:
    (folder / "models.toml").write_text("[models.small]\nendpoint = 1\n")
    with pytest.raises(SettingsError, match=r"^models.toml, line 2, models.small.endpoint: is not known here"):
        await run("test")


async def test_each_endpoint_is_asked_and_one_that_fails_is_a_failure(folder: Path, fake: FakeUpstream) -> None:
    described(folder, fake.base_url)
    result = await run("test", "--json")
    rows = json.loads(result.output)["data"]
    assert [(row["alias"], row["model"], row["ok"]) for row in rows] == [
        ("small", "one", True),
        ("small", "two", False),
        ("big", "large", True),
        ("mine", "my_package:MyLLM", False),
    ]
    assert rows[1]["problem"].startswith("The language model's server")
    assert result.exit_code == 1
    assert [(request.body["model"], request.body.get("temperature")) for request in fake.requests] in (
        [("one", 0.2), ("large", None)],
        [("large", None), ("one", 0.2)],
    )


async def test_one_alias_is_tested_and_a_cascade_by_its_models(folder: Path, fake: FakeUpstream) -> None:
    described(folder, fake.base_url)
    result = await run("test", "smart")
    assert result.exit_code == 1
    assert result.output.startswith(f"big  {fake.base_url}  large  ok, ")
    assert "\nmine  my_package:MyLLM  " in result.output
    assert fake.hits == 1
    with pytest.raises(SettingsError, match="known are small, big, smart, mine"):
        await run("test", "nobody")


async def test_an_llm_of_ones_own_is_made_and_asked(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, "my_package", raising=False)
    described(folder)
    missing = await run("test", "mine")
    assert missing.exit_code == 1
    assert missing.output.startswith("mine  my_package:MyLLM  ")
    assert missing.output.endswith("cannot be made (ModuleNotFoundError).\n")
    (folder / "my_package.py").write_text(OWN)
    assert (await run("test", "mine")).output.startswith("mine  my_package:MyLLM  ok, ")
    (folder / "models.toml").write_text('[models.mine]\nllm = "my_package:Broken"\n')
    assert (await run("test")).output == "mine  my_package:Broken  It failed (KeyError).\n"
    (folder / "models.toml").write_text('[models.embedding]\nllm = "my_package:Broken"\n')
    assert (await run("test")).output.startswith("embedding  my_package:Broken  ok, ")


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("", "does not accept the key in KEY_A."),
        ("500", "failed with status 500."),
        ("cut", "The answer broke off before its end."),
    ],
)
async def test_what_is_wrong_is_said_for_each(folder: Path, fake: FakeUpstream, fault: str, said: str) -> None:
    described(folder, fake.base_url, key="sk-canary" if fault else "sk-wrong-canary")
    fake.fail(fault or "200", times=1 if fault else 0)
    result = await run("test", "big")
    assert result.exit_code == 1
    assert result.output.rstrip().endswith(said)


async def test_a_server_that_wants_a_key_is_told_from_one_that_refuses_it(folder: Path, fake: FakeUpstream) -> None:
    (folder / "models.toml").write_text(f'[models.a]\nendpoints = [{{ base_url = "{fake.base_url}", model = "m" }}]\n')
    assert "does not accept calls without a key: set api_key_env, or OPENAI_API_KEY." in (await run("test")).output


# Settings


def test_the_file_is_used_where_it_is_and_need_not_be_there(folder: Path) -> None:
    assert load().models_file == Path("models.toml")
    (folder / "mine.toml").touch()
    assert load(models_file=folder / "mine.toml").models_file == folder / "mine.toml"


def test_a_file_that_is_named_and_missing_is_one_clear_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODELS_FILE", "missing.toml")
    with pytest.raises(SettingsError, match=r"^MODELS_FILE: there is no such file\.$"):
        load()


def test_keys_come_from_the_environment_or_else_from_the_env_file(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    described(folder)
    assert variables()["KEY_A"] == "sk-canary"
    monkeypatch.setenv("KEY_A", "environment")
    found = read(folder / "models.toml", variables()).get("big").endpoints[0].api_key
    assert found is not None
    assert found.reveal() == "environment"


async def test_an_endpoint_has_as_long_to_begin_as_the_file_says(folder: Path, fake: FakeUpstream) -> None:
    described(folder, fake.base_url)
    text = (folder / "models.toml").read_text()
    (folder / "models.toml").write_text(text.replace('"large",', '"large", first_token_seconds = 1,'))
    fake.fail("hang")
    assert "did not begin to answer in time." in (await run("test", "big")).output
