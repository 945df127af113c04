"""`python -m bench`: run the benchmark and print its table. It is no test: it ends with 0 whatever it finds."""

from __future__ import annotations

import argparse
import asyncio
import json
import platform
import sys
import tempfile
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from os import cpu_count, getloadavg
from pathlib import Path

import asyncpg
import uvloop

from bench import calls, journal, large, measures, suites, traces
from bench.completions import completions
from bench.measures import QUICK, Figures, Measure, Size
from bench.processes import many_files
from bench.table import HEADER, Row, references, rendered, rows
from bench.targets import ROOT, Stage, stage

MEASURES: dict[str, Measure] = {
    **measures.MEASURES,
    "calls": calls.calls,
    "cached": calls.cached,
    "steps": journal.steps,
    "completions": completions,
}


LARGE = {**large.MEASURES, **suites.MEASURES, **traces.MEASURES}


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="scripts/bench", description=__doc__)
    parser.add_argument(
        "--only", action="append", choices=[*MEASURES, *LARGE], help="measure only this; again for more"
    )
    parser.add_argument("--rounds", type=int, help="rounds of all targets (5; 2 when quick)")
    parser.add_argument("--quick", action="store_true", help="small loads, for a look")
    parser.add_argument(
        "--large",
        action="store_true",
        help="also 1,000 streams, 5,000 idle readers, a test bench of 100,000 items and a million steps",
    )
    parser.add_argument("--tree", type=Path, default=ROOT, help="measure the platform of this source tree")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure to FILE")
    options = parser.parse_args(given)
    options.rounds = options.rounds or (2 if options.quick else 5)
    options.only = options.only or [*MEASURES, *(LARGE if options.large else ())]
    return options


async def measure(stage: Stage, options: argparse.Namespace) -> tuple[Figures, list[Row]]:
    """All rounds."""
    await stage.platform.enter()
    figures, size = Figures(), QUICK if options.quick else Size()
    chosen = [measure for name, measure in MEASURES.items() if name in options.only]
    if "memory" in options.only:
        await asyncio.sleep(2)
        await MEASURES["memory"](stage, size, figures)
        chosen.remove(MEASURES["memory"])
    for name in ("whole", "streamed", "completions"):
        if name in options.only:
            say("warming up")
            await MEASURES[name](stage, QUICK, Figures())
    for number in range(options.rounds if chosen else 0):
        say(f"round {number + 1} of {options.rounds}")
        for one in chosen:
            await one(stage, size, figures)
    if "memory" in options.only:
        await MEASURES["memory"](stage, size, figures)
    found: list[Row] = []
    for name, big in LARGE.items():
        if name in options.only:
            say(name)
            found += await big(stage, figures)
    return figures, found


def say(text: str) -> None:
    """Tell how far it is."""
    sys.stderr.write(f"{text} ...\n")


async def machine(stage: Stage) -> Mapping[str, str]:
    """On what it was measured."""
    db = await asyncpg.connect(stage.platform.database_url)
    try:
        database = await db.fetchval("SHOW server_version")
        durable = await db.fetchval("SELECT current_setting('fsync') || '/' || current_setting('synchronous_commit')")
    finally:
        await db.close()
    return {
        "date": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        "machine": f"{cpu_count()} cores, {_processor()}, {platform.system()} {platform.machine()}",
        "load before": f"{getloadavg()[0]:.1f}",
        "Python": platform.python_version(),
        "uvicorn/uvloop": f"{version('uvicorn')}/{version('uvloop')}",
        "FastAPI/aiohttp": f"{version('fastapi')}/{version('aiohttp')}",
        "PostgreSQL": f"{database}, fsync/synchronous_commit {durable}",
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.processor())


async def _main(stage: Stage, options: argparse.Namespace) -> None:
    about = await machine(stage)
    figures, big = await measure(stage, options)
    lines = [*rows(figures.values), *big]
    sys.stdout.write("\n" + ", ".join(f"{name}: {value}" for name, value in about.items()) + "\n\n")
    sys.stdout.write(rendered(HEADER, [row.cells() for row in lines]) + "\n\n")
    if others := references(figures.values):
        sys.stdout.write(
            rendered(("reference", "cost", ""), [(row.what, row.ours, row.ratio) for row in others]) + "\n\n"
        )
    busy = ", ".join(f"{name} {share:.0%}" for name, share in figures.busy.items())
    sys.stdout.write(f"Of a core at most: {busy}.\n" if busy else "")
    if options.json:
        kept = {"about": about, "figures": figures.values, "rows": [row.cells() for row in lines], "busy": figures.busy}
        options.json.write_text(json.dumps(kept, indent=1, ensure_ascii=False) + "\n")


def main() -> None:
    """Start everything, measure, stop everything."""
    options = arguments()
    many_files()
    with (
        tempfile.TemporaryDirectory(prefix="chattable-bench-") as folder,
        stage(Path(folder), options.tree.absolute()) as ready,
    ):
        uvloop.run(_main(ready, options))


if __name__ == "__main__":
    main()
