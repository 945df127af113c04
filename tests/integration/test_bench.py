"""Test benches: every item is asked once, whatever dies meanwhile."""

from __future__ import annotations

import asyncio
import dataclasses
import tracemalloc
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from msgspec.structs import replace
from sqlalchemy import text

from app.datasets import Dataset, Row
from app.domain import Bench, BenchResult, Principal, Scope, new_id
from app.errors import AppError, InvalidInput
from app.store import accounts
from app.store.benches import Asked
from app.suites.suite import Suite
from app.usecases import bench_results, benches, runs
from app.usecases.bench_work import Work
from tests.engines import Engines
from tests.fakes.upstream import FakeUpstream
from tests.house import House, open_house, send, session

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


async def order(
    house: House,
    wanted: Suite,
    rows: Any = ROWS,
    folder: Path = Path(),
    *,
    dataset: Dataset | None = None,
    again: bool = False,
) -> Bench:
    found = dataset or Dataset(rows)
    return await benches.order(house.platform, await admin(house), wanted, found, folder, again=again)


async def stored(house: House, statement: str) -> Any:
    async with house.platform.engine.connect() as db:
        return (await db.execute(text(statement))).all()


async def test_a_suite_runs_to_its_end_and_the_same_order_finds_it(llm_house: House, fake: FakeUpstream) -> None:
    found = await order(llm_house, suite())
    work = Work(llm_house.platform, found, None)
    done = await work.run()
    assert (done.status, work.progress.done, work.progress.failed, fake.hits) == ("completed", 450, 0, 450)
    (column,) = await bench_results.summary(llm_house.platform, done)
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


async def test_what_fails_is_asked_again_on_demand_and_nothing_else(llm_house: House, fake: FakeUpstream) -> None:
    rows = [{"input": f"say {n}" + (" [[fault: 400]]" if n in (3, 7) else ""), "expected": str(n)} for n in range(12)]
    found = await order(llm_house, suite(), rows)
    work = Work(llm_house.platform, found, None)
    assert (await work.run()).status == "completed"
    assert (work.progress.done, work.progress.failed) == (12, 2)
    page = await bench_results.results(
        llm_house.platform, await admin(llm_house), found.id, after=None, limit=50, failed=True
    )
    assert [(each.row, each.status, (each.error or {})["code"]) for each in page.items] == [
        (3, "failed", "llm_rejected"),
        (7, "failed", "llm_rejected"),
    ]
    hits = fake.hits
    again = await benches.resume(llm_house.platform, await admin(llm_house), found.id, failed=True, with_jobs=False)
    assert again.status == "running"
    work = Work(llm_house.platform, again, None)
    assert (await work.run()).status == "completed"
    assert (work.asked, fake.hits - hits, work.progress.done, work.progress.failed) == (2, 2, 12, 2)


async def test_a_scorer_that_raises_costs_no_answer(llm_house: House, fake: FakeUpstream, tmp_path: Path) -> None:
    scorer = tmp_path / "scorer.py"
    scorer.write_text("def score(row, answer):\n    return 1 / (int(answer) - 2)\n")
    wanted = suite(scorers=[{"kind": "python", "path": "scorer.py"}])
    rows = [{"input": f"say {n}"} for n in (2, 3)]
    found = await order(llm_house, wanted, rows, tmp_path)
    work = Work(llm_house.platform, found, tmp_path)
    await work.run()
    (broken,) = (
        await bench_results.results(
            llm_house.platform, await admin(llm_house), found.id, after=None, limit=5, failed=True
        )
    ).items
    assert (broken.row, broken.status, broken.answer, broken.score) == (0, "unscored", "2", None)
    assert broken.error
    assert broken.error["message"] == "The scorer python failed: ZeroDivisionError: division by zero"
    scorer.write_text("def score(row, answer):\n    return answer == '2'\n")
    again = await benches.resume(llm_house.platform, await admin(llm_house), found.id, failed=True, with_jobs=False)
    work = Work(llm_house.platform, again, tmp_path)
    done = await work.run()
    assert (fake.hits, work.asked, work.progress.failed) == (2, 0, 0)
    assert (await bench_results.summary(llm_house.platform, done))[0].score == 1.0


