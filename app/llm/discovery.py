"""Asks the servers of models with `discover` which models they have: each becomes an alias."""

from __future__ import annotations

import asyncio
import logging

from app.errors import LLMError
from app.llm.catalog import Model, discovered
from app.llm.endpoints import Endpoints
from app.llm.models_file import ModelsFile

log = logging.getLogger(__name__)

LOOK_SECONDS = 1.0
AGAIN_SECONDS = 60.0
"""How often servers are asked again while the file stays as it is."""


async def discover(models: ModelsFile, endpoints: Endpoints) -> None:
    """Keep the aliases of discovered models up to date until cancelled. What a server said last holds while it does not answer."""
    clock = asyncio.get_running_loop().time
    base = extended = models.catalog
    known: dict[str, list[Model]] = {}
    due = 0.0
    while True:
        current = models.catalog
        if current is not extended:
            base, extended, known, due = current, current, {}, 0.0
        if clock() >= due:
            due = clock() + AGAIN_SECONDS
            endpoints.apply(current)
            for model in [model for model in base.models.values() if model.discover]:
                known[model.alias] = await _listed(model, endpoints) or known.get(model.alias, [])
            found = [each for some in known.values() for each in some]
            if models.catalog is current and {each.alias for each in found} - set(current.models):
                models.extend(current, found)
                extended = models.catalog
        await asyncio.sleep(LOOK_SECONDS)


async def _listed(model: Model, endpoints: Endpoints) -> list[Model]:
    try:
        return discovered(model, await endpoints.of(model.endpoints[0]).upstream.models())
    except LLMError as error:
        log.warning("the models of %s are not known: %s", model.alias, error)
        return []
