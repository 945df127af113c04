"""The file of MCP servers: which there are, as the operator has written them down."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from app.llm.catalog import CatalogError, Secret
from app.llm.model_tables import array, key_of, table
from app.llm.models_file import parsed
from app.llm.toml_lines import Keys

NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_-]{0,31}")
"""What a server may be called: its tools' names begin with it."""
_KNOWN = ("command", "env", "url", "api_key_env", "private", "timeout")


@dataclass(frozen=True, slots=True)
class ServerSpec:
    """A server: a program that is started here, which has a `command`, or one that is reached over HTTP, which has a `url`."""

    name: str
    command: tuple[str, ...] = ()
    env: Mapping[str, Secret] = field(default_factory=dict)
    """What the program is given of our variables, besides `PATH`, `HOME` and the like."""
    url: str = ""
    api_key: Secret | None = None
    private: bool = False
    """Whether it may be at an address that is not public."""
    timeout: float = 60.0
    """Seconds that a call may take."""


def read(path: Path, variables: Mapping[str, str]) -> dict[str, ServerSpec]:
    """The servers by name, none without the file; a `SettingsError` names file, line and key."""
    return parsed(path, partial(_servers, variables)) if path.is_file() else {}


def _servers(variables: Mapping[str, str], tables: Mapping[str, Any]) -> dict[str, ServerSpec]:
    servers = table((), tables, ("servers",)).get("servers", {})
    found = table(("servers",), servers)
    return {name: _server(("servers", name), name, given, variables) for name, given in found.items()}


def _server(keys: Keys, name: str, given: object, variables: Mapping[str, str]) -> ServerSpec:
    if not NAME.fullmatch(name):
        raise CatalogError(keys, "a name is up to 32 letters, digits, _ and - and begins with a letter or digit.")
    values = dict(table(keys, given, _KNOWN))
    if ("command" in values) == ("url" in values):
        raise CatalogError(keys, "needs either command, a program to start, or url, a server to call.")
    misplaced = ("api_key_env", "private") if "command" in values else ("env",)
    for key in misplaced:
        if key in values:
            raise CatalogError((*keys, key), f"goes with {'url' if 'command' in values else 'command'} only.")
    if "command" in values:
        values["command"] = _texts((*keys, "command"), values["command"], 'texts such as "python", "server.py"')
        env = _texts((*keys, "env"), values.get("env", []), "names of variables", least=0)
        values["env"] = {name: key_of((*keys, "env", index), name, variables) for index, name in enumerate(env)}
    else:
        _check_url((*keys, "url"), values["url"])
        if "api_key_env" in values:
            values["api_key"] = key_of((*keys, "api_key_env"), values.pop("api_key_env"), variables)
    if not isinstance(values.get("private", False), bool):
        raise CatalogError((*keys, "private"), "must be true or false.")
    seconds = values.get("timeout", 60)
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 < seconds <= 3600:
        raise CatalogError((*keys, "timeout"), "must be a number of seconds, up to 3600.")
    return ServerSpec(name, **values)


def _texts(keys: Keys, given: object, words: str, *, least: int = 1) -> tuple[str, ...]:
    found = array(keys, given, words, least=least)
    for index, each in enumerate(found):
        if not isinstance(each, str) or "\0" in each:
            raise CatalogError((*keys, index), "must be a text.")
    return tuple(found)


def _check_url(keys: Keys, given: object) -> None:
    try:
        url = urlsplit(given) if isinstance(given, str) else None
        good = url is not None and url.scheme in ("http", "https") and url.hostname and url.port != 0
    except ValueError:
        good = False
    if not good or (url and (url.username or url.password)):
        raise CatalogError(keys, "must be an address such as https://tools.example/mcp, without a user or password.")
