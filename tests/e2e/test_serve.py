"""`chattable serve` as a user meets it: one process to start, one to stop, and nothing left behind."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from app.servers.postgres import Postgres
from app.servers.valkey import Valkey

pytestmark = pytest.mark.e2e
ROOT = Path(__file__).parents[2]
SLOW_AGENT = '''
"""Answers after a while."""
import asyncio
from app.agent import Chattable, Message

class Slow(Chattable):
    id = "slow"

    async def chat(self, message: Message) -> str:
        print("asleep for", message.content)
        await asyncio.sleep(float(message.content))
        return "at last"
'''


class Serve:
    """A running `chattable serve` and what it has printed."""

    def __init__(self, cwd: Path, data_dir: Path, python: str | Path = sys.executable, **settings: str) -> None:
        self.data_dir = data_dir
        given = os.environ
        env = {"PATH": given["PATH"], "HOME": str(cwd), "PYTHONPATH": str(ROOT), "AGENTS_DIR": str(ROOT / "agents")}
        env |= {"DATA_DIR": str(data_dir), "PORT": "0", **settings}
        self.popen = subprocess.Popen(
            [str(python), "-m", "app.cli", "serve"],
            cwd=cwd,
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.popen.stdout
        with self.popen.stdout as stdout:
            self.lines.extend(iter(stdout.readline, ""))

    @property
    def output(self) -> str:
        return "".join(self.lines)

    def ready(self) -> Serve:
        wait_until(lambda: "ListMessages" in self.output or self.popen.poll() is not None, 60)
        assert self.popen.poll() is None, self.output
        return self

    @property
    def url(self) -> str:
        found = re.search(r"ready at (\S+)", self.output)
        assert found, self.output
        return found[1]

    def family(self) -> list[psutil.Process]:
        return psutil.Process(self.popen.pid).children(recursive=True)

    def worker(self) -> psutil.Process:
        return next(child for child in self.family() if "app.cli.server" in child.cmdline())

    def post(self, verb: str, **body: Any) -> Any:
        key = (self.data_dir / "admin.key").read_text().strip()
        headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
        request = urllib.request.Request(f"{self.url}/{verb}", json.dumps(body).encode(), headers)  # noqa: S310 - http
        with urllib.request.urlopen(request, timeout=60) as response:  # noqa: S310 - http
            return json.load(response)

    def say(self, content: str, agent: str = "fake_echo_agent") -> Any:
        session = self.post("CreateSession", agent={"id": agent})["id"]
        return self.post("SendMessage", session_id=session, content=content)["content"]

    def end_by_itself(self) -> tuple[int, str]:
        """The status and the beginning of the one line that it ends with."""
        status = self.popen.wait(60)
        self._reader.join(20)
        assert len(self.lines) == 1, self.output
        return status, re.split(r" \(|: |$", self.lines[0].removeprefix("chattable: "))[0].rstrip()

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send a signal, wait for the end, and check that no child outlives it."""
        family = self.family() if self.popen.poll() is None else []
        self.popen.send_signal(number)
        status = self.popen.wait(60)
        self._reader.join(20)
        wait_until(lambda: not any(living(child) for child in family), 20)
        return status


@contextmanager
def serving(cwd: Path, data_dir: Path, python: str | Path = sys.executable, **settings: str) -> Iterator[Serve]:
    serve = Serve(cwd, data_dir, python, **settings)
    try:
        yield serve
    finally:
        serve.end(signal.SIGKILL)


