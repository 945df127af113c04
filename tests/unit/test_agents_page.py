"""docs/agents.md: its agents do what the page says, keep every promise, and are typed; its tests run."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from app.agent import Chattable
from app.agent.contract import Contract
from app.agent.loader import Agents
from app.agent.testing import Scripted, answer, call, load
from app.cli import requirements
from app.cli.commands import commands
from tests.fakes.upstream import upstream

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/agents.md").read_text(encoding="utf-8")
FILES = {
    block.partition("\n")[0].removeprefix("# "): block
    for block in re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The page's files as it names them."""
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def agent(folder: Path, name: str) -> type[Chattable]:
    return load(folder / f"agents/{name}.py")


async def test_the_pages_agents_keep_every_promise(folder: Path) -> None:
    agents = Agents(folder / "agents", {})
    await agents.load()
    try:
        rows = agents.listing()
        assert len(rows) == len(FILES) - 1 + 2 == 11  # one file has three
        for row in rows:
            assert row.error is None
            assert row.id
            if row.id != "countdown":  # which is told a number
                broken = [one for one in await Contract(agents.get(row.id)).check() if one.status != "ok"]
                assert broken == [], row.id
    finally:
        agents.close()


def test_text_goes_in_and_comes_out_louder(folder: Path) -> None:
    assert answer(agent(folder, "shout"), "hey {{you}}").text == "HEY {{YOU}}"


def test_it_counts_down_and_its_thoughts_are_no_answer(folder: Path) -> None:
    said = answer(agent(folder, "countdown"), "3")
    assert said.text == "3 2 1 "
    assert [chunk.content_type for chunk in said.chunks] == ["thinking", "text"]


def test_the_tutor_minds_the_age_and_the_history(folder: Path) -> None:
    llm = Scripted(["It is round."])
    assert answer(agent(folder, "tutor"), "The earth?", params={"age": 5}, llm=llm).text == "It is round."
    assert [message["content"] for message in llm.asked[0][0]] == [
        "Explain it to somebody of 5 years.",
        "The earth?",
    ]


def test_the_shop_calls_its_tool_and_is_set_up_by_its_operator(folder: Path) -> None:
    llm = Scripted([call("price", item="figs"), "Two crowns."])
    said = answer(agent(folder, "shop"), "Figs?", llm=llm, settings={"AGENT_SHOP_STOCK": "figs"})
    assert said.text == "Two crowns."
    assert llm.asked[0][0][0]["content"] == "You sell figs."
    assert llm.asked[1][0][-1]["content"] == "1 figs cost 2 crowns."
    assert [step.kind for step in said.steps] == ["llm", "tool", "llm"]


def test_the_editor_says_the_verdict_and_no_more(folder: Path) -> None:
    llm = Scripted(["Short.", "Too short.", '{"verdict": "It is awful."}'])
    assert answer(agent(folder, "editor"), "Once.", llm=llm).text == "It is unfinished."
    assert llm.asked[2][0][-1]["content"].endswith("Short. But: Too short.")


def test_the_ledger_adds_up_and_asks_before_it_is_a_lot(folder: Path) -> None:
    ledger, day = agent(folder, "ledger"), datetime.now(UTC).astimezone().date().isoformat()
    first = answer(ledger, "20 for bread")
    assert (first.text[10:], first.state) == (": 20, in all 20.", {"total": 20})
    assert first.text[:10] >= day
    yes = answer(ledger, "200 for a coat", state=first.state, replies=["yes"])
    assert (yes.text[10:], yes.state) == (": 200, in all 220.", {"total": 220})
    assert [(step.name, step.status) for step in yes.steps] == [("today", "completed"), ("ask", "completed")]
    assert [chunk.content_type for chunk in yes.chunks] == ["question", "answer", "text"]
    no = answer(ledger, "200 for a hat", state=first.state, replies=["no"])
    assert (no.text, no.state) == ("Nothing is written down.", {"total": 20})


def test_the_companion_knows_what_it_was_told(folder: Path) -> None:
    companion, llm = agent(folder, "companion"), Scripted(["Noted."])
    assert answer(companion, "Who am I?").text == "I know nothing yet."
    assert answer(companion, "Remember I am Ada.", llm=llm).text == "Noted."
    assert "You know: I am Ada." in llm.asked[0][0][0]["content"]


