"""`chattable usage`: what was used, asked of the server that runs here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

import typer

from app.cli.asking import ApiKey, Url, server
from app.cli.output import AsJson

COLUMNS = ("calls", "prompt", "completion", "cached", "reasoning", "cost", "saved")


By = Literal["user", "session", "agent", "model", "key", "day"]


def show_usage(
    by: Annotated[By, typer.Option(help="What to sum by.")] = "day",
    url: Url = None,
    key: ApiKey = None,
    as_json: AsJson = False,
) -> None:
    """Print the tokens and the cost of everybody's calls of language models, as the server that runs here has them."""
    import json

    with server(url, key) as here:
        lines = list(here.pages("/api/v1/usage", group_by=by))
    typer.echo(json.dumps({"object": "list", "data": lines}, indent=2) if as_json else "\n".join(_table(by, lines)))


def _table(by: By, lines: list[dict[str, Any]]) -> Iterator[str]:
    rows = [[by, *COLUMNS], *([line["name"] or line["id"], *_cells(line)] for line in lines)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for first, *rest in rows:
        numbers = (cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True))
        yield "  ".join([first.ljust(widths[0]), *numbers])
    if any(line["estimated"] for line in lines):
        yield "~ in part estimated"


def _cells(line: Mapping[str, Any]) -> Iterator[str]:
    for column in COLUMNS:
        yield f"{'~' if column == 'cost' and line['estimated'] else ''}{line[column]}"
