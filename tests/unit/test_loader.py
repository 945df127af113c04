"""The folder of agents: what is loaded, what is refused, and what an edit does while the server runs."""

import asyncio
import logging
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from app.agent.loader import Agents, Listed
from app.errors import NotFound, PluginError
from tests.agents.stage import perform, said

ECHO = '''"""Repeats."""
from app.agent import Chattable, Message

class Echo(Chattable):
    id = "{id}"

    async def chat(self, message: Message) -> str:
        return "{says}"
'''


def echo(says: str, id: str = "echo") -> str:
    return ECHO.format(id=id, says=says)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "a folder of agents"
    path.mkdir()
    return path


@pytest.fixture
async def agents(folder: Path) -> AsyncIterator[Agents]:
    agents = Agents(folder, {"AGENT_HELPER_KEY": "secret-1", "AGENT_HELPER_PORT": "80"}, deadline=5)
    yield agents
    agents.close()


def modules() -> set[str]:
    return {name for name in sys.modules if name.startswith("agents_")}


def errors(agents: Agents) -> dict[str, str | None]:
    return {row.id or row.source: row.error for row in agents.listing()}


async def test_a_dropped_file_is_an_agent(folder: Path, agents: Agents) -> None:
    (folder / "echo.py").write_text(echo("one"))
    await agents.load()
    assert agents.listing() == [Listed("echo", "echo.py", "Repeats.")]
    assert await said(agents.get("echo")) == "one"


async def test_an_unknown_agent_is_not_found(folder: Path, agents: Agents) -> None:
    await agents.load()
    with pytest.raises(NotFound, match="no such agent") as caught:
        agents.get("nobody")
    assert caught.value.param == "agent.id"
    with pytest.raises(NotFound), agents.lease("nobody"):
        pass


async def test_no_folder_is_one_clear_sentence(tmp_path: Path) -> None:
    with pytest.raises(PluginError, match="AGENTS_DIR"):
        await Agents(tmp_path / "none", {}).load()


async def test_names_with_underscore_or_dot_and_other_files_are_left_alone(folder: Path, agents: Agents) -> None:
    for name in "_draft.py", ".hidden.py", "notes.txt":
        (folder / name).write_text("raise SystemExit")
    (folder / "data").mkdir()
    await agents.load()
    assert agents.listing() == []


async def test_a_package_imports_from_inside_itself(folder: Path, agents: Agents) -> None:
    package = folder / "pack"
    (package / "deep").mkdir(parents=True)
    (package / "__init__.py").write_text("from .main import Main\n")
    (package / "words.py").write_text("SAYS = 'one'\n")
    (package / "deep" / "__init__.py").write_text("from ..words import SAYS\n")
    (package / "main.py").write_text(echo("x", "pack").replace('"x"', "SAYS").replace("Echo", "Main"))
    with (package / "main.py").open("a") as file:
        file.write("\nfrom .deep import SAYS\n")
    await agents.load()
    assert await said(agents.get("pack")) == "one"
    (package / "words.py").write_text("SAYS = 'two'\n")
    await agents.refresh()
    assert await said(agents.get("pack")) == "two"
    assert len(modules()) == 4
    assert not list(folder.rglob("__pycache__"))


async def test_several_agents_in_one_file_and_bases_without_id(folder: Path, agents: Agents) -> None:
    text = echo("one").replace("class Echo(Chattable):", "class Base(Chattable):\n    pass\n\nclass Echo(Base):")
    (folder / "two.py").write_text(text + "\nclass Second(Echo):\n    '''Also repeats.'''\n    id = 'second'\n")
    await agents.load()
    assert [(row.id, row.description) for row in agents.listing()] == [
        ("echo", "Repeats."),
        ("second", "Also repeats."),
    ]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("import no_such_package.sub", "needs no_such_package"),
        ("from app.agent import Nothing", "cannot import name Nothing from app.agent"),
        ("x = (", "has a syntax error in line 1"),
        ("\nx = {}['/secret/path']", "KeyError while importing, line 2"),
        ("import sys; sys.exit('bye')", "SystemExit while importing, line 1"),
        ("raise KeyboardInterrupt", "KeyboardInterrupt while importing, line 1"),
        ("raise StopIteration", "RuntimeError while importing"),
        ("def f(): f()\nf()", "RecursionError while importing, line 1"),
        ("x = 1", "declares no Chattable with an id"),
        ("", "declares no Chattable with an id"),
        (echo("x", "Bad Id"), "the id of Echo must be 1 to 64"),
        (echo("x") + "\nclass Two(Echo):\n    id = 'echo'\n", "the id echo is given twice"),
        (echo("x") + "    params: dict[str, str]\n", "Echo.params must be annotated with a pydantic model"),
        (echo("x") + "    params: 'Nowhere'\n", "Echo.params is annotated with Nowhere, which is not defined"),
    ],
)
async def test_a_file_that_cannot_be_loaded_says_why(folder: Path, agents: Agents, text: str, reason: str) -> None:
    (folder / "bad.py").write_text(text)
    (folder / "good.py").write_text(echo("good", "good"))
    before = modules()
    await agents.load()
    bad, _ = agents.listing()
    assert bad.error is not None
    assert bad.error.startswith(reason)
    assert str(folder) not in bad.error
    assert (bad.source, bad.available) == ("bad.py", False)
    assert await said(agents.get("good")) == "good"
    assert len(modules() - before) == 1


