"""The toolkit of an agent's author: prompts, memory, configuration and derived agents.

A `BaseAgent` is the same on the platform and in a plain script, where its memory is in process and its stream collects.
"""

from __future__ import annotations

import inspect
import sys
from collections import ChainMap
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self, TypeVar

from app.agent.chattable import Binding, Chattable, give_meaning
from app.agent.memory import BaseMemory, MemoryManager, loose
from app.agent.prompts import Prompt, read_template
from app.agent.script import ScriptStream, Unrecorded
from app.agent.threads import Threads
from app.domain import Message
from app.errors import AgentFailed

if TYPE_CHECKING:
    from app.llm.llm import LLM, Completion

A = TypeVar("A", bound="BaseAgent")

THREADS = 16
"""Threads for synchronous functions of an agent in a script."""


class BaseAgent(Chattable):
    """An agent with the toolkit. The platform makes a fresh one for each message, with the same arguments."""

    default_memory_cls: ClassVar[type[BaseMemory]] = MemoryManager
    """What the memory is when none is given."""

    _remembering = ("memory", ".chat")  # the one of this class remembers, in whichever agent it is called
    _made: tuple[tuple[Any, ...], dict[str, Any]]

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """Remember the arguments, whatever a subclass takes, so that another can be made with them."""
        self = super().__new__(cls)
        self._made = (args, kwargs)
        return self

    def __init__(
        self,
        llm: LLM | None = None,
        *,
        verbose: bool = False,
        memory: BaseMemory | None = None,
        agent_id: str | None = None,
        **config: Any,
    ) -> None:
        """`verbose` prints in a script what is streamed; all that is not named here is configuration."""
        super().__init__()
        if llm is not None:
            self.llm = llm
        self.verbose = verbose
        self.agent_id = agent_id or getattr(type(self), "id", type(self).__name__)
        chosen: Any = self.default_memory_cls() if memory is None else memory
        self.memory = chosen  # one of the author's own has the verbs that he uses
        self.stream = ScriptStream(verbose=verbose)
        self._config: ChainMap[str, Any] = ChainMap(config)
        self._recorder = Unrecorded()
        self._threads = Threads(f"agent {self.agent_id}", THREADS)
        give_meaning(self)

    @classmethod
    def make(cls, binding: Binding) -> Self:
        """The instance for one message on the platform."""
        return cls(llm=binding.llm)

    def again(self, **changes: Any) -> Self:
        """A fresh agent, made with the same arguments but for `changes`."""
        args, kwargs = self._made
        names = _positional(type(self))
        same = [changes.pop(name, value) for name, value in zip(names, args, strict=False)]
        return type(self)(*same, *args[len(names) :], **{**kwargs, **changes})

    @loose
    async def chat(self, query: str | Message) -> Completion:
        """Answer with one call of the language model, which is given what was said before.

        That is the session for its message on the platform; else the agent's memory, which also keeps the answer.
        """
        history = vars(self).get("history")
        if not history or query is not history[-1]:
            return await self.create_prompt(enable_memory=True).acall(query)
        reply = await self.llm.acall(history)
        async for chunk in reply:
            await self.stream.send(chunk.content_type, chunk.content)
        return await reply.text()

    def derive(self, agent: type[A] | A, /, **kwargs: Any) -> A:
        """Another agent that works for this one: made with this one's LLM and `kwargs`, it shares memory, stream and configuration.

        An instance is not changed: it tells the class and its other arguments. What the derived agent was configured
        with comes before what it shares, and is not seen here.
        """
        child = agent(llm=self.llm, **kwargs) if isinstance(agent, type) else agent.again(llm=self.llm, **kwargs)
        self.knowledge  # noqa: B018 - now or never it is shared
        for name in (
            "memory",
            "_passages",
            "_delegations",
            "_box",
            "stream",
            "session",
            "history",
            "request",
            "_asked",
            "_recorder",
            "_threads",
        ):
            if name in vars(self) and name not in kwargs:
                setattr(child, name, getattr(self, name))
        child._config.maps.extend(self._config.maps)
        return child

    def update_config(self, **values: Any) -> Self:
        """Set configuration; agents derived from this one see it where they have none of their own."""
        self._config.update(values)
        return self

    def get_config(self, name: str | None = None, default: Any = None) -> Any:
        """One value of the configuration, or without a name a copy of all."""
        return dict(self._config) if name is None else self._config.get(name, default)

    def create_prompt(
        self,
        prompt: str | None = None,
        *,
        template_path: str | Path | None = None,
        template_desc: str = "",
        content_type: str = "text",
        system_prompt: str | None = None,
        enable_memory: bool = False,
        memory_id: str = "default",
        max_history_rounds: int = 5,
    ) -> Prompt:
        """A prompt from a Jinja2 template, or a file with one; without either it is the query itself.

        A path is relative to the folder of the agent's file, and stays inside it. `system_prompt` is text, not a
        template. With `enable_memory` the last rounds of the memory `memory_id` are sent before the prompt, or stand where the
        template says `{{history}}`, and query and answer are remembered.
        """
        if prompt is not None and template_path is not None:
            raise AgentFailed("A prompt is made from a template or from a file, not from both.")
        return Prompt(
            self,
            read_template(self._folder(), template_path) if template_path is not None else prompt,
            description=template_desc,
            content_type=content_type,
            system_prompt=system_prompt,
            memory_id=memory_id if enable_memory else None,
            max_history_rounds=max_history_rounds,
        )

    def _folder(self) -> Path:
        """Where the agent's file is; where the process was started for one that has none."""
        for cls in type(self).__mro__:
            if not cls.__module__.startswith("app."):
                file = getattr(sys.modules.get(cls.__module__), "__file__", None)
                return Path(file).parent if file else Path.cwd()
        file = getattr(sys.modules.get("__main__"), "__file__", None)
        return Path(file).parent if file else Path.cwd()


def _positional(agent: type[BaseAgent]) -> list[str]:
    """What positional arguments of a class are called; those of its `*args` as its bases call them, to whom they go."""
    names: list[str] = []
    for maker in (vars(each)["__init__"] for each in agent.__mro__ if "__init__" in vars(each)):
        parameters = list(inspect.signature(maker).parameters.values())[1:]
        names += [each.name for each in parameters if each.kind in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD)]
        if not any(each.kind is each.VAR_POSITIONAL for each in parameters):
            break
    return names
