"""docs/operations.md, done as it says; and what it says of migrations."""

from __future__ import annotations

import ast
import asyncio
import os
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.core import TyperGroup
from typer.main import get_command

from app.cli.commands import commands
from tests.house import ADMIN_KEY, AGENTS, House

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/operations.md").read_text()
(BASH,) = re.findall(r"^```bash\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
REMOVES = re.compile(r"^(drop_(column|table)|alter_column|rename_\w+)$")


async def test_the_pages_shell_prints_what_it_says(house: House, database_url: str, tmp_path: Path) -> None:
    if not shutil.which("bash"):
        pytest.skip("bash is needed to follow the page")
    given = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "AGENTS_DIR": str(AGENTS)}
    given |= {"ADMIN_API_KEY": ADMIN_KEY, "PORT": house.url.rpartition(":")[2], "DATABASE_URL": database_url}
    block = BASH.replace("./scripts/chattable", f'"{sys.executable}" -m app.cli')
    block = block.replace(r"\(ok\).*database", r"\(ok\|warn\).*database")  # pgvector is not in every database of a test
    process = await asyncio.create_subprocess_exec(
        *("bash", "-euc", block),
        cwd=tmp_path,
        env=given,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    output, errors = await process.communicate()
    assert process.returncode == 0, errors.decode()
    assert output.decode().replace("warn\n", "ok\n").splitlines() == re.findall(r"^# → (.*)$", BASH, re.MULTILINE)


def options_of(command: Any, *words: str) -> dict[str, set[str]]:
    """What every command takes, by its words."""
    if not isinstance(command, TyperGroup):
        return {" ".join(words): {option for param in command.params for option in param.opts}}
    return {
        name: own for word, each in command.commands.items() for name, own in options_of(each, *words, word).items()
    }


def test_the_page_names_the_commands_that_print_no_json_and_those_that_ask_a_server() -> None:
    options = options_of(get_command(commands))
    (without,) = re.findall(r"All take `--json` but (.*?)\. ", PAGE)
    named = re.findall("`([a-z ]+)`", without)
    assert {name for name in options if name in named or name.partition(" ")[0] in named} == {
        name for name, own in options.items() if "--json" not in own
    }
    (asking,) = re.findall(r"name a server and a key for (.*?);", PAGE)
    assert {name.partition(" ")[0] for name, own in options.items() if "--url" in own} == {
        *re.findall("`([a-z]+)`", asking)
    }


def test_a_migration_takes_nothing_away_that_the_version_before_needs() -> None:
    for path in sorted((ROOT / "migrations/versions").glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                assert not REMOVES.match(node.func.attr), f"{path}:{node.lineno}"
