"""Shows what an answer can hold, at a pace one can watch: thoughts, a tool, code, a table, and a question."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Literal

from pydantic import BaseModel, Field

from app.agent import BaseAgent, Chunk, Message

SHOWN = """\
# A heading

Some **bold** text, `code`, and $e^{i\\pi}+1=0$.

| Name | Value |
|---|---|
| one | 1 |

```python
def hello() -> str:
    return "Hello"
```

$$\\int_0^1 x^2\\,dx = \\frac13$$

<img src="https://example.org/raw.png" onerror="document.title='broken in'">

![a picture](https://example.org/picture.png) [a trap](javascript:document.title='broken in')
"""


class Params(BaseModel):
    """How it speaks."""

    tone: Literal["warm", "dry"] = Field("warm", description="how it speaks")
    delay: float = Field(0.05, ge=0, le=2, description="seconds between words")


class Trip(BaseModel):
    """Where to."""

    city: str
    nights: int = Field(2, ge=1, le=30)


class Guide(BaseAgent):
    id = "guide"
    params: Params

    async def chat(self, message: Message) -> AsyncIterator[str | Chunk]:
        name, _, rest = message.content.partition(" ")
        if name == "ask":
            trip = await self.ask("Where to?", Trip)
            yield f"{trip.nights} nights in {trip.city}"
        elif name == "count":
            for at in range(int(rest)):
                yield f"w{at} "
                await asyncio.sleep(self.params.delay)
        elif name == "show":
            yield Chunk("Let me see.", "thinking")
            yield Chunk(json.dumps({"name": "look_up", "arguments": {"word": rest}}), "tool_call")
            yield Chunk("It is there.", "tool_result")
            yield SHOWN
        else:
            yield f"{self.params.tone}: {message.content}"
