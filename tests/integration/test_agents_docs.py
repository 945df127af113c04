"""docs/agents-api.md, done as it says: its blocks are run, and print what stands after them."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.house import House
from tests.integration.test_openai_docs import run

PAGE = (Path(__file__).parents[2] / "docs/agents-api.md").read_text()
BLOCKS = re.findall(r"^```bash\n(.*?)^```\n\n^```json\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
MARK = "-- the end of a block --"


def shows(shown: Any, printed: Any) -> bool:
    """Whether all that the page shows is in what was printed."""
    if shown == "…":
        return printed is not None
    if isinstance(shown, dict):
        return isinstance(printed, dict) and all(shows(value, printed.get(name)) for name, value in shown.items())
    if isinstance(shown, list):
        return len(shown) == len(printed) and all(map(shows, shown, printed))
    return bool(shown == printed)


async def test_the_pages_blocks_print_what_it_shows(house: House, tmp_path: Path) -> None:
    if not (shutil.which("bash") and shutil.which("curl")):
        pytest.skip("bash and curl are needed to follow the page")
    assert len(BLOCKS) == PAGE.count("```bash")
    code = f"\necho '{MARK}'\n".join(block for block, _ in BLOCKS)
    printed = (await run(house, tmp_path, "bash", "-euc", code)).split(MARK)
    for (block, shown), text in zip(BLOCKS, printed, strict=True):
        assert shows(json.loads(shown), json.loads(text)), (block, text)


def test_the_page_names_every_route_of_agents_and_tasks(house: House) -> None:
    for path, methods in house.app.openapi()["paths"].items():
        if path.startswith("/api/v1/agents"):
            named = path.replace("{agent_id}", "{id}").replace("{task_id}", "{id}")
            for method in methods:
                assert f"`{method.upper()} {named}`" in PAGE, (method, path)
