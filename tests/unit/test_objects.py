"""Both stores of objects keep the same promises: the local directory on a real disk, S3 against a server of its protocol."""

from __future__ import annotations

import asyncio
import os
import stat
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from app.domain import new_id
from app.errors import NotFound, SettingsError, Unavailable
from app.store import objects_s3
from app.store.objects import GATHERED, LocalObjects
from app.store.objects_s3 import PART, S3Objects
from app.usecases.objects import ObjectStore
from tests.s3 import S3

SIZES = [0, 1, GATHERED, GATHERED + 1, PART - 1, PART, PART + 1, 2 * PART]


@pytest.fixture(params=["local", "s3"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[ObjectStore]:
    if request.param == "local":
        opened: ObjectStore = LocalObjects(tmp_path / "objects")
    else:
        opened = bucket(request.getfixturevalue("s3"))
    yield opened
    await opened.close()


def bucket(s3: S3, name: str | None = None) -> S3Objects:
    return S3Objects(s3.endpoint, "key", "secret", name or f"test-{uuid4().hex}")


async def pieces(content: bytes, size: int = 100_000) -> AsyncIterator[bytes]:
    for start in range(0, len(content), size):
        yield content[start : start + size]


async def broken(content: bytes) -> AsyncIterator[bytes]:
    async for piece in pieces(content):
        yield piece
    raise ConnectionError


async def whole(store: ObjectStore, key: UUID) -> bytes:
    return b"".join([piece async for piece in store.get(key)])


async def is_there(store: ObjectStore, key: UUID) -> bool:
    try:
        await whole(store, key)
    except NotFound:
        return False
    return True


@pytest.mark.parametrize("size", SIZES)
async def test_what_was_put_is_got(store: ObjectStore, size: int) -> None:
    content, key = os.urandom(size), new_id()
    assert await store.put(key, pieces(content)) == size
    assert await whole(store, key) == content


async def test_what_is_not_there_is_not_found_and_can_be_deleted(store: ObjectStore) -> None:
    assert not await is_there(store, new_id())
    await store.delete([new_id(), new_id()])
    await store.delete([new_id()], unfinished=True)


async def test_deleting_leaves_the_others(store: ObjectStore) -> None:
    keys = [new_id() for _ in range(3)]
    for key in keys:
        await store.put(key, pieces(b"x"))
    await store.delete(keys[:2])
    assert [await is_there(store, key) for key in keys] == [False, False, True]


async def test_a_put_that_breaks_off_leaves_no_object(store: ObjectStore) -> None:
    key = new_id()
    for size in (10, 2 * PART):
        with pytest.raises(ConnectionError):
            await store.put(key, broken(bytes(size)))
        assert not await is_there(store, key)
        await store.delete([key], unfinished=True)
    await store.put(key, pieces(b"second try"))
    assert await whole(store, key) == b"second try"


async def test_a_put_that_is_cancelled_leaves_no_object(store: ObjectStore) -> None:
    async def endless() -> AsyncIterator[bytes]:
        while True:
            yield bytes(GATHERED)
            await asyncio.sleep(0)

    key = new_id()
    putting = asyncio.create_task(store.put(key, endless()))
    await asyncio.sleep(0.3)
    putting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await putting
    assert not await is_there(store, key)


async def test_reading_may_stop_anywhere(store: ObjectStore) -> None:
    key = new_id()
    await store.put(key, pieces(bytes(PART)))
    reading = store.get(key)
    assert len(await anext(reading)) > 0
    await reading.aclose()
    assert await whole(store, key) == bytes(PART)


async def test_many_at_once_do_not_disturb_each_other(store: ObjectStore) -> None:
    contents = {new_id(): os.urandom(300_000) for _ in range(20)}
    await asyncio.gather(*(store.put(key, pieces(content)) for key, content in contents.items()))
    assert await asyncio.gather(*(whole(store, key) for key in contents)) == list(contents.values())


# The local directory


async def test_files_are_their_owners_alone_and_have_opaque_names(tmp_path: Path) -> None:
    store, key = LocalObjects(tmp_path / "objects"), new_id()
    await store.put(key, pieces(b"x"))
    path = tmp_path / "objects" / key.hex[-2:] / key.hex
    assert path.read_bytes() == b"x"
    modes = [stat.S_IMODE(each.stat().st_mode) for each in (tmp_path / "objects", path.parent, path)]
    assert modes == [0o700, 0o700, 0o600]
    await store.close()


async def test_what_a_killed_process_wrote_is_removed_with_what_is_unfinished(tmp_path: Path) -> None:
    folder, key = tmp_path / "objects", new_id()
    code = (
        "import asyncio, os, signal, sys; from pathlib import Path; from uuid import UUID\n"
        "from app.store.objects import GATHERED, LocalObjects\n"
        "async def chunks():\n"
        "    for _ in range(3): yield bytes(GATHERED)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "asyncio.run(LocalObjects(Path(sys.argv[1])).put(UUID(sys.argv[2]), chunks()))\n"
    )
    killed = await asyncio.create_subprocess_exec(sys.executable, "-c", code, str(folder), str(key))
    assert await killed.wait() == -9
    store = LocalObjects(folder)
    assert [path.name for path in folder.glob("*/*")] == [f"{key.hex}.part"]
    assert not await is_there(store, key)
    await store.delete([key], unfinished=True)
    assert list(folder.glob("*/*")) == []
    await store.close()


async def test_a_folder_that_cannot_be_is_one_sentence_that_names_the_setting(tmp_path: Path) -> None:
    (tmp_path / "objects").write_text("a file")
    store = LocalObjects(tmp_path / "objects")
    with pytest.raises(SettingsError, match=r"^DATA_DIR: objects cannot be kept in .*objects \(File exists\)\.$"):
        await store.check()
    with pytest.raises(Unavailable, match=r"^The object store failed \(.*\)\.$"):
        await store.put(new_id(), pieces(b"x"))
    await store.close()


# S3


async def test_the_parts_of_an_upload_that_broke_off_are_removed(s3: S3) -> None:
    store, key = bucket(s3), new_id()
    with pytest.raises(ConnectionError):
        await store.put(key, broken(bytes(2 * PART)))
    listing = store._client._list_multipart_uploads
    assert len(listing(store._bucket, prefix=key.hex).uploads) == 1
    await store.delete([key], unfinished=True)
    assert listing(store._bucket, prefix=key.hex).uploads == []
    await store.close()


async def test_a_missing_bucket_is_made_and_one_that_goes_away_is_made_again(s3: S3) -> None:
    name, key = f"made-{uuid4().hex}", new_id()
    store = bucket(s3, name)
    await store.check()
    other = bucket(s3, name)
    await other.check()
    store._client.remove_bucket(name)
    await other.put(key, pieces(b"x"))
    assert await whole(store, key) == b"x"
    store._client.remove_object(name, key.hex)
    store._client.remove_bucket(name)
    with pytest.raises(Unavailable):
        await other.put(key, pieces(b"x"))
    await other.put(key, pieces(b"y"))
    assert await whole(store, key) == b"y"
    await store.close()
    await other.close()


async def test_wrong_keys_are_one_sentence_that_names_the_setting(s3: S3) -> None:
    await (known := bucket(s3)).check()
    s3.check_keys(True)
    try:
        store = bucket(s3)
        with pytest.raises(SettingsError, match=r"^MINIO_ACCESS_KEY: the server does not know this key\.$"):
            await store.check()
        with pytest.raises(Unavailable, match=r"^The object store is not available at the moment\.$"):
            await known.put(new_id(), pieces(b"x"))
    finally:
        s3.check_keys(False)
    await store.close()
    await known.close()


@pytest.mark.parametrize(
    ("endpoint", "name", "sentence"),
    [
        ("127.0.0.1:9", "bucket", "MINIO_ENDPOINT: 127.0.0.1:9 does not answer as S3 does (MaxRetryError)."),
        (None, "Not A Bucket", "MINIO_BUCKET: this is no name of a bucket"),
    ],
)
async def test_wrong_places_are_one_sentence_too(s3: S3, endpoint: str | None, name: str, sentence: str) -> None:
    store = S3Objects(endpoint or s3.endpoint, "key", "canary", name)
    with pytest.raises(SettingsError) as caught:
        await store.check()
    assert str(caught.value).startswith(sentence)
    assert "canary" not in str(caught.value)
    await store.close()


async def test_a_check_is_good_for_a_while(s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    store = bucket(s3)
    await store.check()
    s3.check_keys(True)
    try:
        await store.check()
        monkeypatch.setattr(objects_s3, "CHECKED_SECONDS", 0)
        with pytest.raises(SettingsError):
            await store.check()
    finally:
        s3.check_keys(False)
    await store.close()


@pytest.mark.parametrize("endpoint", ["http://host/path", "http://", "a b", "h:99999", "https://u:p@host"])
def test_an_endpoint_that_is_none_is_one_sentence(endpoint: str) -> None:
    with pytest.raises(SettingsError, match=r"^MINIO_ENDPOINT: "):
        S3Objects(endpoint, "key", "secret", "bucket")


def test_a_missing_package_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "minio", None)
    with pytest.raises(
        SettingsError, match=r"^MINIO_ENDPOINT needs the package minio: \./scripts/extras installs it\.$"
    ):
        S3Objects("127.0.0.1:9000", "key", "secret", "bucket")
