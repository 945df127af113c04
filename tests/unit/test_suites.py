"""Suites, scorers and statistics, without a platform."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from app.agent.testing import Scripted
from app.errors import InvalidInput
from app.suites.fits import json_in
from app.suites.scorers import Scorers, Unscored, cosine
from app.suites.statistics import compare, interval, mcnemar, wilcoxon
from app.suites.suite import Suite, asked, cells_of, read_suite

GIVEN: dict[str, Any] = {"name": "x", "dataset": {"path": "x.jsonl"}, "agents": [{"id": "echo"}]}


def suite(**changes: Any) -> Suite:
    return Suite.model_validate(GIVEN | changes)


async def scored(answer: str, row: dict[str, Any], llm: Scripted | None = None, /, **scorer: Any) -> float | None:
    scorers = Scorers(suite(scorers=[scorer]), None)
    try:
        score, _ = await scorers.score(row, answer, llm or Scripted([]))
    finally:
        await scorers.close()
    return score


@pytest.mark.parametrize(
    ("scorer", "answer", "expected", "score"),
    [
        ({"kind": "exact"}, " Paris\n", "Paris", 1),
        ({"kind": "exact"}, "paris", "Paris", 0),
        ({"kind": "exact", "ignore_case": True}, "paris", "Paris", 1),
        ({"kind": "exact"}, "3", 3, 1),
        ({"kind": "regex", "pattern": "^Par"}, "Paris", None, 1),
        ({"kind": "regex"}, "It is Paris.", r"\bParis\b", 1),
        ({"kind": "regex"}, "It is Lyon.", r"\bParis\b", 0),
        ({"kind": "numeric"}, "That makes 1,234.5 in all", 1234.5, 1),
        ({"kind": "numeric"}, "1 or 2", "1", 0),
        ({"kind": "numeric", "tolerance": 0.1}, "3.05", 3, 1),
        ({"kind": "numeric", "relative": 0.01}, "-101", "-100", 1),
        ({"kind": "numeric"}, "none", 3, 0),
        ({"kind": "json_schema", "schema": {"required": ["a"]}}, '```json\n{"a": 1}\n```', None, 1),
        ({"kind": "json_schema", "schema": {"required": ["a"]}}, '{"b": 1}', None, 0),
        ({"kind": "json_schema", "schema": {"type": "object"}}, "no JSON", None, 0),
        ({"kind": "json_schema"}, "[1]", {"type": "array"}, 1),
    ],
)
async def test_scorers_score(scorer: dict[str, Any], answer: str, expected: Any, score: float) -> None:
    if scorer["kind"] == "json_schema":
        pytest.importorskip("jsonschema")
    assert await scored(answer, {"expected": expected}, **scorer) == score


async def test_a_judge_is_asked_with_the_task_and_its_answer_read() -> None:
    llm = Scripted(['```json\n{"reason": "near", "score": 0.75}\n```'])
    row = {"input": "Capital of France?", "expected": "Paris"}
    assert await scored("Paree", row, llm, kind="judge", instructions="Be mild.") == 0.75
    messages, options = llm.asked[0]
    assert messages[0]["content"].startswith("Be mild.")
    assert all(word in messages[1]["content"] for word in ("Capital of France?", "Paris", "Paree"))
    assert options["temperature"] == 0


@pytest.mark.parametrize("said", ["no JSON", '{"score": 3}', '{"reason": "x"}'])
async def test_a_judge_that_makes_no_sense_gives_no_score(said: str) -> None:
    with pytest.raises(Unscored, match="The scorer judge failed"):
        await scored("a", {"expected": "b"}, Scripted([said]), kind="judge")


async def test_weights_and_names_are_those_of_the_suite(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text("async def score(row, answer):\n    return len(answer) / 10\n")
    wanted = suite(
        scorers=[
            {"kind": "exact", "weight": 3},
            {"kind": "exact", "column": "other"},
            {"kind": "python", "path": "own.py", "name": "length"},
        ]
    )
    scorers = Scorers(wanted, tmp_path)
    assert scorers.names == ["exact", "exact 2", "length"]
    score, each = await scorers.score({"expected": "Paris", "other": "x"}, "Paris", Scripted([]))
    assert each == {"exact": 1, "exact 2": 0, "length": 0.5}
    assert score == pytest.approx(0.7)
    with pytest.raises(InvalidInput, match="command line"):
        Scorers(wanted, None)


@pytest.fixture
async def sink() -> AsyncIterator[tuple[str, list[bytes]]]:
    """A server's address, and what it was asked."""
    asked: list[bytes] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(await reader.readline())
        body = b'{"type": "object"}'
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\nconnection: close\r\n\r\n%s" % (len(body), body))
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/x", asked


