"""Rows in a bucket."""

from __future__ import annotations

from io import BytesIO

import pytest

from app.datasets import Bucket, Dataset
from app.errors import InvalidInput
from tests.s3 import S3


def test_a_prefix_of_a_bucket_is_its_files_in_order(s3: S3) -> None:
    minio = pytest.importorskip("minio")
    client = minio.Minio(s3.endpoint, "key", "secret", secure=False)
    client.make_bucket("rows")
    for name, body in (
        ("set/b.csv", b"a\n3\n"),
        ("set/a.jsonl", b'{"a": 1}\n{"a": 2\n'),
        ("set/notes.txt", b"no"),
        ("x.csv", b"a\n9\n"),
    ):
        client.put_object("rows", name, BytesIO(body), len(body))
    bucket = Bucket(s3.endpoint, "key", "secret")
    rows = Dataset.open("s3://rows/set/", bucket=bucket, skip_bad=True)
    assert list(rows) == [{"a": 1}, {"a": "3"}]
    assert rows.skipped == 1
    with pytest.raises(InvalidInput, match=r"^a.jsonl, line 2, column 8: it is no JSON"):
        list(Dataset.open("s3://rows/set/", bucket=bucket))
    for nothing in ("s3://rows/none", "s3://nobody/set"):
        with pytest.raises(InvalidInput, match="s3://"):
            list(Dataset.open(nothing, bucket=bucket))
