"""LangChain's standard tests for chat models, through its client of OpenAI's API; its embeddings."""

from __future__ import annotations

import struct
import zlib
from typing import Any

import httpx
import pytest
from langchain_core.language_models import BaseChatModel
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from langchain_tests.integration_tests import ChatModelIntegrationTests
from server import KEY, URL


def png() -> bytes:
    """One grey pixel (the PNG specification, section 5)."""

    def piece(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 1, 1, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + piece(b"IHDR", header) + piece(b"IDAT", zlib.compress(b"\0\x80")) + piece(b"IEND", b"")
    )


FILES = {
    ".png": png(),
    ".pdf": b"%PDF-1.4\n%%EOF\n",
    ".wav": b"RIFF\x24\0\0\0WAVEfmt \x10\0\0\0\1\0\1\0\x40\x1f\0\0\x40\x1f\0\0\1\0\x08\0data\0\0\0\0",
}


@pytest.fixture(autouse=True)
def no_web(monkeypatch: pytest.MonkeyPatch) -> None:
    """The suite takes its picture, paper and sound from the web; here they are small ones of our own."""

    def get(url: str, **_: Any) -> httpx.Response:
        return httpx.Response(200, content=next(data for ending, data in FILES.items() if url.endswith(ending)))

    monkeypatch.setattr(httpx, "get", get)
    monkeypatch.setenv("LANGCHAIN_TESTS_USER_AGENT", "none")


class Standard(ChatModelIntegrationTests):
    """All that the suite can try of a chat model."""

    model_name = ""
    supports_json_mode = True
    supports_image_inputs = True
    supports_image_urls = True
    supports_image_tool_message = True
    supports_pdf_inputs = True
    supports_pdf_tool_message = True
    supports_audio_inputs = True
    supports_anthropic_inputs = True
    model_override_value = "fake_echo_agent"

    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return ChatOpenAI

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"model": self.model_name, "base_url": URL, "api_key": KEY, "stream_usage": True}


class TestAgent(Standard):
    """An agent."""

    model_name = "scripted_agent"


class TestAlias(Standard):
    """A language model by its alias."""

    model_name = "default"

    @property
    def supported_usage_metadata_details(self) -> dict[str, Any]:
        return {"invoke": ["cache_read_input", "reasoning_output"], "stream": ["cache_read_input", "reasoning_output"]}

    def invoke_with_cache_read_input(self, *, stream: bool = False) -> Any:
        return self._detailed(stream)

    def invoke_with_reasoning_output(self, *, stream: bool = False) -> Any:
        return self._detailed(stream)

    def _detailed(self, stream: bool) -> Any:
        model = ChatOpenAI(**self.chat_model_params, streaming=stream)
        return model.invoke("say some words more [[fault: details]]")


class TestAgentByResponses(TestAgent):
    """An agent, by the responses API."""

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return super().chat_model_params | {"use_responses_api": True}


class TestAliasByResponses(TestAlias):
    """An alias, by the responses API."""

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return super().chat_model_params | {"use_responses_api": True}


def test_texts_are_embedded() -> None:
    made = OpenAIEmbeddings(model="embedding", base_url=URL, api_key=KEY, check_embedding_ctx_length=False)
    first, second = made.embed_documents(["two words", "word"])
    assert len(first) == len(second) == 4
    assert made.embed_query("word") == second