async def test_an_import_that_never_ends_is_given_up(folder: Path) -> None:
    (folder / "slow.py").write_text("import time\nwhile True: time.sleep(0.01)")
    (folder / "zeta.py").write_text(echo("fine"))
    agents = Agents(folder, {}, deadline=0.2)
    await agents.load()
    assert errors(agents) == {"slow.py": "takes too long to import", "echo": None}
    agents.close()


SLOW = """import time
from pathlib import Path
with Path({beside!r}, "imports").open("a") as imports:
    imports.write("x")
while not Path({beside!r}, "go").exists():
    time.sleep(0.01)
"""


async def until(agents: Agents, found: dict[str, str | None]) -> None:
    async with asyncio.timeout(20):
        while errors(agents) != found:
            await asyncio.sleep(0.02)
            await agents.refresh()


async def test_an_import_that_takes_long_holds_up_nobody_and_is_in_service_when_it_is_there(
    folder: Path, tmp_path: Path
) -> None:
    slow = SLOW.format(beside=str(tmp_path))
    (folder / "slow.py").write_text(slow + echo("at last", "slow"))
    (folder / "zeta.py").write_text(echo("fine"))
    agents = Agents(folder, {}, deadline=0.2)
    await agents.load()
    for _ in range(3):
        await agents.refresh()
    assert errors(agents) == {"slow.py": "takes too long to import", "echo": None}
    (tmp_path / "go").touch()
    await until(agents, {"slow": None, "echo": None})
    assert await said(agents.get("slow")) == "at last"
    assert (tmp_path / "imports").read_text() == "x"
    assert len(modules()) == 2
    agents.close()
    assert modules() == set()


async def test_an_edit_goes_before_an_import_that_takes_long(folder: Path, tmp_path: Path) -> None:
    file = folder / "slow.py"
    file.write_text(SLOW.format(beside=str(tmp_path)) + echo("old"))
    agents = Agents(folder, {}, deadline=0.2)
    await agents.load()
    file.write_text(echo("new"))
    await agents.refresh()
    (tmp_path / "go").touch()
    await agents.refresh()
    assert errors(agents) == {"echo": None}
    assert await said(agents.get("echo")) == "new"
    agents.close()


