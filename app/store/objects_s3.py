"""Objects in a bucket of S3 or MinIO. The package `minio` blocks, so its calls are made in threads, each with deadlines."""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from typing import TYPE_CHECKING, ParamSpec, TypeVar
from uuid import UUID

from app.errors import NotFound, SettingsError, Unavailable
from app.store.objects import PIECE, Threads, gathered

if TYPE_CHECKING:
    from minio import Minio

P = ParamSpec("P")
T = TypeVar("T")
log = logging.getLogger(__name__)

PART = 5 * 1024 * 1024
"""The least that S3 takes as a part of a multipart upload, in bytes; 10,000 of them are the most: 52 GB."""
THREADS = 16
CONNECT_SECONDS = 5.0
READ_SECONDS = 30.0
"""How long the server may be silent."""
CHECKED_SECONDS = 5.0
"""For how long the answer of a check is good: anybody may ask whether the server is ready."""
_ENDPOINT = re.compile(r"(?:(https?)://)?([A-Za-z0-9.-]+(?::[0-9]{1,5})?)/?")
SETTING_AT_FAULT = {
    "InvalidAccessKeyId": "MINIO_ACCESS_KEY: the server does not know this key.",
    "SignatureDoesNotMatch": "MINIO_SECRET_KEY: it does not fit MINIO_ACCESS_KEY.",
    "AccessDenied": "MINIO_ACCESS_KEY: this key may not use the bucket of MINIO_BUCKET.",
    "BucketAlreadyExists": "MINIO_BUCKET: it belongs to somebody else.",
}
"""What the errors of S3 say about the settings (Amazon S3 API Reference, "Error responses")."""
_MADE_MEANWHILE = "BucketAlreadyOwnedByYou"


