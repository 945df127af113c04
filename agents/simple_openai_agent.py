"""Talks with a language model, and remembers the conversation."""

from typing import Any

from pydantic import BaseModel, Field

from app.agent import Chattable, Message, Reply


class Params(BaseModel):
    """What a user can set. What is not set is left to the session, and then to the server."""

    system_prompt: str | None = Field(None, max_length=100_000, description="instructions for the model")
    model: str | None = Field(None, min_length=1, max_length=200, description="the model to ask")
    temperature: float | None = Field(None, ge=0, le=2, description="0 is sober, 2 is wild")


class SimpleOpenAIAgent(Chattable):
    id = "simple_openai_agent"
    params: Params

    async def chat(self, message: Message) -> Reply:
        prompt = [Message.system(self.params.system_prompt)] if self.params.system_prompt else []
        return await self.llm.acall([*prompt, *self.history], **self.options())

    def options(self) -> dict[str, Any]:
        """The agent's own settings. The session's come first: where it has one, the platform has applied it already."""
        session = self.session.params
        own = {"model": self.params.model, "temperature": self.params.temperature}
        return {name: value for name, value in own.items() if value is not None and getattr(session, name) is None}
