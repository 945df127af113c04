"""`chattable usage` against a server that runs."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from app.cli.commands import commands
from app.errors import SettingsError
from app.settings import Settings
from tests.house import ADMIN_KEY, House
from tests.integration.test_budgets_api import spend


@pytest.fixture(autouse=True)
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    for name in Settings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


async def run(*arguments: str) -> str:
    ran = await asyncio.to_thread(CliRunner().invoke, commands, ["usage", *arguments])
    if ran.exception:
        raise ran.exception
    return ran.output


async def test_usage_is_a_table_or_json(house: House, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(3):
        await spend(house, await house.user(f"ann {number}"), 1000)
    monkeypatch.setenv("PORT", house.url.rpartition(":")[2])
    with pytest.raises(SettingsError, match="set ADMIN_API_KEY"):
        await run()
    Path("data").mkdir()
    Path("data/admin.key").write_text(f"{ADMIN_KEY}\n")
    monkeypatch.setattr("app.cli.asking.PAGE", 2)
    lines = (await run("--by", "user")).splitlines()
    assert lines[0].split() == ["user", "calls", "prompt", "completion", "cached", "reasoning", "cost", "saved"]
    assert lines[3].split() == ["ann", "2", "1", "1000", "0", "0", "0", "1", "0"]
    found = json.loads(await run("--by", "model", "--json"))
    assert [(line["id"], line["calls"], line["cost"]) for line in found["data"]] == [("small", 3, "3")]
    monkeypatch.setenv("ADMIN_API_KEY", "x" * 32)
    with pytest.raises(SettingsError, match="status 401"):
        await run()


async def test_no_server_is_one_clear_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ADMIN_API_KEY", ADMIN_KEY)
    monkeypatch.setenv("PORT", "1")
    with pytest.raises(SettingsError, match=r"No server answers at http://127.0.0.1:1: start `chattable serve`"):
        await run()
