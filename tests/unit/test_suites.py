"""Suites, scorers and statistics, without a platform."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from app.agent.testing import Scripted
from app.errors import InvalidInput
from app.suites.scorers import Scorers, Unscored, cosine
from app.suites.statistics import compare, interval, mcnemar, wilcoxon
from app.suites.suite import Suite, asked, cells_of, read_suite

GIVEN: dict[str, Any] = {"name": "x", "dataset": {"path": "x.jsonl"}, "agents": [{"id": "echo"}]}


def suite(**changes: Any) -> Suite:
    return Suite.model_validate(GIVEN | changes)


async def scored(answer: str, row: dict[str, Any], llm: Scripted | None = None, /, **scorer: Any) -> float | None:
    score, _ = await Scorers(suite(scorers=[scorer]), Path()).score(row, answer, llm or Scripted([]))
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
        (
            "[dataset]\npath = 'x'\n[[agents]]\nid = 'a'\n[[scorers]]\nkind = 'regex'\npattern = '('",
            "s.toml: scorers[0]: pattern: ",
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
