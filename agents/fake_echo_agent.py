"""Repeats what it is told."""

from app.agent import Chattable, Message


class FakeEchoAgent(Chattable):
    id = "fake_echo_agent"

    async def chat(self, message: Message) -> str:
        return message.content
