"""What was kept comes back, all of it, into an empty database; and nothing is changed when it cannot."""

from __future__ import annotations

import json
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from uuid import UUID, uuid4

import asyncpg
import pytest

from app.errors import SettingsError, Unavailable
from app.store.migrations import HEAD
from app.store.objects import LocalObjects
from app.usecases import backups
from tests.conftest import execute, on
from tests.engines import Engines
from tests.house import House, open_house, send, session

TABLES = "SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p')"


@pytest.fixture
async def empty(running: Engines) -> AsyncIterator[str]:
    """A database without a table."""
    name = f"empty_{uuid4().hex[:12]}"
    await execute(running.database_url, f"CREATE DATABASE {name}")
    yield on(running.database_url, name)
    await execute(running.database_url, f"DROP DATABASE {name} WITH (FORCE)")


async def lived_in(house: House) -> tuple[str, str]:
    """A platform with users, sessions, branches, runs of a language model, memories and a file; a session and the file."""
    ann = await house.user("ann", password="correct horse battery")
    opened = await session(ann, "simple_openai_agent", title="名前 \t\\N")
    await send(ann, opened, "My name is Ada.\n\\.")
    asked = await send(ann, opened, "What was the first thing I said?")
    await ann.post(f"/api/v1/messages/{asked.json()['message_id']}/regenerate", json={})
    await send(ann, opened, "later", mode="background")
    upload = await ann.post(
        "/v1/files", files={"file": ("a.bin", bytes(range(256)) * 999)}, data={"purpose": "user_data"}
    )
    assert upload.status_code == 200, upload.text
    await house.until_idle()
    return opened, str(upload.json()["id"])


async def everything(url: str) -> dict[str, list[str]]:
    connection = await asyncpg.connect(url)
    try:
        names = [row[0] for row in await connection.fetch(TABLES)]
        names = [name for name in names if not name.startswith("pgqueuer") and name != "replicas"]
        return {name: sorted(r[0] for r in await connection.fetch(f"SELECT t::text FROM {name} t")) for name in names}
    finally:
        await connection.close()


async def test_a_backup_of_a_platform_that_runs_comes_back_whole(
    running: Engines, database_url: str, empty: str, fake: object, tmp_path: Path
) -> None:
    given = {"redis_url": running.redis_url, "openai_base_url": fake.base_url, "openai_api_key": "k"}  # type: ignore[attr-defined]  # the fake upstream
    async with open_house(database_url, **given) as house:
        opened, file = await lived_in(house)
        assert await backups.check(database_url) == {}
        made = await backups.take(database_url, house.platform.objects, tmp_path / "kept")
        before = await everything(database_url)
    assert made.rows > 30
    assert (tmp_path / "kept").stat().st_mode & 0o077 == 0
    objects = LocalObjects(tmp_path / "objects")
    try:
        assert await backups.restore(empty, objects, tmp_path / "kept") == made
    finally:
        await objects.close()
    after = await everything(empty)
    assert {name: rows for name, rows in after.items() if rows} == {name: rows for name, rows in before.items() if rows}
    assert await backups.check(empty) == {}

    (tmp_path / "data").mkdir()
    shutil.move(tmp_path / "objects", tmp_path / "data" / "objects")
    async with open_house(empty, **given, data_dir=str(tmp_path / "data")) as house:
        login = await house.admin.post(
            "/api/v1/auth/token", data={"username": "ann", "password": "correct horse battery"}
        )
        ann = await house.client(login.json()["access_token"])
        assert (await ann.get(f"/v1/files/{file}/content")).content == bytes(range(256)) * 999
        messages = (await ann.post("/ListMessages", json={"session_id": opened})).json()["items"]
        assert messages[0]["content"] == "My name is Ada.\n\\."
        assert (await send(ann, opened, "and now?")).status_code == 200
        assert (await house.admin.get("/api/v1/users")).status_code == 200  # the key of before


@pytest.fixture
async def kept(house: House, database_url: str, tmp_path: Path) -> Path:
    """A backup of a small platform."""
    await send(house.admin, await session(house.admin, "fake_echo_agent"), "hello")
    await house.admin.post("/v1/files", files={"file": ("a.txt", b"words")}, data={"purpose": "user_data"})
    await house.until_idle()
    await backups.take(database_url, house.platform.objects, tmp_path / "kept")
    return tmp_path / "kept"


async def test_a_damaged_object_is_left_out_by_its_id_and_all_else_comes_back(
    house: House, database_url: str, empty: str, tmp_path: Path
) -> None:
    for name in ("whole", "damaged"):
        sent = {"files": {"file": (name, name.encode())}, "data": {"purpose": "user_data"}}
        id = UUID((await house.admin.post("/v1/files", **sent)).json()["id"].removeprefix("file-"))
    await house.platform.objects.delete([id])
    await house.platform.objects.put(id, pieces(b"damag"))
    made = await backups.take(database_url, house.platform.objects, tmp_path / "kept")
    assert (made.lost, made.lost_files, len(made.files)) == ([id], 1, 1)
    assert not (tmp_path / "kept" / "files" / id.hex).exists()
    assert backups.check_files(tmp_path / "kept") == made
    objects = LocalObjects(tmp_path / "objects")
    try:
        assert await backups.restore(empty, objects, tmp_path / "kept") == made
    finally:
        await objects.close()


