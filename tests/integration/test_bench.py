"""Test benches: every item is asked once, whatever dies meanwhile."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from app.datasets import Dataset, Row
from app.domain import Bench, Principal, Scope
from app.store import accounts
from app.suites.suite import Suite
from app.usecases import benches
from app.usecases.bench_work import Work
from tests.fakes.upstream import FakeUpstream
from tests.house import House

pytest.importorskip("duckdb")
ROWS: list[Row] = [{"input": f"say answer {n}", "expected": f"answer {n % 10 if n % 5 else n}"} for n in range(450)]


def suite(**changes: Any) -> Suite:
    given = {
        "name": "numbers",
        "dataset": {"path": "rows.jsonl"},
        "agents": [{"id": "model", "temperature": 0}],
        "scorers": [{"kind": "exact"}],
        "limits": {"concurrency": 20},
    }
    return Suite.model_validate(given | changes)


async def admin(house: House) -> Principal:
    async with house.platform.engine.connect() as db:
        user = await accounts.get_user(db, name="admin")
    assert user
    return Principal(user, frozenset({Scope.CHAT}))


async def order(house: House, wanted: Suite, rows: Any = ROWS, folder: Path = Path(), **options: Any) -> Bench:
    return await benches.order(house.platform, await admin(house), wanted, Dataset(rows), folder, **options)


async def stored(house: House, statement: str) -> Any:
    async with house.platform.engine.connect() as db:
        return (await db.execute(text(statement))).all()


async def test_a_suite_runs_to_its_end_and_the_same_order_finds_it(llm_house: House, fake: FakeUpstream) -> None:
    found = await order(llm_house, suite())
    work = Work(llm_house.platform, found, None)
    done = await work.run()
    assert (done.status, work.progress.done, work.progress.failed, fake.hits) == ("completed", 450, 0, 450)
    (column,) = await benches.summary(llm_house.platform, done)
    right = sum(row["input"][4:] == row["expected"] for row in ROWS) / 450
    assert column.score == pytest.approx(right)
    assert column.scores == {"exact": pytest.approx(right)}
    assert (await order(llm_house, suite())).id == found.id
    again = await order(llm_house, suite(), again=True)
    assert (again.id != found.id, again.edition) == (True, 2)
    assert (await Work(llm_house.platform, again, None).run()).status == "completed"
    assert fake.hits == 450  # all are in the cache
    ((calls,),) = await stored(llm_house, "SELECT count(*) FROM ledger")
    assert calls == 900
