"""Call paths for tests: everything is real but the upstreams, which are fakes in this process."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

from app.journal.recorder import Recorder
from app.llm.batching import Batching
from app.llm.cache import Cache
from app.llm.call import CallPath
from app.llm.catalog import Catalog
from app.llm.endpoints import Endpoints, OwnLLMs
from app.llm.models_file import read
from app.llm.route import Router
from app.llm.run import RunLLM
from app.llm.stages import Caller, Reservations
from app.llm.upstream import Deadlines

OWNER = Caller(uuid4(), "ada", agent="test")
"""A caller without budgets."""


@dataclass
class Models:
    """The models behind a call path; another `catalog` is as good as an edited file."""

    catalog: Catalog
    endpoints: Endpoints
    path: CallPath = field(init=False)

    def current(self) -> Catalog:
        """The catalog, applied."""
        self.endpoints.apply(self.catalog)
        return self.catalog


@asynccontextmanager
async def open_models(
    catalog: Catalog,
    *,
    cache: Cache | None = None,
    reservations: Reservations | None = None,
    deadlines: Deadlines | None = None,
    batching: Callable[[Endpoints], Batching] | None = None,
) -> AsyncIterator[Models]:
    """A call path over a catalog that may change; its connections are closed with the block."""
    models, own = Models(catalog, Endpoints(deadlines=deadlines)), OwnLLMs()
    own.load(catalog)
    router = Router(models.endpoints, own, batching(models.endpoints) if batching else None)
    models.path = CallPath(models.current, router, cache=cache, reservations=reservations)
    try:
        yield models
    finally:
        await models.endpoints.close()


@asynccontextmanager
async def open_path(
    catalog: Catalog, *, cache: Cache | None = None, reservations: Reservations | None = None
) -> AsyncIterator[CallPath]:
    """A call path over a catalog; its connections are closed with the block."""
    async with open_models(catalog, cache=cache, reservations=reservations) as models:
        yield models.path


def catalog_of(folder: Path, text: str, **variables: str) -> Catalog:
    """The catalog of a models file."""
    file = folder / "models.toml"
    file.write_text(text)
    return read(file, variables)


def run_llm(path: CallPath, recorder: Recorder, caller: Caller = OWNER, **defaults: Any) -> RunLLM:
    """The LLM of a run."""
    return RunLLM(path, recorder, caller, **defaults)


def model(alias: str, *urls: str, **rest: str) -> str:
    """A table of a models file: endpoints at these addresses, perhaps with `, key = value` behind, and other keys as TOML."""
    places = [url.partition(",") for url in urls]
    rows = [
        f'{{ base_url = "{url}", model = "{alias}-{at}"{mark}{more} }}' for at, (url, mark, more) in enumerate(places)
    ]
    keys = ([f"endpoints = [{', '.join(rows)}]"] if rows else []) + [
        f"{name} = {value}" for name, value in rest.items()
    ]
    return "\n".join([f"[models.{alias}]", *keys, ""])
