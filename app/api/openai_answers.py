"""The answers of OpenAI's protocol as the OpenAPI document shows them; `openai_wire` makes them, without models, for speed."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, Field


class PromptDetails(BaseModel):
    """What of the prompt had its price lowered."""

    cached_tokens: int


class CompletionDetails(BaseModel):
    """What of the answer was not said."""

    reasoning_tokens: int


class TokenUsage(BaseModel):
    """Tokens of all choices together."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails
    completion_tokens_details: CompletionDetails


class CalledFunction(BaseModel):
    """A function and its arguments, which are JSON as a text."""

    name: str
    arguments: str = Field(examples=['{"city": "Bonn"}'])


class ToolCall(BaseModel):
    """A call of one of the request's tools."""

    id: str
    type: Literal["function"]
    function: CalledFunction


class ChatMessage(BaseModel):
    """An answer. What the agent thought is beside its content."""

    role: Literal["assistant"]
    content: str | None
    refusal: None
    reasoning_content: str | None = Field(None, examples=["The user greets me."])
    tool_calls: list[ToolCall] | None = None
    function_call: CalledFunction | None = Field(None, description="answers the request's `functions`")


class ChatChoice(BaseModel):
    """One of `n` answers."""

    index: int = Field(examples=[0])
    message: ChatMessage
    logprobs: None
    finish_reason: Literal["stop", "length", "content_filter", "tool_calls", "function_call"]


class ChatCompletion(BaseModel):
    """The answers to a chat. The headers `x-session-id` and `x-run-id` name where they are kept."""

    id: str = Field(examples=["chatcmpl-0199a1b2c3d47e5f8a9b0c1d2e3f4a5b"])
    object: Literal["chat.completion"]
    created: int = Field(description="in seconds", examples=[1_893_499_200])
    model: str
    choices: list[ChatChoice]
    usage: TokenUsage


class TextChoice(BaseModel):
    """One of the answers."""

    index: int = Field(examples=[0])
    text: str
    logprobs: None
    finish_reason: Literal["stop", "length", "content_filter"]


class TextCompletion(BaseModel):
    """The answers to bare texts."""

    id: str = Field(examples=["cmpl-0199a1b2c3d47e5f8a9b0c1d2e3f4a5b"])
    object: Literal["text_completion"]
    created: int = Field(description="in seconds", examples=[1_893_499_200])
    model: str
    choices: list[TextChoice]
    usage: TokenUsage


class Embedding(BaseModel):
    """One embedding: numbers, or with `base64` their bytes as 32-bit floats."""

    object: Literal["embedding"]
    index: int = Field(examples=[0])
    embedding: list[float] | str


class EmbeddingUsage(BaseModel):
    """Tokens of all texts together."""

    prompt_tokens: int
    total_tokens: int


class Embeddings(BaseModel):
    """An embedding for each text, in their order."""

    object: Literal["list"]
    data: list[Embedding]
    model: str
    usage: EmbeddingUsage


def _stream(*frames: str) -> dict[int | str, dict[str, Any]]:
    """How an answer looks when it is streamed."""
    example = "".join(f"data: {frame}\n\n" for frame in (*frames, "[DONE]"))
    event = {"type": "object", "required": ["data"], "properties": {"data": {"type": "string"}}}
    return {200: {"content": {"text/event-stream": {"itemSchema": event, "example": example}}}}


_HEAD = '{"id":"…","object":"%s","created":0,"model":"fake_echo_agent","choices":[{"index":0,%s}]}'
CHAT_STREAM = _stream(
    _HEAD % ("chat.completion.chunk", '"delta":{"role":"assistant","content":""},"finish_reason":null'),
    _HEAD % ("chat.completion.chunk", '"delta":{"content":"Hello"},"finish_reason":null'),
    _HEAD % ("chat.completion.chunk", '"delta":{},"finish_reason":"stop"'),
)
TEXT_STREAM = _stream(
    _HEAD % ("text_completion", '"text":"Hello","finish_reason":null'),
    _HEAD % ("text_completion", '"text":"","finish_reason":"stop"'),
)
