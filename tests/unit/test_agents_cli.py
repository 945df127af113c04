"""`chattable agents`: agents are made, listed, checked, run and equipped without a server."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from app.cli import requirements
from app.cli.commands import commands
from app.errors import SettingsError
from app.settings import Settings
from tests.agents import growing
from tests.fakes.upstream import upstream

BROKEN = '''
"""Agents that break a promise each."""

import asyncio
import time

from pydantic import BaseModel, field_serializer

from app.agent import Chattable, Message

HEARD: list[str] = []


class Silent(Chattable):
    id = "silent"

    def chat(self, message: Message) -> None:
        return None


class Gossip(Chattable):
    id = "gossip"

    async def chat(self, message: Message) -> str:
        HEARD.append(message.content)
        await asyncio.sleep(0)
        return " ".join(HEARD)


class Stubborn(Chattable):
    id = "stubborn"

    async def chat(self, message: Message) -> str:
        try:
            return await self.llm.ainvoke(message)
        except asyncio.CancelledError:
            await asyncio.sleep(5)
            raise


class Sleeper(Chattable):
    id = "sleeper"

    def chat(self, message: Message) -> str:
        try:
            return self.llm.invoke(message)
        except BaseException:
            time.sleep(5)
            raise


class Waiter(Chattable):
    id = "waiter"

    def chat(self, message: Message) -> str:
        return self.llm.invoke(message)


class Cutter(Chattable):
    id = "cutter"

    async def chat(self, message: Message) -> str:
        reply = await self.llm.acall(message)
        return "|".join([chunk.content async for chunk in reply])


class Count(BaseModel):
    at: int = 0

    @field_serializer("at")
    def more(self, at: int) -> int:
        return at + 1


class Forgetful(Chattable):
    id = "forgetful"
    state: Count

    async def chat(self, message: Message) -> str:
        return "ok"


class Asker(Chattable):
    id = "asker"

    async def chat(self, message: Message) -> str:
        return f"So: {await self.ask('Which?')}"
'''


@pytest.fixture(autouse=True)
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    for name in (*Settings.model_fields, "openai_api_base"):
        monkeypatch.delenv(name.upper(), raising=False)
    (tmp_path / "agents").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


async def run(*words: str, typed: str | None = None) -> Result:
    """What a command prints; in a thread, for it has an event loop of its own."""
    result = await asyncio.to_thread(CliRunner().invoke, commands, ["agents", *words], input=typed)
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


async def checked(*words: str) -> dict[str, dict[str, Any]]:
    rows = json.loads((await run("check", *words, "--json")).stdout)["data"]
    return {row["id"] or row["source"]: {one["name"]: one for one in row["findings"]} for row in rows}


async def test_a_new_agent_works_and_so_does_its_test(folder: Path) -> None:
    made = await run("new", "my-2nd.bot")
    assert made.output.split() == ["agents/my_2nd_bot.py", str(folder / "tests/agents/test_my_2nd_bot.py")]
    said = await run("check", "my-2nd.bot")
    assert said.exit_code == 0, said.output
    assert said.output.startswith("my-2nd.bot  my_2nd_bot.py  ok\n  loads             ok\n")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(folder / "tests")]
    root = Path(__file__).parents[2]
    done = await asyncio.to_thread(subprocess.run, command, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert "1 passed" in done.stdout


@pytest.mark.parametrize("name", ["", "Bot", "_bot", ".bot", "a/b", "x" * 65, "mcp", "tasks"])
async def test_an_id_that_cannot_be_is_one_clear_sentence(folder: Path, name: str) -> None:
    with pytest.raises(SettingsError, match=r"^The id "):
        await run("new", name)
    assert list((folder / "agents").iterdir()) == []


async def test_nothing_is_overwritten_and_no_id_given_twice(folder: Path) -> None:
    await run("new", "bot")
    with pytest.raises(SettingsError, match=r"The id bot is taken by bot\.py"):
        await run("new", "bot")
    (folder / "agents/bot.py").write_text("mine")
    with pytest.raises(SettingsError, match="is there already"):
        await run("new", "bot")
    assert (folder / "agents/bot.py").read_text() == "mine"
    (folder / "tests/agents/test_other.py").write_text("mine")
    with pytest.raises(SettingsError, match=r"test_other\.py is there already"):
        await run("new", "other")
    assert not (folder / "agents/other.py").exists()


async def test_agents_of_growing_power_keep_every_promise(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also the one that takes JSON out of its model's answers, which it never asked to be JSON."""
    monkeypatch.setenv("AGENT_FORECASTER_WEATHER_KEY", "k")
    (folder / "agents/growing.py").write_text(Path(growing.__file__).read_text())
    found = await checked()
    assert {"mirror", "words", "mannered", "forecaster", "writer", "researcher"} <= found.keys()
    assert [told for told in found.values() if {each["status"] for each in told.values()} != {"ok"}] == []


async def test_what_breaks_a_promise_is_named_with_the_promise(folder: Path) -> None:
    (folder / "agents/broken.py").write_text(BROKEN)
    found = await checked()
    assert found["silent"]["answers"]["note"] == "The agent gave no answer."
    assert found["silent"]["cancel"]["status"] == "skipped"
    assert found["gossip"]["two sessions"]["note"] == "what was said in one session is heard in another."
    assert "pieces" in found["cutter"]["streamed = whole"]["note"]
    assert found["cutter"]["streamed = whole"]["status"] == "failed"
    assert found["forgetful"]["serialises"]["note"] == "its state is another one when it is loaded again."
    for slow in ("stubborn", "sleeper"):
        assert found[slow]["cancel"]["note"] == "it goes on for more than 2 s after it was cancelled."
    for fine in ("asker", "waiter"):
        assert all(one["status"] == "ok" for one in found[fine].values()), found[fine]
    assert (await run("check", "asker")).exit_code == 0
    assert (await run("check", "asker", "silent")).exit_code == 1


