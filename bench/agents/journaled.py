"""Takes as many recorded steps as its message says."""

from app.agent import Chattable, Message


class Journaled(Chattable):
    id = "journaled"

    async def chat(self, message: Message) -> str:
        for number in range(int(message.content)):
            await self.step(next_of, number)
        return "done"


async def next_of(number: int) -> int:
    """The number after this one."""
    return number + 1
