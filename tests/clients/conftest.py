"""What the tests of all clients share. They run in an environment of their own; see tests/e2e/test_clients.py."""

from __future__ import annotations

import pytest


@pytest.fixture(params=["scripted_agent", "default"], ids=["agent", "alias"])
def model(request: pytest.FixtureRequest) -> str:
    """An agent, and an alias of a language model; both do as they are told."""
    name: str = request.param
    return name
