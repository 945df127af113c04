"""The command line as administrators and users meet it: against a server that runs, and without one."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import re
import resource
import select
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from app.cli import importing
from app.cli.commands import commands
from app.errors import AppError, SettingsError
from app.settings import Settings
from app.store.migrations import HEAD
from tests import exports
from tests.house import ADMIN_KEY, AGENTS, House

ROOT = Path(__file__).parents[2]
SUITE = """
name = "numbers"
dataset = {rows = [{input = "1"}]}
agents = [{id = "fake_echo_agent"}]
scorers = [{kind = "regex", pattern = "1"}]
"""


@pytest.fixture(autouse=True)
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    for name in Settings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AGENTS_DIR", str(AGENTS))
    return tmp_path


@pytest.fixture
def here(house: House, monkeypatch: pytest.MonkeyPatch) -> House:
    """A server of this machine, as the settings have it."""
    monkeypatch.setenv("PORT", house.url.rpartition(":")[2])
    monkeypatch.setenv("ADMIN_API_KEY", ADMIN_KEY)
    return house


async def run(*arguments: str, input: str | None = None) -> Result:
    return await asyncio.to_thread(CliRunner().invoke, commands, list(arguments), input)


async def out(*arguments: str, input: str | None = None) -> str:
    ran = await run(*arguments, input=input)
    if ran.exception:
        raise ran.exception
    return ran.stdout


async def test_accounts_keys_and_budgets_are_kept_from_the_terminal(here: House) -> None:
    made = json.loads(await out("users", "add", "ann", "--password-stdin", "--json", input="correct horse\n"))
    assert (made["name"], made["role"]) == ("ann", "user")
    key = (await out("keys", "add", "ann", "--scope", "chat", "--days", "2")).strip()
    ann = await here.client(key)
    assert (await ann.post("/ListSessions", json={})).status_code == 200
    login = await here.admin.post("/api/v1/auth/token", data={"username": "ann", "password": "correct horse"})
    assert login.status_code == 200

    limit = json.loads(await out("budgets", "add", "user", "ann", "--tokens", "9", "--money", "0.5", "--json"))
    assert (limit["scope_id"], limit["period"], limit["tokens"], limit["money"]) == (made["id"], "month", 9, "0.5")
    assert limit["id"] in await out("budgets", "list")
    assert "deleted" in await out("budgets", "delete", limit["id"])

    await out("users", "set", "ANN", "--status", "suspended")
    assert (await ann.post("/ListSessions", json={})).status_code == 401
    lines = (await out("users", "list")).splitlines()
    assert lines[0].split() == ["name", "role", "status", "created_at", "id"]
    assert lines[2].split()[:3] == ["ann", "user", "suspended"]
    assert (await run("users", "delete", "ann", input="n\n")).exit_code == 1
    assert "erased" in await out("users", "delete", "ann", "--yes")
    with pytest.raises(AppError, match="There is no user ann"):
        await out("users", "set", "ann", "--role", "admin")
    acts = json.loads(await out("audit", "--json", "--last", "3"))["data"]
    assert [act["action"] for act in acts] == ["user.delete", "user.update", "budget.delete"]


async def test_what_the_server_refuses_is_said_in_its_words(here: House) -> None:
    with pytest.raises(AppError, match="There is no such agent"):
        await out("chat", "-a", "nobody", "hi")
    with pytest.raises(AppError, match="There is no such budget"):
        await out("budgets", "delete", "x")
    with pytest.raises(SettingsError, match="status 401"):
        await out("users", "list", "--key", "x" * 40)
    with pytest.raises(SettingsError, match="CHATTABLE_KEY is not set"):
        await out("users", "list", "--url", here.url)


@pytest.mark.parametrize("words", [("show", "x"), ("show", "x", "--step", "1"), ("tail",), ("tail", "x")])
async def test_without_a_server_runs_are_one_clear_sentence(words: tuple[str, ...]) -> None:
    with pytest.raises(SettingsError, match="No server answers at"):
        await out("runs", *words, "--url", "http://127.0.0.1:1", "--key", ADMIN_KEY)


async def test_a_file_of_questions_is_answered_in_the_background(llm_house: House, folder: Path) -> None:
    at = ("--url", llm_house.url, "--key", ADMIN_KEY)
    (folder / "questions.txt").write_text("say one\n\nsay two [[fault: 400]]\nsay three\n")
    ran = await run("batch", "run", "questions.txt", "-a", "default", "--out", "results.jsonl", *at)
    assert isinstance(ran.exception, AppError)
    results = {line["custom_id"]: line for line in map(json.loads, (folder / "results.jsonl").read_text().splitlines())}
    said = {id: line["response"]["body"] for id, line in results.items()}
    assert [said[id]["choices"][0]["message"]["content"] for id in "13"] == ["one", "three"]
    assert said["2"]["error"]["code"] == "llm_rejected"

    line = {"custom_id": "a", "method": "POST", "url": "/v1/embeddings", "body": {"model": "default", "input": "x"}}
    id = (await out("batch", "run", "--no-wait", "-", *at, input=json.dumps(line))).strip()
    assert json.loads(await out("batch", "results", id, *at))["response"]["body"]["object"] == "list"
    assert "completed  1/1 answered, 0 failed" in await out("batch", "show", id, *at)
    listed = (await out("batch", "list", *at)).splitlines()
    assert [row.split()[:5] for row in listed[:2]] == [
        ["id", "status", "completed", "failed", "total"],
        [id, "completed", "1", "0", "1"],
    ]
    for command in (("run", "questions.txt", "-a", "default"), ("results", id)):
        with pytest.raises(SettingsError, match="is there a folder nowhere that you may write to"):
            await out("batch", *command, "--out", "nowhere/results.jsonl", *at)
    assert len((await out("batch", "list", *at)).splitlines()) == 3
    with pytest.raises(SettingsError, match="/dev/full cannot be written: No space left on device"):
        await out("batch", "results", id, "--out", "/dev/full", *at)
    with pytest.raises(AppError, match="Line 1 is not JSON"):
        await out("batch", "run", "questions.txt", *at)
    with pytest.raises(AppError, match="A batch that is completed cannot be cancelled"):
        await out("batch", "cancel", id, *at)


@pytest.mark.parametrize(
    ("option", "path", "told"),
    [
        ("--report", "nowhere/report.html", "is there a folder nowhere that you may write to"),
        ("--out", "nowhere/results.csv", "is there a folder nowhere that you may write to"),
        ("--report", ".", "it is a folder"),
        ("--out", "results.xlsx", r"must end in \.jsonl, \.csv, \.parquet"),
    ],
)
@pytest.mark.parametrize("command", [("run", "suite.toml"), ("report", "numbers")])
async def test_a_bench_that_could_not_be_written_down_does_not_begin(
    folder: Path, command: tuple[str, str], option: str, path: str, told: str
) -> None:
    (folder / "suite.toml").write_text(SUITE)
    with pytest.raises(SettingsError, match=told):
        await out("bench", *command, option, path)
    assert [each.name for each in folder.iterdir()] == ["suite.toml"]


async def test_a_conversation_goes_on_over_several_calls(here: House) -> None:
    assert await out("chat", "-a", "fake_echo_agent", "one") == "one\n"
    assert await out("chat", "-c", input="two\n\nthree\n") == "two\nthree\n"
    answer = json.loads(await out("chat", "-c", "-a", "fake_echo_agent", "--json", "four"))
    assert (answer["status"], answer["content"]) == ("completed", "four")
    listed = (await here.admin.post("/ListSessions", json={})).json()["items"]
    assert len(listed) == 1
    failed = await run("chat", "-a", "scripted_agent", "fail: it did")
    assert (failed.exit_code, failed.stdout) == (1, "")
    assert "The agent failed" in failed.stderr
    assert (await run("chat", "-a", "scripted_agent", "think: deep")).stderr == "[thinking] deep\n"
    with pytest.raises(SettingsError, match=r"Name an agent with -a[\s\S]*fake_echo_agent  Repeats what it is told"):
        await out("chat")


async def test_links_for_people_are_printed_with_the_address_that_people_have(
    here: House, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = (await out("users", "invite", "ann", "--role", "admin")).strip()
    assert link.startswith(f"{here.url}/#/invite/ci_")
    monkeypatch.setenv("PUBLIC_URL", "https://chat.example.org")
    body = {"secret": link.rpartition("/")[2], "password": "correct horse battery"}
    assert (await (await here.client()).post("/api/v1/auth/invite", json=body)).json()["role"] == "admin"
    assert (await out("users", "reset", "ann")).startswith("https://chat.example.org/#/invite/ci_")
    (folder / "people.csv").write_text("name,role\nbob,user\ncarl,user\n")
    rows = json.loads(await out("users", "import", "people.csv", "--json"))["data"]
    assert [row["name"] for row in rows] == ["bob", "carl"]
    wrong = (await run("users", "import", "-", input="name\nbob\n")).exception
    assert "Line 2, column name" in str(wrong)


async def test_chats_of_other_platforms_are_imported_from_files_in_pieces(
    here: House, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importing, "CHATS", 2)
    (folder / "conversations.json").write_text(json.dumps([exports.chatgpt(str(at)) for at in range(5)] + [{}]))
    (folder / "chats.json").write_text(json.dumps([exports.open_webui()]))
    ran = await run("import", "conversations.json", "chats.json", "-a", "scripted_agent", "--json")
    rows = json.loads(ran.stdout)["data"]
    assert ran.exit_code == 1
    assert [row["status"] for row in rows] == ["made"] * 5 + ["refused", "made"]
    assert [row["index"] for row in rows] == [*range(6), 0]
    assert "1 known" in (await run("import", "chats.json", "-a", "scripted_agent")).output
    document = (await here.admin.get(f"/api/v1/sessions/{rows[0]['session_id']}/export")).text
    assert json.loads(await out("import", "-", "--json", input=document))["data"][0]["status"] == "made"
    for arguments in (("chats.json",), ("nowhere.json", "-a", "scripted_agent")):
        assert isinstance((await run("import", *arguments)).exception, AppError | SettingsError)


class Terminal:
    """A person at a terminal who runs a command."""

    def __init__(self, *command: str, **env: str) -> None:
        self._master, slave = pty.openpty()
        given = {"PATH": os.environ["PATH"], "TERM": "xterm", "PYTHONPATH": str(ROOT), "NO_COLOR": "1", **env}
        self.popen = subprocess.Popen(
            [sys.executable, "-m", "app.cli", *command],
            stdin=slave, stdout=slave, stderr=slave, env=given, start_new_session=True,
            preexec_fn=take_terminal,  # noqa: PLW1509 - it has no threads that matter
        )  # fmt: skip
        os.close(slave)
        self.seen = ""

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def until(self, text: str, seconds: float = 60) -> None:
        deadline = time.monotonic() + seconds
        while text not in self.seen:
            assert time.monotonic() < deadline, self.seen
            if select.select([self._master], [], [], 0.1)[0]:
                with suppress(OSError):
                    self.seen += os.read(self._master, 65536).decode()

    def close(self) -> None:
        self.popen.kill()
        self.popen.wait()
        os.close(self._master)


def take_terminal() -> None:
    """So that Ctrl-C reaches the command."""
    import fcntl
    import termios

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


async def test_ctrl_c_ends_an_answer_and_not_the_conversation(here: House) -> None:
    def person() -> None:
        terminal = Terminal("chat", "-a", "scripted_agent", CHATTABLE_URL=here.url, CHATTABLE_KEY=ADMIN_KEY)
        try:
            terminal.until("> ")
            terminal.type("sleep: 60\n")
            terminal.until("asleep")
            terminal.type("\x03")
            terminal.until("[cancelled]")
            terminal.type("repeat: **still** here\n")
            terminal.until("\x1b[1mstill\x1b[0m here")  # as markdown
            terminal.type("\x04")
            terminal.until("To go on: chattable chat -s")
            assert terminal.popen.wait(30) == 1  # one answer was not completed
        finally:
            terminal.close()

    await asyncio.to_thread(person)
    assert not here.platform.live
    opened = (await here.admin.post("/ListSessions", json={})).json()["items"][0]["id"]
    runs = (await here.admin.get(f"/api/v1/sessions/{opened}/runs")).json()["data"]
    assert [run["status"] for run in runs] == ["cancelled", "completed"]


async def test_the_doctor_finds_nothing_wrong_with_what_is_right(
    here: House, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", database_url)
    (Path("data")).mkdir()
    found = json.loads(await out("doctor", "--json"))["data"]
    states = {row["what"]: row["state"] for row in found}
    assert (states["data directory"], states["agents"], states["server"]) == ("ok", "ok", "ok")
    assert states["database"] in ("ok", "warn")  # pgvector is not in every database of a test
    assert states["Redis"] == states["language models"] == "note"
    assert HEAD in next(row["found"] for row in found if row["what"] == "database")


async def test_the_doctor_names_each_fault_and_what_to_do(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "agents").mkdir()
    (folder / "agents" / "bad.py").write_text("import nothing_of_that_name\n")
    for name, value in {
        "AGENTS_DIR": "agents",
        "DATABASE_URL": "postgresql://u:canary@127.0.0.1:1/x",
        "REDIS_URL": "redis://:canary@127.0.0.1:1/0",
        "OPENAI_BASE_URL": "http://127.0.0.1:1/v1",
        "MINIO_ENDPOINT": "127.0.0.1:1",
        "MINIO_ACCESS_KEY": "key",
        "MINIO_SECRET_KEY": "canary",
        "PORT": "1",
    }.items():
        monkeypatch.setenv(name, value)
    ran = await run("doctor")
    assert ran.exit_code == 1
    faults = re.findall(r"^fail +([^:]+):", ran.stdout, re.MULTILINE)
    assert faults == ["database", "Redis", "object store", "agents", "language models"]
    assert "nothing_of_that_name" in ran.stdout
    assert "→ Is DATABASE_URL right" in ran.stdout
    assert "canary" not in ran.stdout


async def test_the_settings_in_force_are_shown_with_their_sources_and_without_secrets(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / ".env").write_text("PORT=9000\nWORKRES=4\nAGENT_WEATHER_KEY=canary\nVENDOR_KEY=canary\n")
    monkeypatch.setenv("DATABASE_URL", "postgresql://user:canary@db.example/x")
    monkeypatch.setenv("OPENAI_API_BASE", "http://127.0.0.1:1/v1")
    monkeypatch.setenv("SECRET_KEY", "canary" * 6)
    ran = await run("config", "--json")
    rows = {row["name"]: (row["value"], row["from"]) for row in json.loads(ran.stdout)["data"]}
    assert rows["PORT"] == ("9000", ".env")
    assert rows["HOST"] == ("127.0.0.1", "default")
    assert rows["DATABASE_URL"] == ("postgresql://***@db.example/x", "environment")
    assert rows["OPENAI_BASE_URL"] == ("http://127.0.0.1:1/v1", "environment")
    assert rows["SECRET_KEY"] == ("***", "environment")
    assert rows["AGENT_WEATHER_KEY"] == ("***", "agent's")
    assert ran.stderr == "Not settings of Chattable, though they stand in .env: WORKRES\n"
    assert "canary" not in ran.output


async def test_a_backup_is_made_checked_and_restored_from_the_terminal(
    house: House, database_url: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", database_url)
    assert await out("db", "check") == "All is well.\n"
    told = json.loads(await out("db", "backup", "kept", "--json"))
    assert (told["folder"], told["schema"], told["tables"]["users"]) == ("kept", HEAD, 1)
    assert await out("db", "restore", "kept", "--check") == "kept is whole.\n"
    with pytest.raises(SettingsError, match="not empty"):
        await out("db", "restore", "kept")
    assert re.fullmatch(r"chattable-backup-\S+: \d+ rows .*, 0 files\.\n", await out("db", "backup", "--no-files"))


def test_a_backup_of_an_embedded_database_moves_to_another(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def chattable(*arguments: str, data_dir: str = "data") -> subprocess.CompletedProcess[str]:
        env = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "HOME": str(folder), "DATA_DIR": data_dir}
        command = [sys.executable, "-m", "app.cli", *arguments]
        return subprocess.run(command, env=env, cwd=folder, capture_output=True, text=True, timeout=120, check=False)

    assert chattable("db", "upgrade").stdout == f"The database is at the newest schema, {HEAD}.\n"
    assert chattable("db", "backup", "kept").returncode == 0
    restored = chattable("db", "restore", "kept", data_dir="new")
    assert restored.stdout.startswith("Restored and checked: "), restored.stderr
    again = chattable("db", "backup", "kept", data_dir="new")
    assert (again.returncode, again.stdout) == (2, "")
    assert again.stderr.startswith("chattable: kept is there already")
    assert "Traceback" not in again.stderr


def test_help_is_quick_and_pipes_may_close() -> None:
    env = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "app.cli", "--help"]
    times = []
    for _ in range(3):
        before = spent()
        subprocess.run(command, env=env, capture_output=True, check=True)
        times.append(spent() - before)
    assert min(times) < 0.6  # 0.2 s on a machine that does nothing else
    piped = subprocess.run(
        ["bash", "-o", "pipefail", "-c", '"$0" -m app.cli config | true', sys.executable],
        env=env, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "Traceback" not in piped.stderr


def spent() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
