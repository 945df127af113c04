"""The web page in a real Chromium against a running server: what it does there stands in tests/browser.

Playwright has an environment of its own, and the page is built by `./scripts/web`, with Node of the PATH or of PyPI.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.test_clients import run, upstream
from tests.e2e.test_serve import ROOT, Serve, serving
from tests.environments import environment

__all__ = ["upstream"]  # a fixture of the clients' tests
pytestmark = [pytest.mark.e2e, pytest.mark.clients, pytest.mark.heavy]
BROWSER = ROOT / "tests" / "browser"
AXE = ROOT / "web" / "node_modules" / "axe-core" / "axe.min.js"
MOST_BYTES = 250_000
"""What the first view of the page may load, compressed."""


@pytest.fixture(scope="module")
def chromium() -> str:
    """The command of a Chromium, which is installed where it is missing, as far as that is allowed."""
    names = ("chromium", "chromium-browser", "google-chrome")
    if not any(map(shutil.which, names)) and shutil.which("apt-get") and os.geteuid() == 0:
        run("apt-get", "update", "--quiet", cwd=ROOT)
        run("apt-get", "install", "--quiet", "--yes", "--no-install-recommends", "chromium", cwd=ROOT)
    found = next(filter(None, map(shutil.which, names)), None)
    assert found, "The page is tried in Chromium: install it (Debian: apt-get install chromium)."
    return found


@pytest.fixture(scope="module")
def page() -> Path:
    """The built page, and beside it what its tests need."""
    if not AXE.is_file():
        shutil.rmtree(ROOT / "web" / "dist", ignore_errors=True)
    run(ROOT / "scripts" / "web", cwd=ROOT)
    return ROOT / "web" / "dist"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, page: Path, upstream: str) -> Iterator[Serve]:
    folder = tmp_path_factory.mktemp("server")
    models = folder / "models.toml"
    price = "price = { prompt = 0.15, completion = 0.60 }"
    models.write_text(
        "".join(f"[models.{alias}]\n{price}\n{endpoint(upstream)}\n" for alias in ("default", "big", "title"))
    )
    agents = folder / "agents"
    shutil.copytree(ROOT / "agents", agents, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(BROWSER / "agents" / "guide.py", agents)
    with serving(folder, folder / "data", AGENTS_DIR=str(agents), MODELS_FILE=str(models)) as serve:
        yield serve.ready()


def endpoint(upstream: str) -> str:
    return f'endpoints = [{{ base_url = "{upstream}", model = "fake" }}]'


@pytest.mark.parametrize("name", ["walk", "answers", "everybody", "administrators", "traces", "people"])
def test_the_page_works_in_a_browser(name: str, chromium: str, server: Serve, tmp_path: Path) -> None:
    python = environment("browser") / "python"
    env = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "PYTHONUTF8": "1", "CHROMIUM": chromium, "AXE": str(AXE)}
    env |= {"CHATTABLE_URL": server.url, "CHATTABLE_KEY": (server.data_dir / "admin.key").read_text().strip()}
    run(python, "-m", "pytest", "-c", BROWSER / "pytest.ini", BROWSER / f"{name}.py", cwd=tmp_path, env=env)


def test_the_first_view_is_small(page: Path) -> None:
    document = (page / "index.html").read_text()
    first = [path for path in page.glob("assets/*.gz") if path.name.removesuffix(".gz") in document]
    assert first
    assert sum(path.stat().st_size for path in first) < MOST_BYTES


def test_the_page_is_built_once(page: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in page.rglob("*")}
    subprocess.run([ROOT / "scripts" / "web"], check=True)
    assert {path: path.stat().st_mtime_ns for path in page.rglob("*")} == before


def test_the_lock_files_of_the_page_name_no_registry() -> None:
    assert "://" not in (ROOT / "tests" / "browser.lock").read_text() + (ROOT / "web" / "node.lock").read_text()
    assert '"resolved"' not in (ROOT / "web" / "package-lock.json").read_text()
