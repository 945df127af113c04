"""DuckDB, which does what needs more than one row at a time: it holds to a limit of memory and spills the rest to a folder of its own."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from app.errors import InvalidInput

if TYPE_CHECKING:
    import duckdb

MEMORY = "512MB"
THREADS = 2
FETCHED = 1000
"""How many rows are taken or given at once."""
FORMATS = {
    ".parquet": "FORMAT parquet, COMPRESSION zstd",
    ".csv": "FORMAT csv, HEADER",
    ".jsonl": "FORMAT json",
}
_encoder = msgspec.json.Encoder()


def lines(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """Rows as lines of JSON."""
    return _encoder.encode_lines(rows)


class Duck:
    """A database of one's own, with the table `data`."""

    def __init__(self, db: duckdb.DuckDBPyConnection, folder: Path) -> None:
        self._db, self._folder = db, folder

    def read_parquet(self, paths: Iterable[Path]) -> None:
        """Let the rows of these files be `data`, where they are."""
        names = ", ".join(_quoted(path) for path in paths)
        self._run(f"CREATE VIEW data AS SELECT * FROM read_parquet([{names}], union_by_name = true)")  # noqa: S608 - as below

    def read_rows(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Let these rows be `data`, by way of a file."""
        path, following = self._folder / "rows.jsonl", iter(rows)
        with path.open("wb") as file:
            while some := list(islice(following, FETCHED)):
                file.write(lines(some))
        if not path.stat().st_size:
            self._run("CREATE TABLE data (nothing VARCHAR)")
            return
        how = "format = 'newline_delimited', sample_size = -1, maximum_object_size = 64000000"
        self._run(f"CREATE VIEW data AS SELECT * FROM read_json({_quoted(path)}, {how})")  # noqa: S608 - a path of ours

    def rows(self, query: str) -> Iterator[dict[str, Any]]:
        """What the query gives, some at a time."""
        found = self._run(query)
        names = [column[0] for column in found.description or ()]
        while some := self._fetched(found):
            for row in some:
                yield dict(zip(names, row, strict=True))

    def copy(self, path: Path, suffix: str) -> int:
        """Write `data` to a file; how many rows it has."""
        done = self._run(f"COPY (SELECT * FROM data) TO {_quoted(path)} ({FORMATS[suffix]})").fetchone()  # noqa: S608 - as above
        return int(done[0]) if done else 0

    def _run(self, query: str) -> duckdb.DuckDBPyConnection:
        with _told():
            return self._db.execute(query)

    def _fetched(self, found: duckdb.DuckDBPyConnection) -> list[Any]:
        with _told():
            return found.fetchmany(FETCHED)


@contextmanager
def _told() -> Iterator[None]:
    """What DuckDB has to say, in one sentence. It may name files."""
    import duckdb

    try:
        yield
    except duckdb.Error as error:
        raise InvalidInput(f"sql: {str(error).strip().splitlines()[0]}", param="sql") from error


@contextmanager
def opened(memory: str = MEMORY) -> Iterator[Duck]:
    """DuckDB until the block ends, and then nothing of it. It reaches no network, and installs nothing."""
    try:
        import duckdb
    except ImportError:
        raise InvalidInput("This needs the package duckdb: ./scripts/extras installs it.", param="dataset") from None
    with tempfile.TemporaryDirectory(prefix="chattable-data-") as folder:
        settings: dict[str, str | bool | int | float | list[str]] = {
            "memory_limit": memory,
            "threads": THREADS,
            "temp_directory": folder,
            "preserve_insertion_order": True,
            "autoinstall_known_extensions": False,
            "autoload_known_extensions": False,
        }
        with duckdb.connect(config=settings) as db:
            yield Duck(db, Path(folder))


def _quoted(path: Path) -> str:
    return "'" + str(path).replace("'", "''") + "'"
