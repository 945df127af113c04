"""Tools: functions that a model may call, described by their type hints and docstrings."""

from __future__ import annotations

import asyncio
import inspect
import json
import re
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping, Sequence
from typing import Annotated, Any, NotRequired, Required, TypeVar, get_type_hints, overload

from msgspec import Struct
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from typing_extensions import TypedDict

from app.agent.plain import canonical, clean
from app.agent.script import Unrecorded
from app.agent.threads import Threads
from app.domain import Chunk, Usage
from app.errors import AgentFailed, AppError, InvalidInput
from app.journal.recorder import Recorder
from app.journal.replay import Suspended, suspension
from app.llm.llm import LLM, Completion, Finish, Items, ToolCall
from app.llm.messages import Messages, normalise

F = TypeVar("F", bound=Callable[..., Any])

TIMEOUT = 60.0
"""Seconds that a tool may take when it says nothing else."""
AT_ONCE = 16
"""How many tools run at once, of one answer's."""
MAX_RESULT = 100_000
"""The longest result that a model is told, in characters."""
NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")
"""What a function may be called (OpenAI's API reference, "Create chat completion")."""
_PARAMETERS = re.compile(r"^\s*(?:(?:Args|Arguments|Parameters):\s*$|:param\s)", re.MULTILINE)
_PARAMETER = re.compile(r"^\s*(?::param\s+)?\*{0,2}(\w+)\s*(?:\([^)]*\))?\s*:\s*(\S.*)$")


class Tool:
    """A function as a model sees it."""

    def __init__(self, function: Callable[..., Any], *, name: str | None = None, timeout: float | None = None) -> None:
        """`TypeError` for a function whose parameters cannot be described."""
        said: dict[str, Any] = getattr(function, "__tool__", {})
        self.function = function
        self.name: str = name or said.get("name") or str(getattr(function, "__name__", type(function).__name__))
        self.timeout: float = timeout or said.get("timeout") or TIMEOUT
        if not NAME.fullmatch(self.name):
            raise TypeError(f"the tool {self.name} needs a name of 1 to 64 of a-z, A-Z, 0-9, _ and -")
        self.description, about = _documented(inspect.getdoc(function) or "")
        self._arguments, self.parameters = _described(self.name, function, about)

    @classmethod
    def of(cls, given: Callable[..., Any] | Tool) -> Tool:
        """The tool that a function is; described once, for that takes a millisecond."""
        if isinstance(given, Tool):
            return given
        if not inspect.isfunction(given):
            return cls(given)
        kept: dict[str, Any] = vars(given)
        if "__described__" not in kept:
            kept["__described__"] = cls(given)
        made: Tool = kept["__described__"]
        return made

    def to_openai(self) -> dict[str, Any]:
        """The tool as the OpenAI protocol has it."""
        function = {"name": self.name, "description": self.description, "parameters": self.parameters}
        return {"type": "function", "function": function}

    def arguments(self, given: str) -> dict[str, Any]:
        """The arguments that a model wrote, as the function takes them; `InvalidInput` says what is wrong."""
        try:
            body = json.loads(given or "{}")
        except (ValueError, RecursionError) as error:
            raise InvalidInput(f"The arguments are no JSON: {error}.") from None
        try:
            arguments: dict[str, Any] = self._arguments.validate_python(body)
        except ValidationError as error:
            problems = error.errors(include_url=False, include_input=False, include_context=False)
            told = "; ".join(
                f"{'.'.join(map(str, problem['loc'])) or 'arguments'}: {problem['msg']}" for problem in problems
            )
            raise InvalidInput(f"The arguments are wrong: {told[:1000]}.") from None
        return arguments


@overload
def tool(function: F, /) -> F: ...
@overload
def tool(*, name: str | None = None, timeout: float = TIMEOUT) -> Callable[[F], F]: ...
def tool(function: Any = None, /, *, name: str | None = None, timeout: float = TIMEOUT) -> Any:
    """Mark a function as a tool. It stays a function; `timeout` is in seconds.

    Its parameters need type hints. The docstring's first part tells the model what it does, its `Args:` or `:param x:`
    what they mean. What it raises is not told to the model, but for the platform's own errors: what the model should know, return.
    """

    def mark(function: Any) -> Any:
        function.__tool__ = {"name": name, "timeout": timeout}
        return function

    return mark if function is None else mark(function)


