"""Agents of growing power, as their authors write them: with nothing of the platform but `app.agent`."""

from collections.abc import AsyncIterator, Iterator

from pydantic import BaseModel

from app.agent import BaseAgent, Chattable, Completion, JsonKeyExtractorPP, Message, ReplacePP, Reply, tool


class Mirror(Chattable):
    """Text in, text out."""

    id = "mirror"

    def chat(self, message: Message) -> str:
        return message.content


class Words(Chattable):
    """Speaks word by word."""

    id = "words"

    async def chat(self, message: Message) -> AsyncIterator[str]:
        for word in message.content.split():
            yield word


class SyncWords(Chattable):
    """Speaks word by word, in a thread."""

    id = "sync_words"

    def chat(self, message: Message) -> Iterator[str]:
        yield from message.content.split()


class Manner(BaseModel):
    system_prompt: str = "You are brief."


class Mannered(Chattable):
    """Parameters, history, streaming."""

    id = "mannered"
    params: Manner

    async def chat(self, message: Message) -> Reply:
        return await self.llm.acall([Message.system(self.params.system_prompt), *self.history])


class Keys(BaseModel):
    weather_key: str


@tool
async def weather(city: str) -> str:
    """Current weather in a city."""
    return f"sunny in {city}"


class Forecaster(Chattable):
    """Tools, and the operator's settings."""

    id = "forecaster"
    settings: Keys
    tools = (weather,)

    async def chat(self, message: Message) -> Reply:
        return await self.run_tools(self.history)


class Writer(BaseAgent):
    """Prompts, post-processors, things at once, derived agents."""

    id = "writer"

    async def chat(self, message: Message) -> Completion:
        mask = JsonKeyExtractorPP(target_key="sql") >> ReplacePP({"secret": "***"})
        both = self.create_prompt("A: {{query}}") | self.create_prompt("B: {{query}}")
        first, second = await both.acall(query=message.content)
        child = self.derive(Writer, depth=1)
        join = child.create_prompt("Join {{a}} {{b}}").update_placeholder(a=first, b=second)
        return await join.acall(query=message.content, is_stream=True, postprocessor=mask)


class Plan(BaseModel):
    done: list[str] = []


async def fetch(url: str) -> str:
    return url


class Approval(BaseModel):
    ok: bool


class Researcher(BaseAgent):
    """State, durable steps, a person, another agent, a check that a larger model answers for."""

    id = "researcher"
    state: Plan

    async def chat(self, message: Message) -> Reply | str:
        page = await self.step(fetch, message.content)
        facts = await self.llm.ainvoke(f"Facts in: {page}", accept=lambda text: "unknown" not in text)
        if not (await self.ask("Publish?", Approval)).ok:
            return f"Left unpublished, {self.session.user.name}."
        self.state.done.append(message.content)
        return await self.delegate("translator", facts, language="zh")
