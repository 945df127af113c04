"""What was said before, as an agent sees it."""

from __future__ import annotations

from app.domain import Message


class History(list[Message]):
    """The active branch of the session, oldest first, ending with the message to answer. The platform writes it."""

    def __str__(self) -> str:
        """The transcript: one `role: content` a message, so that it fits into a prompt."""
        return "\n".join(f"{message.name or message.role}: {message.content}" for message in self)
