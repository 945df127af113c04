"""A plugin of pytest for tests of agents: `recorded` replays calls of language models, and `--record` makes them anew.

A conftest.py takes it in with `pytest_plugins = ["app.cli.recording"]`.
"""

from __future__ import annotations

import re

import pytest

from app.agent.recorded import Recorded

SECRET = re.compile(r"KEY|TOKEN|SECRET|PASSWORD|_URL$")
"""Names of variables whose values are in no recording."""
SHORTEST = 8
"""Values shorter than this are no secrets: they would be found everywhere."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """The option of the command line."""
    parser.addoption("--record", action="store_true", help="ask the models of OPENAI_* or MODELS_FILE, and record it")


@pytest.fixture
def recorded(request: pytest.FixtureRequest) -> Recorded:
    """An LLM whose calls stand in `recorded/FILE.TEST.json` beside the test."""
    name = re.sub(r"[^\w.-]", "_", request.node.name)
    path = request.path.parent / "recorded" / f"{request.path.stem}.{name}.json"
    if not request.config.getoption("--record"):
        return Recorded(path)
    from app.cli.models_here import ModelsHere
    from app.settings import variables

    secrets = [value for name, value in variables().items() if SECRET.search(name) and len(value) >= SHORTEST]
    return Recorded(path, ModelsHere(), secrets=secrets)
