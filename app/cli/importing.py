"""`chattable import`: conversations from files, of Chattable, ChatGPT or Open WebUI. A large export goes to the server in pieces."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from app.cli.asking import ApiKey, Server, Url, server
from app.cli.output import AsJson, show
from app.errors import AppError, SettingsError

PIECE = 8_000_000
"""How many bytes of chats are sent at once, if one alone is not more."""
CHATS = 100


Form = Literal["chattable", "chatgpt", "open-webui"]


def import_chats(
    files: Annotated[list[Path], typer.Argument(help="Exports, as conversations.json; - is the standard input.")],
    agent: Annotated[str | None, typer.Option("--agent", "-a", help="Who goes on with chats of others.")] = None,
    form: Annotated[Form | None, typer.Option("--format", help="What they are; recognised by default.")] = None,
    url: Url = None,
    key: ApiKey = None,
    as_json: AsJson = False,
) -> None:
    """Make sessions of what Chattable, ChatGPT or Open WebUI has exported. A chat is imported once, however often it is given."""
    rows: list[dict[str, Any]] = []
    with server(url, key) as here:
        for file in files:
            found = list(_taken(here, _read(file), {"agent": agent, "format": form}))
            rows += [{"file": str(file), **row} for row in found]
    show(rows, ("status", "title", "session_id", "left_out", "error"), as_json=as_json)
    counts = Counter(row["status"] for row in rows)
    if not as_json:
        typer.echo(", ".join(f"{counts[status]} {status}" for status in sorted(counts)) or "no chats", err=True)
    raise typer.Exit(int(counts["refused"] > 0))


def _read(file: Path) -> bytes:
    try:
        return sys.stdin.buffer.read() if str(file) == "-" else file.read_bytes()
    except OSError as error:
        raise SettingsError(f"{file} cannot be read: {error.strerror}.") from None


def _taken(here: Server, body: bytes, params: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """What became of each chat in a file."""
    query = {name: value for name, value in params.items() if value is not None}
    headers = {"content-type": "application/json"}
    first = 0
    for piece, number in _pieces(body):
        made = here.ask("POST", "/api/v1/imports", content=piece, params=query, headers=headers, timeout=600)
        if made.get("object") != "import":
            yield {"index": 0, "status": "made", "title": made["title"], "session_id": made["id"], "left_out": 0}
            return
        for row in made["data"]:
            yield row | {"index": first + row["index"]}
        first += number


def _pieces(body: bytes) -> Iterator[tuple[bytes, int]]:
    """The file, or a list's items in lists of bounded size, and how many there are in each."""
    import msgspec

    if body.lstrip()[:1] != b"[":
        yield body, 1
        return
    try:
        items = msgspec.json.decode(body, type=list[msgspec.Raw])
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        raise AppError("The file is not valid JSON.") from None
    while items:
        size = number = 0
        while number < min(len(items), CHATS) and (not number or size + len(bytes(items[number])) <= PIECE):
            size += len(bytes(items[number]))
            number += 1
        yield b"[" + b",".join(map(bytes, items[:number])) + b"]", number
        items = items[number:]
