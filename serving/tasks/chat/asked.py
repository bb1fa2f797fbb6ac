"""What the guard may know of a chat before its answer: everything but its pictures' content."""

from __future__ import annotations

from collections.abc import Sequence

from schedulers.guard.text import Asked
from serving.domain import ImagePart
from serving.tasks.chat.domain import Message, Role, TextPart


def asked_of(messages: Sequence[Message], *, is_structured: bool) -> Asked:
    """The same for a gateway that serves and for ``vireo guard calibrate``: bounds hold for what they were made of.
    What the system says is no turn."""
    system = [message for message in messages if message.role is Role.SYSTEM]
    last = [message for message in messages if message.role is Role.USER][-1:]
    return Asked(
        text="\n".join(_text(message) for message in (*system, *last)),
        num_images=sum(isinstance(part, ImagePart) for message in messages for part in message.parts),
        num_turns=len(messages) - len(system),
        is_structured=is_structured,
    )


def _text(message: Message) -> str:
    return "\n".join(part.text for part in message.parts if isinstance(part, TextPart))
