"""Rows, wherever they are: in memory, in files of three kinds, in a bucket of S3, in people's sessions, under one interface.

They are read one after another, each time anew, and never held together: what `sql` needs at once is spilled to a temporary folder.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal, Protocol

from app.datasets import duck
from app.datasets.bucket import Bucket
from app.datasets.files import KINDS, MAX_ROW, TOO_LONG, BadRow, Placed, Row, files_in, read_file
from app.errors import InvalidInput

__all__ = ["MAX_ROW", "TOO_LONG", "BadRow", "Bucket", "Dataset", "Row", "Sessions"]

Read = Callable[[], Iterator[Placed]]
"""Begins to read from the start: each row with where it stands, or what is wrong with it there."""
Rating = Literal["up", "down", "any"]


class Sessions(Protocol):
    """The answers in a user's sessions."""

    def answers(self, feedback: Rating, agent: str | None) -> Iterator[Row]:
        """Those with this feedback, of one agent or of any, in the order in which they were given."""


class Dataset:
    """Rows that can be read any number of times. With `skip_bad`, broken ones are left out and counted in `skipped`, else the first is
    an `InvalidInput` that names its file, line and column.
    """

    def __init__(self, rows: Iterable[Mapping[str, Any]] = (), *, skip_bad: bool = False) -> None:
        """Rows that are in memory, or that an iterable gives anew each time."""
        self._read: Read = lambda: _numbered(dict(row) for row in rows)
        self._steps: tuple[Callable[[Row], Row], ...] = ()
        self._parquet: tuple[Path, ...] = ()
        self._skip_bad = skip_bad
        self.skipped = 0
        """How many broken rows the last reading left out."""

    @classmethod
    def open(cls, path: str | Path, *, skip_bad: bool = False, bucket: Bucket | None = None) -> Dataset:
        """A file of JSON lines, CSV with a head, or Parquet, told by its name; all such files of a folder; or `s3://BUCKET/PREFIX`.

        `bucket` says at which server that is, and needs the extra `s3`. `InvalidInput` when there is nothing.
        """
        if str(path).startswith("s3://"):
            if bucket is None:
                raise InvalidInput(
                    "dataset: MINIO_ENDPOINT and its keys are not set, so no s3:// is known.", param="dataset"
                )
            return cls._of(partial(bucket.read, str(path)), skip_bad=skip_bad)
        files = files_in(Path(path))
        found = cls._of(lambda: (placed for file in files for placed in read_file(file)), skip_bad=skip_bad)
        if all(file.suffix == ".parquet" for file in files):
            found._parquet = tuple(files)
        return found

    @classmethod
    def from_sessions(cls, sessions: Sessions, *, feedback: Rating = "any", agent: str | None = None) -> Dataset:
        """What people asked and were answered, in the sessions of one user: `input`, `answer`, `rating`, `comment`, `agent_id` and ids."""
        return cls._of(lambda: _numbered(sessions.answers(feedback, agent)))

    @classmethod
    def _of(cls, read: Read, *, skip_bad: bool = False) -> Dataset:
        made = cls(skip_bad=skip_bad)
        made._read = read
        return made

    def map(self, change: Callable[[Row], Row]) -> Dataset:
        """The same rows, each as `change` gives it when it is read. What `change` raises makes the row a broken one."""
        made = self._of(self._read, skip_bad=self._skip_bad)
        made._steps = (*self._steps, change)
        return made

    def sql(self, query: str, *, memory: str = duck.MEMORY) -> Dataset:
        """What DuckDB answers to a query over the table `data`, with at most so much `memory` beside the disk. Needs the extra `data`."""
        return self._of(partial(self._queried, query, memory))

    def _queried(self, query: str, memory: str) -> Iterator[Placed]:
        with duck.opened(memory) as db:
            self._fill(db)
            yield from _numbered(db.rows(query))

    def _fill(self, db: duck.Duck) -> None:
        """Make the rows the table `data`: Parquet where it is, anything else by way of a file."""
        if self._parquet and not self._steps:
            db.read_parquet(self._parquet)
        else:
            db.read_rows(self)

    def __iter__(self) -> Iterator[Row]:
        self.skipped = 0
        for place, found in self._read():
            try:
                yield self._stepped(found)
            except BadRow as bad:
                if not self._skip_bad:
                    raise InvalidInput(f"{place}{bad}", param="dataset") from None
                self.skipped += 1

    def _stepped(self, found: Row | BadRow) -> Row:
        if isinstance(found, BadRow):
            raise found
        try:
            for step in self._steps:
                found = step(found)
        except BadRow:
            raise
        except Exception as error:
            raise BadRow(f"{type(error).__name__} in map: {error}") from error
        return found

    def digest(self) -> bytes:
        """SHA-256 of all rows: equal data have equal digests, in whatever form they are stored."""
        said = hashlib.sha256()
        for row in self:
            said.update(duck.lines([row]))
        return said.digest()

    def write(self, path: str | Path) -> int:
        """Write all rows to a file of the kind that its name says, which is there whole or not at all; how many there were."""
        path = Path(path)
        if path.suffix not in KINDS:
            raise InvalidInput(f"{path.name}: the name must end in {', '.join(KINDS)}.", param="path")
        new = path.with_name(f".{path.name}.new")
        try:
            with duck.opened() as db:
                self._fill(db)
                written = db.copy(new, path.suffix)
            new.replace(path)
        finally:
            new.unlink(missing_ok=True)
        return written


def _numbered(rows: Iterable[Row]) -> Iterator[Placed]:
    return ((f"row {number}", row) for number, row in enumerate(rows, 1))
