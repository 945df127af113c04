"""The `llm` command: prompts, streams, conversations, tools, schemas, attachments, embeddings."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner
from llm.cli import cli
from server import KEY, URL

Ask = Callable[..., str]
WEATHER = '''
def weather(city: str, days: int) -> str:
    """The weather of the next days."""
    return f"{days} sunny days in {city}"
'''


@pytest.fixture
def llm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Ask:
    """The command in a home of its own where the server's models are known; in this process, for its start takes seconds."""
    keys = {"can_stream": True, "supports_schema": True, "supports_tools": True, "vision": True}
    models = [
        {"model_id": f"our-{name}", "model_name": name, "api_base": URL, "api_key_name": "chattable", **keys}
        for name in ("scripted_agent", "default")
    ]
    models.append(models[0] | {"model_id": "our-responses", "responses": True})
    (tmp_path / "extra-openai-models.yaml").write_text(yaml.safe_dump(models))
    (tmp_path / "keys.json").write_text(json.dumps({"chattable": KEY}))
    monkeypatch.setenv("LLM_USER_PATH", str(tmp_path))

    def ask(*words: str, **more: str) -> str:
        done = CliRunner().invoke(cli, words, env=more, catch_exceptions=False)
        assert done.exit_code == 0, done.output
        return done.stdout.strip()

    return ask


def test_the_command_itself_answers(llm: Ask) -> None:
    command = [sys.executable, "-m", "llm", "-m", "our-scripted_agent", "Good morning 早上好"]
    assert subprocess.check_output(command, text=True, timeout=60).strip() == "Good morning 早上好"


@pytest.mark.parametrize("how", [[], ["--no-stream"]], ids=["streamed", "whole"])
def test_a_prompt_is_answered(llm: Ask, model: str, how: list[str]) -> None:
    answer = llm("-m", f"our-{model}", *how, "Good morning 早上好", "-o", "temperature", "0.5")
    assert answer.endswith("Good morning 早上好")


def test_a_conversation_goes_on(llm: Ask) -> None:
    llm("-m", "our-scripted_agent", "-s", "Be brief.", "hello")
    assert llm("-c", "count") == "4"


def test_a_tool_is_called_and_its_result_told(llm: Ask, model: str) -> None:
    words = ("-m", f"our-{model}", "--functions", WEATHER, "What is the weather of 'Bonn' in 3 days?")
    assert llm(*words) == "The tool said: 3 sunny days in Bonn"


def test_responses_are_spoken_too(llm: Ask) -> None:
    assert llm("-m", "our-responses", "Good morning") == "Good morning"
    words = ("-m", "our-responses", "--functions", WEATHER, "What is the weather of 'Bonn' in 3 days?")
    assert llm(*words) == "The tool said: 3 sunny days in Bonn"


def test_an_answer_follows_a_schema(llm: Ask, model: str) -> None:
    answer = llm("-m", f"our-{model}", "--schema", "city, degrees int", "'Bonn' has 21 degrees")
    assert json.loads(answer) == {"city": "Bonn", "degrees": 21}


def test_a_picture_reaches_the_model(llm: Ask, tmp_path: Path) -> None:
    picture = tmp_path / "picture.png"
    picture.write_bytes(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR")
    assert llm("-m", "our-default", "-a", str(picture), "What is this?") == "You said: What is this? [image_url]"


def test_any_server_may_be_named_by_its_address(llm: Ask) -> None:
    assert llm("openai", "endpoint", URL, "-m", "fake_echo_agent", "--key", KEY, "Hello") == "Hello"


def test_texts_are_embedded(llm: Ask) -> None:
    given = {"OPENAI_BASE_URL": URL, "OPENAI_API_KEY": KEY}
    assert len(json.loads(llm("embed", "-m", "3-small", "-c", "two words", **given))) == 4
    assert json.loads(llm("embed", "-m", "3-small-512", "-c", "two words", **given))
