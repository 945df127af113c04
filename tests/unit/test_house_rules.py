"""Rules of the house that a linter does not know."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
STORE = {path.stem for path in (ROOT / "app/store").glob("*.py")}


def trees(folder: str) -> Iterator[tuple[Path, ast.Module]]:
    for path in sorted((ROOT / folder).rglob("*.py")):
        yield path, ast.parse(path.read_text())


def opens_transaction(node: ast.AST) -> bool:
    return (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr == "begin"
        and not node.args
    )


def transactions(tree: ast.Module) -> Iterator[ast.AsyncWith]:
    for node in ast.walk(tree):
        if isinstance(node, ast.AsyncWith) and any(opens_transaction(item.context_expr) for item in node.items):
            yield node


def takes_db(call: ast.AST) -> bool:
    """An awaited call is SQL when its first argument, or what it is called on, is the transaction."""
    if not isinstance(call, ast.Call):
        return False
    first = call.args[0] if call.args else None
    if isinstance(first, ast.Name) and first.id == "db":
        return True
    return isinstance(call.func, ast.Attribute) and isinstance(call.func.value, ast.Name) and call.func.value.id == "db"


def test_only_usecases_and_the_writer_open_transactions() -> None:
    owners = {path.relative_to(ROOT).as_posix() for path, tree in trees("app") for _ in transactions(tree)}
    assert owners
    allowed = {"app/store/writer.py"}
    assert {owner for owner in owners if not owner.startswith("app/usecases/")} <= allowed


def test_inside_a_transaction_nothing_is_awaited_but_sql() -> None:
    seen = 0
    for path, tree in trees("app"):
        for block in transactions(tree):
            for node in ast.walk(block):
                if isinstance(node, ast.Await):
                    seen += 1
                    assert takes_db(node.value), f"{path.relative_to(ROOT)}:{node.lineno}"
                assert node is block or not isinstance(node, ast.AsyncFor | ast.AsyncWith), f"{path}:{node.lineno}"
    assert seen > 50


def test_store_functions_never_commit_and_take_the_transaction_first() -> None:
    for path, tree in trees("app/store"):
        if path.stem in ("writer", "gather", "reserve", "cache", "slices", "database", "migrations", "tables"):
            continue
        if path.stem.startswith("objects") or path.stem in ("milvus", "spans"):  # they know no database
            continue
        first = "redis" if path.stem in ("redis", "rates") else "db"
        for node in ast.walk(tree):
            if isinstance(node, ast.AsyncFunctionDef):
                assert node.args.args[0].arg in (first, "self"), f"{path}:{node.lineno}"
            if isinstance(node, ast.Attribute):
                assert node.attr not in ("commit", "rollback"), f"{path}:{node.lineno}"


def test_agents_import_nothing_of_the_app_but_its_face() -> None:
    for path, tree in trees("agents"):
        for node in ast.walk(tree):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert all(name == "app.agent" or name.split(".")[0] != "app" for name in names), path
    assert not (ROOT / "agents/__init__.py").exists()


def test_the_app_does_not_import_the_agents() -> None:
    for path, tree in trees("app"):
        for node in ast.walk(tree):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            assert all(name.split(".")[0] != "agents" for name in names), path


def test_the_import_graph_has_no_cycle() -> None:
    graph: dict[str, set[str]] = {}
    for path, tree in trees("app"):
        module = path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".").removesuffix(".__init__")
        graph[module] = set()
        for node in tree.body:
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("app"):
                inner = {f"{node.module}.{alias.name}" for alias in node.names}
                graph[module] |= {node.module or ""} | inner
    done: set[str] = set()

    def visit(module: str, trail: tuple[str, ...]) -> None:
        assert module not in trail, " -> ".join((*trail, module))
        if module in graph and module not in done:
            for imported in graph[module] - {module}:
                visit(imported, (*trail, module))
            done.add(module)

    for module in graph:
        visit(module, ())
