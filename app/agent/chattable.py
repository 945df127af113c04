"""What a file in `agents/` declares."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property, partial
from random import random
from typing import TYPE_CHECKING, Any, ClassVar, ParamSpec, Self, TypeVar, overload

from pydantic import BaseModel, TypeAdapter

from app.agent.asking import ask
from app.agent.history import History
from app.agent.plain import canonical, clean, revived
from app.agent.stream import Stream
from app.agent.threads import Threads
from app.domain import Message, Session, now
from app.errors import AgentFailed, InvalidInput
from app.journal.recorder import Recorder

if TYPE_CHECKING:
    from app.agent.delegating import Delegations
    from app.agent.knowledge import Knowledge, Passages
    from app.agent.mcp_servers import Servers
    from app.agent.meaning import Vectors
    from app.agent.memory import MemoryManager
    from app.agent.remembering import Recollection
    from app.agent.request import OpenAIRequest
    from app.agent.sandbox import Box, Sandbox
    from app.llm.llm import LLM, Reply
    from app.llm.messages import Messages

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Binding:
    """What the platform gives one instance for the one message it answers."""

    session: Session
    history: History
    llm: LLM
    recorder: Recorder
    state: Mapping[str, Any] | None = None
    """The agent's state as it was stored with the last answer of this branch."""
    request: Callable[[], OpenAIRequest] | None = None
    """Makes the request that is answered, for an agent that looks at it."""
    memory: Recollection | None = None
    """What the agent remembers; without one it begins with nothing, and nothing of it is stored."""
    toolboxes: Servers | None = None
    """The MCP servers whose tools it may name."""
    passages: Passages | None = None
    """What the agent keeps for the user to look things up in; without them it begins with nothing."""
    delegations: Delegations | None = None
    """The way to have other agents answer."""
    box: Box | None = None
    """Where it may run code, if it may."""


@dataclass(frozen=True, slots=True)
class Own:
    """What an agent's class declares, as values for this instance."""

    params: BaseModel | None
    settings: BaseModel | None
    state: BaseModel | None


