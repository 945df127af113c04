"""Files of rows: JSON lines, CSV and Parquet, read lazily; what is broken is told by line and column."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO, TypeAlias

import msgspec

from app.datasets.duck import opened
from app.errors import InvalidInput

KINDS = (".jsonl", ".csv", ".parquet")
MAX_ROW = 1_000_000
"""The longest line of JSON in bytes, and row of CSV in characters: one that never ends must not fill the memory."""
TOO_LONG = f"it is longer than {MAX_ROW} bytes"

Row: TypeAlias = dict[str, Any]


class BadRow(Exception):
    """Why a row cannot be used, and in which column, by name or by the number of its first wrong character."""

    def __init__(self, why: str, column: str | int | None = None) -> None:
        super().__init__(why)
        self.column = column

    def __str__(self) -> str:
        """What follows the place of the row in a sentence."""
        place = f", column {self.column}" if self.column is not None else ""
        return f"{place}: {self.args[0]}."


Placed: TypeAlias = tuple[str, Row | BadRow]


def files_in(path: Path) -> list[Path]:
    """The file, or all files of known kinds in a folder, in the order of their names; `InvalidInput` when there is none."""
    if path.is_dir():
        found = sorted(file for file in path.iterdir() if file.suffix in KINDS and not file.name.startswith("."))
        if not found:
            raise InvalidInput(f"dataset: {path} has no file that ends in {', '.join(KINDS)}.", param="dataset")
        return found
    if not path.is_file():
        raise InvalidInput(f"dataset: there is no {path}.", param="dataset")
    if path.suffix not in KINDS:
        raise InvalidInput(f"dataset: {path.name} must end in {', '.join(KINDS)}.", param="dataset")
    return [path]


def read_file(path: Path, name: str | None = None) -> Iterator[Placed]:
    """The rows of one file, told of by its `name`."""
    readers = {".jsonl": _json_lines, ".csv": _csv, ".parquet": _parquet}
    return readers[path.suffix](path, name or path.name)


def _json_lines(path: Path, name: str) -> Iterator[Placed]:
    number = 0
    with path.open("rb") as file:
        while line := file.readline(MAX_ROW + 1):
            number += 1
            if len(line) > MAX_ROW:
                yield f"{name}, line {number}", BadRow(TOO_LONG)
                while line and not line.endswith(b"\n"):
                    line = file.readline(MAX_ROW)
            elif line.strip():
                yield f"{name}, line {number}", _decoded(line)


def _decoded(line: bytes) -> Row | BadRow:
    try:
        row = msgspec.json.decode(line)
    except (msgspec.DecodeError, RecursionError) as error:
        what, _, at = str(error).partition("(byte ")
        column = int(at.rstrip(")")) + 1 if at.rstrip(")").isdigit() else len(line.rstrip()) + 1
        return BadRow(f"it is no JSON ({what.strip() or type(error).__name__})", column)
    except UnicodeDecodeError as error:
        return BadRow("it is no UTF-8", error.start + 1)
    return row if isinstance(row, dict) else BadRow("it is no JSON object", 1)


class _Lines:
    """The lines of a file, of which CSV's reader takes as many as make a row: `csv.Error` when they are too long together."""

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self.number = self.held = 0

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        line = self._file.readline(MAX_ROW + 1)
        if not line:
            raise StopIteration
        self.number += 1
        self.held += len(line)
        if self.held > MAX_ROW:
            rest = line
            while rest and not rest.endswith(("\n", "\r")):
                rest = self._file.readline(MAX_ROW)
            raise csv.Error(TOO_LONG)
        return line


def _csv(path: Path, name: str) -> Iterator[Placed]:
    csv.field_size_limit(MAX_ROW)
    # Bytes that are no UTF-8 become lone surrogates, which are found in the row they stand in.
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        lines = _Lines(file)
        reader = csv.reader(lines, strict=True)
        names: list[str] | None = None
        while True:
            place = f"{name}, line {lines.number + 1}"
            lines.held = 0
            try:
                fields = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                yield place, BadRow(f"it is no CSV ({error})")
                continue
            if names is None:
                names = fields
                if len(set(names)) < len(names) or "" in names:
                    raise InvalidInput(f"{place}: the head must name every column, each differently.", param="dataset")
            elif fields:
                yield place, _fields(names, fields)


def _fields(names: list[str], fields: list[str]) -> Row | BadRow:
    if len(fields) < len(names):
        return BadRow(f"there are {len(fields)} fields for {len(names)} columns", names[len(fields)])
    if len(fields) > len(names):
        return BadRow(f"there are {len(fields)} fields for {len(names)} columns", len(names) + 1)
    for column, field in zip(names, fields, strict=True):
        if not field.isascii() and any("\ud800" <= char <= "\udfff" for char in field):
            return BadRow("it is no UTF-8", column)
    return dict(zip(names, fields, strict=True))


def _parquet(path: Path, name: str) -> Iterator[Placed]:
    with opened() as db:
        try:
            db.read_parquet([path])
            for number, row in enumerate(db.rows("SELECT * FROM data"), 1):
                yield f"{name}, row {number}", row
        except InvalidInput:  # DuckDB's own words have the path
            why = f"dataset: {name} is no Parquet, or broken, or takes too much memory."
            raise InvalidInput(why, param="dataset") from None