def test_the_herald_has_others_say_it(folder: Path) -> None:
    others = [agent(folder, "shout"), load(ROOT / "agents/translator.py")]
    llm = Scripted(["AUDITE"])
    said = answer(agent(folder, "herald"), "hear", llm=llm, others=others)
    assert [(chunk.content_type, chunk.content) for chunk in said.chunks] == [("status", "HEAR"), ("text", "AUDITE")]
    assert "into la" in llm.asked[0][0][0]["content"]
    assert [step.path for step in said.steps] == ["/shout", "/translator", "/translator/Scripted"]


def test_the_newsroom_works_on_a_text(folder: Path) -> None:
    room = folder / "agents/newsroom.py"
    others = [load(room, "reporter"), load(room, "checker")]
    llm = Scripted(["reporter", "It rained.", "Checker.", "Where?", "reporter", "It rained in Bonn.", "NOBODY"])
    said = answer(load(room, "newsroom"), "The weather?", llm=llm, others=others)
    assert [chunk.content for chunk in said.chunks if chunk.content_type == "speaker"] == [
        "reporter",
        "checker",
        "reporter",
    ]
    assert said.text == "It rained.Where?It rained in Bonn."
    heard = [(each["role"], each.get("name"), each["content"]) for each in llm.asked[5][0][2:]]
    assert heard == [
        ("user", None, "The weather?"),
        ("assistant", "reporter", "It rained."),
        ("user", "checker", "Where?"),
    ]


def test_the_pages_agents_and_tests_are_typed(folder: Path) -> None:
    check = [sys.executable, "-m", "mypy", "--config-file", str(ROOT / "pyproject.toml")]
    files = [str(folder / name) for name in FILES if name.startswith("agents/")]
    done = subprocess.run([*check, *files], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


async def test_the_pages_tests_are_recorded_once_and_replayed_without_a_key(folder: Path) -> None:
    (folder / "conftest.py").write_text('pytest_plugins = ["app.cli.recording"]\n')
    run = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--import-mode=importlib"]
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("OPENAI_", "MODELS_FILE"))}
    bare = {**clean, "PYTHONPATH": str(ROOT), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}

    async def tested(*words: str, **env: str) -> tuple[int, str]:
        done = await asyncio.to_thread(
            subprocess.run, [*run, *words], cwd=folder, env={**bare, **env}, capture_output=True, text=True, check=False
        )
        return done.returncode, done.stdout

    status, said = await tested()
    assert status == 1
    assert "There is no recording test_shop.test_it_is_polite.json" in said
    async with upstream("sk-canary-key") as fake:
        status, said = await tested("--record", OPENAI_API_KEY="sk-canary-key", OPENAI_BASE_URL=fake.base_url)
        assert status == 0, said
        assert fake.hits == 1
    kept = (folder / "tests/agents/recorded/test_shop.test_it_is_polite.json").read_text()
    assert "Two crowns" in kept
    assert "canary" not in kept
    status, said = await tested()
    assert status == 0, said
    changed = folder / "agents/shop.py"
    changed.write_text(changed.read_text().replace("You sell", "Sell"))
    status, said = await tested()
    assert status == 1
    assert '-   "content": "You sell apples, pears.",' in said
    assert '+   "content": "Sell apples, pears.",' in said


PAGES = [*ROOT.glob("README*.md"), *(ROOT / "docs").glob("*.md")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_agents_of_every_page_pass_the_checks_of_this_repository(page: Path) -> None:
    blocks = re.findall(r"^```python\n(.*?)^```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    for block in (block for block in blocks if "from app.agent import" in block):
        for words in (["check"], ["format", "--diff"]):
            command = [sys.executable, "-m", "ruff", *words, "--quiet", "--stdin-filename", "agents/saved.py", "-"]
            checked = subprocess.run(command, input=block, cwd=ROOT, capture_output=True, text=True, check=False)
            assert checked.returncode == 0, checked.stdout


def test_the_block_of_dependencies_is_read_as_the_page_has_it(tmp_path: Path) -> None:
    (block,) = re.findall(r"^```toml\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    (tmp_path / "x.py").write_text(block)
    assert requirements.of(tmp_path / "x.py") == ["humanize>=4"]


def test_the_page_names_every_command() -> None:
    (group,) = (group for group in commands.registered_groups if group.name == "agents")
    assert group.typer_instance is not None
    known = {
        command.name or command.callback.__name__
        for command in group.typer_instance.registered_commands
        if command.callback
    }
    assert set(re.findall(r"^\| `chattable agents (\w+)", PAGE, re.MULTILINE)) == known
