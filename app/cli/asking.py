"""The server as commands ask it: over HTTP, with a key, so that what they may do is what that key may."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import quote

import typer

from app.errors import AppError, SettingsError

if TYPE_CHECKING:
    from httpx2 import Client, Response

PAGE = 100
Url = Annotated[
    str | None, typer.Option("--url", envvar="CHATTABLE_URL", help="The server; the one of this machine by default.")
]
ApiKey = Annotated[
    str | None, typer.Option("--key", envvar="CHATTABLE_KEY", help="A key; this machine's administrator's by default.")
]


class Server:
    """A server and the client to ask it. What it refuses is an `AppError` in its words."""

    def __init__(self, client: Client, url: str, page: str) -> None:
        self.client = client
        self.url = url
        self.page = page
        """Where people find it, by `PUBLIC_URL` when it is the server of this machine."""

    def ask(self, method: str, path: str, **options: Any) -> Any:
        """The decoded answer, None where there is none."""
        import httpx2

        try:
            answer = self.client.request(method, path, **options)
        except httpx2.TransportError:
            raise unreachable(self.url) from None
        check(answer, self.url)
        return answer.json() if answer.content else None

    def pages(self, path: str, **params: Any) -> Iterator[dict[str, Any]]:
        """Every row of a list, page by page."""
        more = True
        while more:
            found = self.ask("GET", path, params={"limit": PAGE, **params})
            yield from found["data"]
            more = found["has_more"]
            params["after"] = found["last_id"]

    def user(self, name: str) -> dict[str, Any]:
        """The user of a name or an id."""
        for row in self.pages("/api/v1/users"):
            if name in (row["id"], row["name"]) or name.lower() == row["name"].lower():
                return row
        raise AppError(f"There is no user {name}.")


def unreachable(url: str) -> SettingsError:
    """What to say when nobody answers."""
    return SettingsError(f"No server answers at {url}: start `chattable serve`, or set HOST and PORT.")


def check(answer: Response, url: str) -> None:
    """Nothing for an answer that is good; what the server says of one that is not."""
    if answer.status_code < 400:
        return
    if answer.status_code == 401:
        raise SettingsError(f"The server at {url} answers with status 401; is the key its own?")
    try:
        told = answer.json()
        said = told.get("detail") or told["error"]["message"]
    except (ValueError, KeyError, TypeError, AttributeError):
        raise SettingsError(f"What answers at {url} with status {answer.status_code} is not Chattable.") from None
    raise AppError(str(said))


@contextmanager
def server(url: str | None = None, key: str | None = None) -> Iterator[Server]:
    """The server of this machine's settings, as its first administrator; or another, with a key for it."""
    import httpx2

    from app.cli.banner import address
    from app.settings import load

    page = url
    if url is None or key is None:
        settings = load()
        if url is None:
            page = settings.public_url
            url = address(settings.host, settings.port)
            given = settings.admin_api_key
            key = key or (given.get_secret_value() if given else _kept_key(settings.data_dir / "admin.key"))
        elif key is None:
            raise SettingsError("CHATTABLE_KEY is not set: a server of another place needs a key, here or as --key.")
    url = url.rstrip("/")
    headers = {"authorization": f"Bearer {key}"}
    with httpx2.Client(base_url=url, headers=headers, timeout=60, trust_env=False) as client:
        try:
            yield Server(client, url, (page or url).rstrip("/"))
        except httpx2.TransportError:
            raise unreachable(url) from None


def part(text: str) -> str:
    """A text as a part of a path."""
    return quote(text, safe="")


def _kept_key(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        raise SettingsError(f"{path} cannot be read: set ADMIN_API_KEY, or DATA_DIR as the server has it.") from None
