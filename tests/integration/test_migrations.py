"""The migrated schema is the declared one, and migrations stand being run by several at once."""

from __future__ import annotations

import asyncio
import re
import sys
from pathlib import Path
from uuid import uuid4

import asyncpg
from pgqueuer.adapters.drivers.asyncpg import AsyncpgDriver
from pgqueuer.adapters.persistence.qb import QueryBuilderEnvironment
from pgqueuer.adapters.persistence.queries import Queries
from sqlalchemy.ext.asyncio import create_async_engine

from app.domain import now
from app.store import migrations, partitions, queue
from app.store.database import asyncpg_url, connect
from app.store.tables import metadata
from app.usecases import upkeep
from tests.conftest import execute, on
from tests.engines import Engines

CATALOG = {
    "columns": """SELECT table_name, column_name, data_type, udt_name, is_nullable, column_default, numeric_precision, numeric_scale
        FROM information_schema.columns WHERE table_schema = 'public' AND table_name <> 'alembic_version'
        AND table_name NOT LIKE 'pgqueuer%'""",
    "indexes": """SELECT indexdef FROM pg_indexes
        WHERE schemaname = 'public' AND tablename <> 'alembic_version' AND tablename NOT LIKE 'pgqueuer%'""",
    "constraints": """SELECT conrelid::regclass::text, conname, pg_get_constraintdef(oid) FROM pg_constraint
        WHERE connamespace = 'public'::regnamespace AND contype <> 'n' AND conrelid::regclass::text <> 'alembic_version'
        AND conrelid::regclass::text NOT LIKE 'pgqueuer%'""",
    "partitioned": "SELECT partrelid::regclass::text, pg_get_partkeydef(partrelid) FROM pg_partitioned_table",
}


async def catalog(url: str) -> dict[str, set[tuple[object, ...]]]:
    connection = await asyncpg.connect(url)
    try:
        return {name: {tuple(row) for row in await connection.fetch(query)} for name, query in CATALOG.items()}
    finally:
        await connection.close()


async def fresh(running: Engines) -> str:
    name = f"test_{uuid4().hex[:12]}"
    await execute(running.database_url, f"CREATE DATABASE {name}")
    return on(running.database_url, name)


async def test_the_migrated_catalog_equals_the_declared_one(running: Engines, database_url: str) -> None:
    declared = await fresh(running)
    engine = create_async_engine(asyncpg_url(declared))
    async with engine.begin() as db:
        await db.run_sync(metadata.create_all)
    await engine.dispose()
    migrated, wanted = await catalog(database_url), await catalog(declared)
    for kind, rows in wanted.items():
        assert migrated[kind] == rows, kind
    assert len(wanted["constraints"]) > 20


async def test_the_tables_of_the_queue_are_those_that_its_locked_version_wants(database_url: str) -> None:
    connection = await asyncpg.connect(database_url)
    try:
        names = queue.load()
        plan = await Queries(AsyncpgDriver(connection), QueryBuilderEnvironment(names)).plan_upgrade()
        assert (plan.statements, plan.notes) == ((), ())
    finally:
        await connection.close()


async def test_a_changed_predicate_or_check_would_be_noticed(database_url: str) -> None:
    before = await catalog(database_url)
    await execute(database_url, "DROP INDEX uq_runs_active; CREATE UNIQUE INDEX uq_runs_active ON runs (session_id)")
    await execute(database_url, "ALTER TABLE users DROP CONSTRAINT ck_users_role")
    after = await catalog(database_url)
    assert before["indexes"] != after["indexes"]
    assert before["constraints"] != after["constraints"]


async def test_two_servers_may_migrate_at_once(running: Engines) -> None:
    url = await fresh(running)
    code = "import sys; from app.store.migrations import upgrade; upgrade(sys.argv[1])"
    started = [await asyncio.create_subprocess_exec(sys.executable, "-c", code, url) for _ in range(3)]
    assert [await process.wait() for process in started] == [0, 0, 0]
    assert await migrations.current(url) == migrations.HEAD
    assert await migrations.current(await fresh(running)) is None


def test_head_is_the_newest_revision() -> None:
    folder = Path(migrations.FOLDER) / "versions"
    revisions = [re.findall(r'^revision = "(\w+)"', file.read_text(), re.MULTILINE)[0] for file in folder.glob("*.py")]
    assert max(revisions) == migrations.HEAD


async def test_partitions_are_made_ahead_and_making_them_again_changes_nothing(database_url: str) -> None:
    engine = connect(database_url)
    for _ in range(2):
        async with engine.begin() as db:
            await partitions.ensure(db, now())
    async with engine.begin() as db:
        await partitions.ensure(db, now().replace(month=12, day=31))
        found = await db.exec_driver_sql("SELECT count(*) FROM pg_inherits WHERE inhparent = 'steps'::regclass")
        assert 3 <= found.scalar_one() <= 6
    await engine.dispose()


async def test_a_partition_is_made_while_somebody_reads_and_others_write(database_url: str) -> None:
    engine = connect(database_url)
    await upkeep.make_partitions(engine)
    newest = "SELECT max(relname) FROM pg_class WHERE relname ~ '^steps_2\\d{3}_\\d\\d$'"
    index = "SELECT count(*) FROM pg_index WHERE indisvalid AND indrelid = to_regclass($1)"
    db = await asyncpg.connect(database_url)
    name = await db.fetchval(newest)
    indexes = await db.fetchval(index, name)
    await db.execute(f"DROP TABLE {name}")
    async with engine.connect() as reader, engine.connect() as writer:
        await reader.exec_driver_sql("SELECT count(*) FROM steps")
        await writer.exec_driver_sql("DELETE FROM steps")
        async with asyncio.timeout(1):  # less than a lock is waited for
            await upkeep.make_partitions(engine)
    assert (await db.fetchval(newest), await db.fetchval(index, name)) == (name, indexes)
    assert await db.fetchval("SELECT inhparent::regclass::text FROM pg_inherits WHERE inhrelid = $1::regclass", name)
    attached = "SELECT count(*) FROM pg_inherits i JOIN pg_index x ON x.indexrelid = i.inhrelid WHERE x.indrelid = "
    assert await db.fetchval(f"{attached}to_regclass($1)", name) == indexes == 2
    await db.close()
    await engine.dispose()
