"""Any OpenAI-compatible server as an LLM of one's own, in a script or in an agent."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from typing import Any

from app.domain import Chunk
from app.errors import InvalidInput
from app.llm.llm import LLM, Endpoint, Finish
from app.llm.options import checked
from app.llm.upstream import OPENAI, Upstream

MAX_EMBEDDED = 2048
"""How many texts a request for embeddings may hold (OpenAI's API reference, "Create embeddings")."""


class OpenAILike(LLM):
    """A model of an OpenAI-compatible server, `api.openai.com` by default."""

    def __init__(
        self,
        api_key: str | None = None,
        base_url: str | None = None,
        model_name: str | None = None,
        header: Mapping[str, str] | None = None,
        temperature: float | None = None,
        max_tokens: int | None = None,
        top_p: float | None = None,
    ) -> None:
        """`header` is sent beside the usual headers; the rest are defaults of calls. A wrong one is `InvalidInput`.

        Key, address and model that are not given are `OPENAI_API_KEY`, `OPENAI_BASE_URL` and `OPENAI_MODEL`; the key is not sent to
        another address than that.
        """
        api_key, base_url, model_name = _filled(api_key, base_url, model_name)
        self._upstream = Upstream(base_url, api_key, headers=header)
        self._server = base_url or OPENAI, api_key or ""
        self._defaults = checked(
            {"model": model_name, "temperature": temperature, "max_tokens": max_tokens, "top_p": top_p}
        )

    async def generate(self, messages: list[dict[str, Any]], **options: Any) -> AsyncGenerator[Chunk | Finish, None]:
        """Ask the server."""
        body = checked(options)
        if "model" not in body:
            raise InvalidInput("OpenAILike needs a model_name.", param="model")
        async with aclosing(self._upstream.stream({**body, "messages": messages})) as answer:
            async for items in answer:
                for item in items:
                    yield item

    async def embed(self, texts: Sequence[str], *, model: str | None = None) -> list[list[float]]:
        """The embedding of each text, in order, by a model of the server that makes them, this one by default."""
        chosen = model or self._defaults.get("model")
        if chosen is None:
            raise InvalidInput("OpenAILike needs a model_name.", param="model")
        vectors: list[list[float]] = []
        for at in range(0, len(texts), MAX_EMBEDDED):
            vectors += (await self._upstream.embed(chosen, texts[at : at + MAX_EMBEDDED]))[0]
        return vectors

    def endpoint(self) -> Endpoint:
        """The server itself."""
        if "model" not in self._defaults:
            raise InvalidInput("OpenAILike needs a model_name.", param="model")
        return Endpoint(*self._server, self._defaults["model"])

    def ping(self) -> bool:
        """Whether the server can be reached and accepts the key. Blocks."""
        return self._wait(self._upstream.ping())

    async def close(self) -> None:
        """Close the connections of this event loop; those of a loop that ends are closed with it."""
        await self._upstream.close()

    def set_model_name(self, model_name: str) -> None:
        """Ask for this model from the next call on."""
        self._set("model", model_name)

    def set_temperature(self, temperature: float) -> None:
        """Use this temperature, 0 to 2, from the next call on."""
        self._set("temperature", temperature)

    def set_max_tokens(self, max_tokens: int) -> None:
        """Allow this many tokens per answer from the next call on."""
        self._set("max_tokens", max_tokens)

    def set_top_p(self, top_p: float) -> None:
        """Use this nucleus of probability, 0 to 1, from the next call on."""
        self._set("top_p", top_p)

    def _set(self, name: str, value: object) -> None:
        self._defaults = {**self._defaults, **checked({name: value})}


def _filled(*given: str | None) -> tuple[str | None, str | None, str | None]:
    """Key, address and model, by the settings where they are not given. The key of the settings is for their server alone."""
    key, address, model = given
    if None in given:
        from app.settings import model_settings

        found = model_settings()
        known = found.openai_api_key.get_secret_value() if found.openai_api_key else None
        own = found.openai_base_url or OPENAI
        if key is None and (address or own).rstrip("/") == own.rstrip("/"):
            key = known
        address = found.openai_base_url if address is None else address
        if model is None and "openai_model" in found.model_fields_set:
            model = found.openai_model
    return key, address, model
