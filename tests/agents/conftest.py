from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from app.agent.loader import Agents


@pytest.fixture
async def agents() -> AsyncIterator[Agents]:
    """The agents that are shipped, loaded as the server loads them."""
    agents = Agents(Path(__file__).parents[2] / "agents", {})
    await agents.load()
    yield agents
    agents.close()
