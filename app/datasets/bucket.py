"""Files of rows in a bucket of S3 or MinIO: each is fetched when it is its turn, and forgotten after it."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from app.datasets.files import KINDS, Placed, read_file
from app.errors import InvalidInput


@dataclass(frozen=True, slots=True)
class Bucket:
    """A server of S3's protocol, as `HOST:PORT` or a URL, and the keys for it."""

    endpoint: str
    access_key: str
    secret_key: str = field(repr=False)

    def read(self, url: str) -> Iterator[Placed]:
        """The rows of all files of known kinds under `s3://BUCKET/PREFIX`, in the order of their names."""
        try:
            from minio import Minio
            from minio.error import S3Error
        except ImportError:
            raise InvalidInput(
                "s3:// needs the package minio: ./scripts/extras installs it.", param="dataset"
            ) from None
        server, place = urlsplit(self.endpoint if "://" in self.endpoint else f"http://{self.endpoint}"), urlsplit(url)
        client = Minio(server.netloc, self.access_key, self.secret_key, secure=server.scheme == "https")
        try:
            listed = client.list_objects(place.netloc, prefix=place.path.lstrip("/"), recursive=True)
            names = sorted(str(each.object_name) for each in listed if str(each.object_name).endswith(KINDS))
            if not names:
                raise InvalidInput(f"dataset: there is no file of rows under {url}.", param="dataset")
            for name in names:
                with tempfile.TemporaryDirectory(prefix="chattable-s3-") as folder:
                    path = Path(folder, f"rows{Path(name).suffix}")
                    client.fget_object(place.netloc, name, str(path))
                    yield from read_file(path, Path(name).name)
        except S3Error as error:
            raise InvalidInput(f"dataset: {url} cannot be read ({error.code}).", param="dataset") from None
