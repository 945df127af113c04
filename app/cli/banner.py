"""What `serve` prints when it is ready: the address, and a first conversation to paste."""

from __future__ import annotations

import json
import shlex

from app.settings import Settings

ANYWHERE = {"0.0.0.0": "127.0.0.1", "": "127.0.0.1", "::": "::1"}  # noqa: S104 - compared with, not bound to
FIRST_ID = r"""sed 's/.*"id": *"\([^"]*\)".*/\1/'"""


def reachable(host: str) -> str:
    """A host that a client on this machine can use when the server listens on `host`."""
    return ANYWHERE.get(host, host)


def address(host: str, port: int) -> str:
    """The server's URL on this machine."""
    name = reachable(host)
    return f"http://[{name}]:{port}" if ":" in name else f"http://{name}:{port}"


def banner(settings: Settings, port: int, about_key: str) -> str:
    """The whole text; `about_key` is the sentence about where the first administrator's key is."""
    calls = "\n".join(conversation(settings, address(settings.host, port)))
    return (
        f"\nChattable is ready at {address(settings.host, port)}\n{about_key}\n\n"
        f"A first conversation, to paste into another terminal:\n\n{calls}\n"
    )


def conversation(settings: Settings, url: str) -> list[str]:
    """Three calls for a shell, in order: the first keeps the session's id in a variable."""
    agent = "simple_openai_agent" if settings.llm_is_configured else "fake_echo_agent"
    wish: dict[str, object] = {"agent": {"id": agent}}
    if settings.auth == "open":
        wish = {"user_id": 1} | wish
    session = r"\"session_id\": \"$SESSION\""

    def call(verb: str, body: str) -> str:
        return f"curl -sSw '\\n' {url}/{verb} {_key(settings)}-H 'Content-Type: application/json' \\\n  -d {body}"

    return [
        f"SESSION=$({call('CreateSession', shlex.quote(json.dumps(wish)))} | {FIRST_ID})",
        call("SendMessage", rf'"{{{session}, \"content\": \"Hello\"}}"'),
        call("ListMessages", f'"{{{session}}}"'),
    ]


def _key(settings: Settings) -> str:
    if settings.auth == "open":
        return ""
    file = shlex.quote(str(settings.data_dir.absolute() / "admin.key"))
    key = "$ADMIN_API_KEY" if settings.admin_api_key else f"$(cat {file})"
    return f'-H "Authorization: Bearer {key}" '