async def test_files_are_checked_alone_and_say_why_they_do_not_load(folder: Path) -> None:
    (folder / "other.py").write_text("import surely_not_installed\n")
    (folder / "never.py").write_text("raise SystemExit\n")
    found = await checked("other.py")
    assert found == {"other.py": {"loads": {"name": "loads", "status": "failed", "note": "needs surely_not_installed"}}}
    with pytest.raises(SettingsError, match="There is no agent nobody: known are none"):
        await run("check", "nobody")


async def test_the_list_says_what_is_there_and_what_helps(folder: Path) -> None:
    await run("new", "bot")
    metadata = '# /// script\n# dependencies = [\n#   "surely-not-installed>=1",\n# ]\n# ///\n'
    (folder / "agents/needy.py").write_text(f"{metadata}import surely_not_installed\n")
    assert (await run("list")).stdout.splitlines() == [
        "bot  bot.py  Says what it does: users read this.",
        "-  needy.py  failed: needs surely_not_installed (chattable agents install)",
    ]
    rows = json.loads((await run("list", "--json")).stdout)["data"]
    assert [row["error"] is None for row in rows] == [True, False]


async def test_what_agents_need_is_read_and_nothing_else_is_passed_on(folder: Path) -> None:
    assert (await run("install")).output == "No agent names a dependency.\n"
    needy = folder / "agents/needy.py"
    needy.write_text('# /// script\n# dependencies = ["pydantic>=2", "rich"]\n# ///\n')
    assert (await run("install", "--dry-run")).output == "needy.py  pydantic>=2, rich\n"
    assert requirements.command(["rich"], "py", "uv") == ["uv", "pip", "install", "--python", "py", "--", "rich"]
    assert requirements.command(["rich"], "py", None) == ["py", "-m", "pip", "install", "--", "rich"]
    for wrong in ('["--index-url=x"]', '"rich"', "[1]", "[", '["a"]\n# dependencies = []'):
        needy.write_text(f"# /// script\n# dependencies = {wrong}\n# ///\n")
        with pytest.raises(SettingsError, match=r"needy\.py"):
            await run("install")


async def test_one_agent_is_talked_to_line_by_line_and_keeps_its_history(folder: Path) -> None:
    await run("new", "bot")
    async with upstream() as fake:
        (folder / ".env").write_text(f"OPENAI_BASE_URL={fake.base_url}\nOPENAI_API_KEY=sk-x\n")
        said = await run("run", "bot", typed="say one\n\nwhat was the first thing I said\n")
    assert (said.stdout, said.exit_code) == ("one\nsay one\n", 0)
    assert [len(request.body["messages"]) for request in fake.requests] == [2, 4]


KEEPER = """
from app.agent import Chattable, Message


class Keeper(Chattable):
    id = "keeper"

    async def chat(self, message: Message) -> str:
        if message.content == "forget":
            self.memory.clear()
        elif message.content == "fail":
            self.memory.add_user("what a failure leaves")
            raise ValueError
        else:
            self.memory.add_user(message.content)
            self.memory.user.add_user(message.content)
        return str([[entry.content for entry in scope] for scope in (self.memory, self.memory.user)])
"""


async def test_what_it_remembers_it_keeps_from_line_to_line(folder: Path) -> None:
    (folder / "agents/keeper.py").write_text(KEEPER)
    said = await run("run", "keeper", "--scripted", "x", typed="tea\nmilk\nfail\nforget\nrum\n")
    assert said.stdout.splitlines() == [
        "[['tea'], ['tea']]",
        "[['tea', 'milk'], ['tea', 'milk']]",
        "[[], ['tea', 'milk']]",
        "[['rum'], ['tea', 'milk', 'rum']]",
    ]


async def test_a_script_stands_in_for_the_model_and_parameters_are_checked(folder: Path) -> None:
    await run("new", "bot")
    assert (await run("run", "bot", "Hi", "--scripted", "Good day.")).stdout == "Good day.\n"
    wrong = await run("run", "bot", "Hi", "--scripted", "x", "--params", '{"system_prompt": 1}')
    assert (wrong.exit_code, wrong.stdout) == (1, "")
    assert "valid string" in wrong.stderr
    with pytest.raises(SettingsError, match="must be JSON"):
        await run("run", "bot", "--params", "{")
    without = await run("run", "bot", "Hi")
    assert without.exit_code == 1
    assert "OPENAI_API_KEY" in without.stderr


async def test_a_question_is_answered_by_the_next_line(folder: Path) -> None:
    (folder / "agents/broken.py").write_text(BROKEN)
    said = await run("run", "asker", typed="Hello\nthat one\n")
    assert said.stdout == "So: that one\n"
    assert "[question] Which?" in said.stderr
    left = await run("run", "asker", typed="Hello\n")
    assert left.exit_code == 1
    assert "no line left" in left.stderr
    with pytest.raises(SettingsError, match="several agents"):
        await run("run", "agents/broken.py", "Hello")


def test_help_is_quick_for_it_loads_nothing_of_weight() -> None:
    code = "import sys, app.cli; print([name for name in ('pydantic', 'fastapi', 'app.agent') if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"