class ToolRegistry:
    """Tools by their names."""

    def __init__(self, tools: Iterable[Callable[..., Any] | Tool | str] = ()) -> None:
        self._tools: dict[str, Tool] = {}
        for given in tools:
            self.register(given)

    def register(self, given: Callable[..., Any] | Tool | str) -> Tool:
        """Add a function; a name that is taken is an `InvalidInput`."""
        if isinstance(given, str):
            raise InvalidInput(f"The tools of {given[:100]} are not configured on this server.", param="tools")
        made = Tool.of(given)
        if made.name in self._tools:
            raise InvalidInput(f"There are two tools named {made.name}.", param="tools")
        self._tools[made.name] = made
        return made

    def get(self, name: str) -> Tool | None:
        """A tool, if there is one of that name."""
        return self._tools.get(name)

    def get_all_tools(self) -> list[dict[str, Any]]:
        """All of them, as `llm.acall(…, tools=…)` takes them."""
        return [tool.to_openai() for tool in self._tools.values()]

    def __iter__(self) -> Any:
        return iter(self._tools.values())


class ToolResult(Struct, frozen=True):
    """What came of a call, as the model is told. `failed` when it is a sentence about what went wrong."""

    id: str
    name: str
    content: str
    failed: bool = False

    def to_openai(self) -> dict[str, Any]:
        """The result as a message of the OpenAI protocol."""
        return {"role": "tool", "tool_call_id": self.id, "content": self.content}


class ToolExecutor:
    """Executes calls, several at once, each within its tool's time. Whatever goes wrong is told to the model as a sentence."""

    def __init__(
        self, registry: ToolRegistry, *, recorder: Recorder | None = None, threads: Threads | None = None
    ) -> None:
        self.registry = registry
        self._recorder = recorder or Unrecorded()
        self._threads = threads or Threads("tools", AT_ONCE)

    async def execute(self, calls: Sequence[ToolCall | Mapping[str, Any]]) -> list[ToolResult]:
        """The results, in the order of the calls. When one asks a person, the others end first: they are not done twice."""
        places = asyncio.Semaphore(AT_ONCE)

        async def one(call: ToolCall) -> ToolResult | Suspended:
            async with places:
                try:
                    return await self._execute(call)
                except BaseException as error:
                    if asked := suspension(error):
                        return asked
                    raise

        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one(_call(call))) for call in calls]
        results: list[ToolResult] = []
        for task in tasks:
            if isinstance(result := task.result(), Suspended):
                raise result
            results.append(result)
        return results

    async def _execute(self, call: ToolCall) -> ToolResult:
        given = canonical({"arguments": call.arguments})
        with self._recorder.step("tool", call.name, input=given, nested=True) as step:
            step.failure = None  # what went wrong is told to the model, and not raised
            if step.served is None:
                if "input" in step.changes:
                    call = ToolCall(call.id, call.name, _text(step.changes["input"]))
                    step.input = canonical({"arguments": call.arguments})
                try:
                    content, failed = _text(await self._called(call)), False
                except AppError as error:
                    content, failed = error.message, True
                    step.status, step.error = "failed", error.to_dict()
                step.done(canonical(content))
            if step.served is not None:
                content = json.loads(step.served)
                failed = (step.handed_on or step).error is not None
        return ToolResult(call.id, call.name, content, failed)

    async def _called(self, call: ToolCall) -> Any:
        found = self.registry.get(call.name)
        if found is None:
            known = ", ".join(tool.name for tool in self.registry)
            raise InvalidInput(f"There is no tool of that name. The tools are: {known}.")
        arguments = found.arguments(call.arguments)
        try:
            async with asyncio.timeout(found.timeout) as limit:
                return await self._run(found.function, arguments)
        except TimeoutError:
            late = limit.expired()
            raise AgentFailed(
                f"{found.name} took longer than {found.timeout:g} seconds."
                if late
                else f"{found.name} failed: TimeoutError."
            ) from None
        except AppError:
            raise
        except (Exception, SystemExit, KeyboardInterrupt) as error:  # the last two would end the event loop
            raise AgentFailed(f"{found.name} failed: {type(error).__name__[:64]}.") from error

    async def _run(self, function: Callable[..., Any], arguments: dict[str, Any]) -> Any:
        if inspect.iscoroutinefunction(function):
            return await function(**arguments)
        result = await self._threads.run(lambda: function(**arguments), wait=True)
        return await result if inspect.isawaitable(result) else result


