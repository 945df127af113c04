"""The file of MCP servers, and the addresses that they may be at."""

from __future__ import annotations

from ipaddress import ip_address
from pathlib import Path

import pytest

from app.agent.addresses import is_public
from app.agent.mcp_file import read
from app.errors import SettingsError

GOOD = """
[servers.files]
command = ["python", "files.py"]
env = ["FILES_TOKEN"]
timeout = 5

[servers.web]
url = "https://tools.example/mcp"
api_key_env = "WEB_KEY"
private = true
"""
VARIABLES = {"FILES_TOKEN": "secret-f", "WEB_KEY": "secret-w"}


def test_servers_are_read(tmp_path: Path) -> None:
    path = tmp_path / "mcp.toml"
    assert read(path, {}) == {}
    path.write_text(GOOD)
    found = read(path, VARIABLES)
    files, web = found["files"], found["web"]
    assert files.command == ("python", "files.py")
    assert files.env["FILES_TOKEN"].reveal() == "secret-f"
    assert (files.timeout, web.timeout, web.private, files.private) == (5, 60, True, False)
    assert web.api_key is not None
    assert web.api_key.reveal() == "secret-w"
    assert "secret" not in repr(found)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[servers.a]\n", "mcp.toml, line 1, servers.a: needs either command"),
        ('[servers.a]\nurl = "https://a"\ncommand = ["a"]', "mcp.toml, line 1, servers.a: needs either command"),
        ('[servers.a]\nurl = "ftp://a"', "mcp.toml, line 2, servers.a.url: must be an address"),
        ('[servers.a]\nurl = "https://me:pw@a"', "mcp.toml, line 2, servers.a.url: must be an address"),
        ('[servers.a]\nurl = "https://a:99999"', "mcp.toml, line 2, servers.a.url: must be an address"),
        ('[servers.a]\nurl = "https://a"\nenv = ["B"]', "mcp.toml, line 3, servers.a.env: goes with command only"),
        ('[servers.a]\ncommand = ["a"]\nprivate = true', "line 3, servers.a.private: goes with url only"),
        ('[servers.a]\ncommand = "a"', "mcp.toml, line 2, servers.a.command: must be an array"),
        ('[servers.a]\ncommand = ["a", 1]', "mcp.toml, line 2, servers.a.command[1]: must be a text"),
        ('[servers.a]\ncommand = ["a"]\nenv = ["NONE"]', "line 3, servers.a.env[0]: names a variable that is missing"),
        ('[servers.a]\nurl = "https://a"\napi_key_env = "NONE"', "line 3, servers.a.api_key_env: names a variable"),
        ('[servers.a]\nurl = "https://a"\nprivate = 1', "mcp.toml, line 3, servers.a.private: must be true or false"),
        ('[servers.a]\nurl = "https://a"\ntimeout = 0', "mcp.toml, line 3, servers.a.timeout: must be a number"),
        ('[servers.a]\nurl = "https://a"\nother = 0', "mcp.toml, line 3, servers.a.other: is not known here"),
        ('[servers."a b"]\nurl = "https://a"', 'line 1, servers."a b": a name is up to 32'),
        ("[others]\n", "mcp.toml, line 1, others: is not known here"),
        ("[servers", "mcp.toml, at its end"),
    ],
)
def test_a_mistake_is_named_with_file_line_and_key(tmp_path: Path, text: str, told: str) -> None:
    path = tmp_path / "mcp.toml"
    path.write_text(text)
    with pytest.raises(SettingsError) as error:
        read(path, {})
    assert told in str(error.value)


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "10.0.0.1",
        "169.254.169.254",
        "100.64.0.1",
        "0.0.0.1",
        "224.0.0.1",
        "::1",
        "fe80::1",
        "fd00::1",
        "ff0e::1",
        "::ffff:10.0.0.1",
        "64:ff9b::a00:1",
        "2002:a00:1::",
        "2001::1",
        "fec0::1",
        "::10.0.0.1",
        "::ffff:0:10.0.0.1",
    ],
)
def test_addresses_of_networks_behind_the_server_are_not_public(address: str) -> None:
    assert not is_public(ip_address(address))


@pytest.mark.parametrize("address", ["8.8.8.8", "2606:4700::1111", "::ffff:8.8.8.8"])
def test_addresses_of_the_internet_are_public(address: str) -> None:
    assert is_public(ip_address(address))