class Away(LocalObjects):
    """An object store that goes away in the middle of an object."""

    async def put(self, key: UUID, chunks: AsyncIterator[bytes]) -> int:
        async def broken() -> AsyncIterator[bytes]:
            yield b"w"
            raise Unavailable("The object store is not available at the moment.")

        return await super().put(key, broken())


@pytest.mark.parametrize("step", ["the files", "the rows"])
async def test_a_restore_that_failed_leaves_no_rows_and_works_when_it_is_repeated(
    kept: Path, empty: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    store: LocalObjects = Away(tmp_path / "objects") if step == "the files" else LocalObjects(tmp_path / "objects")

    async def killed(*_: object) -> None:
        raise Unavailable("Killed.")

    with monkeypatch.context() as patched:
        if step == "the rows":
            patched.setattr(backups.backup, "read", killed)
        with pytest.raises(Unavailable):
            await backups.restore(empty, store, kept)
    assert {name for name, rows in (await everything(empty)).items() if rows} == {"alembic_version", *backups.MIGRATED}
    await store.close()
    objects = LocalObjects(tmp_path / "objects")
    try:
        made = await backups.restore(empty, objects, kept)
        assert [piece async for piece in objects.get(made.files[0].id)] == [b"words"]
    finally:
        await objects.close()
    assert await backups.check(empty) == {}


async def pieces(body: bytes) -> AsyncIterator[bytes]:
    yield body


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda kept: (kept / "messages.copy.gz").write_bytes(b"x"), r"messages\.copy\.gz is damaged"),
        (lambda kept: (kept / "messages.copy.gz").unlink(), r"messages\.copy\.gz is missing"),
        (lambda kept: shutil.copy(kept / "users.copy.gz", kept / "messages.copy.gz"), "messages.*is damaged"),
        (lambda kept: next((kept / "files").iterdir()).write_bytes(b"w0rds"), "files/.* is damaged"),
        (lambda kept: next((kept / "files").iterdir()).unlink(), "files/.* is damaged"),
        (lambda kept: (kept / "manifest.json").unlink(), "is no backup"),
        (lambda kept: (kept / "manifest.json").write_text("{"), r"manifest\.json is damaged"),
        (lambda kept: rewrite(kept, format=2), "has the format 2"),
        (lambda kept: rewrite(kept, revision="9999"), f"is of schema 9999, and this version knows {HEAD}"),
    ],
)
async def test_what_is_wrong_with_a_backup_is_found_before_anything_is_changed(
    kept: Path, empty: str, tmp_path: Path, damage: object, sentence: str
) -> None:
    damage(kept)  # type: ignore[operator]  # one of the above
    objects = LocalObjects(tmp_path / "objects")
    try:
        with pytest.raises(SettingsError, match=sentence):
            await backups.restore(empty, objects, kept)
    finally:
        await objects.close()
    assert await everything(empty) == {}


def rewrite(kept: Path, **changes: object) -> None:
    manifest = json.loads((kept / "manifest.json").read_text())
    (kept / "manifest.json").write_text(json.dumps(manifest | changes))


async def test_a_database_that_is_not_empty_is_left_alone(kept: Path, database_url: str, tmp_path: Path) -> None:
    before = await everything(database_url)
    objects = LocalObjects(tmp_path / "objects")
    try:
        with pytest.raises(SettingsError, match="not empty: restore into a new one, with another DATABASE_URL"):
            await backups.restore(database_url, objects, kept)
    finally:
        await objects.close()
    assert await everything(database_url) == before


async def test_a_folder_that_is_there_or_cannot_be_made_is_one_sentence(
    house: House, database_url: str, kept: Path
) -> None:
    with pytest.raises(SettingsError, match="is there already"):
        await backups.take(database_url, None, kept)
    with pytest.raises(SettingsError, match=r"cannot be written to \(Not a directory\)"):
        await backups.take(database_url, None, kept / "manifest.json" / "x")


async def test_what_does_not_hold_is_told_with_how_often(house: House, database_url: str) -> None:
    opened = await session(house.admin, "fake_echo_agent")
    await send(house.admin, opened, "hello")
    await house.until_idle()
    assert await backups.check(database_url) == {}
    await execute(database_url, "UPDATE sessions SET next_seq = 1, leaf_id = gen_random_uuid()")
    assert await backups.check(database_url) == {
        "Every message is numbered below its session's counter.": 2,
        "Every active branch ends with a message of its session.": 1,
    }