@pytest.mark.parametrize("name", ["$ref", "$dynamicRef"])
async def test_a_schema_refers_to_nothing_outside_of_it(
    sink: tuple[str, list[bytes]], tmp_path: Path, name: str
) -> None:
    pytest.importorskip("jsonschema")
    (tmp_path / "secret.json").write_text('{"secret": 1}')
    for place in (sink[0], f"file://{tmp_path}/secret.json#/none"):
        schema = {"properties": {"a": {name: place}}}
        scorers = Scorers(suite(scorers=[{"kind": "json_schema", "schema": schema}]), None)
        with pytest.raises(InvalidInput, match=r"scorers\[0\]: the schema: a \$\w+ has to begin with #\."):
            await scorers.check()
        await scorers.close()
        with pytest.raises(Unscored, match="has to begin with #"):
            await scored('{"a": 1}', {"expected": schema}, kind="json_schema")
    assert sink[1] == []
    own = {"$defs": {"n": {"type": "number"}}, "properties": {"a": {name: "#/$defs/n"}}}
    assert await scored('{"a": "x"}', {"expected": own}, kind="json_schema") == 0
    assert await scored('{"a": 1}', {"expected": own}, kind="json_schema") == 1


def doubling(depth: int) -> dict[str, Any]:
    """A schema that takes two to the power of `depth` steps."""
    parts = {str(n): {"allOf": [{"$ref": f"#/$defs/{n + 1}"}] * 2} for n in range(depth)}
    return {"$defs": parts | {str(depth): {}}, "$ref": "#/$defs/0"}


@pytest.mark.parametrize(
    ("scorer", "row", "answer", "why"),
    [
        ({"kind": "regex"}, {"expected": "(a|aa)+$"}, "a" * 200 + "b", "the pattern: it takes too long"),
        ({"kind": "regex"}, {"expected": "(" * 5000 + ")" * 5000}, "x", "the pattern: it is nested too deeply"),
        ({"kind": "regex"}, {"expected": "("}, "x", "the pattern: it is no pattern (missing ) at position 1)"),
        ({"kind": "regex"}, {"expected": "a" * 20_001}, "x", "the pattern: it has more than 20000 characters"),
        ({"kind": "json_schema"}, {"expected": doubling(40)}, "1", "the schema: it takes too long"),
        (
            {"kind": "json_schema"},
            {"expected": {"pattern": "^(a|aa)+$"}},
            '"' + "a" * 60 + 'b"',
            "the schema: it takes",
        ),
        ({"kind": "json_schema"}, {"expected": "{"}, "1", "the schema: it cannot be followed (JSONDecodeError)"),
    ],
)
async def test_what_a_rule_does_to_its_reader_holds_nobody_up(
    scorer: dict[str, Any], row: dict[str, Any], answer: str, why: str
) -> None:
    pytest.importorskip("jsonschema")
    lag, scorers = 0.0, Scorers(suite(scorers=[scorer, {"kind": "regex", "pattern": "^x"}]), None)
    scoring = asyncio.create_task(scorers.score(row, answer, Scripted([])))
    while not scoring.done():
        before = time.monotonic()
        await asyncio.sleep(0.01)
        lag = max(lag, time.monotonic() - before)
    with pytest.raises(Unscored) as raised:
        await scoring
    assert str(raised.value).startswith(f"The scorer {scorer['kind']} failed: {why}")
    assert lag < 0.5
    await scorers.close()


async def test_after_a_rule_that_took_too_long_others_are_followed_again() -> None:
    pytest.importorskip("jsonschema")
    scorers = Scorers(suite(scorers=[{"kind": "json_schema"}]), None)
    ask = partial(scorers.score, llm=Scripted([]))
    late = asyncio.create_task(ask({"expected": doubling(40)}, "1"))
    assert await asyncio.gather(*(ask({"expected": {"type": "number"}}, said) for said in ("1", '"x"'))) == [
        (1, {"json_schema": 1}),
        (0, {"json_schema": 0}),
    ]
    with pytest.raises(Unscored, match="too long"):
        await late
    assert (await ask({"expected": True}, "1"))[0] == 1
    cut = asyncio.create_task(ask({"expected": doubling(40)}, "1"))
    await asyncio.sleep(0.1)
    cut.cancel()
    assert (await ask({"expected": {"type": "number"}}, '"x"'))[0] == 0
    await scorers.close()


def test_a_fence_is_found_without_looking_twice() -> None:
    began = time.monotonic()
    with pytest.raises(ValueError, match="Expecting value"):
        json_in("```" + " " * 300_000)
    assert time.monotonic() - began < 1
    assert json_in('Here:\n```json\n{"a": 1}\n```\nand ``` more') == {"a": 1}


async def test_only_the_owner_of_a_scorers_code_is_told_what_it_says(tmp_path: Path) -> None:
    with pytest.raises(Unscored, match=r"The scorer judge failed: JSONDecodeError$"):
        await scored("a", {"expected": "b"}, Scripted(["no JSON"]), kind="judge")
    (tmp_path / "own.py").write_text("def score(row, answer):\n    return 1 / 0\n")
    scorers = Scorers(suite(scorers=[{"kind": "python", "path": "own.py"}]), tmp_path)
    with pytest.raises(Unscored, match="ZeroDivisionError: division by zero"):
        await scorers.score({}, "a", Scripted([]))


