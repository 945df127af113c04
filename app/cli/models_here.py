"""The language models of OPENAI_* and MODELS_FILE for one process without a server: no budgets, no cache, nothing recorded."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from app.domain import Chunk, new_id
from app.journal.recorder import Recorder
from app.llm.call import CallPath
from app.llm.catalog import Catalog
from app.llm.endpoints import Endpoints, OwnLLMs
from app.llm.llm import LLM, Finish
from app.llm.models_file import ModelsFile
from app.llm.route import Router
from app.llm.run import RunLLM
from app.llm.stages import Caller
from app.settings import load, variables


@asynccontextmanager
async def open_llm() -> AsyncIterator[RunLLM]:
    """An LLM with every alias the settings have; a call fails with the sentence that names the setting when there is none."""
    settings = load()
    key = settings.openai_api_key
    openai = Catalog.from_openai(
        settings.openai_base_url, key.get_secret_value() if key else None, settings.openai_model
    )
    own = OwnLLMs()
    catalog = ModelsFile(settings.models_file, variables, openai, own.load).catalog
    if not settings.models_file.is_file():
        own.load(catalog)
    endpoints = Endpoints()
    endpoints.apply(catalog)
    try:
        path = CallPath(lambda: catalog, Router(endpoints, own))
        yield RunLLM(path, Recorder(), Caller(new_id(), "here"))
    finally:
        await endpoints.close()


class ModelsHere(LLM):
    """These models, opened for each call, so that one object serves any event loop."""

    async def generate(self, messages: list[dict[str, Any]], **options: Any) -> AsyncGenerator[Chunk | Finish, None]:
        """Ask the model that is named, or else `default`."""
        async with open_llm() as llm:
            reply = llm.begin(messages, **options)
            async for chunk in reply:
                yield chunk
            yield Finish(reply.response.finish_reason or "stop", reply.response.usage)

    async def embed(self, texts: Sequence[str], *, model: str | None = None) -> list[list[float]]:
        """By the model that is named, or else `embedding`."""
        async with open_llm() as llm:
            return await llm.embed(texts, model=model)
