"""docs/mcp.md, done as it says."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

pytest.importorskip("mcp", reason="needs the extra mcp")
from app.agent.loader import Agents
from app.agent.mcp_file import read
from app.agent.mcp_servers import MAX_SCHEMA, MAX_TOOLS, STARTS
from app.agent.tools import MAX_RESULT
from tests.house import House
from tests.integration.test_openai_docs import run

PAGE = (Path(__file__).parents[2] / "docs/mcp.md").read_text()
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
(_, CLIENT), (_, PRINTED), (_, SERVERS), (_, AGENT) = BLOCKS


async def test_the_client_of_the_page_prints_what_it_shows(house: House, tmp_path: Path) -> None:
    assert await run(house, tmp_path, sys.executable, "-c", CLIENT) == PRINTED


async def test_the_file_and_the_agent_of_the_page_go_together(tmp_path: Path) -> None:
    file = tmp_path / "mcp.toml"
    file.write_text(SERVERS)
    servers = read(file, {"FILES_TOKEN": "t", "SEARCH_KEY": "k"})
    assert servers["files"].command[0] == "python"
    assert (servers["search"].timeout, servers["files"].timeout) == (20, 60)
    assert [name for name, spec in servers.items() if spec.private] == ["wiki"]
    folder = tmp_path / "agents"
    folder.mkdir()
    (folder / "archivist.py").write_text(AGENT)
    agents = Agents(folder, {}, servers=servers)
    await agents.load()
    try:
        assert agents.ids == {"archivist"}
    finally:
        agents.close()


def test_the_numbers_of_the_page_are_those_of_the_code() -> None:
    assert f"At most {MAX_TOOLS} of a server" in PAGE
    assert f"longer than {MAX_SCHEMA:,} characters" in PAGE
    assert f"cut at {MAX_RESULT:,} characters" in PAGE
    assert f"up to {STARTS} times a minute" in PAGE
