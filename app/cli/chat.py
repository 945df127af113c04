"""`chattable chat`: a conversation with an agent of a server, in the terminal.

The answer goes to standard output as it comes, markdown where that is a terminal; what is said beside it, and all else, to standard error.
Ctrl-C ends the answer and keeps what was said; at the prompt it ends the conversation.
"""

from __future__ import annotations

import json
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.cli.asking import ApiKey, Server, Url, check, part, server, unreachable
from app.errors import AppError, SettingsError

if TYPE_CHECKING:
    from rich.live import Live

TRIES = 5
"""How often an answer that broke off is asked for again, from where it broke off."""
PAUSE_SECONDS = 1.0
INTERRUPTED = 130
"""The status of a program that Ctrl-C has ended, as shells have it."""


def chat(
    message: Annotated[str | None, typer.Argument(help="One message; without it, every line of the input.")] = None,
    agent: Annotated[str | None, typer.Option("--agent", "-a", help="The agent's id, for a new session.")] = None,
    session: Annotated[str | None, typer.Option("--session", "-s", help="Go on with this session.")] = None,
    go_on: Annotated[
        bool, typer.Option("--continue", "-c", help="Go on with the last session (of the agent).")
    ] = False,
    params: Annotated[str, typer.Option(help="The agent's parameters in a new session, as JSON.")] = "{}",
    as_json: Annotated[bool, typer.Option("--json", help="Print each answer as a line of JSON.")] = False,
    url: Url = None,
    key: ApiKey = None,
) -> None:
    """Talk to an agent. The session is kept: --continue goes on with it, here or anywhere."""
    with server(url, key) as here:
        talk = Talk(here, _session(here, agent, session, go_on, params), as_json)
        well = True
        for line in [message] if message is not None else _lines():
            try:
                well = talk.say(line) and well
            except AppError as error:
                typer.echo(f"chattable: {error.message}", err=True)
                well = False
            except KeyboardInterrupt:  # between two answers
                break
        if message is None and sys.stdin.isatty():
            typer.echo(f"To go on: chattable chat -s {talk.session}", err=True)
    raise typer.Exit(INTERRUPTED if talk.interrupted and message is not None else int(not well))


def _session(here: Server, agent: str | None, session: str | None, go_on: bool, params: str) -> str:
    if session:
        return str(here.ask("GET", f"/api/v1/sessions/{part(session)}")["id"])
    if go_on:
        for row in here.pages("/api/v1/sessions"):
            if agent in (None, row["agent"]["id"]):
                return str(row["id"])
        raise AppError("There is no session to go on with.")
    if agent is None:
        raise SettingsError("Name an agent with -a, or a session with -s or -c. The agents:\n" + _agents(here))
    try:
        given = json.loads(params)
    except ValueError:
        raise SettingsError("--params is not JSON.") from None
    return str(here.ask("POST", "/CreateSession", json={"agent": {"id": agent, "params": given}})["id"])


def _agents(here: Server) -> str:
    found = here.ask("POST", "/ListAgents", json={})["items"]
    return "\n".join(f"  {row['id']}  {(row.get('description') or '').partition(chr(10))[0]}" for row in found)


def _lines() -> Iterator[str]:
    while True:
        if sys.stdin.isatty():
            typer.echo("> ", nl=False, err=True)
        try:
            line = sys.stdin.readline()
        except KeyboardInterrupt:
            typer.echo(err=True)
            return
        if not line:
            return
        if line.strip():
            yield line.rstrip("\n")


