"""Other people's clients against a running server: their tests are in tests/clients and tests/node, what they need in lock files there.

Those of Python run in an environment of their own, whose pins do not meet ours. The keys are those of plain users, one for each
client; the server answers at most `PER_MINUTE` requests of each.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.test_serve import ROOT, Serve, serving
from tests.environments import environment, installing

pytestmark = [pytest.mark.e2e, pytest.mark.clients]
NODE = ROOT / "tests" / "node"
PER_MINUTE = 400
"""More than any client's tests need, and few enough to be used up on purpose."""
ALIASES = ("default", "embedding", "text-embedding-3-small")


def run(*command: str | Path, cwd: Path, env: dict[str, str] | None = None) -> None:
    """Run a command to a good end; what it says belongs to the test."""
    pipe = subprocess.PIPE
    done = subprocess.run(command, cwd=cwd, env=env, stdout=pipe, stderr=subprocess.STDOUT, text=True, check=False)
    sys.stdout.write(done.stdout)
    assert done.returncode == 0, done.stdout[-8000:]


@pytest.fixture(scope="module")
def python() -> Path:
    """The interpreter of the clients' environment."""
    return environment("clients") / "python"


@pytest.fixture(scope="module")
def node() -> str:
    """The command of node, whose clients are installed where they are missing."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if not (node and npm):
        pytest.skip("node and npm are needed to try the clients that are written for them")
    with installing(NODE / "package-lock.json", NODE / "node_modules") as is_missing:
        if is_missing:
            run(npm, "ci", "--ignore-scripts", "--no-fund", "--no-audit", cwd=NODE)
    return node


@pytest.fixture(scope="module")
def upstream() -> Iterator[str]:
    """The address of a language model's server in a process of its own."""
    command = [sys.executable, "-m", "tests.fakes.upstream"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        yield process.stdout.readline().strip()
        process.terminate()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, upstream: str) -> Iterator[Serve]:
    folder = tmp_path_factory.mktemp("server")
    models = folder / "models.toml"
    models.write_text(
        "".join(f'[models.{alias}]\nendpoints = [{{ base_url = "{upstream}", model = "fake" }}]\n' for alias in ALIASES)
    )
    settings = {"MODELS_FILE": str(models), "REQUESTS_PER_MINUTE": str(PER_MINUTE)}
    with serving(folder, folder / "data", **settings) as serve:
        yield serve.ready()


@pytest.fixture
def env(server: Serve, tmp_path: Path, request: pytest.FixtureRequest) -> dict[str, str]:
    """The server's address and the key of a new user, and nothing of this process's own."""
    user = server.post("api/v1/users", name=request.node.name)
    key = server.post(f"api/v1/users/{user['id']}/keys", name="test")["key"]
    here = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "PYTHONUTF8": "1"}
    return here | {"CHATTABLE_URL": server.url, "CHATTABLE_KEY": key}


@pytest.mark.parametrize("client", ["langchain_standard", "pydantic_ai_agents", "agents_sdk", "llm_command"])
def test_a_client_of_python_works(client: str, python: Path, env: dict[str, str], tmp_path: Path) -> None:
    folder = ROOT / "tests" / "clients"
    run(python, "-m", "pytest", "-c", folder / "pytest.ini", folder / f"{client}.py", cwd=tmp_path, env=env)


@pytest.mark.node
@pytest.mark.parametrize("client", ["openai", "ai_sdk"])
def test_a_client_of_node_works(client: str, node: str, env: dict[str, str], tmp_path: Path) -> None:
    run(node, "--test", NODE / f"{client}.test.mjs", cwd=tmp_path, env=env)


def test_the_lock_files_name_no_registry() -> None:
    assert "://" not in (ROOT / "tests" / "clients.lock").read_text()
    assert '"resolved"' not in (NODE / "package-lock.json").read_text()
