"""What an agent is made of: the one module that files in `agents/` import."""

from typing import TYPE_CHECKING, Any

from app.agent.chattable import Chattable
from app.agent.history import History
from app.agent.request import OpenAIRequest
from app.agent.stream import Stream
from app.domain import Chunk, Message, Session, SessionParams
from app.llm.llm import LLM, Completion, Reply

if TYPE_CHECKING:
    from app.llm.openai_like import OpenAILike

BaseLLM = LLM
"""`LLM`, by its name in seed 000."""

__all__ = [
    "LLM",
    "BaseLLM",
    "Chattable",
    "Chunk",
    "Completion",
    "History",
    "Message",
    "OpenAILike",
    "OpenAIRequest",
    "Reply",
    "Session",
    "SessionParams",
    "Stream",
]


def __getattr__(name: str) -> Any:
    if name == "OpenAILike":  # brings an HTTP client, which most agents never need
        from app.llm.openai_like import OpenAILike

        return OpenAILike
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
