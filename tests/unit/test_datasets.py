"""Rows of every kind, under one interface."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from app.datasets import BadRow, Dataset, Row
from app.errors import InvalidInput

pytest.importorskip("duckdb")
ROWS: list[Row] = [{"question": f"What is {n} + 1?", "answer": str(n + 1)} for n in range(5)]


def written(folder: Path, kind: str) -> Path:
    path = folder / f"rows{kind}"
    assert Dataset(ROWS).write(path) == 5
    return path


@pytest.mark.parametrize("kind", [".jsonl", ".csv", ".parquet"])
def test_rows_are_the_same_in_every_kind_of_file(tmp_path: Path, kind: str) -> None:
    path = written(tmp_path, kind)
    rows = Dataset.open(path)
    assert list(rows) == list(rows) == ROWS
    assert rows.digest() == Dataset(ROWS).digest()
    assert [path.name for path in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("kind", [".jsonl", ".csv", ".parquet"])
def test_sql_and_map_work_alike_on_every_kind(tmp_path: Path, kind: str) -> None:
    rows = Dataset.open(written(tmp_path, kind))
    last = rows.map(lambda row: {**row, "long": len(row["question"])}).sql(
        "SELECT answer, long FROM data ORDER BY answer DESC"
    )
    assert list(last.map(lambda row: row | {"answer": int(row["answer"])}))[:2] == [
        {"answer": 5, "long": 14},
        {"answer": 4, "long": 14},
    ]
    assert list(rows.sql("SELECT count(*) AS n FROM data")) == [{"n": 5}]


def test_a_folder_is_all_its_files_in_order(tmp_path: Path) -> None:
    Dataset(ROWS[3:]).write(tmp_path / "b.parquet")
    Dataset(ROWS[:3]).write(tmp_path / "a.csv")
    (tmp_path / "notes.txt").write_text("no rows")
    assert list(Dataset.open(tmp_path)) == ROWS


BROKEN = {
    ".jsonl": ['{"a": 1}', "", '{"a": 2', "[3]", '{"a": "\udcff"}', '{"a": 4}'],
    ".csv": ["a,b", "1,2", "3", '"x"y,1', "\udcff,6", "4,5,6", "7,8"],
}


@pytest.mark.parametrize(
    ("kind", "good", "bad"),
    [
        (".jsonl", 2, ["line 3", "line 4, column 1", "line 5"]),
        (
            ".csv",
            2,
            ["line 3, column b: there are 1", "line 4", "line 5, column a: it is no UTF-8", "line 6, column 3"],
        ),
    ],
)
def test_broken_rows_are_named_by_line_and_column_or_counted(
    tmp_path: Path, kind: str, good: int, bad: list[str]
) -> None:
    path = tmp_path / f"x{kind}"
    lines = BROKEN[kind]
    path.write_bytes("\n".join(lines).encode(errors="surrogateescape"))
    skipping = Dataset.open(path, skip_bad=True)
    assert len(list(skipping)) == good
    assert skipping.skipped == len(bad)
    said = []
    head = lines[:1] if kind == ".csv" else []
    for line in range(len(head), len(lines)):
        others = [other if at <= line else "" for at, other in enumerate(lines)]
        before = [other if other in head or at == line else "" for at, other in enumerate(others)]
        path.write_bytes("\n".join(before).encode(errors="surrogateescape"))
        try:
            list(Dataset.open(path))
        except InvalidInput as error:
            said.append(error.message)
    assert [message.startswith(f"x{kind}, {start}") for message, start in zip(said, bad, strict=True)] == [True] * len(
        bad
    )


def test_what_map_raises_is_told_with_its_line(tmp_path: Path) -> None:
    path = written(tmp_path, ".jsonl")

    def change(row: Row) -> Row:
        if row["answer"] == "3":
            raise BadRow("it is odd", "answer")
        return {"n": 1 / (int(row["answer"]) - 5)}

    with pytest.raises(InvalidInput, match=r"^rows.jsonl, line 3, column answer: it is odd.$"):
        list(Dataset.open(path).map(change))
    skipping = Dataset.open(path, skip_bad=True).map(change)
    assert len(list(skipping)) == 3
    assert skipping.skipped == 2


def test_a_query_that_is_wrong_and_a_file_that_is_missing_are_sentences(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"^sql: "):
        list(Dataset(ROWS).sql("SELECT nothing FROM data"))
    with pytest.raises(InvalidInput, match="there is no "):
        Dataset.open(tmp_path / "missing.csv")
    with pytest.raises(InvalidInput, match="must end in"):
        Dataset(ROWS).write(tmp_path / "rows.xlsx")
    with pytest.raises(InvalidInput, match="MINIO_ENDPOINT"):
        Dataset.open("s3://bucket/rows")
    assert list(Dataset().sql("SELECT count(*) AS n FROM data")) == [{"n": 0}]


@pytest.mark.parametrize(
    ("kind", "lines", "place"),
    [
        (".jsonl", ['{"a": "1"}', f'{{"a": "{"x" * 1_200_000}"}}', '{"a": "2"}'], "line 2"),
        (".csv", ["a", "1", "x" * 1_200_000, "2"], "line 3"),
        (".csv", ["a", "1", '"' + "x" * 500_000, "x" * 500_000, 'x"', "2"], "line 3"),
    ],
)
def test_a_row_that_is_too_long_is_a_broken_one(tmp_path: Path, kind: str, lines: list[str], place: str) -> None:
    path = tmp_path / f"x{kind}"
    path.write_text("\n".join(lines))
    with pytest.raises(InvalidInput, match=f"{place}: .*longer than 1000000 bytes"):
        list(Dataset.open(path))
    skipping = Dataset.open(path, skip_bad=True)
    assert [row["a"] for row in skipping][:1] == ["1"]
    assert skipping.skipped >= 1


def test_a_broken_parquet_file_is_told_by_its_name_alone(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    for body in (b"no Parquet", b"PAR1" + bytes(100) + b"PAR1"):
        path.write_bytes(body)
        with pytest.raises(InvalidInput, match=r"^dataset: x.parquet is no Parquet, or broken, or takes too much memo"):
            list(Dataset.open(path))
    Dataset({"text": f"{number:x>1000}"} for number in range(20_000)).write(path)
    body = path.read_bytes()
    path.write_bytes(body[:5000] + bytes(500) + body[5500:])
    with pytest.raises(InvalidInput, match=r"^dataset: x.parquet is no Parquet"):
        list(Dataset.open(path))


def test_half_a_file_is_never_there(tmp_path: Path) -> None:
    def rows() -> Iterator[dict[str, Any]]:
        yield {"a": 1}
        raise RuntimeError

    class Failing:
        def __iter__(self) -> Iterator[dict[str, Any]]:
            return rows()

    (tmp_path / "x.parquet").write_bytes(b"before")
    with pytest.raises(RuntimeError):
        Dataset(Failing()).write(tmp_path / "x.parquet")
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"before"]


def test_many_rows_are_never_held_together(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    with path.open("w") as file:
        for number in range(20_000):
            file.write(json.dumps({"n": number, "text": "word " * 200}) + "\n")
    tracemalloc.start()
    try:
        assert (
            sum(row["n"] for row in Dataset.open(path).map(lambda row: row).sql("SELECT n FROM data WHERE n % 2 = 0"))
            == 99_990_000
        )
        assert tracemalloc.get_traced_memory()[1] < 10_000_000
    finally:
        tracemalloc.stop()