@pytest.mark.parametrize(
    ("rows", "skip", "sentence"),
    [
        ([{"input": "a", "expected": "b"}, {"question": "a"}], False, "row 2, column input: it is missing."),
        ([{"input": "a"}], False, "row 1, column expected: it is missing."),
        ([{"input": [{"role": "tool"}], "expected": ""}], False, "row 1, column input: a message has a role"),
        ([{"input": "a", "expected": 2**64}], False, "row 1: it has a number that is too large."),
        ([{"input": "a", "expected": "x" * 1_000_000}], False, "row 1: it is longer than 1000000 bytes."),
        ([{"question": "a"}], True, "dataset: it has no rows."),
    ],
)
async def test_a_bench_whose_rows_are_broken_leaves_nothing(
    house: House, rows: list[Row], skip: bool, sentence: str
) -> None:
    wanted = suite(agents=[{"id": "fake_echo_agent"}])
    with pytest.raises(InvalidInput) as raised:
        await benches.order(house.platform, await admin(house), wanted, Dataset(rows, skip_bad=skip), Path())
    assert raised.value.message.startswith(sentence)
    assert await stored(house, "SELECT id FROM benches UNION ALL SELECT bench_id FROM bench_blocks") == []


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"agents": [{"id": "nobody"}]}, "agents: nobody: There is no such model"),
        ({"agents": [{"id": "fake_echo_agent", "params": {"x": 1}}]}, "agents: fake_echo_agent: "),
        ({"scorers": [{"kind": "python", "path": "none.py"}]}, "scorers: none.py cannot be used"),
        ({"scorers": [{"kind": "json_schema", "schema": {"type": "odd"}}]}, "scorers[0]: the schema: it is no schema"),
    ],
)
async def test_a_suite_that_cannot_be_run_is_refused_before_it_begins(
    house: House, tmp_path: Path, changes: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(AppError) as raised:
        await order(house, suite(**{"agents": [{"id": "fake_echo_agent"}]} | changes), ROWS[:2], tmp_path)
    assert raised.value.message.startswith(sentence)
    assert await stored(house, "SELECT id FROM benches") == []


async def test_agents_parameters_and_repeats_make_the_table(llm_house: House, fake: FakeUpstream) -> None:
    wanted = suite(agents=[{"id": "model", "vary": {"temperature": [0, 1]}}, {"id": "fake_echo_agent"}], repeats=3)
    found = await order(llm_house, wanted, ROWS[:7])
    work = Work(llm_house.platform, found, None)
    done = await work.run()
    columns = await bench_results.summary(llm_house.platform, done)
    assert [(each.name, each.items) for each in columns] == [
        ("model temperature=0", 21),
        ("model temperature=1", 21),
        ("fake_echo_agent", 21),
    ]
    assert fake.hits == 42  # repeats do not share an answer, though the cache is on
    compared = await bench_results.compared(llm_house.platform, done, done)
    assert [(each.second, each.comparison.pairs) for each in compared] == [
        ("model temperature=1", 7),
        ("fake_echo_agent", 7),
    ]
    assert compared[1].comparison.difference < 0


async def test_two_processes_share_a_bench_and_one_that_is_taken_for_dead_stores_nothing(
    llm_house: House, running: Engines, database_url: str, fake: FakeUpstream
) -> None:
    given = {"redis_url": running.redis_url, "openai_base_url": fake.base_url, "openai_api_key": "sk-x"}
    async with open_house(database_url, **given) as other:
        found = await order(llm_house, suite(cache="off"))
        works = [Work(each.platform, found, None) for each in (llm_house, other)]
        done = await asyncio.gather(*(work.run() for work in works))
        assert {bench.status for bench in done} == {"completed"}
        assert fake.hits == sum(work.asked for work in works) == 450
        assert all(work.asked for work in works)
        again = await order(llm_house, suite(cache="off"), again=True)
        slow = Work(llm_house.platform, again, None)
        taken = await slow._claim()
        assert taken
        async with other.platform.engine.begin() as db:
            await db.execute(text("UPDATE bench_blocks SET replica = NULL"))  # as when it was not heard of for too long
        assert (await Work(other.platform, again, None).run()).status == "completed"
        before = await stored(other, "SELECT sum(score), count(*) FROM bench_results")
        slow._subjects = []
        await slow._keep([Asked(BenchResult(0, 0, 0, 1, "completed", "late", 1.0), "model", new_id())])
        assert await stored(other, "SELECT sum(score), count(*) FROM bench_results") == before


async def test_it_stops_when_it_has_cost_what_it_may(
    house: House, tmp_path: Path, running: Engines, database_url: str, fake: FakeUpstream
) -> None:
    models = tmp_path / "models.toml"
    models.write_text(
        f"[models.default]\nprice = {{ prompt = 1000, completion = 1000 }}\n"
        f'endpoints = [{{ base_url = "{fake.base_url}", model = "fake" }}]\n'
    )
    async with open_house(database_url, models_file=models) as paid:
        same: dict[str, Any] = {"agents": [{"id": "default"}], "cache": "off"}
        wanted = suite(**same, limits={"concurrency": 2, "money": 0.05})
        found = await order(paid, wanted)
        work = Work(paid.platform, found, None)
        done = await work.run()
        assert done.status == "stopped"
        assert done.reason
        assert "0.05" in done.reason
        assert 0.05 <= float(work.progress.cost) < 0.1
        more = suite(**same, limits={"concurrency": 8})
        assert (await order(paid, more)).id == found.id  # limits are no part of what a bench is
        asked, again = (
            fake.hits,
            await benches.resume(paid.platform, await admin(paid), found.id, failed=False, with_jobs=False),
        )
        again = replace(again, suite={**again.suite, "limits": {"concurrency": 8}})
        assert (await Work(paid.platform, again, None).run()).status == "completed"
        assert (asked < 100, fake.hits) == (True, 450)


async def test_a_bench_with_a_journal_leaves_runs_to_be_looked_at(llm_house: House, fake: FakeUpstream) -> None:
    found = await order(llm_house, suite(journal=True), ROWS[:3])
    work = Work(llm_house.platform, found, None)
    done = await work.run()
    assert (done.status, work.progress.failed) == ("completed", 0)
    page = await bench_results.results(
        llm_house.platform, await admin(llm_house), found.id, after=None, limit=5, failed=False
    )
    assert [each.answer for each in page.items] == ["answer 0", "answer 1", "answer 2"]
    for each in page.items:
        run = (await llm_house.admin.get(f"/api/v1/runs/{each.run_id}")).json()
        assert (run["status"], run["usage"]["completion"]) == ("completed", each.usage.completion)
    assert await stored(llm_house, "SELECT count(*) FROM ledger") == [(3,)]


async def test_items_with_a_journal_wait_for_a_server_that_has_no_room(llm_house: House, fake: FakeUpstream) -> None:
    found = await order(llm_house, suite(journal=True, cache="off"), ROWS[:60])
    small = dataclasses.replace(llm_house.platform, max_runs=4)  # of which a bench may have half
    fake.fail("404")
    work = Work(small, found, None)
    assert (await work.run()).status == "completed"
    assert (work.progress.done, work.progress.failed) == (60, 0)
    ((failures,),) = await stored(llm_house, "SELECT count(*) FROM runs WHERE status = 'failed'")
    assert failures > 0, "and what found no room at the model was asked again"


async def test_what_the_end_of_a_server_cuts_off_is_asked_again(
    running: Engines, database_url: str, fake: FakeUpstream
) -> None:
    given = {"redis_url": running.redis_url, "openai_base_url": fake.base_url}
    slow = [{"input": f"say {n} [[fault: slow first={n % 2 * 2}]]", "expected": str(n)} for n in range(8)]
    async with open_house(database_url, **given) as one:
        found = await order(one, suite(journal=True, cache="off"), slow)
        working = asyncio.ensure_future(Work(one.platform, found, None).run())
        await fake.until(lambda: fake.hits == 8 and fake.completed >= 4)
        await runs.drain(one.platform, 0.2)
        assert (await working).status == "running"
        assert await stored(one, "SELECT DISTINCT row % 2, status FROM bench_results") == [(0, "completed")]
    async with open_house(database_url, **given) as two:
        assert (await Work(two.platform, found, None).run()).status == "completed"
        assert await stored(two, "SELECT status, count(*) FROM bench_results GROUP BY 1") == [("completed", 8)]


async def test_what_an_item_took_before_the_budget_ran_out_is_charged(llm_house: House, fake: FakeUpstream) -> None:
    judged = suite(cache="off", scorers=[{"kind": "judge", "instructions": "Is it right? " * 100}])
    budget = {"scope": "user", "id": str((await admin(llm_house)).user.id), "period": "total", "tokens": 300}
    made = await llm_house.admin.post("/api/v1/budgets", json=budget)
    assert made.status_code == 201, made.text
    stopped = await Work(llm_house.platform, await order(llm_house, judged, ROWS[:1]), None).run()
    assert (stopped.status, fake.hits) == ("stopped", 1)
    assert stopped.reason
    assert await stored(llm_house, "SELECT count(*) FROM bench_results") == [(0,)]
    ((spent,),) = await stored(llm_house, "SELECT sum(prompt_tokens + completion_tokens) FROM ledger")
    (shown,) = (await llm_house.admin.get("/api/v1/budgets")).json()["data"]
    assert shown["used"]["tokens"] == spent > 0
    assert shown["reserved"]["tokens"] == 0


async def test_judges_of_items_with_a_journal_are_charged_beside_them(llm_house: House, fake: FakeUpstream) -> None:
    judged = suite(journal=True, cache="off", scorers=[{"kind": "similarity", "model": "default"}, {"kind": "judge"}])
    done = await Work(llm_house.platform, await order(llm_house, judged, ROWS[:3]), None).run()
    assert (done.status, fake.hits) == ("completed", 9)
    assert await stored(llm_house, "SELECT count(*) FROM ledger") == [(9,)]


async def test_results_are_written_to_a_file_and_into_a_report(llm_house: House, tmp_path: Path) -> None:
    rows = [{"input": f"say <b>{n}</b>", "expected": str(n)} for n in range(450)]
    found = await order(llm_house, suite(agents=[{"id": "model", "temperature": 0}, {"id": "fake_echo_agent"}]), rows)
    await Work(llm_house.platform, found, None).run()
    assert await bench_results.export(llm_house.platform, found, tmp_path / "results.parquet") == 900
    written = Dataset.open(tmp_path / "results.parquet")
    assert list(
        written.sql("SELECT agent, count(*) AS n, count(DISTINCT row) AS r FROM data GROUP BY 1 ORDER BY 1")
    ) == [
        {"agent": "fake_echo_agent", "n": 450, "r": 450},
        {"agent": "model", "n": 450, "r": 450},
    ]
    page = await bench_results.report(llm_house.platform, found)
    assert page.count("<svg") == 2
    assert "<script" not in page
    assert "http" not in page.replace('http-equiv="', "")
    assert "&lt;b&gt;0&lt;/b&gt;" in page
    assert "<b>" not in page


async def test_answers_in_sessions_are_rows(llm_house: House) -> None:
    id = await session(llm_house.admin, "model")
    for content, rating in (("say one", -1), ("say two", None), ("say three", 1)):
        told = (await send(llm_house.admin, id, content)).json()
        if rating:
            made = await llm_house.admin.patch(
                f"/api/v1/messages/{told['message_id']}/feedback", json={"rating": rating}
            )
            assert made.status_code == 200, made.text
    bob = await llm_house.user("bob")
    platform, owner = llm_house.platform, await admin(llm_house)

    def rows(**options: Any) -> list[tuple[str, str]]:
        return [(row["input"], row["answer"]) for row in Dataset.from_sessions(answers, **options)]

    answers = benches.SessionAnswers(platform, owner.user.id)
    down = await asyncio.to_thread(rows, feedback="down")
    assert down == [("say one", "one")]
    assert len(await asyncio.to_thread(rows)) == 3
    answers = benches.SessionAnswers(platform, UUID(bob.headers["x-test-user"]))
    assert await asyncio.to_thread(rows) == []


SUITE = {
    "name": "over REST",
    "dataset": {"rows": ROWS[:40]},
    "agents": [{"id": "model", "temperature": 0}, {"id": "fake_echo_agent"}],
    "scorers": [{"kind": "exact"}],
}


async def ended(client: Any, id: str) -> Any:
    async with asyncio.timeout(60):
        while True:
            told = (await client.get(f"/api/v1/benches/{id}")).json()
            if told["status"] not in ("loading", "running"):
                return told
            await asyncio.sleep(0.1)


async def test_a_user_orders_a_bench_over_rest_and_nobody_else_sees_it(llm_house: House, fake: FakeUpstream) -> None:
    ada, bob = await llm_house.user("ada"), await llm_house.user("bob")
    made = await ada.post("/api/v1/benches", json=SUITE, headers={"idempotency-key": "one"})
    assert made.status_code == 201, made.text
    id = made.json()["id"]
    assert (await ada.post("/api/v1/benches", json=SUITE, headers={"idempotency-key": "one"})).json()["id"] == id
    told = await ended(ada, id)
    assert (told["status"], told["progress"]["done"], fake.hits) == ("completed", 80, 40)
    assert [each["agent"] for each in told["agents"]] == ["model", "fake_echo_agent"]
    seen, after = [], None
    while True:
        query = {"limit": 30} | ({"after": after} if after else {})
        page = (await ada.get(f"/api/v1/benches/{id}/results", params=query)).json()
        seen += [(each["row"], each["agent"]) for each in page["data"]]
        if not page["has_more"]:
            break
        after = page["data"][-1]["id"]
    assert seen == [(row, agent) for row in range(40) for agent in ("model", "fake_echo_agent")]
    (difference,) = (await ada.get(f"/api/v1/benches/{id}/compare/{id}")).json()["data"]
    assert (difference["second"], difference["rows"]) == ("fake_echo_agent", 40)
    report = await ada.get(f"/api/v1/benches/{id}/report")
    assert "sandbox" in report.headers["content-security-policy"]
    assert (await ada.post(f"/api/v1/benches/{id}/cancel")).status_code == 409
    for path in ("", "/results", "/report", f"/compare/{id}"):
        assert (await bob.get(f"/api/v1/benches/{id}{path}")).status_code == 404, path
    for path in ("cancel", "resume"):
        assert (await bob.post(f"/api/v1/benches/{id}/{path}", json={})).status_code == 404
    assert (await bob.delete(f"/api/v1/benches/{id}")).status_code == 404
    assert (await bob.get("/api/v1/benches")).json()["data"] == []
    assert [each["id"] for each in (await ada.get("/api/v1/benches")).json()["data"]] == [id]
    gone = await llm_house.admin.delete(f"/api/v1/users/{ada.headers['x-test-user']}")
    assert gone.status_code == 204
    assert await stored(llm_house, "SELECT bench_id FROM bench_results UNION SELECT id FROM benches") == []


async def test_a_file_is_a_data_set_and_a_broken_one_a_reason(llm_house: House) -> None:
    ada, bob = await llm_house.user("ada"), await llm_house.user("bob")
    ids = []
    for content in (b"input,expected\nsay 1,1\nsay 2,2\n", b"input,expected\nsay 1\n"):
        sent = await ada.post("/v1/files", files={"file": ("rows.csv", content)}, data={"purpose": "user_data"})
        ids.append(sent.json()["id"])
    wanted = SUITE | {"dataset": {"file_id": ids[0]}}
    made = await ada.post("/api/v1/benches", json=wanted)
    told = await ended(ada, made.json()["id"])
    assert (told["status"], told["rows"], told["agents"][0]["score"]) == ("completed", 2, 1.0)
    made = await ada.post("/api/v1/benches", json=SUITE | {"dataset": {"file_id": ids[1]}})
    told = await ended(ada, made.json()["id"])
    assert (told["status"], told["progress"]["items"]) == ("failed", 0)
    assert told["reason"] == "data.csv, line 2, column expected: there are 1 fields for 2 columns."
    assert (await bob.post("/api/v1/benches", json=wanted)).status_code == 404


async def test_a_bench_whose_file_the_store_has_lost_fails_for_good(house: House) -> None:
    ada = await house.user("ada")
    sent = await ada.post("/v1/files", files={"file": ("rows.csv", b"input\n1\n")}, data={"purpose": "user_data"})
    await house.platform.objects.delete([UUID(sent.json()["id"].removeprefix("file-"))])
    wanted = SUITE | {"agents": [{"id": "fake_echo_agent"}], "dataset": {"file_id": sent.json()["id"]}}
    made = await ada.post("/api/v1/benches", json=wanted)
    told = await ended(ada, made.json()["id"])
    assert (told["status"], told["reason"]) == ("failed", "The object store has lost this file's content.")


async def test_a_number_of_4000_digits_is_told_with_its_line(house: House, tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text('{"input": "a", "expected": 1}\n{"input": "a", "expected": ' + "1" * 4000 + "}\n")
    wanted = suite(agents=[{"id": "fake_echo_agent"}])
    with pytest.raises(InvalidInput, match=r"^x.jsonl, line 2: it has a number that is too large.$"):
        await order(house, wanted, dataset=Dataset.open(tmp_path / "x.jsonl"))
    found = await order(house, wanted, dataset=Dataset.open(tmp_path / "x.jsonl", skip_bad=True))
    assert (found.rows, found.skipped) == (1, 1)


async def test_large_rows_are_stored_few_at_once(house: House, tmp_path: Path) -> None:
    nested = "[" + "{}," * 100_000 + "{}]"
    line = '{"input": "a", "expected": "b", "more": ' + nested + "}\n"
    (tmp_path / "x.jsonl").write_text(line * 60)
    tracemalloc.start()
    try:
        wanted = suite(agents=[{"id": "fake_echo_agent"}])
        found = await order(house, wanted, dataset=Dataset.open(tmp_path / "x.jsonl"))
        assert tracemalloc.get_traced_memory()[1] < 80_000_000
    finally:
        tracemalloc.stop()
    assert found.rows == 60
    assert (await Work(house.platform, found, None).run()).status == "completed"


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"naem": 1}, "naem"),
        ({"dataset": {"path": "/etc/passwd"}}, "dataset.path"),
        ({"dataset": {"rows": []}}, "dataset.rows"),
        ({"agents": []}, "agents"),
        ({"agents": [{"id": "nobody"}]}, "agents"),
        ({"scorers": [{"kind": "python", "path": "x.py"}]}, "scorers"),
        ({"scorers": [{"kind": "regex", "pattern": "(" * 5000 + ")" * 5000}]}, "scorers"),
        ({"scorers": [{"kind": "json_schema", "schema": {"$ref": "file:///etc/passwd"}}]}, "scorers"),
        ({"repeats": 10**9}, "repeats"),
        ({"dataset": {"rows": [{"input": "\u0000"}]}}, "dataset.rows"),
    ],
)
async def test_what_is_wrong_with_an_order_names_itself(house: House, changes: dict[str, Any], param: str) -> None:
    told = await house.admin.post("/api/v1/benches", json=SUITE | {"agents": [{"id": "fake_echo_agent"}]} | changes)
    assert (told.status_code, told.json()["param"]) == (400, param), told.text
