"""The tasks that are served. A new one is a folder and a row here."""

from __future__ import annotations

from typing import Final

from models.contract import LazyRef
from serving.tasks.base import Task

TASKS: Final = (
    Task(name="classify", examples=("vireo classify examples/digit-7.png",)),
    Task(
        name="chat",
        examples=('vireo chat "Read the text." --image examples/word-en.png', "vireo read examples/word-zh.png"),
        read=LazyRef("serving.tasks.chat.models:read_served"),
    ),
    Task(name="images"),
    Task(
        name="videos",
        examples=('vireo video "a red circle moves left" -o clip.mp4',),
        read=LazyRef("serving.tasks.videos.models:read_served"),
    ),
    Task(name="infer", has_commands=False),
)