async def test_what_was_missing_is_found_once_it_is_installed(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed, imports = tmp_path / "installed", tmp_path / "imports"
    monkeypatch.setattr(
        sys, "path", [str(installed), *(path for path in sys.path if path.startswith((sys.prefix, sys.base_prefix)))]
    )
    (tmp_path / "go").touch()
    count = SLOW.format(beside=str(tmp_path))
    (folder / "echo.py").write_text(f"{count}import installed_late\n" + echo("here"))
    agents = Agents(folder, {}, again=0.1)
    await agents.load()
    for _ in range(5):
        await asyncio.sleep(0.05)
        await agents.refresh()
    assert (errors(agents), imports.read_text()) == ({"echo.py": "needs installed_late"}, "x")
    (installed / "installed_late").mkdir(parents=True)
    (installed / "installed_late/__init__.py").write_text("import installed_later\n")
    await until(agents, {"echo.py": "needs installed_later"})
    (installed / "installed_later.py").touch()
    await until(agents, {"echo": None})
    assert await said(agents.get("echo")) == "here"
    agents.close()
    for name in ("installed_late", "installed_later"):
        monkeypatch.delitem(sys.modules, name)


async def test_an_id_belongs_to_the_first_file_that_has_it(folder: Path, agents: Agents) -> None:
    (folder / "a.py").write_text(echo("first"))
    (folder / "b.py").write_text(echo("second"))
    await agents.load()
    assert errors(agents) == {"echo": None, "b.py": "the id echo is taken by a.py"}
    assert await said(agents.get("echo")) == "first"
    (folder / "a.py").unlink()
    await agents.refresh()
    await agents.refresh()
    assert errors(agents) == {"echo": None}
    assert await said(agents.get("echo")) == "second"


async def test_an_edit_of_equal_length_within_the_same_second_is_seen(folder: Path, agents: Agents) -> None:
    file = folder / "echo.py"
    file.write_text(echo("one"))
    await agents.load()
    file.write_text(echo("two"))
    await agents.refresh()
    assert await said(agents.get("echo")) == "two"


async def test_a_changed_template_of_a_package_is_an_edit(folder: Path, agents: Agents) -> None:
    package = folder / "pack"
    package.mkdir()
    (package / "__init__.py").write_text(
        echo("x").replace('"x"', "TEXT")
        + "\nfrom pathlib import Path\nTEXT = (Path(__file__).parent / 't.txt').read_text()\n"
    )
    (package / "t.txt").write_text("one")
    await agents.load()
    (package / "t.txt").write_text("three")
    await agents.refresh()
    assert await said(agents.get("echo")) == "three"


async def test_the_log_shows_the_way_through_an_agents_file_and_no_other(
    folder: Path, agents: Agents, caplog: pytest.LogCaptureFixture
) -> None:
    (folder / "lacks.py").write_text("import no_such_package")
    (folder / "none.py").write_text("x = 1")
    (folder / "raises.py").write_text("def broken():\n    raise ValueError('no')\n\n\nbroken()\n")
    (folder / "wrong.py").write_text("def :\n")
    await agents.load()
    ways = {record.getMessage(): record.exc_info for record in caplog.records}
    assert [ways[f"agents/{told}"] for told in ("lacks.py is not loaded: needs no_such_package",)] == [None]
    assert ways["agents/none.py is not loaded: declares no Chattable with an id"] is None
    assert (caplog.text.count('File "'), caplog.text.count("raises.py"), caplog.text.count("def :")) == (3, 3, 1)
    assert "loader.py" not in caplog.text.replace("WARNING  app.agent.loader:loader.py", "")


async def test_a_broken_edit_keeps_the_last_good_version_and_says_why(
    folder: Path, agents: Agents, caplog: pytest.LogCaptureFixture
) -> None:
    file = folder / "echo.py"
    file.write_text(echo("good"))
    await agents.load()
    kept = modules()
    file.write_text("import no_such_package")
    await agents.refresh()
    (row,) = agents.listing()
    assert (row.id, row.error, row.available) == ("echo", "needs no_such_package", True)
    assert "agents/echo.py is not loaded: needs no_such_package" in caplog.text
    assert await said(agents.get("echo")) == "good"
    assert modules() == kept
    file.write_text(echo("better"))
    await agents.refresh()
    assert errors(agents) == {"echo": None}
    assert await said(agents.get("echo")) == "better"


async def test_a_deleted_file_is_gone(folder: Path, agents: Agents) -> None:
    file = folder / "echo.py"
    file.write_text(echo("x"))
    await agents.load()
    file.unlink()
    await agents.refresh()
    assert agents.listing() == []
    assert modules() == set()
    with pytest.raises(NotFound):
        agents.get("echo")


async def test_a_run_ends_on_the_version_it_began_with_which_is_then_dropped(folder: Path, agents: Agents) -> None:
    file = folder / "echo.py"
    file.write_text(echo("old"))
    await agents.load()
    old = modules()
    with agents.lease("echo") as first, agents.lease("echo") as second:
        file.write_text(echo("new"))
        await agents.refresh()
        assert await said(first) == await said(second) == "old"
        assert await said(agents.get("echo")) == "new"
        assert old < modules()
    assert not old & modules()
    assert len(modules()) == 1
    with agents.lease("echo") as version:
        file.unlink()
        await agents.refresh()
        assert await said(version) == "new"
    assert modules() == set()


async def test_an_edit_is_live_within_a_second_while_watched(folder: Path, agents: Agents) -> None:
    file = folder / "echo.py"
    file.write_text(echo("old"))
    await agents.load()
    async with asyncio.TaskGroup() as group:
        watch = group.create_task(agents.watch())
        await asyncio.sleep(0.1)
        file.write_text(echo("new and longer"))
        began = time.monotonic()
        while await said(agents.get("echo")) == "old":
            await asyncio.sleep(0.02)
        assert time.monotonic() - began < 1
        watch.cancel()


async def test_a_folder_that_vanishes_stops_nothing(
    folder: Path, agents: Agents, caplog: pytest.LogCaptureFixture
) -> None:
    (folder / "echo.py").write_text(echo("here"))
    await agents.load()
    folder.rename(folder.with_name("away"))
    async with asyncio.TaskGroup() as group:
        watch = group.create_task(agents.watch())
        async with asyncio.timeout(10):
            while "cannot be read" not in caplog.text:
                await asyncio.sleep(0.05)
        assert await said(agents.get("echo")) == "here"
        watch.cancel()
    assert str(folder) not in caplog.text


# Settings

HELPER = '''from __future__ import annotations
from pydantic import BaseModel, SecretStr, field_validator
from app.agent import Chattable, Message

class Keys(BaseModel):
    key: SecretStr
    port: int = 1
    {more}

    @field_validator("key")
    @classmethod
    def _check(cls, key: SecretStr) -> SecretStr:
        if key.get_secret_value() == "wrong":
            raise ValueError("wrong is wrong")
        return key

class Helper(Chattable):
    """Helps."""
    id = "helper"
    settings: Keys

    async def chat(self, message: Message) -> str:
        self.settings.port += 1
        return self.settings.key.get_secret_value() + str(self.settings.port)

class Other(Chattable):
    id = "other"

    async def chat(self, message: Message) -> str:
        return "other"
'''


async def test_settings_come_from_variables_and_no_run_changes_them(folder: Path, agents: Agents) -> None:
    (folder / "helper.py").write_text(HELPER.format(more=""))
    await agents.load()
    assert await said(agents.get("helper")) == "secret-181"
    assert await said(agents.get("helper")) == "secret-181"
    assert all(row.params_schema is None for row in agents.listing())


@pytest.mark.parametrize(
    ("variables", "reason"),
    [
        ({}, "needs AGENT_HELPER_KEY"),
        ({"AGENT_HELPER_KEY": ""}, "needs AGENT_HELPER_KEY"),
        ({"AGENT_HELPER_KEY": "wrong"}, "AGENT_HELPER_KEY is not valid"),
        (
            {"AGENT_HELPER_KEY": "k", "AGENT_HELPER_PORT": "eighty"},
            "AGENT_HELPER_PORT: Input should be a valid integer",
        ),
    ],
)
async def test_a_missing_or_wrong_setting_names_its_variable_but_not_its_value(
    folder: Path, variables: dict[str, str], reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    (folder / "helper.py").write_text(HELPER.format(more=""))
    agents = Agents(folder, variables)
    with caplog.at_level(logging.DEBUG):
        await agents.load()
    other, helper = agents.listing()
    assert (other.id, other.error) == ("other", None)
    assert (helper.id, helper.available) == ("helper", False)
    assert (helper.error or "").startswith(reason)
    assert "eighty" not in caplog.text
    assert "'wrong'" not in caplog.text
    with pytest.raises(NotFound):
        agents.get("helper")
    agents.close()


async def test_an_edit_that_needs_a_new_setting_keeps_the_last_good_version(folder: Path, agents: Agents) -> None:
    file = folder / "helper.py"
    file.write_text(HELPER.format(more=""))
    await agents.load()
    file.write_text(HELPER.format(more="town: str"))
    await agents.refresh()
    assert errors(agents) == {"helper": "needs AGENT_HELPER_TOWN", "other": None}
    assert await said(agents.get("helper")) == "secret-181"
    file.unlink()
    await agents.refresh()
    assert modules() == set()


async def test_ids_with_other_characters_are_underscores_in_variables(folder: Path) -> None:
    (folder / "helper.py").write_text(HELPER.format(more="").replace('"helper"', '"my-helper.v2"'))
    agents = Agents(folder, {"AGENT_MY_HELPER_V2_KEY": "k"})
    await agents.load()
    assert (await perform(agents.get("my-helper.v2"))).log.answer() == "k2"
    agents.close()


async def test_a_state_without_defaults_is_refused(folder: Path, agents: Agents) -> None:
    (folder / "echo.py").write_text(
        "from pydantic import BaseModel\nclass Plan(BaseModel):\n    done: list[str]\n"
        + echo("x")
        + "    state: Plan\n"
    )
    await agents.load()
    assert errors(agents) == {"echo": "every field of the state Plan needs a default"}