def test_cosines() -> None:
    assert cosine([1, 0], [1, 0]) == 1
    assert cosine([1, 0], [0, 2]) == 0


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ("naem = 1", "s.toml: naem: there is no such field."),
        ("[dataset]\npth = 'x'", "s.toml: dataset.pth: there is no such field."),
        ("[dataset]", "s.toml: dataset: name one of path, file_id, rows and sessions."),
        (
            "[dataset]\npath = 'x'\n[[agents]]\nid = 'a'\n[[scorers]]\nkind = 'exact'\nwieght = 1",
            "s.toml: scorers[0].wieght: there",
        ),
        ("[dataset]\npath = 'x'\n[[agents]]\nid = 'a'\n[[agents]]\nid = 'a'", "s.toml: agents: two are called a: give"),
        ("[dataset]\npath = 'x'", "s.toml: agents: it is missing."),
        ("= 3", "s.toml is no TOML: "),
    ],
)
def test_a_suite_with_a_wrong_field_names_it(tmp_path: Path, changes: str, sentence: str) -> None:
    file = tmp_path / "s.toml"
    file.write_text(f"name = 'x'\n{changes}\n")
    with pytest.raises(InvalidInput) as raised:
        read_suite(file)
    assert raised.value.message.startswith(sentence)


def test_every_combination_is_a_cell() -> None:
    wanted = suite(
        agents=[{"id": "a", "params": {"x": 1}, "vary": {"model": ["s", "b"], "y": [1, 2]}}, {"id": "b"}], repeats=10
    )
    cells = cells_of(wanted)
    assert [(cell.name, cell.model, cell.params) for cell in cells[:2]] == [
        ("a model=s, y=1", "s", {"x": 1, "y": 1}),
        ("a model=s, y=2", "s", {"x": 1, "y": 2}),
    ]
    assert (len(cells), wanted.block_rows) == (5, 4)
    assert suite().identity() == suite(limits={"money": 1}, dataset={"path": "other"}).identity()
    assert suite().identity() != suite(repeats=2).identity()


def test_combinations_are_counted_before_one_is_made() -> None:
    began = time.monotonic()
    with pytest.raises(ValueError, match="625000000 combinations are more than 200"):
        suite(agents=[{"id": name, "vary": {key: list(range(50)) for key in "vwxyz"}} for name in "ab"])
    assert time.monotonic() - began < 1


def test_what_is_asked_is_a_text_or_a_conversation() -> None:
    assert [message.content for message in asked("Hi")] == ["Hi"]
    said = [{"role": "system", "content": "Be brief"}, {"role": "user", "content": "Hi"}]
    assert [message.role for message in asked(said)] == ["system", "user"]
    for wrong in ("", None, 3, [], [{"role": "assistant", "content": "x"}], [{"role": "user"}]):
        with pytest.raises(ValueError, match=r"it |message"):
            asked(wrong)


def test_p_values_are_those_of_the_textbooks() -> None:
    assert mcnemar(10, 0) == pytest.approx(2 / 2**10)
    assert mcnemar(5, 5) == mcnemar(0, 0) == 1.0
    assert mcnemar(1100, 1000) == pytest.approx(0.0307, abs=0.001)
    # Sign-rank example of Wilcoxon (1945), after Hollander and Wolfe: W+ = 5 of n = 9, exact p = 0.039
    differences = [-0.952, 0.147, -1.022, -0.430, -0.620, -0.590, -0.490, 0.080, -0.010]
    assert wilcoxon(differences) == pytest.approx(0.044, abs=0.002)
    assert wilcoxon([0.0, 0.0]) == 1.0


def test_a_comparison_goes_row_by_row() -> None:
    first = {n: float(n % 2) for n in range(100)}
    second = {n: 1.0 if n < 90 else 0.0 for n in range(20, 120)}
    found = compare(first, second)
    assert found
    assert (found.pairs, found.better, found.worse, found.test) == (80, 35, 5, "McNemar")
    assert found.difference == pytest.approx(30 / 80)
    assert 0.2 < found.low < found.difference < found.high < 0.55
    assert found.p < 0.001
    assert compare(first, {}) is None
    mixed = compare({1: 0.25, 2: 0.5}, {1: 0.75, 2: 0.5})
    assert mixed
    assert mixed.test == "Wilcoxon"


def test_the_interval_of_many_values_is_that_of_the_bootstrap() -> None:
    values = [float(n % 4 == 0) for n in range(1000)]
    few, many = interval(values), interval([*values, 0.0])
    assert few == pytest.approx(many, abs=0.003)
    assert interval([0.5]) == (0.5, 0.5)
