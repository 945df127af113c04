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
    name: module
    for module, names in {
        "app.agent.base": ("BaseAgent",),
        "app.agent.json_keys": ("JsonKeyExtractorPP",),
        "app.agent.knowledge": ("Knowledge",),
        "app.agent.matching": ("FilterPP", "PatternMatcherPP", "ReplacePP"),
        "app.agent.memory": ("BaseMemory", "Memory", "MemoryManager"),
        "app.agent.parallel": ("ParallelPrompt",),
        "app.agent.postprocess": ("BasePostprocess", "DynamicTypePP", "Feed", "SplitterPP", "TypeMapperPP"),
        "app.agent.prompts": ("Prompt",),
        "app.agent.request": ("OpenAIRequest",),
        "app.agent.sandbox": ("CodeFailed", "Sandbox"),
        "app.agent.team": ("Participant", "Talk", "Team"),
        "app.agent.tools": ("Tool", "ToolExecutor", "ToolRegistry", "ToolResult", "tool"),
        "app.llm.openai_like": ("OpenAILike",),
    }.items()
    for name in names
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
