"""Starts programs of ours that look at what strangers have made: `pages.py` and `app/suites/fits.py`, which bound themselves."""

from __future__ import annotations

import asyncio
import os
import sys
from asyncio.subprocess import PIPE, Process


async def begin(program: str, *arguments: str) -> Process:
    """A process of this Python, which sees none of our variables. Whoever begins it sees to its end."""
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", program, *arguments),
        stdin=PIPE,
        stdout=PIPE,
        stderr=PIPE,
        env={"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "LC_ALL": "C"},
    )


async def end(process: Process) -> None:
    """Kill it if it has not ended."""
    if process.returncode is None:
        process.kill()
        await process.wait()