@dataclass
class Talk:
    """A session of a server, and how its answers are shown."""

    here: Server
    session: str
    as_json: bool = False
    interrupted: bool = False
    _run: str | None = field(default=None, init=False)
    _position: int = field(default=0, init=False)

    def say(self, content: str) -> bool:
        """Send a message and show its answer; whether that was completed."""
        with self._cancelling():
            return self._heard("POST", "/SendMessage", {"session_id": self.session, "content": content, "stream": True})

    def follow(self, run: str) -> bool:
        """Show what a run of the session says, from its beginning; whether it was completed. Ctrl-C leaves it at work."""
        return self._heard("GET", f"/api/v1/runs/{part(run)}/events", None)

    def _heard(self, method: str, path: str, body: Any) -> bool:
        self._run, self._position, self.interrupted = None, 0, False
        with _shown(self.as_json) as shown:
            end = self._followed(method, path, body, shown)
        if self.as_json:
            typer.echo(json.dumps(end, ensure_ascii=False))
        status = end.get("status") or end.get("additional_kwargs", {}).get("status")
        if error := end.get("error"):
            typer.echo(f"chattable: {error}", err=True)
        elif status not in ("completed", "waiting"):
            typer.echo(f"[{status}]", err=True)
        return status in ("completed", "waiting")

    def _followed(self, method: str, path: str, body: Any, shown: _Shown) -> dict[str, Any]:
        """Show events until the last one; what broke off is asked for again."""
        import httpx2

        failed = 0
        while True:
            try:
                for name, data in self._events(method, path, body):
                    failed = 0
                    if name in ("end", "waiting"):
                        return data | ({"error": shown.error} if shown.error else {})
                    self._take(name, data, shown)
            except httpx2.TransportError:
                if self._run is None:
                    raise unreachable(self.here.url) from None
            failed += 1
            if self._run is None or failed > TRIES:
                raise AppError("The answer broke off; it goes on at the server.")
            method, path, body = "GET", f"/api/v1/runs/{self._run}/events", None
            shown.error = None  # of a server that ended before the answer did
            time.sleep(PAUSE_SECONDS)

    def _take(self, name: str, data: dict[str, Any], shown: _Shown) -> None:
        if name == "run":
            self._run = data["run_id"]
        elif name == "chunk":
            shown.add(data["content"], data["content_type"])
        elif name == "snapshot":
            shown.replace(data["content"])
        elif name == "error":
            shown.error = data["message"]

    @contextmanager
    def _cancelling(self) -> Iterator[None]:
        """Let the first Ctrl-C cancel the run, whose stream then ends as any other; the second one ends the program."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = signal.signal(signal.SIGINT, self._interrupt)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        if self.interrupted or self._run is None:
            raise KeyboardInterrupt
        self.interrupted = True
        threading.Thread(target=self._cancel, args=(self._run,), daemon=True).start()

    def _cancel(self, run: str) -> None:
        """In a thread: what reads the stream goes on, and a client may be used by several threads."""
        with suppress(AppError, SettingsError):  # the stream tells what became of it
            self.here.ask("POST", f"/api/v1/runs/{run}/cancel")

    def _events(self, method: str, path: str, body: Any) -> Iterator[tuple[str, dict[str, Any]]]:
        headers = {"last-event-id": str(self._position)} if self._run else {}
        options: dict[str, Any] = {"json": body} if body else {}
        with self.here.client.stream(method, path, headers=headers, timeout=_PATIENCE, **options) as answer:
            if answer.status_code >= 400:
                answer.read()
                check(answer, self.here.url)
            name = ""
            for line in answer.iter_lines():
                kind, _, value = line.partition(": ")
                if kind == "id":
                    self._position = int(value)
                elif kind == "event":
                    name = value
                elif kind == "data":
                    yield name, json.loads(value)


_PATIENCE = 90.0
"""Seconds of silence after which a stream, which says at least that it lives, has broken off."""


class _Shown:
    """An answer as it is shown: plain, so that it can be piped."""

    def __init__(self, *, quiet: bool = False) -> None:
        self.text = ""
        self.error: str | None = None
        self._quiet = quiet

    def add(self, content: str, content_type: str) -> None:
        """Show what was said."""
        from app.domain import ANSWER_TYPES

        if content_type in ANSWER_TYPES:
            self.text += content
            self._show(content)
        elif not self._quiet:
            typer.echo(f"[{content_type}] {content}", err=True)

    def replace(self, text: str) -> None:
        """Show the whole, of which some was heard already."""
        rest = text.removeprefix(self.text) if text.startswith(self.text) else f"\n{text}"
        self.text = text
        self._show(rest)

    def _show(self, content: str) -> None:
        if not self._quiet:
            typer.echo(content, nl=False)

    def close(self) -> None:
        """End the last line."""
        if self.text and not self.text.endswith("\n") and not self._quiet:
            typer.echo()


class _Markdown(_Shown):
    """An answer in a terminal, formatted anew as it grows."""

    def __init__(self, live: Live) -> None:
        super().__init__()
        self._live = live

    def _show(self, content: str) -> None:
        from rich.markdown import Markdown

        self._live.update(Markdown(self.text))

    def close(self) -> None:
        """Nothing: the last state stays."""


@contextmanager
def _shown(as_json: bool) -> Iterator[_Shown]:
    if as_json or not sys.stdout.isatty():
        plain = _Shown(quiet=as_json)
        try:
            yield plain
        finally:
            plain.close()
        return
    from rich.console import Console
    from rich.live import Live

    with Live(console=Console(), refresh_per_second=8, vertical_overflow="visible") as live:
        yield _Markdown(live)
