"""The embedded engines: they start, keep what they were given, survive every kind of death, and give no more rights than needed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import asyncpg
import psutil
import pytest
import redis
from sqlalchemy import make_url, text
from sqlalchemy.ext.asyncio import create_async_engine

from app.errors import SettingsError
from app.servers import postgres as postgres_module
from app.servers import process
from app.servers import valkey as valkey_module
from app.servers.postgres import Postgres, start_postgres
from app.servers.process import Identity
from app.servers.valkey import Valkey, start_valkey

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("with spaces") / "the data"


@pytest.fixture
def postgres(data_dir: Path) -> Iterator[Postgres]:
    server = start_postgres(data_dir, fast=True)
    yield server
    server.stop()


@pytest.fixture
def valkey(data_dir: Path) -> Iterator[Valkey]:
    server = start_valkey(data_dir)
    yield server
    server.stop()


async def ask(url: str, *statements: str) -> Any:
    connection = await asyncpg.connect(url)
    try:
        for statement in statements[:-1]:
            await connection.execute(statement)
        return await connection.fetchval(statements[-1])
    finally:
        await connection.close()


def kill(pid: int | None) -> None:
    assert pid
    os.kill(pid, signal.SIGKILL)


async def test_the_application_owns_its_database_and_nothing_else(postgres: Postgres) -> None:
    assert await ask(postgres.url, "CREATE TABLE mine (a int)", "DROP TABLE mine", "SHOW server_encoding") == "UTF8"
    for forbidden in (
        "CREATE ROLE x",
        "CREATE DATABASE x",
        "COPY (SELECT 1) TO PROGRAM 'id'",
        "ALTER SYSTEM SET jit = on",
    ):
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await ask(postgres.url, forbidden, "SELECT 1")
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await ask(postgres.url.replace("/chattable?", "/postgres?"), "SELECT 1")


async def test_a_wrong_password_is_refused(postgres: Postgres) -> None:
    wrong = make_url(postgres.url).set(password="wrong").render_as_string(hide_password=False)
    with pytest.raises(asyncpg.InvalidPasswordError):
        await ask(wrong, "SELECT 1")


async def test_the_administrator_may_create_databases(postgres: Postgres) -> None:
    assert await ask(postgres.admin_url, "CREATE DATABASE extra", "DROP DATABASE extra", "SELECT 1") == 1


async def test_the_address_works_with_sqlalchemy_too(postgres: Postgres) -> None:
    engine = create_async_engine(make_url(postgres.url).set(drivername="postgresql+asyncpg"))
    async with engine.connect() as db:
        assert await db.scalar(text("SELECT current_user")) == "chattable"
    await engine.dispose()


async def test_words_in_many_scripts_are_lowered_and_sorted(postgres: Postgres) -> None:
    assert await ask(postgres.url, "SELECT lower('ÄÉ')") == "äé"


async def test_data_survive_a_stop_and_a_kill(data_dir: Path) -> None:
    server = start_postgres(data_dir)  # not `fast`, which may lose the last commits
    url = server.url
    await ask(url, "CREATE TABLE kept (a int)", "INSERT INTO kept VALUES (1)", "SELECT 1")
    server.stop()
    server.start()
    assert server.url == url
    assert await ask(url, "INSERT INTO kept VALUES (2)", "SELECT count(*) FROM kept") == 2
    kill(server.pid)
    assert process.wait_until(lambda: not server.alive(), 10)
    server.start()
    assert await ask(url, "SELECT count(*) FROM kept") == 2
    server.stop()


async def test_an_orphan_is_stopped_and_its_data_are_taken_over(
    data_dir: Path, postgres: Postgres, valkey: Valkey
) -> None:
    second, third = Postgres(data_dir, fast=True), Valkey(data_dir)
    second.start()
    third.start()
    assert not postgres.alive()
    assert not valkey.alive()
    assert await ask(second.url, "SELECT 1") == 1
    second.stop()
    third.stop()


def test_a_process_that_got_the_number_of_a_dead_server_is_left_alone(data_dir: Path, postgres: Postgres) -> None:
    postgres.stop()
    stale = f"{os.getpid()}\n{data_dir / 'postgres'}\n1\n5432\n{data_dir}\n\n  1 1\nready   \n"
    (data_dir / "postgres" / "postmaster.pid").write_text(stale)
    postgres.start()
    assert postgres.alive()
    assert postgres.pid != os.getpid()


def test_a_cluster_half_made_is_made_anew(tmp_path: Path) -> None:
    (tmp_path / "postgres.new" / "base").mkdir(parents=True)
    (tmp_path / "postgres.new" / "PG_VERSION").write_text("18\n")
    server = start_postgres(tmp_path, fast=True)
    assert server.alive()
    server.stop()
    assert not (tmp_path / "postgres.new").exists()


async def test_a_long_path_and_a_comma_do_no_harm(tmp_path: Path) -> None:
    data_dir = tmp_path / ("long" * 20) / "a, 'b' & \"c\" 100%"
    server, cache = start_postgres(data_dir, fast=True), start_valkey(data_dir)
    assert await ask(server.url, "SELECT 1") == 1
    with redis.Redis.from_url(cache.url) as client:
        assert client.ping()
    sockets = make_url(server.url).query["host"]
    server.stop()
    cache.stop()
    assert isinstance(sockets, str)
    assert not Path(sockets).exists()


def test_the_cluster_of_another_version_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "postgres").mkdir(mode=0o700)
    (tmp_path / "postgres" / "PG_VERSION").write_text("9\n")
    with pytest.raises(
        SettingsError,
        match=r"was made by PostgreSQL 9, and here is only .*: install PostgreSQL 9; or move the data.*db backup.*db restore",
    ) as caught:
        start_postgres(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_server_that_cannot_start_says_why_and_where_to_look(data_dir: Path, postgres: Postgres) -> None:
    postgres.stop()
    settings = data_dir / "postgres" / "postgresql.conf"
    good = settings.read_text()
    settings.write_text(good + "\nno_such_setting = 1\n")
    with pytest.raises(SettingsError, match=r"PostgreSQL did not start \(.*\): see .*postgres\.log"):
        postgres.start()
    settings.write_text(good)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a child of its parent's death")
def test_engines_die_with_their_parent(data_dir: Path) -> None:
    code = (
        "import time; from pathlib import Path\n"
        "from app.servers.postgres import start_postgres; from app.servers.valkey import start_valkey\n"
        f"d = Path({str(data_dir)!r}); print(start_postgres(d, fast=True).pid, start_valkey(d).pid, flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, cwd=ROOT) as parent:
        assert parent.stdout is not None
        pids = [int(pid) for pid in parent.stdout.readline().split()]
        assert len(pids) == 2
        parent.kill()
    assert process.wait_until(lambda: not any(running(pid) for pid in pids), 20)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has to become someone else")
async def test_root_runs_postgres_as_nobody_where_namespaces_are_forbidden(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tmp_path.chmod(0o700)
    (tmp_path / "data").mkdir(mode=0o700)
    monkeypatch.setattr(postgres_module, "_identities", lambda: (Identity.NOBODY,))
    server = start_postgres(tmp_path / "data", fast=True)
    assert psutil.Process(server.pid).uids().effective != 0
    assert await ask(server.url, "CREATE TABLE kept (a int)", "SELECT 1") == 1
    server.stop()
    monkeypatch.undo()
    server.start()
    assert await ask(server.url, "SELECT count(*) FROM kept") == 0
    server.stop()


def test_valkey_keeps_what_it_was_given_and_asks_for_its_password(data_dir: Path) -> None:
    server = start_valkey(data_dir)
    with redis.Redis.from_url(server.url) as client:
        client.set("kept", "1")
        assert client.config_get("maxmemory-policy")["maxmemory-policy"] == "volatile-lru"
    path = server.url.partition("@")[2]
    with redis.Redis.from_url(f"unix://{path}") as stranger, pytest.raises(redis.AuthenticationError):
        stranger.get("kept")
    server.stop()
    server.start()
    with redis.Redis.from_url(server.url) as client:
        assert client.get("kept") == b"1"
    kill(server.pid)
    assert process.wait_until(lambda: not server.alive(), 10)
    server.start()
    with redis.Redis.from_url(server.url) as client:
        assert client.get("kept") == b"1"
    server.stop()


def test_valkey_starts_empty_when_its_files_are_damaged(tmp_path: Path) -> None:
    server = start_valkey(tmp_path)
    server.stop()
    for file in (tmp_path / "valkey").rglob("*.manifest"):
        file.write_text("no manifest at all\n")
    server.start()
    with redis.Redis.from_url(server.url) as client:
        assert client.dbsize() == 0
    server.stop()
    assert (tmp_path / "valkey.damaged").is_dir()


def test_a_valkey_that_cannot_run_keeps_its_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "valkey").mkdir()
    (tmp_path / "valkey" / "kept").touch()
    monkeypatch.setattr(valkey_module, "_binary", lambda: Path("/bin/false"))
    with pytest.raises(SettingsError, match=r"Valkey did not start \(it ended with status 1 .*set REDIS_URL"):
        start_valkey(tmp_path)
    assert (tmp_path / "valkey" / "kept").exists()


def running(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
