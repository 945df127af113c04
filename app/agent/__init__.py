"""What an agent is made of: the one module that files in `agents/` import.

What most agents need is here at once; the rest is imported when it is first asked for.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from app.agent.chattable import Chattable
from app.agent.history import History
from app.agent.stream import Stream
from app.domain import Chunk, Message, Passage, Session, SessionParams
from app.llm.llm import LLM, Completion, Endpoint, Reply, ToolCall

if TYPE_CHECKING:
    from app.agent.base import BaseAgent
    from app.agent.json_keys import JsonKeyExtractorPP
    from app.agent.knowledge import Knowledge
    from app.agent.matching import FilterPP, PatternMatcherPP, ReplacePP
    from app.agent.memory import BaseMemory, Memory, MemoryManager
    from app.agent.parallel import ParallelPrompt
    from app.agent.postprocess import BasePostprocess, DynamicTypePP, Feed, SplitterPP, TypeMapperPP
    from app.agent.prompts import Prompt
    from app.agent.request import OpenAIRequest
    from app.agent.sandbox import CodeFailed, Sandbox
    from app.agent.team import Participant, Talk, Team
    from app.agent.tools import Tool, ToolExecutor, ToolRegistry, ToolResult, tool
    from app.llm.openai_like import OpenAILike

BaseLLM = LLM
"""`LLM`, by its name in seed 000."""

_LATER = {
    "BaseAgent": "app.agent.base",
    "BaseMemory": "app.agent.memory",
    "BasePostprocess": "app.agent.postprocess",
    "CodeFailed": "app.agent.sandbox",
    "DynamicTypePP": "app.agent.postprocess",
    "Feed": "app.agent.postprocess",
    "FilterPP": "app.agent.matching",
    "JsonKeyExtractorPP": "app.agent.json_keys",
    "Knowledge": "app.agent.knowledge",
    "Memory": "app.agent.memory",
    "MemoryManager": "app.agent.memory",
    "OpenAILike": "app.llm.openai_like",
    "OpenAIRequest": "app.agent.request",
    "ParallelPrompt": "app.agent.parallel",
    "Participant": "app.agent.team",
    "PatternMatcherPP": "app.agent.matching",
    "Prompt": "app.agent.prompts",
    "ReplacePP": "app.agent.matching",
    "Sandbox": "app.agent.sandbox",
    "SplitterPP": "app.agent.postprocess",
    "Talk": "app.agent.team",
    "Team": "app.agent.team",
    "Tool": "app.agent.tools",
    "ToolExecutor": "app.agent.tools",
    "ToolRegistry": "app.agent.tools",
    "ToolResult": "app.agent.tools",
    "TypeMapperPP": "app.agent.postprocess",
    "tool": "app.agent.tools",
}

__all__ = [
    "LLM",
    "BaseAgent",
    "BaseLLM",
    "BaseMemory",
    "BasePostprocess",
    "Chattable",
    "Chunk",
    "CodeFailed",
    "Completion",
    "DynamicTypePP",
    "Endpoint",
    "Feed",
    "FilterPP",
    "History",
    "JsonKeyExtractorPP",
    "Knowledge",
    "Memory",
    "MemoryManager",
    "Message",
    "OpenAILike",
    "OpenAIRequest",
    "ParallelPrompt",
    "Participant",
    "Passage",
    "PatternMatcherPP",
    "Prompt",
    "ReplacePP",
    "Reply",
    "Sandbox",
    "Session",
    "SessionParams",
    "SplitterPP",
    "Stream",
    "Talk",
    "Team",
    "Tool",
    "ToolCall",
    "ToolExecutor",
    "ToolRegistry",
    "ToolResult",
    "TypeMapperPP",
    "tool",
]


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = globals()[name] = getattr(import_module(_LATER[name]), name)
    return found
