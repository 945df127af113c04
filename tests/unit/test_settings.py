"""Settings: read once, checked, and never shown when they are secret."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from app.cli.serve import run as serve
from app.cli.worker import run as work
from app.errors import SettingsError
from app.settings import Settings, agent_variables, load


@pytest.fixture(autouse=True)
def empty(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in Settings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.chdir(tmp_path)


def test_everything_has_a_default() -> None:
    settings = load()
    assert (settings.host, settings.port, settings.auth) == ("127.0.0.1", 8080, "keys")
    assert not settings.llm_is_configured


def test_names_are_those_of_the_environment_and_of_the_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("PORT=9000\nOPENAI_MODEL=file\nUNKNOWN=1\n")
    monkeypatch.setenv("OPENAI_MODEL", "environment")
    monkeypatch.setenv("CORS_ORIGINS", "http://a, http://b")
    settings = load()
    assert (settings.port, settings.openai_model) == (9000, "environment")
    assert settings.cors_origins == ("http://a", "http://b")


@pytest.mark.parametrize("name", ["OPENAI_BASE_URL", "OPENAI_API_BASE"])
def test_both_names_of_the_base_url_work(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "http://127.0.0.1:1/v1/")
    assert load().openai_base_url == "http://127.0.0.1:1/v1"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PORT", "70000"),
        ("PORT", "x"),
        ("WORKERS", "0"),
        ("AUTH", "none"),
        ("ADMIN_API_KEY", "short-secret"),
        ("OPENAI_BASE_URL", "ftp://x"),
        ("REDIS_URL", "cache.example:6379"),
        ("RUN_TIMEOUT", "-1"),
        ("FILE_MAX_BYTES", "0"),
        ("USER_MAX_FILE_BYTES", "-1"),
        ("STEP_DAYS", "llm"),
        ("STEP_DAYS", "llm:0"),
        ("LOG_LEVEL", "loud"),
        ("LOG_FORMAT", "xml"),
        ("TRUSTED_PROXIES", "bogus"),
        ("METRICS_KEY", "short-secret"),
    ],
)
def test_a_wrong_value_is_one_sentence_that_names_the_setting(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError) as caught:
        load()
    assert str(caught.value).startswith(f"{name}: ")
    assert "\n" not in str(caught.value)
    assert "short-secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("PORT", "abc", "must be a whole number from 0 to 65535."),
        ("RUN_TIMEOUT", "long", "must be a number above 0 and up to 86400."),
        ("AUTH", "none", "must be keys or open."),
        ("LOG_LEVEL", "loud", "must be debug, info, warning or error."),
        ("TRUSTED_PROXIES", "10.0.0.1, proxy", "must be IP addresses or networks such as"),
    ],
)
def test_a_wrong_value_is_told_what_is_allowed(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, sentence: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError) as caught:
        load()
    assert str(caught.value).startswith(f"{name}: {sentence}")


@pytest.mark.parametrize("value", ["", "*", "10.0.0.5", "10.0.0.0/8, ::1, fd00::/8"])
def test_proxies_are_addresses_and_networks(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("TRUSTED_PROXIES", value)
    assert load().trusted_proxies == value


def test_a_folder_of_agents_that_is_not_there_is_one_sentence(tmp_path: Path) -> None:
    settings = load(agents_dir=tmp_path / "nowhere")
    for start in (serve, partial(work, at_once=1)):
        with pytest.raises(SettingsError, match=r"^AGENTS_DIR \S+nowhere is not a folder\.$"):
            start(settings)
    assert list(tmp_path.iterdir()) == []


def test_an_empty_variable_is_as_good_as_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", "")
    assert load().database_url is None


def test_the_object_store_is_set_as_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MINIO_ENDPOINT", "MINIO_SECRET_KEY"):
        monkeypatch.setenv(name, "canary")
    with pytest.raises(SettingsError, match=r"^MINIO_ACCESS_KEY is not set: .* go together\.$") as caught:
        load()
    assert "canary" not in str(caught.value)
    monkeypatch.setenv("MINIO_ACCESS_KEY", "canary")
    assert "canary" not in repr(load(minio_endpoint="host"))


def test_secrets_are_not_shown() -> None:
    settings = load(openai_api_key="sk-canary", database_url="postgresql://u:canary@h/d", redis_url="redis://:canary@h")
    assert "canary" not in repr(settings)


def test_settings_do_not_change() -> None:
    with pytest.raises(ValueError, match="frozen"):
        load().port = 1


def test_the_variables_of_agents_are_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("AGENT_WEATHER_KEY=file\nAGENT_WEATHER_CITY=file\nAGENT_EMPTY=\nPORT=1\n")
    monkeypatch.setenv("AGENT_WEATHER_KEY", "environment")
    assert agent_variables() == {"AGENT_WEATHER_KEY": "environment", "AGENT_WEATHER_CITY": "file"}
    assert "PATH" not in agent_variables()


def test_days_of_steps_are_read_by_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STEP_DAYS", "prompt:7, *:365")
    assert load().step_days == {"prompt": 7, "*": 365}