class Chattable:
    """An agent. A subclass in `agents/` has an `id` and a `chat`; its docstring is the description users see.

    Pydantic annotations are filled in: `params: P` by the user, for each session; `settings: S` by the operator, from
    the variables `AGENT_<ID>_<FIELD>`; `state: T` is the agent's own, kept with each answer. An instance lives for one
    message.
    """

    id: ClassVar[str]
    shares_cache: ClassVar[bool] = False
    """Whether cached answers of language models are shared among the agent's users; else each has his own."""

    summarises: ClassVar[bool] = True
    """Whether turns that no longer fit into `history` are summarised, where a session does not say; only if it is used at all."""

    tools: ClassVar[Sequence[Callable[..., Any] | str]] = ()
    """The functions that `run_tools` offers the model; `"mcp:NAME"` stands for the tools of a configured MCP server."""

    session: Session
    history: History
    llm: LLM
    stream: Stream
    _remembering: ClassVar[Sequence[str]] = ("memory",)
    """What stands in the text of an agent that remembers something."""
    _asked: Callable[[], OpenAIRequest] | None = None
    _delegations: Delegations | None = None
    _box: Box | None = None
    _passages: Passages | None = None
    _recorder: Recorder
    _threads: Threads
    _toolboxes: Servers | None = None

    def __init__(self, session: Session | None = None) -> None:
        if session is not None:
            self.session = session

    def chat(self, message: Message, /) -> Any:
        """Answer `message`: the one duty.

        May be `def` (which runs in a thread), `async def`, or either as a generator of `str | Chunk`. The answer is all
        that was sent or yielded as text, code or result; if that is nothing, what is returned: text, a Message, a
        Completion, a Reply, or anything with `.content`.
        """
        raise NotImplementedError(f"{type(self).__name__} has no chat")

    @classmethod
    def make(cls, binding: Binding) -> Self:
        """The instance for one message; for the platform, which binds it then."""
        return cls(binding.session)

    @classmethod
    def agent(cls) -> str:
        """The id, as seed 003 asks for it."""
        return cls.id

    @overload
    async def step(self, fn: Callable[P, Awaitable[R]], /, *args: P.args, **kwargs: P.kwargs) -> R: ...
    @overload
    async def step(self, fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R: ...
    async def step(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """Call `fn` as a recorded step named `fn.__name__`; a function that is not async runs in a thread.

        Time, randomness and side effects belong in steps. Arguments and result are recorded where they have a form in
        JSON.
        """
        name = getattr(fn, "__name__", type(fn).__name__)
        given = canonical({"args": args, "kwargs": kwargs})
        result: Any = None
        with self._recorder.step("step", name, input=given, nested=True) as step:
            if step.served is None:
                if "input" in step.changes:
                    args, kwargs = (step.changes["input"].get(name, ()) for name in ("args", "kwargs"))
                    step.input = canonical({"args": args, "kwargs": dict(kwargs)})
                result = await self._called(partial(fn, *args, **dict(kwargs)), fn)
                step.done(canonical(result))
        return result if step.served is None else revived(step.served, fn)

    async def _called(self, call: Callable[[], Any], fn: Callable[..., Any]) -> Any:
        result = call() if inspect.iscoroutinefunction(fn) else await self._threads.run(call, wait=True)
        return await result if inspect.isawaitable(result) else result

    def now(self) -> datetime:
        """The present moment in UTC, recorded: the same when the run begins anew, or is replayed."""
        return self._noted("now", datetime, now)

    def random(self) -> float:
        """A random number from 0 up to 1, recorded likewise. `random.Random(self.random())` gives more, and other kinds."""
        return self._noted("random", float, random)

    def _noted(self, name: str, kind: type[R], give: Callable[[], R]) -> R:
        with self._recorder.step(name, name) as step:
            given = step.changes["input"] if "input" in step.changes else give()
            if step.served is None:
                step.done(canonical(given if isinstance(given, str | float) else str(given)))
        told = step.output if step.served is None else step.served
        return TypeAdapter(kind).validate_json(told or b"")

    async def run_tools(
        self, messages: Messages, *, tools: Sequence[Callable[..., Any] | str] | None = None, max_rounds: int = 8
    ) -> Reply:
        """The answer of the model after it has called tools as often as it wants, up to `max_rounds` times.

        Without `tools` those of the class. The answer is live; what is called and what comes of it is shown beside it.
        Each call is a recorded step.
        """
        from app.agent.mcp_servers import opened
        from app.agent.tools import ToolExecutor, ToolRegistry, rounds
        from app.llm.llm import Reply

        registry = ToolRegistry(await opened(self.tools if tools is None else tools, self._toolboxes))
        executor = ToolExecutor(registry, recorder=self._recorder, threads=self._threads)
        return Reply(rounds(self.llm, messages, executor, max_rounds))

    @overload
    async def ask(self, question: str, /, *, timeout: float = ...) -> str: ...  # noqa: ASYNC109 - a time for a person
    @overload
    async def ask(self, question: str, schema: type[R], /, *, timeout: float = ...) -> R: ...  # noqa: ASYNC109 - as above
    async def ask(self, question: str, schema: Any = str, /, *, timeout: float = 86_400) -> Any:  # noqa: ASYNC109 - a time for a person
        """Ask the person, who answers with the session's next message, or over REST, within `timeout` seconds.

        The run waits, over restarts too, and then `chat` starts again at its top, where all that was recorded is served from the
        journal. A pydantic model as `schema` is what the answer is read as; one that cannot be is asked for again.
        """
        return ask(self._recorder, self.stream.append, question, schema, timeout)

    async def delegate(self, agent_id: str, content: str, /, **params: Any) -> Reply:
        """Have another agent of the server answer `content`, in this session: its live answer, at the first chunk.

        `params` are that agent's. It sees nothing of what was said before, and what it does is recorded below one step of this run.
        `NotFound`, `NotAllowed` or `InvalidInput` when the user could not have asked it either.
        """
        from app.agent.delegating import Wish

        if self._delegations is None:
            raise AgentFailed("Only a running server has other agents to delegate to: this agent has none.")
        if not isinstance(content, str):
            raise InvalidInput("What is delegated must be text.", param="content")
        return await self._delegations.ask(Wish(agent_id, params, [Message.user(clean(content))]))

    async def embed(self, texts: Sequence[str], *, model: str | None = None) -> list[list[float]]:
        """The embedding of each text, in order; by the model `embedding` where there is one and none is named."""
        return await self.llm.embed(texts, model=model)

    @cached_property
    def memory(self) -> MemoryManager:
        """What the agent remembers of this conversation, and of its user."""
        from app.agent.meaning import Meaning
        from app.agent.memory import MemoryManager

        memory = MemoryManager()
        memory.meaning = Meaning(self, self._recorder)
        return memory

    @property
    def knowledge(self) -> Knowledge:
        """What this agent keeps for the user to look things up in. In a script it is gone at the end."""
        from app.agent.knowledge import InProcess, Knowledge

        if self._passages is None:
            self._passages = InProcess()
        return Knowledge(self._passages, self.embed, self._recorder)

    @cached_property
    def request(self) -> OpenAIRequest | None:
        """The request, when the message came through the OpenAI protocol."""
        return self._asked() if self._asked else None

    @property
    def sandbox(self) -> Sandbox:
        """Where code can be run that nobody has looked at, if the administrator allows it. In a script it may be."""
        from app.agent.sandbox import Box, Sandbox

        if self._box is None:
            self._box = Box(enabled="session" not in vars(self))
        return Sandbox(self._box, self._recorder)

    def bind(self, binding: Binding, stream: Stream, own: Own, threads: Threads) -> None:
        """Give the instance what it works with; for the platform, after `__init__`."""
        self.session = binding.session
        self.history = binding.history
        self.llm = binding.llm
        self.stream = stream
        self._asked = binding.request
        if type(self).request is not Chattable.request or "request" in vars(self):  # one of its own would hide this one
            self.request = binding.request() if binding.request else None
        self._passages = binding.passages
        self._delegations = binding.delegations
        self._box = binding.box
        self._recorder = binding.recorder
        self._threads = threads
        if binding.memory is not None:
            binding.memory.fill(self.memory)
        if "memory" in vars(self):
            give_meaning(self, binding.memory.vectors if binding.memory else None)
        self._toolboxes = binding.toolboxes
        for name in ("params", "settings", "state"):
            if (value := getattr(own, name)) is not None:
                setattr(self, name, value)


def give_meaning(agent: Chattable, vectors: Vectors | None = None) -> None:
    """Let the agent's memory, if it is of ours, be searched by meaning with the agent's model."""
    from app.agent.meaning import Meaning
    from app.agent.memory import MemoryManager

    if isinstance(agent.memory, MemoryManager):
        agent.memory.meaning = Meaning(agent, agent._recorder, vectors)
