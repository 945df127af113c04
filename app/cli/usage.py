"""`chattable usage`: what was used, asked of the server that runs here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from app.errors import SettingsError

PAGE = 100
COLUMNS = ("calls", "prompt", "completion", "cached", "reasoning", "cost", "saved")


class By(StrEnum):
    """What usage is summed by."""

    USER = "user"
    SESSION = "session"
    AGENT = "agent"
    MODEL = "model"
    KEY = "key"
    DAY = "day"


def show_usage(
    by: Annotated[By, typer.Option(help="What to sum by.")] = By.DAY,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Print the tokens and the cost of everybody's calls of language models, as the server that runs here has them."""
    import json

    from app.cli.banner import address
    from app.settings import load

    settings = load()
    url = address(settings.host, settings.port)
    given = settings.admin_api_key
    key = given.get_secret_value() if given else _kept_key(settings.data_dir / "admin.key")
    lines = list(_report(url, key, by))
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


def _report(url: str, key: str, by: By) -> Iterator[dict[str, Any]]:
    """Every line, page by page."""
    import httpx2

    after: dict[str, str] = {}
    headers = {"authorization": f"Bearer {key}"}
    with httpx2.Client(base_url=url, headers=headers, timeout=60, trust_env=False) as client:
        while True:
            try:
                answer = client.get("/api/v1/usage", params={"group_by": by.value, "limit": PAGE, **after})
            except httpx2.TransportError:
                raise SettingsError(
                    f"No server answers at {url}: start `chattable serve`, or set HOST and PORT."
                ) from None
            if answer.status_code != 200:
                raise SettingsError(
                    f"The server at {url} answers with status {answer.status_code}; is the key its own?"
                )
            found = answer.json()
            yield from found["data"]
            if not found["has_more"]:
                return
            after = {"after": found["last_id"]}


def _kept_key(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        raise SettingsError(f"{path} cannot be read: set ADMIN_API_KEY, or DATA_DIR as the server has it.") from None
