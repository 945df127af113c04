"""The server's own OpenAPI document, fuzzed with a small budget, the same cases each time; `./scripts/fuzz` has a large one."""

from __future__ import annotations

import asyncio
import re
import sys

import pytest

from tests.e2e.test_serve import ROOT

pytestmark = pytest.mark.e2e


async def test_a_little_fuzzing_finds_nothing() -> None:
    command = [sys.executable, "-m", "tests.fuzz", "--as", "users", "--max-examples", "4", "--deterministic"]
    process = await asyncio.create_subprocess_exec(
        *command, cwd=ROOT, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    output = (await process.communicate())[0].decode()
    assert process.returncode == 0, output
    first = re.search(r"Selected: (\d+)/(\d+)\s+Tested: (\d+)", output)
    assert first, output
    assert first[1] == first[2] == first[3], "not every route was tested"