def living(child: psutil.Process) -> bool:
    try:
        return bool(child.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def wait_until(condition: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it took too long"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for the tests that do not mind what an earlier one left."""
    return tmp_path_factory.mktemp("home of a user") / "my data"


@pytest.mark.parametrize("auth", ["keys", "open"])
def test_the_printed_calls_hold_a_conversation_and_sigterm_leaves_no_child(
    tmp_path: Path, data_dir: Path, auth: str
) -> None:
    if not (shutil.which("curl") and shutil.which("bash")):
        pytest.skip("curl and bash are needed to paste the calls")
    with serving(tmp_path, data_dir, AUTH=auth) as serve:
        serve.ready()
        wait_until(lambda: serve.output.count("curl") == 3 and serve.output.endswith("\n\n"), 10)
        calls = serve.output[serve.output.index("SESSION=") :]
        pasted = subprocess.run(["bash", "-eu"], input=calls, capture_output=True, text=True, timeout=60, check=True)
        sent, listed = map(json.loads, pasted.stdout.split("\n")[:2])
        assert sent["content"] == "Hello"
        assert [item["type"] for item in listed["items"]] == ["human", "ai"]
        assert {child.name() for child in serve.family()} >= {"postgres", "valkey-server"}
        assert serve.end() == 0


def test_the_key_and_the_messages_are_there_after_a_kill_of_the_parent(tmp_path: Path, data_dir: Path) -> None:
    with serving(tmp_path, data_dir) as first:
        session = first.ready().post("CreateSession", agent={"id": "fake_echo_agent"})["id"]
        first.post("SendMessage", session_id=session, content="kept")
        key = (data_dir / "admin.key").read_text()
        first.popen.kill()
        first.popen.wait()
        with serving(tmp_path, data_dir) as second:  # at once, while the orphans are still ending
            items = second.ready().post("ListMessages", session_id=session)["items"]
            assert [item["content"] for item in items] == ["kept", "kept"]
            assert (data_dir / "admin.key").read_text() == key
            assert second.end(signal.SIGINT) == 0


def test_it_starts_after_everything_was_killed(tmp_path: Path, data_dir: Path) -> None:
    with serving(tmp_path, data_dir) as first:
        victims = [*first.ready().family(), psutil.Process(first.popen.pid)]
        for victim in victims:
            with suppress(psutil.NoSuchProcess):  # a child may end with its parent
                victim.kill()
        first.popen.wait()
        with serving(tmp_path, data_dir) as second:
            assert second.ready().say("again") == "again"
            assert second.end() == 0


def test_what_dies_is_started_again(tmp_path: Path, data_dir: Path) -> None:
    with serving(tmp_path, data_dir) as serve:
        serve.ready()
        for victim in psutil.Process(serve.popen.pid).children():
            victim.kill()
        wait_until(lambda: answers(serve), 30)
        assert "PostgreSQL ended" in serve.output
        assert "Valkey ended" in serve.output
        assert re.search(r"Worker \d+ ended", serve.output)
        assert serve.end() == 0


def test_servers_of_ones_own_are_used_and_none_is_started(tmp_path: Path) -> None:
    postgres, valkey = Postgres(tmp_path / "theirs", fast=True), Valkey(tmp_path / "theirs")
    postgres.start()
    valkey.start()
    try:
        with serving(
            tmp_path, tmp_path / "ours", DATABASE_URL=postgres.url, REDIS_URL=valkey.url, WORKERS="2"
        ) as serve:
            assert serve.ready().say("hello") == "hello"
            assert [child.name() for child in serve.family() if "python" not in child.name()] == []
            assert len(serve.family()) == 2
            assert serve.end() == 0
    finally:
        postgres.stop()
        valkey.stop()


def test_a_worker_that_starts_again_waits_for_a_database_that_is_away(tmp_path: Path) -> None:
    postgres, valkey = Postgres(tmp_path / "theirs", fast=True), Valkey(tmp_path / "theirs")
    postgres.start()
    valkey.start()
    try:
        with serving(tmp_path, tmp_path / "ours", DATABASE_URL=postgres.url, REDIS_URL=valkey.url) as serve:
            first = serve.ready().worker().pid
            postgres.stop()
            os.kill(first, signal.SIGKILL)
            wait_until(lambda: status(f"{serve.url}/readyz") == 503, 30)
            assert serve.worker().pid != first
            postgres.start()
            wait_until(lambda: answers(serve), 30)
            assert len(re.findall(r"Worker \d+ ended", serve.output)) == 1
            assert "Traceback" not in serve.output
            assert serve.end() == 0
    finally:
        postgres.stop()
        valkey.stop()


def status(url: str) -> int:
    try:
        with urllib.request.urlopen(url, timeout=5) as response:  # noqa: S310 - http
            return int(response.status)
    except urllib.error.HTTPError as error:
        with error:
            return error.code
    except OSError:
        return 0


def answers(serve: Serve) -> bool:
    try:
        return bool(serve.say("hello") == "hello")
    except OSError:
        return False


def test_two_run_side_by_side_and_a_third_is_told_what_to_change(tmp_path: Path, data_dir: Path) -> None:
    with serving(tmp_path, data_dir) as one, serving(tmp_path, tmp_path / "second") as two:
        assert one.ready().say("one") == "one"
        assert two.ready().say("two") == "two"
        with serving(tmp_path, data_dir) as same_folder:
            assert same_folder.end_by_itself() == (2, f"DATA_DIR {data_dir} is in use by another server")
        port = one.url.rpartition(":")[2]
        with serving(tmp_path, tmp_path / "third", PORT=port) as same_port:
            assert same_port.end_by_itself() == (2, f"PORT {port} is taken on 127.0.0.1")
        assert (one.end(), two.end()) == (0, 0)


def test_a_wrong_setting_is_named_without_a_traceback(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for settings, sentence in (
        ({"DATA_DIR": str(tmp_path / "file" / "data")}, f"DATA_DIR {tmp_path / 'file' / 'data'} cannot be written"),
        ({"DATABASE_URL": "postgresql://a:b@127.0.0.1:1/x"}, "The database of DATABASE_URL cannot be used"),
        (
            {"DATABASE_URL": "postgresql://a@b/x", "DATABASE_DIRECT_URL": "postgresql://a:b@127.0.0.1:1/x"},
            "The database of DATABASE_DIRECT_URL cannot be used",
        ),
        ({"HOST": "no-such-host.invalid"}, "HOST no-such-host.invalid cannot be listened on"),
        ({"PORT": "many"}, "PORT"),
        (
            {"MINIO_ENDPOINT": "127.0.0.1:1", "MINIO_ACCESS_KEY": "key", "MINIO_SECRET_KEY": "secret"},
            "MINIO_ENDPOINT",
        ),
    ):
        with serving(tmp_path, tmp_path / "data", **settings) as serve:
            assert serve.end_by_itself() == (2, sentence)


def test_an_application_that_cannot_start_ends_with_its_own_words(tmp_path: Path, data_dir: Path) -> None:
    (tmp_path / "uvloop.py").write_text("raise ImportError('broken on purpose')")
    with serving(tmp_path, data_dir, PYTHONPATH=f"{tmp_path}:{ROOT}") as serve:
        assert serve.popen.wait(90) == 1
        wait_until(lambda: "ended 5 times before it was ready" in serve.output, 10)
        assert serve.output.rstrip().endswith("broken on purpose")


def test_an_answer_in_the_making_is_finished_before_the_end_which_is_announced(tmp_path: Path, data_dir: Path) -> None:
    (tmp_path / "agents").mkdir()
    (tmp_path / "agents" / "slow.py").write_text(SLOW_AGENT)
    with serving(tmp_path, data_dir, AGENTS_DIR=str(tmp_path / "agents")) as serve:
        serve.ready()
        said: list[Any] = []
        asker = threading.Thread(target=lambda: said.append(serve.say("4", "slow")))
        asker.start()
        wait_until(lambda: "asleep for 4\n" in serve.output, 20)  # what agents print is seen at once
        assert serve.end() == 0
        asker.join(20)
        assert said == ["at last"]
        assert "Ctrl-C again cuts them off." in serve.output


def test_a_second_ctrl_c_does_not_wait_for_answers(tmp_path: Path, data_dir: Path) -> None:
    (tmp_path / "agents").mkdir()
    (tmp_path / "agents" / "slow.py").write_text(SLOW_AGENT)
    with serving(tmp_path, data_dir, AGENTS_DIR=str(tmp_path / "agents")) as serve:
        session = serve.ready().post("CreateSession", agent={"id": "slow"})["id"]
        asker = threading.Thread(target=swallow, args=(serve, session))
        asker.start()
        wait_until(lambda: "asleep for 60\n" in serve.output, 20)
        begin = time.monotonic()
        serve.popen.send_signal(signal.SIGINT)
        time.sleep(1)
        assert serve.popen.poll() is None
        assert serve.end(signal.SIGINT) == 0
        assert time.monotonic() - begin < 15  # an unhurried end waits 20 s for connections
        asker.join(20)


def swallow(serve: Serve, session: str) -> None:
    try:
        serve.post("SendMessage", session_id=session, content="60")
    except OSError:
        return


def test_help_and_version_need_no_setting(tmp_path: Path) -> None:
    for arguments, expected in ((["--help"], "serve"), (["version"], "0.1.0")):
        told = subprocess.run(
            [sys.executable, "-m", "app.cli", *arguments], cwd=ROOT, capture_output=True, text=True, check=True
        )
        assert expected in told.stdout


def test_numbers_are_summed_over_workers_and_never_fall(tmp_path: Path, data_dir: Path) -> None:
    key = "a key for nothing but the numbers"

    def answered() -> int:
        request = urllib.request.Request(f"{serve.url}/metrics", headers={"Authorization": f"Bearer {key}"})  # noqa: S310 - http
        with urllib.request.urlopen(request, timeout=60) as response:  # noqa: S310 - http
            text = response.read().decode()
        found = re.search(r'chattable_runs_total\{agent="fake_echo_agent",status="completed"\} (\d+)', text)
        return int(found[1]) if found else 0

    with serving(tmp_path, data_dir, WORKERS="2", METRICS_KEY=key) as serve:
        serve.ready()
        for number in range(20):
            assert serve.say(str(number)) == str(number)
        assert {answered() for _ in range(10)} == {20}  # whichever worker is asked
        for child in serve.family():
            with suppress(psutil.NoSuchProcess):
                if "app.cli.server" in child.cmdline():
                    child.kill()
        wait_until(lambda: answers(serve), 30)
        assert answered() > 20
        assert serve.end() == 0
