"""What benches come to: results page by page, in files and reports, and compared with each other."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from uuid import UUID

import msgspec
from msgspec import Struct

from app.agent.plain import plain
from app.datasets import Dataset, Row
from app.domain import Bench, BenchResult, Page, Principal
from app.store import benches
from app.suites.statistics import Comparison, compare, interval
from app.suites.suite import Suite
from app.usecases.benches import PAGE, existing, names_of, suite_of
from app.usecases.platform import Platform

WORST = 20
"""How many of the worst answers a report shows."""


async def results(
    platform: Platform, principal: Principal, id: UUID, *, after: tuple[int, int, int] | None, limit: int, failed: bool
) -> Page[BenchResult]:
    """What became of its items, in the order of the rows."""
    await existing(platform, id, principal.owner)
    async with platform.engine.connect() as db:
        return await benches.results(db, id, after=after, limit=limit, failed=failed)


async def exported(platform: Platform, bench: Bench) -> AsyncIterator[list[Row]]:
    """Every result with its row, for a file, some at a time."""
    after: tuple[int, int, int] | None = None
    while True:
        async with platform.engine.connect() as db:
            found = await benches.results(db, bench.id, after=after, limit=PAGE)
        yield await _with_rows(platform, bench, found.items)
        if not found.has_more:
            return
        after = found.items[-1].row, found.items[-1].cell, found.items[-1].repeat


async def worst(platform: Platform, bench: Bench, limit: int) -> list[Row]:
    """The worst answers of a bench, as a file would have them."""
    async with platform.engine.connect() as db:
        found = await benches.worst(db, bench.id, limit)
    return await _with_rows(platform, bench, found)


async def _with_rows(platform: Platform, bench: Bench, found: Sequence[BenchResult]) -> list[Row]:
    suite = suite_of(bench)
    names = names_of(bench)
    numbers = {each.row // suite.block_rows for each in found}
    async with platform.engine.connect() as db:
        blocks = {number: await benches.rows_of(db, bench.id, number) for number in numbers}
    return [
        _exported(each, names[each.cell], blocks[each.row // suite.block_rows][each.row % suite.block_rows], suite)
        for each in found
    ]


def _exported(each: BenchResult, cell: str, row: Mapping[str, Any], suite: Suite) -> Row:
    return {
        "agent": cell,
        "row": each.row,
        "repeat": each.repeat,
        "input": _flat(row.get(suite.dataset.input)),
        "expected": _flat(row.get(suite.dataset.expected)),
        "answer": each.answer,
        "status": each.status,
        "score": each.score,
        "scores": dict(each.scores),
        "error": (each.error or {}).get("message"),
        "prompt_tokens": each.usage.prompt,
        "completion_tokens": each.usage.completion,
        "cost": float(each.usage.cost),
        "seconds": each.seconds,
        "from_cache": each.from_cache,
        "run_id": str(each.run_id) if each.run_id else None,
    }


def _flat(value: Any) -> Any:
    """A value as text: one column of a file has one type."""
    return value if isinstance(value, str | None) else msgspec.json.encode(plain(value)).decode()


class Compared(Struct, frozen=True):
    """Two cells over the rows that both have, and what an item of each costs and takes."""

    first: str
    second: str
    comparison: Comparison
    costs: tuple[float, float]
    seconds: tuple[float, float]


async def summary(platform: Platform, bench: Bench) -> Sequence[benches.Column]:
    """What each cell of a bench has come to."""
    async with platform.engine.connect() as db:
        return await benches.columns(db, bench.id, names_of(bench))


async def compared(platform: Platform, first: Bench, second: Bench) -> list[Compared]:
    """The cells of two benches that are called the same, or else the only ones; in one bench, the first with each other."""
    ones, others = await summary(platform, first), await summary(platform, second)
    if first.id == second.id:
        pairs = [(ones[0], other) for other in others[1:]]
    elif len(ones) == len(others) == 1:
        pairs = [(ones[0], others[0])]
    else:
        pairs = [(one, other) for one in ones for other in others if one.name == other.name]
    found = []
    for one, other in pairs:
        async with platform.engine.connect() as db:
            left = await benches.scores(db, first.id, one.number)
            right = await benches.scores(db, second.id, other.number)
        if comparison := compare(left, right):
            costs, seconds = (one.cost_each, other.cost_each), (one.median, other.median)
            found.append(Compared(one.name, other.name, comparison, costs, seconds))
    return found


async def export(platform: Platform, bench: Bench, path: Path) -> int:
    """Write all results with their rows to a file, as `Dataset.write` does; how many."""
    loop, rows = asyncio.get_running_loop(), exported(platform, bench)

    class Results:
        def __iter__(self) -> Iterator[Row]:
            while (some := asyncio.run_coroutine_threadsafe(_next(), loop).result()) is not None:
                yield from some

    async def _next() -> Sequence[Row] | None:
        try:
            return await anext(rows)
        except StopAsyncIteration:
            return None

    return await asyncio.to_thread(Dataset(Results()).write, path)


async def report(platform: Platform, bench: Bench) -> str:
    """The report of a bench, as far as it is."""
    columns = await summary(platform, bench)
    async with platform.engine.connect() as db:
        intervals = [interval([*(await benches.scores(db, bench.id, each.number)).values()]) for each in columns]
    compared_with_first = await compared(platform, bench, bench)
    from app.suites.report import page  # and with it Jinja2, which no other process needs

    return page(bench, columns, intervals, compared_with_first, await worst(platform, bench, WORST))
