"""Packages that only some settings and commands need: who lacks one is told what installs it."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from app.datasets import Bucket, Dataset
from app.errors import InvalidInput, SettingsError
from app.store.milvus import MilvusVectors
from app.suites.scorers import Scorers
from app.suites.suite import Suite

ROOT = Path(__file__).parents[2]
SUITE = {"name": "x", "dataset": {"rows": [{}]}, "agents": [{"id": "x"}], "scorers": [{"kind": "json_schema"}]}


@pytest.mark.parametrize(
    ("package", "use"),
    [
        ("duckdb", lambda: Dataset([{"a": 1}]).write("rows.csv")),
        ("minio", lambda: list(Bucket("127.0.0.1:9000", "key", "secret").read("s3://bucket/rows.csv"))),
        ("pymilvus", lambda: MilvusVectors("http://127.0.0.1:19530")),
        ("jsonschema", lambda: Scorers(Suite.model_validate(SUITE), None)),
    ],
)
def test_a_missing_package_is_one_sentence(
    package: str, use: Callable[[], object], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises((InvalidInput, SettingsError), match=rf"needs the package {package}: \./scripts/extras"):
        use()


def test_what_the_script_is_said_to_install_is_in_its_lock() -> None:
    source = "".join(path.read_text() for path in (ROOT / "app").rglob("*.py"))
    named = set(re.findall(r"the package ([\w-]+)[^\n]*: \./scripts/extras installs it", source))
    assert {"duckdb", "mcp", "pydantic-monty"} < named
    assert named <= set(re.findall(r"^([\w-]+)==", (ROOT / "requirements-full.lock").read_text(), re.MULTILINE))
    (wanted,) = re.findall(r"--upgrade (.*) --constraints .* requirements-full", (ROOT / "scripts/lock").read_text())
    (told,) = re.findall(r"of the extras (.*?), which", (ROOT / "scripts/extras").read_text())
    assert sorted(wanted.replace("--extra ", "").split()) == re.split(", | and ", told)


def test_nobody_is_told_to_install_a_name_that_no_index_has() -> None:
    """Chattable itself is in none: somebody else could take its name."""
    pages = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *(ROOT / "app").rglob("*.py")]
    assert [str(path) for path in pages if re.search(r"chattable\[|install chattable", path.read_text())] == []