async def rounds(llm: LLM, messages: Messages, executor: ToolExecutor, max_rounds: int) -> AsyncGenerator[Items, None]:
    """What a model says while it calls tools, as one answer: for `Reply`.

    After `max_rounds` rounds of calls the model is asked to answer without.
    """
    asked, tools = normalise(messages), executor.registry.get_all_tools()
    usage = Usage()
    for left in range(max_rounds, -1, -1):
        choice = {} if left or not tools else {"tool_choice": "none"}
        reply, at = llm.begin(asked, **({"tools": tools} if tools else {}), **choice), 0
        try:
            while chunks := await reply.since(at):
                yield chunks
                at += len(chunks)
        finally:
            await reply.close()
        said = reply.response
        usage += said.usage
        if not reply.has_tool_calls:
            yield (Finish(said.finish_reason or "stop", usage),)
            return
        if not left:
            raise AgentFailed(f"The language model still called tools after {max_rounds} rounds.")
        results = await executor.execute(reply.tool_calls)
        yield [Chunk(f"{result.content}\n", "tool") for result in results]  # neighbours may be joined
        asked = [*asked, _called_message(said, reply.tool_calls), *(result.to_openai() for result in results)]


def _called_message(said: Completion, calls: Sequence[ToolCall]) -> dict[str, Any]:
    return {"role": "assistant", "content": str(said) or None, "tool_calls": [call.to_openai() for call in calls]}


def _call(given: ToolCall | Mapping[str, Any]) -> ToolCall:
    if isinstance(given, ToolCall):
        return given
    function = given.get("function", given)
    return ToolCall(given.get("id", ""), function["name"], function.get("arguments", "{}"))


def _text(result: Any) -> str:
    """A result as the model is told: a text as it is, else JSON."""
    if not isinstance(result, str):
        encoded = canonical(result)
        result = encoded.decode() if encoded is not None else str(result)
    text = clean(result)
    return text if len(text) <= MAX_RESULT else f"{text[:MAX_RESULT]} … (cut: {len(text)} characters in all)"


def _described(
    name: str, function: Callable[..., Any], about: Mapping[str, str]
) -> tuple[TypeAdapter[Any], dict[str, Any]]:
    """What checks the arguments of a function, and their JSON Schema."""
    target = function if inspect.isroutine(function) else function.__call__  # type: ignore[operator]  # an object that can be called
    hints = get_type_hints(target, include_extras=True)
    fields: dict[str, Any] = {}
    defaults: dict[str, Any] = {}
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            raise TypeError(f"the tool {name} must take its parameters by name, and {parameter} cannot be")
        if parameter.name not in hints:
            raise TypeError(f"the parameter {parameter.name} of the tool {name} needs a type hint")
        needed = parameter.default is parameter.empty
        hint: Any = hints[parameter.name]
        if words := about.get(parameter.name):
            hint = Annotated[hint, Field(description=words)]
        fields[parameter.name] = Required[hint] if needed else NotRequired[hint]
        if not needed:
            defaults[parameter.name] = parameter.default
    make: Any = TypedDict  # from a signature, which the type checker cannot follow
    shape = make("Arguments", fields)
    shape.__pydantic_config__ = ConfigDict(extra="forbid")
    adapter: TypeAdapter[Any] = TypeAdapter(shape)
    schema = adapter.json_schema()
    schema.pop("title", None)
    for field, default in defaults.items():
        if (encoded := canonical(default)) is not None:
            schema["properties"][field]["default"] = json.loads(encoded)
    return adapter, schema


def _documented(doc: str) -> tuple[str, dict[str, str]]:
    """A docstring's description, and what it says about each parameter."""
    heading = _PARAMETERS.search(doc)
    if heading is None:
        return doc.strip(), {}
    found = filter(None, map(_PARAMETER.match, doc[heading.start() :].splitlines()))
    return doc[: heading.start()].strip(), {match[1]: match[2].strip() for match in found}
