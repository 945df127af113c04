"""PgBouncer in transaction mode in front of the database."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import pytest
from sqlalchemy.engine import URL, make_url

from app.cli.keys import first_administrator
from app.cli.serve import checking
from app.errors import SettingsError
from app.servers import process
from app.servers.process import Child, Identity
from app.store.database import connect, connector
from tests.engines import Engines
from tests.house import ADMIN_KEY, open_house, send, session

SERVERS = 3
"""How many connections the pooler opens: fewer than callers at once, so that each gets another again and again."""


@pytest.fixture
async def pooled_url(database_url: str, tmp_path: Path) -> AsyncIterator[str]:
    """The test's database through PgBouncer."""
    program = shutil.which("pgbouncer", path=f"{os.environ['PATH']}:/usr/sbin")
    if program is None:
        pytest.skip("pgbouncer is not installed")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    config = tmp_path / "pgbouncer.ini"
    config.write_text(
        f"[databases]\npooled = {_target(make_url(database_url))}\n[pgbouncer]\nlisten_addr = 127.0.0.1\n"
        f"listen_port = {port}\nunix_socket_dir =\nauth_type = any\npool_mode = transaction\n"
        f"default_pool_size = {SERVERS}\nmax_client_conn = 200\n"
    )
    identity = Identity.NOBODY if os.geteuid() == 0 else Identity.SAME  # it refuses to be root
    child = process.start("PgBouncer", [program, config], log=tmp_path / "pgbouncer.log", identity=identity)
    url = f"postgresql://postgres@127.0.0.1:{port}/pooled"
    try:
        await _until_it_answers(url, child)
        yield url
    finally:
        child.stop()


def _target(url: URL) -> str:
    host = url.host or url.query["host"]
    port = url.port or url.query.get("port", 5432)
    return f"host={host} port={port} dbname={url.database} user={url.username} password={url.password}"


async def _until_it_answers(url: str, child: Child) -> None:
    async with asyncio.timeout(10):
        while True:
            try:
                connection = await asyncpg.connect(url, statement_cache_size=0)
            except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
                assert child.alive(), child.output()
                await asyncio.sleep(0.1)
            else:
                await connection.close()
                return


async def test_the_platform_works_through_a_transaction_pooler(
    running: Engines, database_url: str, pooled_url: str
) -> None:
    settings = {"database_direct_url": database_url, "redis_url": running.redis_url}
    async with open_house(pooled_url, **settings) as one, open_house(pooled_url, **settings) as two:
        ids = [await session(one.admin) for _ in range(12)]
        for number in range(4):
            sent = (send((one, two)[number % 2].admin, id, f"repeat: {number}") for id in ids)
            listed = (two.admin.post("/ListMessages", json={"session_id": id}) for id in ids)
            answers = await asyncio.gather(*sent, *listed)
            assert [answer.status_code for answer in answers] == [200] * 24, [answer.text for answer in answers]
        last = (await two.admin.post("/ListMessages", json={"session_id": ids[0]})).json()["items"]
        assert [item["content"] for item in last[1::2]] == ["0", "1", "2", "3"]
        going = asyncio.ensure_future(send(one.admin, ids[0], "sleep: 30"))
        run_id = await one.until_live()
        assert (await two.admin.post("/CancelRun", json={"run_id": run_id})).json()["status"] == "cancelled"
        await going


async def test_a_transaction_through_a_pooler_is_bounded_and_leaves_no_setting(pooled_url: str) -> None:
    show = "SHOW idle_in_transaction_session_timeout"
    engine = connect(pooled_url, pooled=True)
    connection = await connector(pooled_url, pooled=True)()
    try:
        async with engine.connect() as db:
            assert (await db.exec_driver_sql(show)).scalar() == "5s"
        async with connection.transaction():
            assert await connection.fetchval(show) == "5s"
        assert await connection.fetchval(show) == "0"
    finally:
        await connection.close()
        await engine.dispose()


async def test_a_start_without_the_direct_address_names_the_setting_that_is_missing(
    pooled_url: str, tmp_path: Path
) -> None:
    with (
        pytest.raises(SettingsError, match=r"DATABASE_URL cannot .* set DATABASE_DIRECT_URL"),
        checking("DATABASE_URL"),
    ):
        await asyncio.to_thread(first_administrator, pooled_url, tmp_path, ADMIN_KEY)