class S3Objects:
    """Objects in the bucket, which is made when it is missing. Its uploads hold one part each in memory."""

    def __init__(self, endpoint: str, access_key: str, secret_key: str, bucket: str) -> None:
        self._client = _connect(endpoint, access_key, secret_key)
        self._endpoint = endpoint
        self._bucket = bucket
        self._threads = Threads(THREADS)
        self._is_made = False
        self._checking: asyncio.Future[str | None] | None = None
        self._checked: tuple[float, str | None] = (float("-inf"), None)

    async def put(self, key: UUID, chunks: AsyncIterator[bytes]) -> int:
        """One request for what is small, else a multipart upload, part after part."""
        await self._have_bucket()
        size, last, tags = 0, b"", list[str]()
        upload: str | None = None
        async for piece in gathered(chunks, PART):
            size += len(piece)
            if len(piece) == PART:
                if upload is None:
                    upload = await self._call(self._client._create_multipart_upload, self._bucket, key.hex, {})
                tags.append(await self._part(key, upload, len(tags) + 1, piece))
            else:
                last = piece
            del piece  # it is not to be kept while the next one is gathered
        if upload is None:
            await self._call(self._client._put_object, self._bucket, key.hex, last)
            return size
        if last:
            tags.append(await self._part(key, upload, len(tags) + 1, last))
        await self._complete(key, upload, tags)
        return size

    async def _part(self, key: UUID, upload: str, number: int, piece: bytes) -> str:
        return await self._call(self._client._upload_part, self._bucket, key.hex, piece, None, upload, number)

    async def _complete(self, key: UUID, upload: str, tags: Sequence[str]) -> None:
        from minio.datatypes import Part

        parts = [Part(number, tag) for number, tag in enumerate(tags, 1)]
        await self._call(self._client._complete_multipart_upload, self._bucket, key.hex, upload, parts)

    async def get(self, key: UUID) -> AsyncGenerator[bytes, None]:
        """Read it piece by piece, as fast as it is taken."""
        await self._have_bucket()
        answer = await self._call(self._client.get_object, self._bucket, key.hex)
        try:
            while piece := await self._call(answer.read, PIECE):
                yield piece
        finally:
            answer.close()
            answer.release_conn()

    async def delete(self, keys: Sequence[UUID], *, unfinished: bool = False) -> None:
        """Remove them; with `unfinished` also end their multipart uploads, whose parts are paid for though nobody sees them."""
        await self._have_bucket()
        for key in keys:
            if unfinished:  # each by its whole name: MinIO lists the uploads of no other prefix
                found = await self._call(self._client._list_multipart_uploads, self._bucket, prefix=key.hex)
                for upload in found.uploads:
                    await self._call(self._client._abort_multipart_upload, self._bucket, key.hex, str(upload.upload_id))
            await self._call(self._client.remove_object, self._bucket, key.hex)

    async def check(self) -> None:
        """Ask for the bucket, and make it when it is missing. All who ask at once share an answer, for which nobody need wait."""
        checked, sentence = self._checked
        if time.monotonic() - checked > CHECKED_SECONDS:
            checking = self._checking = self._checking or self._threads.begin(self._fault)
            sentence = await asyncio.shield(checking)
            self._checked, self._checking = (time.monotonic(), sentence), None
        if sentence:
            raise SettingsError(sentence)

    async def close(self) -> None:
        """End the threads, and the connections."""
        await asyncio.to_thread(self._threads.close)
        self._client._http.clear()

    def _fault(self) -> str | None:
        from minio.error import MinioException, S3Error
        from urllib3.exceptions import HTTPError

        try:
            self._make_bucket()
        except S3Error as error:
            told = f"MINIO_ENDPOINT: {self._endpoint} refuses the bucket of MINIO_BUCKET ({error.code})."
            return SETTING_AT_FAULT.get(str(error.code), told)
        except ValueError:
            return "MINIO_BUCKET: this is no name of a bucket: use 3 to 63 small letters, digits and hyphens."
        except (HTTPError, MinioException, OSError) as error:
            return f"MINIO_ENDPOINT: {self._endpoint} does not answer as S3 does ({type(error).__name__})."
        return None

    def _make_bucket(self) -> None:
        from minio.error import S3Error

        if not self._client.bucket_exists(self._bucket):
            try:
                self._client.make_bucket(self._bucket)
            except S3Error as error:
                if error.code != _MADE_MEANWHILE:
                    raise

    async def _have_bucket(self) -> None:
        if not self._is_made:
            await self._call(self._make_bucket)
            self._is_made = True

    async def _call(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        from minio.error import MinioException, S3Error
        from urllib3.exceptions import HTTPError

        try:
            return await self._threads.call(function, *args, **kwargs)
        except (HTTPError, MinioException, OSError, ValueError) as error:
            code = error.code if isinstance(error, S3Error) else None
            if code == "NoSuchKey":
                raise NotFound from None
            self._is_made = self._is_made and code != "NoSuchBucket"
            log.warning("the object store failed: %s", code or type(error).__name__)
            raise Unavailable("The object store is not available at the moment.", retry_after=10) from error


def _connect(endpoint: str, access_key: str, secret_key: str) -> Minio:
    """A client with our deadlines, that asks again where nothing was done; it connects at its first call."""
    try:
        import urllib3
        from minio import Minio
    except ImportError:
        raise SettingsError("MINIO_ENDPOINT needs the package minio: ./scripts/extras installs it.") from None
    retries = urllib3.Retry(total=2, redirect=0, backoff_factor=0.3, status_forcelist=[500, 502, 503, 504])
    timeout = urllib3.Timeout(connect=CONNECT_SECONDS, read=READ_SECONDS)
    pool = urllib3.PoolManager(timeout=timeout, maxsize=THREADS, retries=retries, cert_reqs="CERT_REQUIRED")
    wrong = SettingsError("MINIO_ENDPOINT: use HOST, HOST:PORT, or these as a URL of http or https.")
    parsed = _ENDPOINT.fullmatch(endpoint)
    if parsed is None:
        raise wrong
    try:
        return Minio(parsed[2], access_key, secret_key, secure=parsed[1] == "https", http_client=pool)
    except ValueError:
        raise wrong from None
