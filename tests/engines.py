"""The engines tests run on: of TEST_DATABASE_URL and TEST_REDIS_URL, else Docker's if it answers, else our own."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from app.servers.postgres import Postgres
from app.servers.valkey import Valkey

MEMORY = "/dev/shm"  # noqa: S108 - no file of a known name: the folder made in it has a random one
ROOM = 4_000_000_000
"""Bytes: several processes test at once, and each keeps up to a gigabyte of its server's log."""


@dataclass(frozen=True)
class Engines:
    """`database_url` (postgresql://) is of a role that may create databases; `redis_url` is for redis-py."""

    database_url: str
    redis_url: str


@contextmanager
def engines() -> Iterator[Engines]:
    """The engines, for as long as the block lasts. Enter it once per session of tests."""
    with ExitStack() as stack:
        given = os.environ
        database_url, redis_url = given.get("TEST_DATABASE_URL"), given.get("TEST_REDIS_URL")
        if not (database_url and redis_url):
            made = stack.enter_context(_containers() if _docker_answers() else _embedded())
            database_url, redis_url = database_url or made.database_url, redis_url or made.redis_url
        yield Engines(database_url, redis_url)


@contextmanager
def _embedded() -> Iterator[Engines]:
    with (
        tempfile.TemporaryDirectory(prefix="chattable-tests-", dir=_memory(), ignore_cleanup_errors=True) as folder,
        ExitStack() as stack,
    ):
        postgres, valkey = Postgres(Path(folder), fast=True), Valkey(Path(folder))
        stack.callback(postgres.stop)
        stack.callback(valkey.stop)
        valkey.launch()
        postgres.start()
        valkey.wait_ready()
        yield Engines(postgres.admin_url, valkey.url)


def _memory() -> str | None:
    """Where files are kept in memory, if there is much room: a database takes some disks a second to make, and memory a twentieth."""
    has_room = os.access(MEMORY, os.W_OK) and shutil.disk_usage(MEMORY).free > ROOM
    return MEMORY if has_room else None


def _docker_answers() -> bool:
    docker = shutil.which("docker")
    if docker is None:
        return False
    try:
        asked = subprocess.run(
            [docker, "version", "--format", "{{.Server.Version}}"], capture_output=True, timeout=3, check=False
        )
    except subprocess.TimeoutExpired:
        return False
    return asked.returncode == 0


@contextmanager
def _containers() -> Iterator[Engines]:
    from testcontainers.postgres import PostgresContainer
    from testcontainers.redis import RedisContainer

    with PostgresContainer("pgvector/pgvector:pg17") as postgres, RedisContainer("redis:7") as redis:
        database_url = postgres.get_connection_url(driver=None)
        redis_url = f"redis://{redis.get_container_host_ip()}:{redis.get_exposed_port(redis.port)}/0"
        yield Engines(database_url, redis_url)
