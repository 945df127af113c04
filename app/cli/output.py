"""How commands show lists: aligned columns for people, JSON for programs."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any

import typer

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def show(rows: Sequence[Mapping[str, Any]], columns: Sequence[str], *, as_json: bool) -> None:
    """Print all of each row as JSON, or these columns of it."""
    if as_json:
        typer.echo(json.dumps({"object": "list", "data": list(rows)}, indent=2, ensure_ascii=False, default=str))
        return
    for line in _table([list(columns), *([_cell(row.get(column)) for column in columns] for row in rows)]):
        typer.echo(line)


def show_one(row: Mapping[str, Any], said: str, *, as_json: bool) -> None:
    """Print one object as JSON, or a sentence about it."""
    typer.echo(json.dumps(row, indent=2, ensure_ascii=False, default=str) if as_json else said)


def _table(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


def _cell(value: Any) -> str:
    if isinstance(value, list):
        return ",".join(map(str, value))
    if isinstance(value, dict):
        return " ".join(f"{key}={_cell(part)}" for key, part in value.items() if part is not None)
    return "-" if value is None else str(value)
