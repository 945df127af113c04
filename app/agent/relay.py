"""The platform's own agent: it answers for every model that is asked for by its alias."""

from __future__ import annotations

from app.agent.chattable import Chattable
from app.domain import Message
from app.llm.llm import Reply


class ModelRelay(Chattable):
    """Passes the conversation on to a language model."""

    id = "model"

    async def chat(self, message: Message) -> Reply:
        """The answer of the model that the request names, under the request's options; else of the session's.

        With `begin`, as it comes: with tools `acall` would wait for its end.
        """
        if self.request is None:
            return self.llm.begin(self.history)
        return self.llm.use(self.request.model).begin(self.history, **self.request.options())
